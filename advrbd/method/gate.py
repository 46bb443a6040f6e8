"""After stage 3 (ours, not the paper's): how far the cleaned data set and its model can be trusted, and why no further.

``clean`` asks before it writes anything. Nothing here proves that a folder is clean; it names what speaks against it.
"""

from dataclasses import dataclass, replace

import torch

from advrbd.config import Config, GateSettings
from advrbd.method.findings import Findings
from advrbd.method.look import find, has_learned
from advrbd.model.factory import Network
from advrbd.model.run import Run
from advrbd.reports.report import CLEAN, POISONED, SUSPICIOUS, UNEXAMINED

GOOD, LIMITED, NONE = "good", "limited", "none"
UNTESTED = "the scan lost the backdoor that it planted to test itself, beside what it found; --rescan looks once more"


@dataclass(frozen=True)
class ClassCheck:
    """One class before and after: how many ``images`` it had, how many of them were ``kept``, and how many it
    ``gained`` by relabelling.

    ``agreement`` in 0..1: the share of its images now to which the clean model gives its label, low where it could make
    no sense of them in training. ``denied`` in 0..1: the share of its suspects in which a model that was trained
    without them sees another class; high where labels were falsified. None where there are no such images.
    """

    label: str
    images: int
    kept: int
    gained: int
    agreement: float | None
    denied: float | None


@dataclass(frozen=True)
class Check:
    """What the gate says. ``trust`` is ``good``; ``limited``, where ``reasons`` say what speaks against it; or
    ``none``, where a backdoor is still there or the model learned nothing. ``rescan``: the verdict of another look at
    the result, if one was asked for."""

    trust: str
    reasons: tuple[str, ...]
    classes: tuple[ClassCheck, ...]
    rescan: str | None = None


@dataclass(frozen=True)
class Result:
    """What ``clean`` is about to give: the images ``before`` and ``after`` (int64 indices), and the ``labels`` int64
    [N] that they have now. ``accepted`` bool [N], if any are: the images that stay though a scan may suspect them."""

    before: torch.Tensor
    after: torch.Tensor
    labels: torch.Tensor
    accepted: torch.Tensor | None = None


def check(
    run: Run, network: Network, findings: Findings, result: Result, config: Config, rescan: bool = False
) -> Check:
    """Judge the ``result`` and the clean ``network``; with ``rescan``, look for poison in it once more."""
    agrees = run.predict(network, result.after).classes == result.labels[result.after]
    classes = tuple(_compare(run, findings, result, agrees, label) for label in range(run.class_count))
    average, failures, verdict = float(agrees.float().mean()), list[str](), None
    doubts = _doubts_of_scan(run, findings) + _doubts_of_classes(classes, average, config.gate)
    if not has_learned(average, result.labels[result.after]):
        failures.append(f"the clean model gets only {average:.0%} of its own training images right")
    if rescan:
        verdict, worse, unsure = _look_again(run, result, config)
        if verdict == CLEAN:  # which says that it found its own test
            doubts = [doubt for doubt in doubts if doubt != UNTESTED]
        failures, doubts = failures + worse, doubts + unsure
    trust = NONE if failures else LIMITED if doubts else GOOD
    return Check(trust, (*failures, *doubts), classes, verdict)


def _compare(run: Run, findings: Findings, result: Result, agrees: torch.Tensor, label: int) -> ClassCheck:
    images = result.before[run.labels[result.before] == label]
    suspects = images[findings.suspects[images] & (findings.suggested[images] >= 0)]
    denied = findings.suggested[suspects] != label
    before, now = run.labels[result.after] == label, result.labels[result.after] == label
    return ClassCheck(
        run.class_name(label),
        len(images),
        int((before & now).sum()),
        int((now & ~before).sum()),
        round(float(agrees[now].float().mean()), 3) if now.any() else None,
        round(float(denied.float().mean()), 3) if len(suspects) else None,
    )


def _doubts_of_scan(run: Run, findings: Findings) -> list[str]:
    """What the scan left open."""
    doubts = []
    if not findings.told:
        doubts.append("the report doesn't say which classes could be examined; one in JSON does")
    verdicts = {label: findings.verdicts.get(label, UNEXAMINED) for label in range(run.class_count)}
    if unexamined := _named(run, [label for label in verdicts if verdicts[label] == UNEXAMINED]):
        doubts.append(f"a backdoor could not have been seen in {unexamined}")
    if suspicious := _named(run, [label for label in verdicts if verdicts[label] == SUSPICIOUS]):
        doubts.append(f"{suspicious} looked suspicious, but nothing was taken out of there for that")
    if spared := _spared(run, findings, run.labels):
        doubts.append(f"{spared} looked poisoned, but no file was taken out of there")
    if POISONED in verdicts.values() and not findings.control_found:
        doubts.append(UNTESTED)
    if findings.exhausted:
        doubts.append("the last look allowed still found suspects, or left groups unexamined; there may be more")
    return doubts


def _doubts_of_classes(classes: tuple[ClassCheck, ...], average: float, settings: GateSettings) -> list[str]:
    """Classes that lost much, that the model can make little sense of, or whose suspects it finds rightly labelled."""
    doubts = []
    for entry in classes:
        lost = 1 - entry.kept / entry.images if entry.images else 0.0
        if lost > settings.lost:
            doubts.append(f"class {entry.label!r} lost {entry.images - entry.kept} of its {entry.images} images")
        if entry.agreement is not None and entry.agreement < settings.agreement * average:
            share = f"{entry.agreement:.0%} of the images of class {entry.label!r}, {average:.0%} of all"
            doubts.append(f"the clean model, though trained on them, gives the label to only {share}")
        if entry.denied is not None and entry.denied < settings.denied:
            what = "an attack that falsifies no labels, or no attack; look at some of them"
            doubts.append(f"most suspects of class {entry.label!r} do look like their label to the clean model: {what}")
    return doubts


def _look_again(run: Run, result: Result, config: Config) -> tuple[str, list[str], list[str]]:
    """The verdict of one more look, at the result; why nothing there can be trusted for it, and what else it leaves
    open."""
    failures, doubts = list[str](), list[str]()
    again = find(replace(run, labels=result.labels), result.after, config)
    left = again.suspects if result.accepted is None else again.suspects & ~result.accepted
    spared = _spared(run, again, result.labels)
    if spared:
        failures.append(f"another scan still calls {spared} poisoned, without a file of it to accuse")
    if left.any():
        failures.append(f"another scan still finds {int(left.sum())} suspects in the result; clean that, too")
    elif again.verdict == POISONED and not spared:
        doubts.append("another scan suspects files in the result that were accepted, and no others")
    elif again.verdict != CLEAN and not spared:
        doubts.append(f"another scan calls the result {again.verdict}")
    return again.verdict, failures, doubts


def _spared(run: Run, findings: Findings, labels: torch.Tensor) -> str:
    """The classes, by ``labels`` int64 [N], that are called poisoned without a suspect, in words."""
    accused = labels[findings.suspects].unique().tolist()
    verdicts = findings.verdicts.items()
    return _named(run, [label for label, verdict in verdicts if verdict == POISONED and label not in accused])


def _named(run: Run, labels: list[int]) -> str:
    """The classes in words, at most three by name; empty if there are none."""
    names = ", ".join(repr(run.class_name(label)) for label in labels[:3])
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return f"class{'es' if len(labels) > 1 else ''} {names}{more}" if labels else ""
