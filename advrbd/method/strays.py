"""What a trigger hardly shows in, white on white: it is told by its falsified label alone (ours, not the paper's).

In a class that was convicted for falsified labels, a group that still stands apart at the end, without a trigger to
tell it by, may be what is left of the attack, or natural.
"""

import torch

from advrbd.config import Config
from advrbd.events import Note
from advrbd.method.findings import Findings
from advrbd.method.hearing import suggest
from advrbd.method.identification import moved
from advrbd.method.second_opinion import affinity_to
from advrbd.method.warm_up import Learned, warm_up
from advrbd.model.run import Run
from advrbd.reports.report import CLEAN

FEWEST_WITNESSES = 5
LEAST_SPREAD = 0.05
Groups = tuple[torch.Tensor, ...]


def find_strays(
    run: Run, dull: Groups, striking: Groups, findings: Findings, examples: torch.Tensor, config: Config
) -> None:
    """Add the strays among the images ``examples`` (int64 [M]) to the ``findings``; trains a model if there may be any.

    ``dull``: the groups (int64 [K] each) that the last whole look examined and no trigger told; ``striking``: the most
    striking group of each class in it. Both with the most striking first.
    """
    strays = strays_among(dull, run, findings, examples, config)
    if not strays:
        return
    witnesses = witnesses_among(striking, run, findings, examples, config)
    if not witnesses:
        what = "in convicted classes that no trigger tells are let be: too few classes are clean to compare them with"
        run.notify(Note(f"{len(strays)} groups {what}"))
        return
    kept = findings.unsuspected(examples)
    learned = warm_up(run, kept[~torch.isin(kept, torch.cat([*strays, *witnesses]))], config)
    hear_strays(run, learned, findings, strays, witnesses, config)


def strays_among(groups: Groups, run: Run, findings: Findings, examples: torch.Tensor, config: Config) -> Groups:
    """Those of the ``groups`` (int64 [K] each, of one class, the most striking first) that a model has to be asked
    about which was trained without them.

    They lie in a class that was convicted for files whose labels weren't theirs: in any other, a group without
    affinity is label noise.
    """
    limit = config.identification.affinity_limit
    falsified = {label for label in findings.convictions if findings.evidence[label].get("affinity", 1.0) < limit}
    return _left_of(groups, falsified, run, findings, examples, config)


def witnesses_among(groups: Groups, run: Run, findings: Findings, examples: torch.Tensor, config: Config) -> Groups:
    """Those of the ``groups`` (int64 [K] each, of one class, the most striking first) that show what a model says of
    natural groups which it was trained without: of classes that came out clean, the first ``stray_witnesses``, and
    none where they are too few to say anything."""
    clean = {label for label, verdict in findings.verdicts.items() if verdict == CLEAN}
    most = config.identification.stray_witnesses
    found = _left_of(groups, clean, run, findings, examples, config, most)
    return found if len(found) >= FEWEST_WITNESSES else ()


def hear_strays(
    run: Run,
    learned: Learned,
    findings: Findings,
    strays: Groups,
    witnesses: Groups,
    config: Config,
) -> None:
    """Accuse those of the ``strays`` that have no affinity to their label, by a network that ``learned`` neither them
    nor the ``witnesses`` nor any suspect.

    A trigger that changes nothing can't tell them; that they were mislabelled can. But a weak model denies natural
    groups, too, once it hasn't learned them, so a stray's affinity must lie below all that the witnesses' lets expect.
    The strays' score is the probability that the class is poisoned and the group's labels are falsified. Of a group
    those are accused whose label the model denies.
    """
    settings = config.identification

    def seen(group: torch.Tensor) -> tuple[int, torch.Tensor, float]:
        label, said = int(run.labels[group[0]]), run.infer(learned.network, group, mirror=True)
        affinity = affinity_to(label, said.logits, run, learned.network, learned.examples)
        return label, said.probabilities[:, label], affinity

    usual = torch.tensor([seen(group)[2] for group in witnesses])
    limit = min(settings.stray_limit, lowest_expected(usual, settings.stray_deviations))
    for group in strays:
        label, own, affinity = seen(group)
        weight = settings.affinity_slope * (limit - affinity)
        score = findings.evidence[label]["conviction"] * float(moved(torch.tensor(0.5), weight))
        accused = group[own < 0.5]
        if score > 0.5 and len(accused):
            findings.score[accused], findings.suspects[accused] = score, True
            findings.evidence[label]["strays"] = findings.evidence[label].get("strays", 0) + len(accused)
            suggest(run, learned, findings, accused, config)
            run.notify(Note(f"{run.class_name(label)!r}: {len(accused)} more suspects, by their falsified label alone"))


def lowest_expected(values: torch.Tensor, deviations: float) -> float:
    """So many standard deviations below the middle of the ``values`` [K], by their median absolute deviation: a few of
    them may lie far off. A few that agree by chance aren't taken for less spread than ``LEAST_SPREAD``."""
    middle = values.quantile(0.5)
    spread = max(LEAST_SPREAD, 1.4826 * float((values - middle).abs().quantile(0.5)))  # of a Gaussian, by its median
    return float(middle) - deviations * spread


def _left_of(
    groups: Groups,
    labels: set[int],
    run: Run,
    findings: Findings,
    examples: torch.Tensor,
    config: Config,
    most: int | None = None,
) -> Groups:
    """What is left of those ``groups`` that lie in the classes ``labels``, where it is enough to stand apart; of the
    first ``most``.

    What was accused or acquitted meanwhile is no longer in them, no file is in two, and half of what is left of a class
    stays, to learn the class from.
    """
    taken, chosen = torch.zeros(len(run.labels), dtype=torch.bool), list[torch.Tensor]()
    for group in groups:
        label = int(run.labels[group[0]])
        if label not in labels or len(chosen) == most:
            continue
        left = examples[(run.labels[examples] == label) & ~findings.suspects[examples]]
        group = group[~(findings.suspects | findings.acquitted | taken)[group]]
        few = len(group) < config.separation.minimum_group
        too_many = 2 * (int(taken[left].sum()) + len(group)) > len(left)
        if not (few or too_many):
            taken[group] = True
            chosen.append(group)
    return tuple(chosen)
