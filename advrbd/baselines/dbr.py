"""D-BR: tell poisoned images by how far a rotation and a shift move their features, then unlearn them."""

import copy
import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch.nn import functional

from advrbd.baselines.base import Defence, Defended, stage, unlearn_and_relearn
from advrbd.config import TrainingSettings
from advrbd.model.factory import Network
from advrbd.model.inference import BATCH
from advrbd.model.run import Run


@dataclass(frozen=True)
class DBR(Defence):
    """Chen, Wu & Wang, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples" (NeurIPS 2022).

    A model of its own learns the images for 2 epochs as they are and then, for 10, to keep the classes' centres
    apart, which parts the poisoned images of a class from its clean ones. The feature consistency towards
    transformations FCT(x) = mean (f(x) - f(T(x)))^2, T a rotation and a shift, is large for poisoned images (of which
    AdvrBD says that adversarial noise moves them *less*: other changes, other sign). The ``poisoned_share`` with the
    highest FCT, 5 %, is unlearned from the backdoored model, the ``trusted_share`` with the lowest, 20 %, relearned,
    for 20 epochs in turns at a learning rate of 1e-4. All constants are those of the authors' code; the AdvrBD
    paper's aren't known. Here both transformations are one bilinear map.
    """

    name: ClassVar[str] = "d-br"
    detects: ClassVar[bool] = True

    trusted_share: float = 0.2
    poisoned_share: float = 0.05
    angle: float = 180.0  # degrees
    shift: float = 0.2  # of the side
    learning: TrainingSettings = field(default_factory=lambda: stage(2, 0.01, augmented=False, minimum_steps=780))
    parting: TrainingSettings = field(default_factory=lambda: stage(10, 0.01, augmented=False, minimum_steps=3900))
    unlearning: TrainingSettings = field(default_factory=lambda: stage(20, 1e-4, minimum_steps=400))

    def _defend(self, run: Run, examples: torch.Tensor, network: Network, clean: torch.Tensor | None) -> Defended:
        observer, defended = run.fresh_network(), copy.deepcopy(network)
        run.train(observer, examples, self.learning, f"{self.name}: learn")
        run.train(observer, examples, self.parting, f"{self.name}: part", objective=similarity_of_centres)
        score = feature_changes(run, observer, examples, self.angle, self.shift)
        order = score.argsort()
        trusted = examples[order[: max(2, round(self.trusted_share * len(order)))]]
        suspects = torch.zeros(len(order), dtype=torch.bool)
        suspects[order[len(order) - round(self.poisoned_share * len(order)) :]] = True
        unlearn_and_relearn(run, defended, examples[suspects], trusted, self.unlearning, self.name)
        return Defended(defended, suspects, score)


def similarity_of_centres(network: Network, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The objective L_intra, as in the authors' code: the mean cosine similarity of the batch's class centres."""
    members = functional.one_hot(labels.unique(return_inverse=True)[1]).float()
    centres = functional.normalize(members.T @ network.features(images).float(), dim=1)
    similarity = centres @ centres.T
    return (similarity - similarity.diag().diag()).mean()


@torch.no_grad()
def feature_changes(run: Run, network: Network, examples: torch.Tensor, angle: float, shift: float) -> torch.Tensor:
    """The FCT float32 [M] of the images ``examples`` (int64 [M]): the mean squared change of penultimate features."""
    network.eval()
    changes = []
    for chunk in examples.split(BATCH):
        images = run.pixels.batch(chunk, run.device.device)
        moved = rotate_and_shift(images, angle, shift, run.generator)
        with run.device.autocast():
            before, after = network.features(images).float(), network.features(moved).float()
        changes.append((before - after).square().mean(dim=1).cpu())
    return torch.cat(changes)


def rotate_and_shift(images: torch.Tensor, angle: float, shift: float, generator: torch.Generator) -> torch.Tensor:
    """Turn each image [B, C, S, S] by up to ``angle`` degrees, move it by up to ``shift`` of its side; black around."""
    turn, right, down = 2 * torch.rand(3, len(images), generator=generator) - 1
    turn = turn * math.radians(angle)
    rows = (turn.cos(), -turn.sin(), 2 * shift * right), (turn.sin(), turn.cos(), 2 * shift * down)
    maps = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1).to(images.device)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)
