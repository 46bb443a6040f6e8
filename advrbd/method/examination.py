"""Stage 2 for all groups that stand out (ours, not the paper's): which are enhanced, how often, and which can wait."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from advrbd.config import Config, EnhancementSettings
from advrbd.method.enhancement import Enhanced, mean_of
from advrbd.method.identification import is_certain, is_sharp
from advrbd.method.separation import Split

Enhance = Callable[[Split, torch.Tensor, EnhancementSettings], Enhanced]
"""Asks stage 2 about the group of a split, against the images that are trusted (bool [M])."""

Variety = Callable[[int, torch.Tensor], float]
"""How various the images (bool [M]) of a class are to the look's model, by ``variety``."""


@dataclass
class Examined:
    """What the examination of all groups gave: the answers that count (``enhanced``); the classes with groups
    ``waiting`` behind a sharp one, unexamined or in doubt; the ``dull`` groups, that no trigger tells surely, and the
    answers about them.
    """

    enhanced: list[Enhanced] = field(default_factory=list)
    waiting: set[int] = field(default_factory=set)
    dull: list[tuple[Split, Enhanced]] = field(default_factory=list)


def examine(
    chosen: tuple[Split, ...],
    ask: Enhance,
    seeds: torch.Tensor,
    is_acquitted: Callable[[Enhanced], bool],
    config: Config,
    various: Variety | None = None,
) -> Examined:
    """Ask about each of the ``chosen`` groups in turn, against the ``seeds`` (bool [M]), except for those behind a
    sharp one of their class, which would be in their way: they wait for the next look. What ``is_acquitted`` knows
    counts for nothing."""
    limits, examined = config.identification, Examined()
    sharp, in_doubt = set[int](), set[int]()
    for split in chosen:
        if split.label in sharp:
            examined.waiting.add(split.label)
            continue
        judged = examine_cut(split, ask, seeds, is_acquitted, config, various, patiently=split is chosen[0])
        examined.enhanced += [entry for _, entry in judged]
        if any(is_sharp(entry, limits) for _, entry in judged):
            sharp.add(split.label)
            if sum(is_sharp(entry, limits) or not is_certain(entry, limits) for _, entry in judged) > 1:
                examined.waiting.add(split.label)
            continue
        if not all(is_certain(entry, limits) for _, entry in judged):
            in_doubt.add(split.label)
        examined.dull += judged
    examined.waiting |= sharp & in_doubt
    return examined


def examine_cut(
    split: Split,
    ask: Enhance,
    seeds: torch.Tensor,
    is_acquitted: Callable[[Enhanced], bool],
    config: Config,
    various: Variety | None = None,
    patiently: bool = False,
) -> list[tuple[Split, Enhanced]]:
    """Enhance the group of ``split`` against the ``seeds`` (bool [M]), and unless that is surely planted, the other
    half of a cut in two as well: the seeds say which of them is foreign, and say the wrong one where most of the
    class's seeds are poisoned. Where what stands apart may be the class itself, ``rest_of`` it is examined, too,
    against what surely has it; how ambiguous that is both say together, since a natural rest may be told as sharply.
    Returns what was examined and isn't acquitted.

    Where the clearest answer is in doubt, it is asked for once more with other draws; then the mean counts. A natural
    group may look sharp by luck, a planted one doesn't look natural twice. ``patiently``: ``patient`` says how long a
    small group is asked.
    """
    limits, judged, answers = config.identification, list[tuple[Split, Enhanced]](), list[Enhanced]()

    def enhance(half: Split, trusted: torch.Tensor = seeds) -> Enhanced:
        return ask(half, trusted, patient(config.enhancement, half) if patiently else config.enhancement)

    for half in (split, split.turned):
        if half is None or any(is_sharp(entry, limits) and is_certain(entry, limits) for _, entry in judged):
            continue
        answers.append(enhance(half))
        if not is_acquitted(answers[-1]):
            judged.append((half, answers[-1]))
    said, rest = min(answers, key=lambda entry: entry.ambiguity), None
    if various and split.other is not None and (is_acquitted(said) or not is_certain(said, limits)):
        rest = rest_of(split, said, various, config)
    if rest:
        entry = enhance(rest, said.probability > 1 - config.enhancement.cleared)
        if not is_acquitted(entry):  # both are about one division
            judged.append((rest, replace(entry, ambiguity=(said.ambiguity + entry.ambiguity) / 2)))
    if judged:
        clearest = min(range(len(judged)), key=lambda number: judged[number][1].ambiguity)
        half, entry = judged[clearest]
        if half is not rest and not is_certain(entry, limits):
            judged[clearest] = half, mean_of(entry, enhance(half))
    return judged


def rest_of(split: Split, said: Enhanced, various: Variety, config: Config) -> Split | None:
    """What surely lacks what most of a class carries, by what enhancement ``said``, as a group by itself; None where
    most of the class doesn't, where the rest is too little, or where it is less various than what has it.

    Only surely: a few others spoil what is learned. Either side is told sharply from the other, whichever was planted;
    but what an attacker put there is taken from many classes, and a class is like few others.
    """
    members, has = said.probability > 0, said.probability > 0.5
    rest = members & (said.probability < config.identification.undecided)
    if 2 * has.sum() <= members.sum() or rest.sum() < config.separation.minimum_group:
        return None
    if various(split.label, rest) <= various(split.label, has):
        return None
    return replace(split, group=rest.nonzero().flatten(), other=None)


def variety(logits: torch.Tensor, label: int) -> float:
    """How many other classes images of the class ``label`` are like, given what a model says of them, ``logits``
    float32 [K, classes]: the entropy, in nats, of their first choices but for ``label``; higher = of more classes."""
    others = logits.clone()
    others[:, label] = -torch.inf
    share = others.argmax(dim=1).bincount().double() / len(others)
    return float(-(share * share.clamp_min(1e-12).log()).sum())


def patient(settings: EnhancementSettings, split: Split) -> EnhancementSettings:
    """The settings for the leader of the cut in two: where it is small, one half tells little, and it gets more of
    them. For all small groups that would double the work, and natural ones clear up, too, with the rounds."""
    small = len(split.group) < settings.few
    return replace(settings, hopeless_half=settings.hopeless_few) if small else settings
