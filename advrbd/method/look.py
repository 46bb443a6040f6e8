"""All stages in a row: look at the images, take out what was found, and look again until nothing is found that stands.

A second look sees what the first one hid: another group, another class, a trigger that the first short training had
hardly learned. Its model was trained without any suspect, so before it looks, it can say what the suspects really
show. Where all of them turn out to be natural, nothing was hidden, and only what waited behind them needs a look.
What stands apart in a convicted class at the end, without a trigger that tells it, is heard as well: its labels may be
as false.
"""

from dataclasses import dataclass, replace

import torch

from advrbd.config import Config, EnhancementSettings
from advrbd.events import Caution, Note
from advrbd.method.control import Control, find_control, plant_control
from advrbd.method.enhancement import Enhanced, enhance, mean_of
from advrbd.method.findings import Findings
from advrbd.method.hearing import hear_strays, hear_suspects, is_acquitted, strays_among
from advrbd.method.identification import Identification, for_groups, identify, is_certain, is_sharp
from advrbd.method.partition import partition
from advrbd.method.separation import Split, candidates, separate
from advrbd.model.factory import Network
from advrbd.model.inference import Predictions
from advrbd.model.run import Run
from advrbd.reports.report import CLEAN, POISONED, UNEXAMINED, VERDICTS

LEARNED = 0.3  # of the way from guessing the largest class to perfection, on the training images


@dataclass(frozen=True)
class Look:
    """What one look saw: what it ``found``; the classes with groups ``waiting`` behind a sharp one, unexamined or in
    doubt; the ``dull`` groups, int64 [K] each, that were examined and that no trigger tells."""

    found: Identification
    waiting: set[int]
    dull: tuple[torch.Tensor, ...]


def find(run: Run, examples: torch.Tensor, config: Config) -> Findings:
    """Look at the images ``examples`` (int64 [M]) until a look finds nothing that stands, at most ``config.looks``
    times.

    What a look found is heard by a model trained without it, unless a single look was asked for. A look that finds
    neither suspects that stand nor its control is no evidence: one with another control tells whether that was bad
    luck, as it may be where classes are small.
    """
    findings, kept, planted = Findings.nothing(len(run.labels)), examples, 1
    control: Control | None = plant_control(run, kept, config)
    only: set[int] | None = None
    dull: tuple[torch.Tensor, ...] = ()
    network = _warmed_up(run, kept, config, control)
    while True:
        findings.looks += 1
        seen = look(run, network, kept, config, findings, control, only)
        _merge(run, findings, kept, seen.found)
        dull = seen.dull if only is None else dull
        fresh, control, only, last = kept[seen.found.suspects], None, None, findings.looks >= config.looks
        waiting = seen.waiting & set(run.labels[fresh].tolist())  # what stays where it was would be in their way again
        if len(fresh):
            run.notify(Note(f"look {findings.looks}: {len(fresh)} suspects found and set aside"))
            if config.looks > 1:
                kept = examples[~findings.suspects[examples]]
                network = _warmed_up(run, kept, config, None)
                hear_suspects(run, network, findings, examples, config)
        stands = bool(findings.suspects[fresh].any())
        if last:
            break
        if stands:
            continue
        if not (findings.blind or findings.control_found) and planted < config.controls:
            run.notify(Note(f"look {findings.looks}: the control was not found; looking again, with another"))
            kept, planted = examples[~findings.suspects[examples]], planted + 1
            control = plant_control(run, kept, config)
            network = _warmed_up(run, kept, config, control)
        elif waiting:
            only = waiting
        else:
            break
    if last and (stands or waiting):  # what waited behind an acquitted group wasn't cleared by that
        findings.exhausted = True
        what = f"look {findings.looks}, the last one allowed, still found suspects; there may be more"
        _caution(run, findings, what)
    if strays := strays_among(dull, run, findings, examples, config):
        kept = examples[~findings.suspects[examples] & ~torch.isin(examples, torch.cat(strays))]
        hear_strays(run, _warmed_up(run, kept, config, None), findings, strays, kept, config)
    _admit_blindness(run, findings)
    return findings


def look(
    run: Run,
    network: Network,
    examples: torch.Tensor,
    config: Config,
    findings: Findings,
    control: Control | None,
    only: set[int] | None,
) -> Look:
    """The stages over the images ``examples`` (int64 [M]), which ``network`` was trained on; what limits them becomes a
    caution in ``findings``.

    With a ``control``, whether that was found decides whether this look could have seen anything. ``only``: examine
    these classes alone.
    """
    run, shown = _with_copies(run, examples, control)
    outputs, parts = run.predict(network, shown), partition(run, network, shown, config.partition)
    if control:
        findings.control_found = find_control(control, network, shown, outputs, parts, config)
    count, labels = len(examples), run.labels[examples]
    outputs, seeds = Predictions(outputs.classes[:count], outputs.features[:count]), parts.seeds[:count]
    if findings.looks == 1:
        _check_learned(run, outputs, labels, findings)
    splits = separate(outputs, labels, seeds, config.separation, run.generator)
    if findings.looks == 1:
        _check_separation(run, labels, splits, config, findings)
    chosen, enhanced = candidates(splits, config.separation), list[Enhanced]()
    config = replace(config, identification=for_groups(config.identification, len(chosen)))
    if only is not None:
        splits = tuple(split for split in splits if split.label in only)
        chosen = candidates(splits, config.separation)
    sharp, in_doubt, waiting, dull = set[int](), set[int](), set[int](), list[torch.Tensor]()
    for split in chosen:
        if split.label in sharp:
            waiting.add(split.label)
            continue
        judged = _examine(run, network, examples, split, seeds, config, findings, first=split is chosen[0])
        enhanced += [entry for _, entry in judged]
        if any(is_sharp(entry, config.identification) for _, entry in judged):
            sharp.add(split.label)
            if sum(not _is_natural(entry, config) for _, entry in judged) > 1:
                waiting.add(split.label)
            continue
        if not all(is_certain(entry, config.identification) for _, entry in judged):
            in_doubt.add(split.label)
        dull += [examples[half.group] for half, _ in judged]
    found = identify(labels, splits, tuple(enhanced), config.identification)
    return Look(found, waiting | sharp & in_doubt, tuple(dull))


def _warmed_up(run: Run, examples: torch.Tensor, config: Config, control: Control | None) -> Network:
    """A fresh model that learned the ``examples`` for a short time, and the copies of a ``control``."""
    run, shown = _with_copies(run, examples, control)
    network = run.fresh_network()
    run.train(network, shown, config.warm_up, "warm-up")
    return network


def _with_copies(run: Run, examples: torch.Tensor, control: Control | None) -> tuple[Run, torch.Tensor]:
    """The ``examples`` and, after them, the copies of a ``control``, with the run that holds both."""
    return (control.run, torch.cat([examples, control.examples])) if control else (run, examples)


def _examine(
    run: Run,
    network: Network,
    examples: torch.Tensor,
    split: Split,
    seeds: torch.Tensor,
    config: Config,
    findings: Findings,
    first: bool,
) -> list[tuple[Split, Enhanced]]:
    """Enhance the group of ``split``, and unless that is surely planted, the other half of a cut in two as well: the
    seeds say which of them is foreign, and say the wrong one where most of the class's seeds are poisoned. Returns what
    was examined and isn't acquitted; of the ``first`` group that is examined at all, patiently.

    Where the clearest answer is in doubt, it is asked for once more with other draws; then the mean counts. A natural
    group may look sharp by luck, a planted one doesn't look natural twice.
    """

    def enhanced(half: Split) -> Enhanced:
        settings = patient(config.enhancement, half) if first else config.enhancement
        return enhance(run, network, examples, half, seeds, settings)

    limits, judged = config.identification, list[tuple[Split, Enhanced]]()
    for half in (split, split.turned):
        if half is None or any(is_sharp(entry, limits) and is_certain(entry, limits) for _, entry in judged):
            continue
        entry = enhanced(half)
        if not is_acquitted(entry, examples, findings):
            judged.append((half, entry))
    if judged:
        clearest = min(range(len(judged)), key=lambda number: judged[number][1].ambiguity)
        half, entry = judged[clearest]
        if not is_certain(entry, limits):
            judged[clearest] = half, mean_of(entry, enhanced(half))
    return judged


def patient(settings: EnhancementSettings, split: Split) -> EnhancementSettings:
    """The settings for the leader of the cut in two: where it is small, one half tells little, and it gets more of
    them. For all small groups that would double the work, and natural ones clear up, too, with the rounds."""
    small = len(split.group) < settings.few
    return replace(settings, hopeless_half=settings.hopeless_few) if small else settings


def _is_natural(entry: Enhanced, config: Config) -> bool:
    """Whether it is certain that the group was not planted."""
    return is_certain(entry, config.identification) and not is_sharp(entry, config.identification)


def has_learned(accuracy: float, labels: torch.Tensor) -> bool:
    """Whether a model that gets the share ``accuracy`` of its own training images right has learned their ``labels``
    (int64 [M]), which guessing the largest class is not."""
    guessing = float(labels.bincount().max() / len(labels))
    return accuracy > guessing + LEARNED * (1 - guessing)


def _check_learned(run: Run, outputs: Predictions, labels: torch.Tensor, findings: Findings) -> None:
    """A model that didn't learn the task hasn't learned a backdoor either: nothing found means nothing then."""
    accuracy = float((outputs.classes == labels).float().mean())
    findings.blind = not has_learned(accuracy, labels)
    if findings.blind:
        advice = "it could not have seen a backdoor; try another --model"
        _caution(run, findings, f"the model gets only {accuracy:.0%} of its own training images right: {advice}")


def _check_separation(
    run: Run, labels: torch.Tensor, splits: tuple[Split, ...], config: Config, findings: Findings
) -> None:
    """Say in which classes no group could be told from the rest."""
    least = 2 * config.separation.minimum_group
    counts = labels.bincount(minlength=run.class_count)
    if small := int((counts < least).sum()):
        _caution(run, findings, f"{small} classes have fewer than {least} images: a backdoor there can't be seen")
    if alike := int((counts >= least).sum()) - len({split.label for split in splits}):
        _caution(
            run, findings, f"in {alike} classes all images look alike to the model: a backdoor there can't be seen"
        )


def _admit_blindness(run: Run, findings: Findings) -> None:
    """Nothing found is no good news from a scan that could not have seen anything.

    The control competes with real groups for the few places, so its loss says nothing where something was found.
    """
    if not (findings.blind or findings.control_found or POISONED in findings.verdicts.values()):
        findings.blind = True
        what = "a backdoor that the scan planted in memory to test itself"
        _caution(run, findings, f"{what} was not found: an attacker's might not have been either; try another --model")
    if findings.blind:
        for label, verdict in findings.verdicts.items():
            findings.verdicts[label] = UNEXAMINED if verdict == CLEAN else verdict


def _merge(run: Run, findings: Findings, kept: torch.Tensor, found: Identification) -> None:
    """Add what a new look found among the images ``kept``; earlier convictions and acquittals stay."""
    labels, acquitted = run.labels[kept], set(run.labels[findings.acquitted].tolist())
    findings.score[kept] = torch.maximum(findings.score[kept], found.score)
    findings.suspects[kept] |= found.suspects
    for label, verdict in found.verdicts.items():
        before = findings.verdicts.get(label, CLEAN)
        renewed = before in (CLEAN, UNEXAMINED) and label not in acquitted
        if renewed or VERDICTS.index(verdict) > VERDICTS.index(before):
            findings.verdicts[label], findings.evidence[label] = verdict, found.evidence[label]
        if verdict == POISONED:  # what carries a natural group is nobody's business
            members = labels == label
            findings.carries[kept[members]] = torch.maximum(findings.carries[kept[members]], found.carries[members])
            findings.convictions[label] = max(found.convictions[label], findings.convictions.get(label, 0.0))


def _caution(run: Run, findings: Findings, message: str) -> None:
    findings.cautions.append(message)
    run.notify(Caution(message))
