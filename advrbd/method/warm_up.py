"""Before the stages: a model that learned the folder for a short time, with whatever is planted in it."""

from dataclasses import dataclass

import torch

from advrbd.config import Config
from advrbd.method.control import Control, with_copies
from advrbd.model.factory import Network
from advrbd.model.run import Run


@dataclass(frozen=True)
class Learned:
    """A ``network`` and what it was trained on: the images ``examples`` (int64 [M]) and the copies of a ``control``."""

    network: Network
    examples: torch.Tensor
    control: Control | None = None


def warm_up(run: Run, examples: torch.Tensor, config: Config, control: Control | None = None) -> Learned:
    """A fresh network trained on the ``examples`` (int64 [M]) and on the copies of a ``control`` that was planted among
    them, as ``config.warm_up`` says."""
    run, shown = with_copies(run, examples, control)
    network = run.fresh_network()
    run.train(network, shown, config.warm_up, "warm-up")
    return Learned(network, examples, control)
