"""What a model that was trained without them says of suspects, and what that changes in the findings."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from advrbd.config import Config
from advrbd.events import Note
from advrbd.method.doubt import Doubt, told_by_label
from advrbd.method.enhancement import Enhanced
from advrbd.method.findings import Findings
from advrbd.method.identification import Identification, verdict_on
from advrbd.method.relearning import relabel
from advrbd.method.second_opinion import Outsider, reconsidered, second_opinion
from advrbd.model.run import Run


def hear_suspects(
    outsider: Outsider, findings: Findings, examples: torch.Tensor, doubted: Mapping[int, Doubt], config: Config
) -> None:
    """Reconsider the classes convicted so far, now that an ``outsider`` learned those of the images ``examples``
    (int64 [M]) that aren't suspected, nor ``doubted``, by class.

    Of files that only this accuses though it learned their label it suggests none. Those that were just acquitted it
    didn't learn: nothing is asked of them.
    """
    labels = outsider.run.labels
    asked = examples[findings.suspects[examples] | torch.isin(examples, outsider.learned.examples)]
    for label, first in list(findings.convictions.items()):
        members = asked[labels[asked] == label]
        unseen = findings.suspects[members]
        if not unseen.any():
            continue
        said = outsider.says(members)
        suggest(outsider, findings, members[unseen], config)
        own, affinity = said.probabilities[:, label], outsider.affinity(label, said.logits[unseen])
        usual = config.identification
        settings = usual.if_falsified() if first.by_label else usual
        heard = second_opinion(findings.carries[members], first.probability, own, unseen, affinity, settings)
        findings.score[members] = heard.conviction * heard.carries
        findings.suspects[members] = findings.score[members] > 0.5
        raised = findings.suspects[members] & ~unseen
        findings.carries[members[raised]] = heard.carries[raised]  # whoever hears them later keeps them
        findings.verdicts[label] = verdict_on(heard.conviction)
        findings.evidence[label] |= {"denied": heard.denied, "affinity": affinity, "conviction": heard.conviction}
        if label in doubted:
            findings.score[doubted[label].held] = heard.conviction * findings.carries[doubted[label].held]
            if affinity < settings.affinity_limit:
                _tell(outsider, findings, label, doubted[label], heard.conviction, config)
        findings.carries[members[unseen & ~findings.suspects[members]]] = 0  # cleared; later models learn them
        if heard.conviction <= 0.5:
            findings.carries[labels == label] = 0
            del findings.convictions[label]
            _acquit(outsider.run, findings, label, members[unseen])


def hear_newcomers(
    outsider: Outsider, findings: Findings, looked_at: torch.Tensor, found: Identification, config: Config
) -> Identification:
    """What a look over the images ``looked_at`` (int64 [M]) has ``found``, without the suspects in classes with
    suspects of earlier looks whom an ``outsider``, who learned none of them, acquits by themselves.

    Among those of before, who have falsified labels, a natural group's affinity would go unseen.
    """
    run, labels = outsider.run, outsider.run.labels[looked_at]
    carries, score, natural = found.carries.clone(), found.score.clone(), set[int]()
    for label in set(run.labels[findings.suspects].tolist()) & found.convictions.keys():
        newcomers = looked_at[found.suspects & (labels == label)]
        if not len(newcomers):
            continue
        affinity = outsider.affinity(label, outsider.says(newcomers).logits)
        if reconsidered(found.convictions[label], affinity, config.identification) <= 0.5:
            natural.add(label)
            carries[labels == label] = score[labels == label] = 0
            _acquit(run, findings, label, newcomers)
    verdicts = {label: verdict for label, verdict in found.verdicts.items() if label not in natural}
    return replace(found, carries=carries, score=score, verdicts=verdicts)


def _tell(outsider: Outsider, findings: Findings, label: int, doubt: Doubt, conviction: float, config: Config) -> None:
    """Accuse those in ``doubt`` whom an ``outsider``, who learned none of them, tells by their ``label``."""
    own, count = outsider.own(doubt.held, label), len(doubt.in_doubt)
    carries = told_by_label(own[:count], own[count:]).maximum(findings.carries[doubt.in_doubt])  # clears nobody
    findings.carries[doubt.in_doubt], findings.score[doubt.in_doubt] = carries, conviction * carries
    accused = doubt.in_doubt[findings.score[doubt.in_doubt] > 0.5]
    if len(accused):
        findings.suspects[accused] = True
        suggest(outsider, findings, accused, config)
        what = f"{len(accused)} more suspects, of {count} files in doubt, by their false labels"
        outsider.run.notify(Note(f"{outsider.run.class_name(label)!r}: {what}"))


def is_acquitted(entry: Enhanced, examples: torch.Tensor, findings: Findings) -> bool:
    """Whether most of what carries what the group carries was acquitted before."""
    carriers = examples[entry.probability > 0.5]
    return 2 * int(findings.acquitted[carriers].sum()) > len(carriers)


def suggest(outsider: Outsider, findings: Findings, suspects: torch.Tensor, config: Config) -> None:
    """Keep what an ``outsider``, who learned none of the ``suspects`` (int64 [S]), sees in them."""
    learned = outsider.learned
    seen = relabel(outsider.run, learned.network, suspects, learned.examples, config.relearning)
    findings.suggested[suspects], findings.confidence[suspects] = seen


def _acquit(run: Run, findings: Findings, label: int, suspects: torch.Tensor) -> None:
    """What turned out to be natural is kept again, from the next training on; no later look may take it for new."""
    findings.acquitted[suspects], findings.carries[suspects] = True, 0
    run.notify(Note(f"{run.class_name(label)!r}: {len(suspects)} suspects acquitted; they show what their label says"))
