"""All stages in a row: look at the images, take out what was found, and look again until nothing is found that stands.

A second look sees what the first one hid: another group, another class, a trigger that the first short training had
hardly learned. Its model was trained without the suspects of the first, so before it looks, it can say what they really
show. Where all of them turn out to be natural, nothing was hidden, and only what waited behind them needs a look.
What stands apart at the end, without a trigger that tells it surely, is heard as well: its labels may be false.
"""

from dataclasses import replace
from functools import partial

import torch

from advrbd.config import Config
from advrbd.events import Caution, Note
from advrbd.method.control import find_control, plant_control, with_copies
from advrbd.method.doubt import doubts
from advrbd.method.enhancement import enhance
from advrbd.method.examination import examine, variety
from advrbd.method.findings import Conviction, Findings
from advrbd.method.hearing import hear_newcomers, hear_suspects, is_acquitted
from advrbd.method.held_out import Left, hear_held_out
from advrbd.method.identification import Identification, for_groups, identify
from advrbd.method.likeness import scenes
from advrbd.method.partition import partition
from advrbd.method.second_opinion import Outsider
from advrbd.method.separation import Split, candidates, most_striking, separate
from advrbd.method.warm_up import Learned, warm_up
from advrbd.model.inference import Predictions
from advrbd.model.run import Run
from advrbd.reports.report import CLEAN, POISONED, UNEXAMINED, VERDICTS

FRAMES = 8  # suspects for each scene, from which on they may be frames
LEARNED = 0.3  # of the way from guessing the largest class to perfection, on the training images


def find(run: Run, examples: torch.Tensor, config: Config) -> Findings:
    """Look at the images ``examples`` (int64 [M]) until a look finds nothing that stands, at most ``config.looks``
    times.

    What a look found is heard by a model trained without it, unless a single look was asked for. A look that finds
    neither suspects that stand nor its control is no evidence: one with another control tells whether that was bad
    luck, as it may be where classes are small.
    """
    findings, planted = Findings.nothing(len(run.labels)), 1
    only: set[int] | None = None
    learned = warm_up(run, examples, config, plant_control(run, examples, config))
    for number in range(1, config.looks + 1):
        findings.looks, last = number, number == config.looks
        waiting, seen = look(run, learned, config, findings, only)
        if only is None:
            left = seen
        learned = _set_aside(run, findings, seen.examples, seen.found, examples, config) or learned
        fresh = seen.examples[seen.found.suspects]
        waiting &= set(run.labels[fresh].tolist())  # what stays where it was would be in their way again
        stands = bool(findings.suspects[fresh].any())
        lost = not (findings.blind or findings.control_found) and planted < config.controls
        if config.looks > 1 and not findings.blind and (last or not (stands or waiting or lost)):
            more = hear_held_out(run, left, findings, examples, config)
            if more:
                learned = _set_aside(run, findings, left.examples, more, examples, config) or learned
                stands = stands or bool(findings.suspects[left.examples[more.suspects]].any())
        if last or not (stands or waiting or lost):
            break
        only = None if stands or lost else waiting
        if lost and not stands:
            run.notify(Note(f"look {number}: the control was not found; looking again, with another"))
            kept, planted = findings.unsuspected(examples), planted + 1
            learned = warm_up(run, kept, config, plant_control(run, kept, config))
    if stands or waiting:  # in the last look; what waited behind an acquitted group wasn't cleared by that
        findings.exhausted = True
        saw = "still found suspects" if stands else "left groups unexamined or in doubt behind those that it found"
        _caution(run, findings, f"look {number}, the last one allowed, {saw}; there may be more")
    for label in run.labels[examples].unique().tolist():
        findings.verdicts.setdefault(label, UNEXAMINED)  # too small or too uniform to be cut
    _admit_blindness(run, findings)
    _tell_of_scenes(run, findings)
    return findings


def look(
    run: Run, learned: Learned, config: Config, findings: Findings, only: set[int] | None
) -> tuple[set[int], Left]:
    """The stages over what a network ``learned``, M images; what limits them becomes a caution in ``findings``. Returns
    the classes with groups that wait for another look, and what is left of those that stood apart.

    With a control, whether that was found decides whether this look could have seen anything. ``only``: examine these
    classes alone.
    """
    network, examples, control = learned.network, learned.examples, learned.control
    run, shown = with_copies(run, examples, control)
    outputs, parts = run.predict(network, shown), partition(run, network, shown, config.partition)
    if control:
        findings.control_found = find_control(control, network, shown, outputs, parts, config)
    count, labels = len(examples), run.labels[examples]
    outputs, seeds = Predictions(outputs.classes[:count], outputs.features[:count]), parts.seeds[:count]
    if findings.looks == 1:
        _check_learned(run, outputs, labels, findings)
    splits = separate(outputs.features, labels, seeds, config.separation, run.generator)
    if findings.looks == 1:
        _check_separation(run, labels, splits, config, findings)
    chosen = candidates(splits, labels, config.separation)
    config = replace(config, identification=for_groups(config.identification, len(chosen)))
    if only is not None:
        splits = tuple(split for split in splits if split.label in only)
        chosen = candidates(splits, labels, config.separation)
    ask = partial(enhance, run, network, examples)

    def various(label: int, some: torch.Tensor) -> float:
        return variety(run.infer(network, examples[some], mirror=True).logits, label)

    acquitted = partial(is_acquitted, examples=examples, findings=findings)
    examined = examine(chosen, ask, seeds, acquitted, config, various)
    found = identify(labels, splits, tuple(examined.enhanced), config.identification)
    clearest = sorted(examined.dull, key=lambda judged: judged[1].ambiguity)
    dull = tuple((split, said.probability[labels == split.label]) for split, said in clearest)
    return examined.waiting, Left(examples, found, dull, most_striking(splits), seeds, ask)


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
    if uncut := int((counts >= least).sum()) - len({split.label for split in splits}):
        what = f"no group of {config.separation.minimum_group} images or more stands apart"
        _caution(run, findings, f"in {uncut} classes {what} in the model's eyes: a backdoor there can't be seen")


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


def _tell_of_scenes(run: Run, findings: Findings) -> None:
    """Say where the suspects of a class show few scenes. That is no excuse: one stamped photo may be there often."""
    for label in run.labels[findings.suspects].unique().tolist():
        suspects = (findings.suspects & (run.labels == label)).nonzero().flatten()
        count = len(scenes(run, suspects).unique())
        if len(suspects) >= FRAMES * count:
            findings.evidence[label]["scenes"] = count
            what = f"the {len(suspects)} suspects of class {run.class_name(label)!r} show {count} scenes only"
            why = "models learn frames of a video, or copies of a photo, by heart, as they do a trigger"
            _caution(run, findings, f"{what}: {why}; they may be no more than that")


def _set_aside(
    run: Run, findings: Findings, looked_at: torch.Tensor, found: Identification, examples: torch.Tensor, config: Config
) -> Learned | None:
    """Add what was ``found`` among the images ``looked_at`` (int64 [K]) to the ``findings``, and hear the suspects, and
    what is in doubt, by a network that is trained without them, unless a single look was asked for; that network, if
    there is one.

    It hears first who is new in a class with suspects, since some of them may go before they are added."""
    fresh = looked_at[found.suspects]
    if len(fresh):
        run.notify(Note(f"look {findings.looks}: {len(fresh)} suspects found and set aside"))
    if not len(fresh) or config.looks == 1:
        _merge(run, findings, looked_at, found)
        return None
    doubted, kept = doubts(run, findings, looked_at, found, config), findings.unsuspected(examples)
    held = torch.cat([fresh[:0], *(doubt.held for doubt in doubted.values())])
    learned = warm_up(run, kept[~torch.isin(kept, torch.cat([fresh, held]))], config)
    outsider = Outsider(run, learned)
    found = hear_newcomers(outsider, findings, looked_at, found, config)
    _merge(run, findings, looked_at, found)
    guilty = {label: doubt for label, doubt in doubted.items() if label in found.verdicts}
    hear_suspects(outsider, findings, examples, guilty, config)
    left = findings.unsuspected(held)  # not learned, but whoever isn't accused has to be looked at again
    return replace(learned, examples=torch.cat([learned.examples, left]).sort().values)


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
            earlier, now = findings.convictions.get(label), Conviction(found.convictions[label], found.by_label)
            if earlier is None or (earlier.by_label and not now.by_label):  # a trigger counts by itself
                findings.convictions[label] = now
            elif now.probability > earlier.probability:
                findings.convictions[label] = replace(earlier, probability=now.probability)


def _caution(run: Run, findings: Findings, message: str) -> None:
    findings.cautions.append(message)
    run.notify(Caution(message))
