"""Stage 3a: a score for every file, a verdict for every class.

The paper calls every image poisoned that the enhanced model still predicts as its label. That rule flags something
in any folder, so here the class has to be convicted first: only where the enhanced models decide sharply between
two kinds of image does the class hold a trigger, and only there can a file be a suspect.
"""

from dataclasses import dataclass
from math import exp, log

import torch

from advrbd.config import IdentificationSettings
from advrbd.method.enhancement import Enhanced
from advrbd.method.separation import Split
from advrbd.reports.report import CLEAN, POISONED, SUSPICIOUS

PLAIN = 0.95


@dataclass(frozen=True)
class Identification:
    """``score`` float32 [M] in 0..1, higher = more likely poisoned; ``suspects`` bool [M], those above one half.

    ``verdicts`` and ``evidence`` are by class label; a class that was too small to be split is in neither.
    """

    score: torch.Tensor
    suspects: torch.Tensor
    verdicts: dict[int, str]
    evidence: dict[int, dict[str, float]]


def identify(
    labels: torch.Tensor, splits: tuple[Split, ...], enhanced: tuple[Enhanced, ...], settings: IdentificationSettings
) -> Identification:
    """Combine what separation and enhancement found in the classes of M images with ``labels`` int64 [M].

    An image's score is P(its class holds a trigger) times P(the image carries it). Of several groups of a class, the
    least ambiguous counts.
    """
    score = torch.zeros(len(labels))
    verdicts, evidence = {}, {}
    for label in dict.fromkeys(split.label for split in splits):
        members = labels == label
        clearest = max((split for split in splits if split.label == label), key=lambda split: split.bimodality)
        evidence[label] = {"bimodality": round(clearest.bimodality, 3), "distance": round(clearest.distance, 3)}
        examined = [entry for entry in enhanced if entry.label == label]
        if not examined:  # others stood out more, and a split alone convicts nobody
            verdicts[label] = CLEAN
            score[members] = settings.unexamined * clearest.group[members].float()
            continue
        sharpest = min(examined, key=lambda entry: entry.ambiguity)
        conviction = _conviction(sharpest.ambiguity, settings)
        verdicts[label] = POISONED if conviction > 0.5 else SUSPICIOUS if conviction > 0.25 else CLEAN
        ambiguity = round(min(sharpest.ambiguity, 99.0), 3)
        evidence[label] |= {"groups": len(examined), "ambiguity": ambiguity, "conviction": round(conviction, 3)}
        score[members] = conviction * _moved(sharpest.probability[members], log(1 / settings.even_odds - 1))
    return Identification(score, score > 0.5, verdicts, evidence)


def is_sharp(entry: Enhanced, settings: IdentificationSettings) -> bool:
    """Whether this convicts the class, so that its other groups can wait for the next look."""
    return _conviction(entry.ambiguity, settings) > 0.5


def is_certain(entry: Enhanced, settings: IdentificationSettings) -> bool:
    """Whether a repetition could hardly change the verdict."""
    return not settings.doubt < _conviction(entry.ambiguity, settings) < 1 - settings.doubt


def second_opinion(score: torch.Tensor, own: torch.Tensor, unseen: torch.Tensor) -> torch.Tensor:
    """Scores of the K files of a convicted class, reconsidered by a model that learned none of its suspects.

    ``score`` float32 [K] in 0..1, ``own`` float32 [K]: the probability that the model gives to the label they have,
    ``unseen`` bool [K]: the suspects, which it wasn't trained on. How often it denies the label of the plain suspects
    says how far labels were falsified; the opinion counts that much, and not at all in a clean-label attack.

    - A trigger that hardly shows (a white corner on a white background) leaves the enhanced models in doubt; a file
      whose label is denied although the model learned it isn't in its class by chance: its score rises.
    - A suspect whose label is confirmed where nearly all others' are denied is an innocent bystander: its falls.
    """
    plain = unseen & (score > PLAIN)
    falsified = (float((own[plain] < 0.5).sum()) + 1) / (int(plain.sum()) + 2)
    denied_learned = float((own[~unseen] < 0.5).float().mean()) if (~unseen).any() else 0.0
    confirmed = min(0.0, log(1 - falsified) - log(1 - min(denied_learned, 0.99)))
    raised = falsified * torch.logit(1 - own, eps=1e-3).clamp_min(0)
    return _moved(score, torch.where(unseen, confirmed * (own >= 0.5), raised))


def _moved(probability: torch.Tensor, by: torch.Tensor | float) -> torch.Tensor:
    """Probabilities with their log-odds moved ``by`` so much."""
    return torch.sigmoid(torch.logit(probability, eps=1e-5) + by)


def _conviction(ambiguity: float, settings: IdentificationSettings) -> float:
    """P(the class holds a trigger): a logistic curve in the ambiguity, one half at its limit."""
    return 1 / (1 + exp(settings.ambiguity_slope * (min(ambiguity, 10) - settings.ambiguity_limit)))
