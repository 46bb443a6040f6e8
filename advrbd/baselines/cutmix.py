"""CutMix: train on images that are pasted together from two, so that no small patch decides a label alone."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from advrbd.baselines.base import Defence, Defended, stage
from advrbd.config import TrainingSettings
from advrbd.model.factory import Network
from advrbd.model.run import Run
from advrbd.model.training import Objective, cross_entropy


@dataclass(frozen=True)
class CutMix(Defence):
    """Borgnia et al., "Strong Data Augmentation Sanitizes Poisoning and Backdoor Attacks Without an Accuracy
    Tradeoff" (ICASSP 2021, arXiv:2011.09527), with the augmentation of Yun et al., "CutMix" (ICCV 2019,
    arXiv:1905.04899).

    x = M * x_A + (1 - M) * x_B, y = l * y_A + (1 - l) * y_B: a box of x_B lies in x_A, and l is the share of the area
    that remains of x_A. ``probability`` is that of a batch to be mixed, l is drawn from Beta(``beta``, ``beta``). The
    model is trained afresh; 200 epochs, learning rate .1 as in BackdoorBox. The AdvrBD paper speaks of a repair of
    the backdoored model, with a learning rate and a length that aren't known.
    """

    name: ClassVar[str] = "cutmix"

    beta: float = 1.0
    probability: float = 1.0
    training: TrainingSettings = field(default_factory=lambda: stage(200, 0.1))

    def _defend(self, run: Run, examples: torch.Tensor, network: Network, clean: torch.Tensor | None) -> Defended:
        defended = run.fresh_network()
        mixed = mixed_cross_entropy(self.beta, self.probability, run.generator)
        run.train(defended, examples, self.training, self.name, objective=mixed)
        return Defended(defended)


def mixed_cross_entropy(beta: float, probability: float, generator: torch.Generator) -> Objective:
    """The cross-entropy of a mixed batch, weighted between the labels of both images by their share of the area."""
    seed = int(torch.randint(2**31, (), generator=generator))
    draws = np.random.default_rng(seed)  # torch draws from no Beta distribution with a generator of one's own

    def loss(network: Network, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if draws.random() >= probability:
            return cross_entropy(network, images, labels)
        partners = torch.from_numpy(draws.permutation(len(images))).to(images.device)
        mixed, share = paste_box(images, images[partners], draws.beta(beta, beta), draws)
        logits = network(mixed).float()
        own, other = (functional.cross_entropy(logits, of) for of in (labels, labels[partners]))
        return share * own + (1 - share) * other

    return loss


def paste_box(
    images: torch.Tensor, partners: torch.Tensor, share: float, draws: np.random.Generator
) -> tuple[torch.Tensor, float]:
    """Lay the same box of each partner over each image, both float [B, C, H, W], and return the share that is left.

    The box has the images' shape, its area is 1 - ``share`` of theirs (0..1) and its centre lies anywhere; what would
    stick out is cut off, so the share that is returned may be larger.
    """
    height, width = images.shape[-2:]
    scale = math.sqrt(1 - share)
    spans = []
    for side in (height, width):
        centre, half = draws.integers(side), int(scale * side) / 2
        spans.append(slice(max(0, math.ceil(centre - half)), min(side, math.ceil(centre + half))))
    rows, columns = spans
    mixed = images.clone()
    mixed[:, :, rows, columns] = partners[:, :, rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - area / (height * width)
