"""Batch normalisation over the batches of all processes of a run.

Each normalising its own share is another method: the shares are small, and there are as many statistics as processes.
``torch.nn.SyncBatchNorm`` is for GPUs alone and has to replace layers; this works on any device and on the layers of
torch and timm as they are, since all of them call ``torch.nn.functional.batch_norm``.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from advrbd.model.peers import Peers


def shared_batch_norm(peers: Peers) -> AbstractContextManager:
    """A context in which networks in training mode normalise by the batch of all ``peers`` together."""
    return nullcontext() if peers.count == 1 else _Shared(peers)


class _Shared(TorchFunctionMode):
    def __init__(self, peers: Peers) -> None:
        super().__init__()
        self._peers = peers

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is functional.batch_norm:
            return self._normalise(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _normalise(
        self,
        values: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_variance: torch.Tensor | None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        if not training:
            arguments = running_mean, running_variance, weight, bias, training, momentum, eps
            return functional.batch_norm(values, *arguments)
        mean, variance, count = self._statistics(values.float())
        if running_mean is not None and running_variance is not None:
            with torch.no_grad():
                running_mean.lerp_(mean, momentum)
                running_variance.lerp_(variance * count / (count - 1), momentum)
        shape = (1, -1) + (1,) * (values.ndim - 2)
        scale = (variance + eps).rsqrt() if weight is None else weight * (variance + eps).rsqrt()
        normalised = (values.float() - mean.view(shape)) * scale.view(shape)
        return (normalised if bias is None else normalised + bias.view(shape)).to(values.dtype)

    def _statistics(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean and biased variance float32 [C] of the ``values`` [B, C, ...] of all processes, and how many they are.

        Put together from those of each process, since sums of squares would lose what is small beside the mean.
        """
        axes = [axis for axis in range(values.ndim) if axis != 1]
        variance, mean = torch.var_mean(values, dim=axes, correction=0)
        own = torch.stack([mean, variance, torch.full_like(mean, values.numel() / values.shape[1])])
        rows = [own if rank == self._peers.rank else torch.zeros_like(own) for rank in range(self._peers.count)]
        means, variances, counts = _Total.apply(torch.stack(rows, dim=1), self._peers)
        count = counts.sum(dim=0)
        mean = (counts * means).sum(dim=0) / count
        return mean, (counts * (variances + (means - mean) ** 2)).sum(dim=0) / count, count


class _Total(torch.autograd.Function):
    """The sum of a tensor over all processes; what it does to the loss of each flows back to all."""

    @staticmethod
    def forward(context: Any, own: torch.Tensor, peers: Peers) -> torch.Tensor:
        context.peers = peers
        total = own.clone()
        peers.add_([total])
        return total

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradient.clone()
        context.peers.add_([total])
        return total, None
