"""All stages in a row: look at the images, take out what was found, and look again until nothing more is found.

A second look sees what the first one hid: another group, another class, a trigger that the first short training had
hardly learned. The last look, which finds nothing, has a model that was trained without any suspect; it can say what
the suspects really show.
"""

from dataclasses import dataclass, field

import torch

from advrbd.config import Config
from advrbd.events import Caution, Note
from advrbd.method.enhancement import enhance
from advrbd.method.identification import Identification, identify, second_opinion
from advrbd.method.partition import partition
from advrbd.method.relearning import relabel
from advrbd.method.separation import candidates, separate
from advrbd.model.factory import Network
from advrbd.model.inference import Outputs
from advrbd.model.run import Run
from advrbd.reports.report import CLEAN, POISONED, VERDICTS


@dataclass
class Findings:
    """What all looks together say of the N images of a run.

    ``score`` float32 [N] in 0..1, higher = more likely poisoned (``first_score``: before any second opinion);
    ``suspects`` bool [N]; ``verdicts`` and ``evidence`` by class label, from the look that found most. ``suggested``
    int64 [N] is the class that a model trained without the suspects sees in a suspect (-1: there is no such model),
    ``confidence`` float32 [N] its probability.
    """

    score: torch.Tensor
    first_score: torch.Tensor
    suspects: torch.Tensor
    suggested: torch.Tensor
    confidence: torch.Tensor
    verdicts: dict[int, str] = field(default_factory=dict)
    evidence: dict[int, dict[str, float]] = field(default_factory=dict)
    cautions: list[str] = field(default_factory=list)
    looks: int = 0

    @classmethod
    def nothing(cls, count: int) -> "Findings":
        """What is known of ``count`` images before the first look."""
        none = torch.zeros(count)
        return cls(none, none.clone(), torch.zeros(count, dtype=torch.bool), torch.full((count,), -1), none.clone())


def find(run: Run, examples: torch.Tensor, config: Config) -> Findings:
    """Look at the images ``examples`` (int64 [M]) until a look finds nothing, at most ``config.looks`` times."""
    count = len(run.labels)
    findings = Findings.nothing(count)
    while findings.looks < max(1, config.looks):
        findings.looks += 1
        kept = examples[~findings.suspects[examples]]
        network, outputs, found = look(run, kept, config, findings)
        _suggest(run, network, findings)
        _hear_second_opinion(run, findings, kept, outputs)
        _merge(findings, kept, found)
        if not found.suspects.any():
            return findings
        run.notify(Note(f"look {findings.looks}: {int(found.suspects.sum())} suspects found and set aside"))
    _caution(run, findings, f"look {findings.looks}, the last one allowed, still found suspects; there may be more")
    return findings


def look(
    run: Run, examples: torch.Tensor, config: Config, findings: Findings
) -> tuple[Network, Outputs, Identification]:
    """One pass through the stages over the images ``examples``; what limits it becomes a caution in ``findings``."""
    labels = run.labels[examples]
    network = run.fresh_network()
    run.train(network, examples, config.warm_up, "warm-up")
    outputs = run.infer(network, examples)
    if findings.looks == 1:
        _check_learned(run, outputs.logits.argmax(dim=1), labels, findings)
    parts = partition(run, network, examples, config.partition)
    splits = separate(outputs, labels, parts.seeds, config.separation, run.generator)
    if findings.looks == 1 and len(splits) < run.class_count:
        small = run.class_count - len(splits)
        least = 2 * config.separation.minimum_group
        _caution(run, findings, f"{small} classes have fewer than {least} images: a backdoor there can't be seen")
    chosen, passed_over = candidates(splits, config.separation)
    if passed_over:
        _caution(run, findings, f"{passed_over} more classes stood out than are examined in one look")
    enhanced = tuple(enhance(run, network, examples, split, parts.seeds, config.enhancement) for split in chosen)
    return network, outputs, identify(labels, splits, enhanced, config.identification)


def _check_learned(run: Run, predicted: torch.Tensor, labels: torch.Tensor, findings: Findings) -> None:
    """A model that didn't learn the task hasn't learned a backdoor either: nothing found means nothing then."""
    accuracy = float((predicted == labels).float().mean())
    frequent = float(labels.bincount().max() / len(labels))
    if accuracy < min(0.9, 2 * frequent):
        _caution(
            run,
            findings,
            f"the model gets only {accuracy:.0%} of its own training images right: it could not have seen a backdoor; "
            "try another --model",
        )


def _hear_second_opinion(run: Run, findings: Findings, kept: torch.Tensor, outputs: Outputs) -> None:
    """Reconsider what earlier looks left in the classes that they convicted, now that a model learned no suspect."""
    convicted = [label for label, verdict in findings.verdicts.items() if verdict == POISONED]
    labels = run.labels[kept]
    left = torch.isin(labels, torch.tensor(convicted, dtype=torch.int64)).nonzero().flatten()
    own = outputs.probabilities[left, labels[left]]
    findings.score[kept[left]] = second_opinion(findings.first_score[kept[left]], own)
    findings.suspects[kept[left]] = findings.score[kept[left]] > 0.5


def _suggest(run: Run, network: Network, findings: Findings) -> None:
    """Ask ``network``, which was trained without them, for the class of the suspects found so far."""
    earlier = findings.suspects.nonzero().flatten()
    if len(earlier):
        findings.suggested[earlier], findings.confidence[earlier] = relabel(run, network, earlier)


def _merge(findings: Findings, kept: torch.Tensor, found: Identification) -> None:
    findings.first_score[kept] = torch.maximum(findings.first_score[kept], found.score)
    findings.score[kept] = torch.maximum(findings.score[kept], found.score)  # what one look suspected stays suspicious
    findings.suspects[kept] |= found.suspects
    for label, verdict in found.verdicts.items():
        worse = VERDICTS.index(verdict) > VERDICTS.index(findings.verdicts.get(label, CLEAN))
        if worse or label not in findings.evidence:
            findings.verdicts[label], findings.evidence[label] = verdict, found.evidence[label]


def _caution(run: Run, findings: Findings, message: str) -> None:
    findings.cautions.append(message)
    run.notify(Caution(message))
