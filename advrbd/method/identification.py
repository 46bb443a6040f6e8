"""Stage 3a: a score for every file, a verdict for every class.

The paper calls every image poisoned that the enhanced model still predicts as its label. That rule flags something
in any folder, so here the class has to be convicted first: only where the enhanced models decide sharply between
two kinds of image does the class hold a trigger, and only there can a file be a suspect.
"""

from dataclasses import dataclass, replace
from math import exp, log

import torch

from advrbd.config import IdentificationSettings
from advrbd.method.enhancement import Enhanced
from advrbd.method.separation import Split
from advrbd.reports.report import CLEAN, POISONED, SUSPICIOUS


@dataclass(frozen=True)
class Identification:
    """What one look says of M images and their classes.

    ``carries`` float32 [M] in 0..1: P(the image carries what its class's group carries); ``convictions`` by class
    label, in 0..1: P(that is a trigger), of the classes that were examined. The score, float32 [M] in 0..1, higher =
    more likely poisoned, is their product; ``suspects`` bool [M] are those above one half. ``verdicts`` and
    ``evidence`` are by class label; a class that was too small to be cut is in none. ``by_label``: the convictions rest
    on false labels, and hardly on the trigger.
    """

    carries: torch.Tensor
    score: torch.Tensor
    convictions: dict[int, float]
    verdicts: dict[int, str]
    evidence: dict[int, dict[str, float]]
    by_label: bool = False

    @property
    def suspects(self) -> torch.Tensor:
        return self.score > 0.5


def identify(
    labels: torch.Tensor, splits: tuple[Split, ...], enhanced: tuple[Enhanced, ...], settings: IdentificationSettings
) -> Identification:
    """Combine what separation and enhancement found in the classes of M images with ``labels`` int64 [M].

    Of several groups of a class, the one that speaks most for a trigger counts.
    """
    carries, score = torch.zeros(2, len(labels))
    convictions, verdicts, evidence = {}, {}, {}
    for label in dict.fromkeys(split.label for split in splits):
        members = labels == label
        clearest = max((split for split in splits if split.label == label), key=lambda split: split.bimodality)
        evidence[label] = {"bimodality": clearest.bimodality, "distance": clearest.distance}
        examined = [entry for entry in enhanced if entry.label == label]
        if not examined:  # others stood out more, and a split alone convicts nobody
            verdicts[label] = CLEAN
            score[clearest.group] = settings.unexamined
            continue
        sharpest = max(examined, key=lambda entry: (_conviction(entry, settings), -entry.ambiguity))
        convictions[label] = conviction = _conviction(sharpest, settings)
        verdicts[label] = verdict_on(conviction)
        ambiguity = min(sharpest.ambiguity, 99.0)  # a report's numbers are finite
        evidence[label] |= {"groups": len(examined), "ambiguity": ambiguity, "conviction": conviction}
        if verdicts[label] != verdict_on(_conviction(replace(sharpest, versions=1.0), settings)):
            evidence[label]["versions"] = sharpest.versions
        carries[members] = moved(sharpest.probability[members], log(1 / settings.even_odds - 1))
        score[members] = conviction * carries[members]
    return Identification(carries, score, convictions, verdicts, evidence)


def for_groups(settings: IdentificationSettings, count: int) -> IdentificationSettings:
    """The settings for a look that examines ``count`` groups: the more there are, the more likely one of them is a
    natural group that looks planted, so the odds of each are divided by how many times more they are than usual."""
    extra = max(0.0, log(max(1, count) / settings.groups)) / settings.ambiguity_slope
    return replace(settings, ambiguity_limit=settings.ambiguity_limit - extra)


def verdict_on(conviction: float) -> str:
    """The verdict on a class that holds a trigger with the probability ``conviction``."""
    return POISONED if conviction > 0.5 else SUSPICIOUS if conviction > 0.25 else CLEAN


def is_sharp(entry: Enhanced, settings: IdentificationSettings) -> bool:
    """Whether this convicts the class, so that its other groups can wait for the next look."""
    return _conviction(entry, settings) > 0.5


def is_certain(entry: Enhanced, settings: IdentificationSettings) -> bool:
    """Whether a repetition could hardly change the verdict."""
    return not settings.doubt < _conviction(entry, settings) < 1 - settings.doubt


def moved(probability: torch.Tensor, by: torch.Tensor | float) -> torch.Tensor:
    """Probabilities with their log-odds moved ``by`` so much."""
    return torch.sigmoid(torch.logit(probability, eps=1e-5) + by)


def _conviction(entry: Enhanced, settings: IdentificationSettings) -> float:
    """P(the class holds a trigger): a logistic curve in the ambiguity, one half at its limit.

    By the pictures that fall apart, not by the images, since versions of one photo are told together by nature. An
    attacker who has few photos gains little: what a model learns of them is mostly the photos.
    """
    ambiguity = min(entry.ambiguity * entry.versions, 10)
    return min(settings.most, 1 / (1 + exp(settings.ambiguity_slope * (ambiguity - settings.ambiguity_limit))))
