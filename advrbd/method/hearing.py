"""What a model that was trained without them says of suspects, and what that changes in the findings."""

import torch

from advrbd.config import Config
from advrbd.events import Note
from advrbd.method.enhancement import Enhanced
from advrbd.method.findings import Findings
from advrbd.method.identification import moved, verdict_on
from advrbd.method.relearning import relabel
from advrbd.method.second_opinion import affinity_to, second_opinion
from advrbd.method.warm_up import Learned
from advrbd.model.run import Run


def hear_suspects(run: Run, learned: Learned, findings: Findings, examples: torch.Tensor, config: Config) -> None:
    """Reconsider the classes convicted so far, now that a network ``learned`` those of the images ``examples``
    (int64 [M]) that aren't suspected.

    Of files that only this accuses it learned the label, so it suggests none for them.
    """
    network, kept = learned.network, learned.examples
    for label, first in list(findings.convictions.items()):
        members = examples[run.labels[examples] == label]
        unseen = findings.suspects[members]
        if not unseen.any():
            continue
        said = run.infer(network, members, mirror=True)
        _suggest(run, learned, findings, members[unseen], config)
        own, affinity = said.probabilities[:, label], affinity_to(label, said.logits[unseen], run, network, kept)
        heard = second_opinion(findings.carries[members], first, own, unseen, affinity, config.identification)
        findings.score[members] = heard.conviction * heard.carries
        findings.suspects[members] = findings.score[members] > 0.5
        findings.verdicts[label] = verdict_on(heard.conviction)
        figures = {"denied": heard.denied, "affinity": affinity, "conviction": heard.conviction}
        findings.evidence[label] |= {name: round(figure, 3) for name, figure in figures.items()}
        findings.carries[members[unseen & ~findings.suspects[members]]] = 0  # cleared; later models learn them
        if heard.conviction <= 0.5:
            _acquit(run, findings, label, members[unseen])


def is_acquitted(entry: Enhanced, examples: torch.Tensor, findings: Findings) -> bool:
    """Whether most of what carries what the group carries was acquitted before."""
    carriers = examples[entry.probability > 0.5]
    return 2 * int(findings.acquitted[carriers].sum()) > len(carriers)


def strays_among(
    groups: tuple[torch.Tensor, ...], run: Run, findings: Findings, examples: torch.Tensor, config: Config
) -> tuple[torch.Tensor, ...]:
    """Those of the ``groups`` (int64 [K] each, of one class, the most striking first) that a model has to be asked
    about which was trained without them.

    They lie in a class that was convicted for files whose labels weren't theirs: in any other, a group without
    affinity is label noise. What was accused or acquitted meanwhile is no longer in them, no file is in two, and half
    of what is left of a class stays, to learn the class from.
    """
    taken, strays = torch.zeros(len(run.labels), dtype=torch.bool), []
    for group in groups:
        label = int(run.labels[group[0]])
        left = examples[(run.labels[examples] == label) & ~findings.suspects[examples]]
        group = group[~(findings.suspects | findings.acquitted | taken)[group]]
        few = len(group) < config.separation.minimum_group
        most = 2 * (int(taken[left].sum()) + len(group)) > len(left)
        affinity = findings.evidence[label].get("affinity", 1.0) if label in findings.convictions else 1.0
        if not (few or most) and affinity < config.identification.affinity_limit:
            taken[group] = True
            strays.append(group)
    return tuple(strays)


def hear_strays(
    run: Run, learned: Learned, findings: Findings, strays: tuple[torch.Tensor, ...], config: Config
) -> None:
    """Accuse those of the ``strays`` that have no affinity to their label, by a network that ``learned`` neither them
    nor any suspect.

    A trigger that changes nothing, white on white, can't tell them; that they were mislabelled can. Their score is the
    probability that the class is poisoned and the group's labels are falsified. Of a group those are accused whose
    label the model denies.
    """
    settings, network, kept = config.identification, learned.network, learned.examples
    for group in strays:
        label = int(run.labels[group[0]])
        said = run.infer(network, group, mirror=True)
        weight = settings.affinity_slope * (settings.stray_limit - affinity_to(label, said.logits, run, network, kept))
        score = findings.evidence[label]["conviction"] * float(moved(torch.tensor(0.5), weight))
        accused = group[said.probabilities[:, label] < 0.5]
        if score > 0.5 and len(accused):
            findings.score[accused], findings.suspects[accused] = score, True
            findings.evidence[label]["strays"] = findings.evidence[label].get("strays", 0) + len(accused)
            _suggest(run, learned, findings, accused, config)
            run.notify(Note(f"{run.class_name(label)!r}: {len(accused)} more suspects, by their falsified label alone"))


def _suggest(run: Run, learned: Learned, findings: Findings, suspects: torch.Tensor, config: Config) -> None:
    seen = relabel(run, learned.network, suspects, learned.examples, config.relearning)
    findings.suggested[suspects], findings.confidence[suspects] = seen


def _acquit(run: Run, findings: Findings, label: int, suspects: torch.Tensor) -> None:
    """What turned out to be natural is kept again, from the next training on; no later look may take it for new."""
    findings.acquitted[suspects] = True
    findings.carries[run.labels == label] = 0
    del findings.convictions[label]
    run.notify(Note(f"{run.class_name(label)!r}: {len(suspects)} suspects acquitted; they show what their label says"))
