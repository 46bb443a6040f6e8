"""ABL: a backdoor is learned faster than the task, so the images with the lowest early loss are unlearned."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch.nn import functional

from advrbd.baselines.base import Defence, Defended, ascent, stage
from advrbd.config import TrainingSettings
from advrbd.model.factory import Network
from advrbd.model.run import Run
from advrbd.model.training import Objective, cross_entropy


@dataclass(frozen=True)
class ABL(Defence):
    """Li et al., "Anti-Backdoor Learning: Training Clean Models on Poisoned Data" (NeurIPS 2021, arXiv:2110.11571).

    A fresh model learns with local gradient ascent, which holds the loss of a batch at ``floor`` (gamma = .5), so that
    only what is learned fastest gets below. The ``isolated_share`` with the lowest loss, 1 %, is set apart; the
    model is fine-tuned on the rest and then unlearns what was isolated by gradient ascent. Epochs 10, 60 and 5,
    learning rates .1, .1 and 5e-4, batch 64 as in the authors' code. The AdvrBD paper's values aren't known.
    """

    name: ClassVar[str] = "abl"
    detects: ClassVar[bool] = True

    floor: float = 0.5
    isolated_share: float = 0.01
    isolation: TrainingSettings = field(default_factory=lambda: stage(10, 0.1, batch_size=64, minimum_steps=7800))
    fine_tuning: TrainingSettings = field(default_factory=lambda: stage(60, 0.1, batch_size=64))
    unlearning: TrainingSettings = field(default_factory=lambda: stage(5, 5e-4, batch_size=64, minimum_steps=40))

    def _defend(self, run: Run, examples: torch.Tensor, network: Network, clean: torch.Tensor | None) -> Defended:
        defended = run.fresh_network()
        run.train(defended, examples, self.isolation, f"{self.name}: isolate", objective=held_at(self.floor))
        logits, labels = run.infer(defended, examples).logits, run.labels[examples]
        score = -functional.cross_entropy(logits, labels, reduction="none")
        suspects = torch.zeros(len(examples), dtype=torch.bool)
        suspects[score.topk(max(2, round(self.isolated_share * len(examples)))).indices] = True
        run.train(defended, examples[~suspects], self.fine_tuning, f"{self.name}: fine-tune")
        run.train(defended, examples[suspects], self.unlearning, f"{self.name}: unlearn", objective=ascent)
        return Defended(defended, suspects, score)


def held_at(floor: float) -> Objective:
    """Local gradient ascent, sign(L - gamma) * L: descend while the batch's loss is above ``floor``, else climb.

    The paper writes it for an image; the authors' code, followed here, takes the mean of the batch, which lets fast
    images fall below the floor while slow ones keep the mean up.
    """

    def loss(network: Network, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        mean = cross_entropy(network, images, labels)
        return (mean.detach() - floor).sign() * mean

    return loss
