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

    An image's score is P(its class holds a trigger) times P(the image carries it).
    """
    score = torch.zeros(len(labels))
    verdicts, evidence = {}, {}
    examined = {entry.label: entry for entry in enhanced}
    for split in splits:
        members = labels == split.label
        evidence[split.label] = {"bimodality": round(split.bimodality, 3), "distance": round(split.distance, 3)}
        if split.label not in examined:  # nothing stood out: the split alone convicts nobody
            verdicts[split.label] = CLEAN
            score[members] = settings.unexamined * split.group[members].float()
            continue
        entry = examined[split.label]
        conviction = _conviction(entry.ambiguity, settings)
        verdicts[split.label] = POISONED if conviction > 0.5 else SUSPICIOUS if conviction > 0.25 else CLEAN
        evidence[split.label] |= {"ambiguity": round(min(entry.ambiguity, 99.0), 3), "conviction": round(conviction, 3)}
        score[members] = conviction * _moved(entry.probability[members], log(1 / settings.even_odds - 1))
    return Identification(score, score > 0.5, verdicts, evidence)


def second_opinion(score: torch.Tensor, own_label_probability: torch.Tensor) -> torch.Tensor:
    """Scores of files in convicted classes, raised where a model that learned no suspect denies their label.

    ``score`` float32 [K], ``own_label_probability`` float32 [K]: what that model gives to the label they have. A
    trigger that hardly shows (a white corner on a white background) leaves the enhanced models in doubt; an image
    that is foreign to its class as well isn't there by chance. Agreement clears nobody: labels may be true.
    """
    denied = torch.logit(1 - own_label_probability, eps=1e-3).clamp_min(0)
    return _moved(score, denied)


def _moved(probability: torch.Tensor, by: torch.Tensor | float) -> torch.Tensor:
    """Probabilities with their log-odds moved ``by`` so much."""
    return torch.sigmoid(torch.logit(probability, eps=1e-5) + by)


def _conviction(ambiguity: float, settings: IdentificationSettings) -> float:
    """P(the class holds a trigger): a logistic curve in the ambiguity, one half at its limit."""
    return 1 / (1 + exp(settings.ambiguity_slope * (min(ambiguity, 10) - settings.ambiguity_limit)))
