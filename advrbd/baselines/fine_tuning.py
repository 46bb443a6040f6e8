"""Fine-tuning: go on training the backdoored model on clean images, so that it forgets the trigger."""

import copy
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from advrbd.baselines.base import CLEAN_IMAGES, Defence, Defended, stage
from advrbd.config import TrainingSettings
from advrbd.model.factory import Network
from advrbd.model.run import Run


@dataclass(frozen=True)
class FineTuning(Defence):
    """The baseline of Liu et al., "Fine-Pruning" (RAID 2018, arXiv:1805.12185), on all layers.

    100 epochs, learning rate .01, batch 256: as in BackdoorBench, which gives it 5 % of the training set. What the
    AdvrBD paper uses isn't known, but for all layers.
    """

    name: ClassVar[str] = "fine-tuning"
    needs: ClassVar[str] = CLEAN_IMAGES

    training: TrainingSettings = field(default_factory=lambda: stage(100, 0.01, batch_size=256, minimum_steps=1000))

    def _defend(self, run: Run, examples: torch.Tensor, network: Network, clean: torch.Tensor | None) -> Defended:
        assert clean is not None  # ``defend`` refuses to go on without
        defended = copy.deepcopy(network)
        run.train(defended, clean, self.training, self.name)
        return Defended(defended)
