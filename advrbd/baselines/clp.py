"""CLP: cut the channels that answer far more strongly than the others of their layer; no data is looked at."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from advrbd.baselines.base import Defence, Defended
from advrbd.errors import ModelError
from advrbd.model.factory import Network
from advrbd.model.run import Run


@dataclass(frozen=True)
class CLP(Defence):
    """Zheng et al., "Data-free Backdoor Removal Based on Channel Lipschitzness" (ECCV 2022, arXiv:2208.03111).

    A channel of a convolution with its batch normalisation is cut where the upper bound of its Lipschitz constant,
    sigma_max(W) * |gamma| / sqrt(variance), is above the mean of its layer by more than ``deviations`` (u = 3)
    standard deviations. With u = 3 none can be in a layer of fewer than 11 channels. The AdvrBD paper repairs the model
    for some epochs after, which the method itself, as here, does not.
    """

    name: ClassVar[str] = "clp"

    deviations: float = 3.0

    def _defend(self, run: Run, examples: torch.Tensor, network: Network, clean: torch.Tensor | None) -> Defended:
        defended = copy.deepcopy(network)
        layers = list(normalised_convolutions(defended))
        if not layers:
            raise ModelError(f"{self.name} needs a model with batch normalisation; choose another model")
        with torch.no_grad():
            for convolution, norm in layers:
                bounds = lipschitz_bounds(convolution, norm)
                cut = bounds > bounds.mean() + self.deviations * bounds.std()
                norm.weight[cut] = 0
                norm.bias[cut] = 0
        return Defended(defended)


def normalised_convolutions(network: nn.Module) -> Iterator[tuple[nn.Conv2d, _BatchNorm]]:
    """Each batch normalisation that can be cut, with the convolution right before it in the order of definition."""
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | _BatchNorm)]
    for convolution, norm in pairwise(layers):
        if not (isinstance(convolution, nn.Conv2d) and isinstance(norm, _BatchNorm)):
            continue
        if convolution.out_channels == norm.num_features and norm.affine and norm.track_running_stats:
            yield convolution, norm


def lipschitz_bounds(convolution: nn.Conv2d, norm: _BatchNorm) -> torch.Tensor:
    """The upper bounds float32 [C] of the channels' Lipschitz constants, the kernel [C, I, H, W] taken as I x HW."""
    assert norm.running_var is not None  # ``normalised_convolutions`` takes no other
    spectral = torch.linalg.matrix_norm(convolution.weight.detach().float().flatten(2), ord=2)
    return spectral * norm.weight.detach().abs() / torch.sqrt(norm.running_var + norm.eps)
