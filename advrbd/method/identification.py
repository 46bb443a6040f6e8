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

PLAIN = 0.95


@dataclass(frozen=True)
class Identification:
    """What one look says of M images and their classes.

    ``carries`` float32 [M] in 0..1: P(the image carries what its class's group carries); ``convictions`` by class
    label, in 0..1: P(that is a trigger), of the classes that were examined. The score, float32 [M] in 0..1, higher =
    more likely poisoned, is their product; ``suspects`` bool [M] are those above one half. ``verdicts`` and
    ``evidence`` are by class label; a class that was too small to be cut is in none.
    """

    carries: torch.Tensor
    score: torch.Tensor
    convictions: dict[int, float]
    verdicts: dict[int, str]
    evidence: dict[int, dict[str, float]]

    @property
    def suspects(self) -> torch.Tensor:
        return self.score > 0.5


def identify(
    labels: torch.Tensor, splits: tuple[Split, ...], enhanced: tuple[Enhanced, ...], settings: IdentificationSettings
) -> Identification:
    """Combine what separation and enhancement found in the classes of M images with ``labels`` int64 [M].

    Of several groups of a class, the least ambiguous counts.
    """
    carries, score = torch.zeros(2, len(labels))
    convictions, verdicts, evidence = {}, {}, {}
    for label in dict.fromkeys(split.label for split in splits):
        members = labels == label
        clearest = max((split for split in splits if split.label == label), key=lambda split: split.bimodality)
        evidence[label] = {"bimodality": round(clearest.bimodality, 3), "distance": round(clearest.distance, 3)}
        examined = [entry for entry in enhanced if entry.label == label]
        if not examined:  # others stood out more, and a split alone convicts nobody
            verdicts[label] = CLEAN
            score[clearest.group] = settings.unexamined
            continue
        sharpest = min(examined, key=lambda entry: entry.ambiguity)
        convictions[label] = conviction = _conviction(sharpest.ambiguity, settings)
        verdicts[label] = verdict_on(conviction)
        ambiguity = round(min(sharpest.ambiguity, 99.0), 3)
        evidence[label] |= {"groups": len(examined), "ambiguity": ambiguity, "conviction": round(conviction, 3)}
        carries[members] = _moved(sharpest.probability[members], log(1 / settings.even_odds - 1))
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
    return _conviction(entry.ambiguity, settings) > 0.5


def is_certain(entry: Enhanced, settings: IdentificationSettings) -> bool:
    """Whether a repetition could hardly change the verdict."""
    return not settings.doubt < _conviction(entry.ambiguity, settings) < 1 - settings.doubt


@dataclass(frozen=True)
class SecondOpinion:
    """``carries`` float32 [K] and ``conviction`` as in ``Identification``, reconsidered; ``denied`` in 0..1: the share
    of the plain suspects whose label the second model denies."""

    carries: torch.Tensor
    conviction: float
    denied: float


def second_opinion(
    carries: torch.Tensor,
    conviction: float,
    own: torch.Tensor,
    unseen: torch.Tensor,
    settings: IdentificationSettings,
) -> SecondOpinion:
    """Reconsider the K files of a convicted class, now that a model was trained without its suspects.

    ``own`` float32 [K]: the probability that the model gives to the label they have, ``unseen`` bool [K]: the suspects.
    How often it denies the label of the plain ones says whether labels were falsified.

    - If so, the class is more likely poisoned. If it confirms them, the group may be natural (red cars among the
      cars), and only a very sharp one is convicted: a clean-label attack is.
    - A trigger that hardly shows (a white corner on a white background) leaves the enhanced models in doubt; a file
      whose label is denied although the model learned it isn't in its class by chance.
    - A suspect whose label is confirmed where nearly all others' are denied is an innocent bystander.
    """
    plain = unseen & (carries > PLAIN)
    denied = (float((own[plain] < 0.5).sum()) + 1) / (int(plain.sum()) + 2)
    denied_learned = float((own[~unseen] < 0.5).float().mean()) if (~unseen).any() else 0.0
    confirmed = min(0.0, log(1 - denied) - log(1 - min(denied_learned, 0.99)))
    raised = denied * torch.logit(1 - own, eps=1e-3).clamp_min(0)
    weight = settings.denial_slope * (denied - settings.denial_limit)
    weight = min(max(weight, -settings.most_against), settings.most_for)
    revised = float(_moved(torch.tensor(conviction), weight))
    return SecondOpinion(_moved(carries, torch.where(unseen, confirmed * (own >= 0.5), raised)), revised, denied)


def _moved(probability: torch.Tensor, by: torch.Tensor | float) -> torch.Tensor:
    """Probabilities with their log-odds moved ``by`` so much."""
    return torch.sigmoid(torch.logit(probability, eps=1e-5) + by)


def _conviction(ambiguity: float, settings: IdentificationSettings) -> float:
    """P(the class holds a trigger): a logistic curve in the ambiguity, one half at its limit."""
    return 1 / (1 + exp(settings.ambiguity_slope * (min(ambiguity, 10) - settings.ambiguity_limit)))
