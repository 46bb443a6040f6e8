"""Fine-pruning: cut the channels that clean images leave dormant, where a backdoor may hide; then fine-tune."""

import copy
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from advrbd.baselines.base import CLEAN_IMAGES, Defence, Defended, stage
from advrbd.config import TrainingSettings
from advrbd.errors import ModelError
from advrbd.model.factory import Network
from advrbd.model.run import Run


@dataclass(frozen=True)
class FinePruning(Defence):
    """Liu et al., "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks" (RAID 2018,
    arXiv:1805.12185).

    The channels of the last convolution are ranked by their mean activation on clean images and cut from the lowest
    on, ``step`` of them at a time, as long as the accuracy on the clean images falls by no more than
    ``largest_drop``; then the model is fine-tuned. Both constants and the fine-tuning as in BackdoorBench. The AdvrBD
    paper cuts a share of channels in the second layer instead; its share isn't known.
    """

    name: ClassVar[str] = "fine-pruning"
    needs: ClassVar[str] = CLEAN_IMAGES

    step: float = 0.01
    largest_drop: float = 0.1
    training: TrainingSettings = field(default_factory=lambda: stage(100, 0.01, batch_size=256, minimum_steps=1000))

    def _defend(self, run: Run, examples: torch.Tensor, network: Network, clean: torch.Tensor | None) -> Defended:
        assert clean is not None  # ``defend`` refuses to go on without
        defended = copy.deepcopy(network)
        classifier = defended.backbone.get_classifier()
        if not isinstance(classifier, nn.Linear):
            raise ModelError(f"{self.name} needs a model that ends in one linear layer; choose another model")
        features = run.infer(defended, clean).features.to(classifier.weight.device)
        kept = channels_to_keep(classifier, features, run.labels[clean], self.step, self.largest_drop)
        with torch.no_grad():
            classifier.weight[:, ~kept] = 0
        # a cut channel reads as zero while the rest is tuned; then its weights get no gradient and stay zero
        hook = classifier.register_forward_pre_hook(lambda _, inputs: (inputs[0] * kept,))
        run.train(defended, clean, self.training, self.name)
        hook.remove()
        return Defended(defended)


@torch.no_grad()
def channels_to_keep(
    classifier: nn.Module, features: torch.Tensor, labels: torch.Tensor, step: float, largest_drop: float
) -> torch.Tensor:
    """Which of the F channels stay, bool [F]; one at least.

    ``features`` float [K, F] are the penultimate ones of K clean images (a channel's mean activation, pooled over the
    image), ``labels`` int64 [K] theirs, and ``classifier`` maps the former to logits.
    """
    labels = labels.to(features.device)

    def accuracy(channels: torch.Tensor) -> float:
        return float((classifier(features * channels).argmax(dim=1) == labels).float().mean())

    count = features.shape[1]
    dormant_first = features.mean(dim=0).argsort()
    kept = torch.ones(count, dtype=torch.bool, device=features.device)
    lowest = accuracy(kept) - largest_drop
    stride = max(1, round(step * count))
    for cut in range(stride, count, stride):
        fewer = kept.clone()
        fewer[dormant_first[:cut]] = False
        if accuracy(fewer) < lowest:
            break
        kept = fewer
    return kept
