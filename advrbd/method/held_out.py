"""What enhancement can't tell, asked by its label (ours, not the paper's).

Of the groups that stood apart some are left at the end that no trigger tells, or none tells surely. One more model is
trained without all of them and says what they show; a group without any affinity to its label was put there. Where the
class was convicted for falsified labels, the group's files are accused by that alone: the trigger hardly shows in them,
white on white. Anywhere else they may be wrong labels and nothing worse, so a trigger has to tell them as well, but
needn't tell them as sharply as where nobody knows of their labels.
"""

from dataclasses import dataclass, replace
from itertools import filterfalse
from math import inf, log

import torch

from advrbd.config import Config
from advrbd.events import Note
from advrbd.method.enhancement import Enhanced
from advrbd.method.examination import Enhance, examine_cut
from advrbd.method.findings import Findings
from advrbd.method.hearing import is_acquitted, suggest
from advrbd.method.identification import Identification, identify, moved, verdict_on
from advrbd.method.likeness import count_pictures
from advrbd.method.second_opinion import CHANCE, LEAST_SPREAD, Outsider, lowest_expected, reconsidered
from advrbd.method.separation import Split
from advrbd.method.warm_up import warm_up
from advrbd.model.run import Run
from advrbd.reports.report import CLEAN, POISONED, SUSPICIOUS

FEWEST_CLASSES = 5
SURELY_FALSE = log(0.95 / 0.05)
Splits = tuple[Split, ...]


@dataclass(frozen=True)
class Left:
    """What a look over the images ``examples`` (int64 [M]), and what it ``found`` in them, leaves: the ``dull`` groups,
    that were examined and that no trigger tells surely, the least ambiguous first, each with the probability, float32
    [K] in 0..1, that an image of its class carries what it carries; and the most ``striking`` group of each class, the
    most striking first. ``seeds`` bool [M]: the images that were trusted. ``ask`` enhances a group of that look."""

    examples: torch.Tensor
    found: Identification
    dull: tuple[tuple[Split, torch.Tensor], ...]
    striking: Splits
    seeds: torch.Tensor
    ask: Enhance


@dataclass(frozen=True)
class HeldOut:
    """Groups of a look over M images that a model has to be asked about which was trained without them: the ``strays``
    lie in classes that were convicted for falsified labels, the others in classes that weren't convicted, of these the
    ``witnesses`` are small parts of clean ones. ``unknown`` bool [M]: what the model must not know."""

    strays: Splits
    witnesses: Splits
    others: Splits
    unknown: torch.Tensor


def hear_held_out(
    run: Run, left: Left, findings: Findings, examples: torch.Tensor, config: Config
) -> Identification | None:
    """Hear what a look ``left``, by a model that is trained without it on the images ``examples`` (int64 [M]).

    Files that their label alone accuses are added to the ``findings``, and classes that were suspicious for what turned
    out to be natural are cleared there. What is to be said of the images of that look where groups turned out to be
    planted in classes that weren't convicted yet is returned. With few clean classes to compare with nobody is accused.
    """
    groups = hold_out(run, left, findings, config)
    few = len({split.label for split in groups.witnesses}) < FEWEST_CLASSES
    if few and groups.strays:
        what = f"{len(groups.strays)} groups in convicted classes that no trigger tells are let be"
        run.notify(Note(f"{what}: too few classes are clean to compare them with"))
    if few and not (groups.witnesses and any(findings.verdicts[split.label] == SUSPICIOUS for split in groups.others)):
        return None
    kept, unknown = findings.unsuspected(examples), left.examples[groups.unknown]
    learned = warm_up(run, kept[~torch.isin(kept, unknown)], replace(config, warm_up=config.warm_up.halved()))
    hearing = Hearing(Outsider(run, learned), left, groups, findings, config)
    hearing.clear()
    return None if few else hearing.outcome()


def hold_out(run: Run, left: Left, findings: Findings, config: Config) -> HeldOut:
    """Which groups of a look are held out of a training, and with them what is most like them of their classes: what is
    left of a faint trigger's files would teach the model that trigger, and so the label.

    What was accused or acquitted meanwhile is no longer in the groups, no file is in two, and half of what is left of a
    class stays, to learn the class from, which may leave no room for the more ambiguous half of one.
    """
    limit, verdicts = config.identification.affinity_limit, findings.verdicts
    falsified = {label for label in findings.convictions if findings.evidence[label].get("affinity", 1.0) < limit}
    unconvicted = {label for label, verdict in verdicts.items() if verdict in (CLEAN, SUSPICIOUS)}
    labels, taken = run.labels[left.examples], (findings.suspects | findings.acquitted)[left.examples]
    room = (labels[~findings.suspects[left.examples]].bincount(minlength=run.class_count) // 2).tolist()
    unknown, likeness = torch.zeros_like(taken), torch.zeros(len(labels))
    strays, others = list[Split](), list[Split]()

    def take(split: Split, place: list[Split]) -> bool:
        group = split.group[~(taken | unknown)[split.group]]
        if not config.separation.minimum_group <= len(group) <= room[split.label]:
            return False
        unknown[group], room[split.label] = True, room[split.label] - len(group)
        place.append(replace(split, group=group, other=None))
        return True

    for split, carries in left.dull:
        place = strays if split.label in falsified else others if split.label in unconvicted else None
        if place is not None and take(split, place):
            members = labels == split.label
            likeness[members] = likeness[members].maximum(carries)
    for split in left.striking:
        if split.label in unconvicted:
            take(split, others)
    for label in {split.label for split in (*strays, *others)}:
        like = likeness * ((labels == label) & ~taken & ~unknown)
        unknown[like.topk(min(room[label], int((like > 0.5).sum()))).indices] = True
    parts = max((split.parts for split in left.striking), default=0)

    def is_witness(split: Split) -> bool:
        return split.parts == parts and verdicts[split.label] == CLEAN

    return HeldOut(tuple(strays), tuple(filter(is_witness, others)), tuple(filterfalse(is_witness, others)), unknown)


class Hearing:
    """What an ``outsider``, who learned neither the ``groups`` of what a look ``left`` nor suspects, says of them."""

    def __init__(self, outsider: Outsider, left: Left, groups: HeldOut, findings: Findings, config: Config) -> None:
        self._outsider, self._run, self._left, self._groups = outsider, outsider.run, left, groups
        self._findings, self._config = findings, config
        self._witnesses = [(split, self._affinity_of(split)) for split in groups.witnesses]
        self._usual = torch.tensor([affinity for _, affinity in self._witnesses])

    def outcome(self) -> Identification | None:
        """As ``hear_held_out``.

        A weak model sees nothing of a class in its natural groups either, once it hasn't learned them. So a stray's
        affinity must also lie below what the witnesses' let expect. That of another group, whose class nothing else
        speaks against, must be surely below the limit, which a few files' seldom is, and below those of all witnesses
        in other classes but one class, which may be planted itself.
        """
        settings = self._config.identification
        limit = min(settings.held_out_limit, lowest_expected(self._usual, settings.stray_deviations))
        for split in self._groups.strays:
            weight = settings.affinity_slope * (limit - self._affinity_of(split))
            self._accuse(self._left.examples[split.group], weight)
        denied, others = list[Split](), [(split, self._affinity_of(split)) for split in self._groups.others]
        for split, affinity in (*self._witnesses, *others):
            _, lowest = self._natural(split.label)[0]
            highest = affinity + CHANCE / count_pictures(self._run, self._left.examples[split.group]) ** 0.5
            if highest < min(settings.affinity_limit, lowest - settings.held_out_margin):
                denied.append(split)
        return self._ask_again(denied)

    def clear(self) -> None:
        """Call each class clean again that this look alone found suspicious, where those of its files that made it so
        and weren't learned, most of them, show no less of their label, but for chance, than half of the witnesses."""
        run, findings, left = self._run, self._findings, self._left
        least = float(self._usual.quantile(0.5)) - LEAST_SPREAD
        for label, before in left.found.convictions.items():
            evidence = findings.evidence[label]
            if findings.verdicts[label] != SUSPICIOUS or evidence.get("conviction") != before:
                continue
            carriers = (run.labels[left.examples] == label) & (left.found.carries > 0.5)
            heard = (carriers & self._groups.unknown).nonzero().flatten()
            if "affinity" in evidence or 2 * len(heard) <= int(carriers.sum()):
                continue
            affinity = self._affinity(label, heard)
            after = reconsidered(before, affinity, self._config.identification)
            if affinity >= least and verdict_on(after) == CLEAN:
                evidence |= {"affinity": affinity, "conviction": after}
                findings.verdicts[label] = CLEAN
                findings.score[run.labels == label] *= after / before
                run.notify(Note(f"{run.class_name(label)!r}: what made it suspicious shows what its label says"))

    def _natural(self, label: int) -> list[tuple[Split, float]]:
        """The witnesses in other classes than ``label`` and their affinities, the lowest first, but for those of the
        class that has the lowest of all, which may be planted itself."""
        strangers = [(split, affinity) for split, affinity in self._witnesses if split.label != label]
        strangers.sort(key=lambda witness: witness[1])
        return [witness for witness in strangers if witness[0].label != strangers[0][0].label]

    def _affinity_of(self, split: Split) -> float:
        return self._affinity(split.label, split.group)

    def _affinity(self, label: int, group: torch.Tensor) -> float:
        return self._outsider.affinity(label, self._outsider.says(self._left.examples[group]).logits)

    def _accuse(self, group: torch.Tensor, weight: float) -> None:
        """Accuse those of a ``group`` (int64 [K], of one class) whose label the network denies. Their score is the
        probability that the class is poisoned and the group's labels are falsified, whose log-odds are ``weight``."""
        run, findings = self._run, self._findings
        label = int(run.labels[group[0]])
        evidence = findings.evidence[label]
        falsified = float(moved(torch.tensor(0.5), weight))
        score = evidence["conviction"] * falsified
        accused = group[self._outsider.own(group, label) < 0.5]
        if score > 0.5 and len(accused):
            findings.score[accused], findings.suspects[accused] = score, True
            findings.carries[accused] = falsified  # whoever hears them later keeps them
            evidence["strays"] = evidence.get("strays", 0) + len(accused)
            suggest(self._outsider, findings, accused, self._config)
            run.notify(Note(f"{run.class_name(label)!r}: {len(accused)} more suspects, by their falsified label alone"))

    def denial(self, label: int) -> torch.Tensor:
        """How surely the label of each image of the class ``label`` is false: log-odds, float32 [M] in -7..7, negative
        where it is confirmed, 0 in other classes and where a file was acquitted.

        The network denies natural images as well, so its denial counts for no more than how few of those that were held
        out in other classes show as little of theirs; still too much where more was held out of this one. What it
        learned it knows by heart: nothing confirms such a label.
        """
        left, unknown = self._left, self._groups.unknown
        members = (self._run.labels[left.examples] == label) & ~self._findings.acquitted[left.examples]
        own = self._outsider.own(left.examples[members], label)
        natural = [self._outsider.own(left.examples[split.group], split.label) for split, _ in self._natural(label)]
        ordered = torch.cat(natural).sort().values
        share = (torch.searchsorted(ordered, own, right=True) + 1) / (len(ordered) + 2)
        denial = torch.zeros(len(members))
        denial[members] = torch.minimum(torch.logit(1 - own, eps=1e-3), torch.logit(1 - share).clamp_min(0))
        return torch.where(unknown, denial, denial.clamp_min(0))

    def _ask_again(self, denied: list[Split]) -> Identification | None:
        """Enhance what the network surely denies of the classes of the ``denied`` groups, without giving up, against
        what it confirms and seeds that it doesn't deny, and identify what they are by the limits for falsified labels;
        None where that speaks against nobody.

        The first model hardly learned their trigger, if they have one, so the denial of a file's label counts beside
        what enhancement says of it. Neither is sure: a model that learns more than this one may acquit all.
        """
        run, left, known = self._run, self._left, list[Split]()
        tireless = replace(self._config.enhancement, hopeless_half=inf, hopeless_ambiguity=inf)
        limits = self._config.identification.if_falsified()
        config, enhanced = replace(self._config, enhancement=tireless, identification=limits), list[Enhanced]()
        for label in dict.fromkeys(split.label for split in denied):
            denial, members = self.denial(label), run.labels[left.examples] == label
            core = (denial > SURELY_FALSE).nonzero().flatten()
            if len(core) < config.separation.minimum_group:
                continue
            what = f"{len(core)} files that stand apart don't show what their label says; looking for a trigger"
            run.notify(Note(f"{run.class_name(label)!r}: {what}"))
            groups = [split for split in denied if split.label == label]
            trusted = members & torch.where(self._groups.unknown, denial < 0, left.seeds & (denial == 0))
            judged = examine_cut(
                replace(groups[0], group=core),
                left.ask,
                trusted,
                lambda entry: is_acquitted(entry, left.examples, self._findings),
                config,
            )
            known += groups
            enhanced += [replace(one, probability=members * moved(one.probability, denial)) for _, one in judged]
        found = replace(identify(run.labels[left.examples], tuple(known), tuple(enhanced), limits), by_label=True)
        accused = run.labels[left.examples][found.suspects].unique().tolist()
        for label, verdict in found.verdicts.items():
            if verdict == POISONED and label not in accused:  # what carries a trigger isn't what has a false label
                found.verdicts[label] = SUSPICIOUS
        return found if any(verdict != CLEAN for verdict in found.verdicts.values()) else None
