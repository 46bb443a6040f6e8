"""Adversarial perturbation of a random patch: how far a prediction moves when a patch is pushed against it.

Equation 3 of the paper (arXiv:2405.12719): KL(f(x) || f(x + m * delta)), m a random patch mask and delta chosen to
make the divergence large. Parameters get no gradients and batch statistics don't move.
"""

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch.nn import functional

from advrbd.config import PartitionSettings
from advrbd.model.device import Device
from advrbd.model.factory import Network
from advrbd.model.helping import handed_out
from advrbd.model.inference import Batches


def random_patches(count: int, size: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """Masks float32 [count, 1, size, size], 1 inside one square of ``side`` pixels a mask, placed at random."""
    corners = torch.randint(0, size - side + 1, (2, count, 1), generator=generator)
    inside = (torch.arange(size) >= corners) & (torch.arange(size) < corners + side)
    return (inside[0][:, :, None] & inside[1][:, None, :]).float()[:, None]


def divergence(
    network: Network,
    images: torch.Tensor,
    settings: PartitionSettings,
    device: Device,
    generator: torch.Generator,
    batches: Batches | None = None,
) -> torch.Tensor:
    """KL divergence float32 [B] in nats between the predictions on ``images`` [B, 3, S, S] and on perturbed ones.

    Larger = the image is more sensitive, which the paper finds of clean images. ``network`` is in eval mode.
    The perturbation starts from noise (at zero the divergence has no gradient), takes ``settings.steps`` signed
    gradient steps within ``settings.epsilon`` on the patch, and stays inside [0, 1]. All is drawn at once, so the
    size of the ``batches`` (default: all images in one) doesn't change what is drawn.
    """
    size = images.shape[-1]
    mask = random_patches(len(images), size, max(1, round(settings.patch * size)), generator).to(images.device)
    noise = torch.rand(images.shape, generator=device.drawing(generator), device=images.device)
    start = settings.epsilon * (2 * noise - 1) * mask
    push = pushing(network, device, asdict(settings), batches)
    with handed_out(device, "push", network, settings=asdict(settings)):
        own = device.peers.deal(images, mask, start)
        return device.peers.collect(push(*own), len(images))[0]


def pushing(
    network: Network, device: Device, settings: dict, batches: Batches | None = None
) -> Callable[..., tuple[torch.Tensor]]:
    """A function from images [B, 3, S, S], their masks and the perturbation to start from, all on ``device``, to the
    divergence float32 [B]; ``settings`` are those of the partition, ``batches`` as in ``divergence``."""
    how = PartitionSettings(**settings)
    step = 2 * how.epsilon / max(1, how.steps)

    def push(images: torch.Tensor, mask: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            original = _log_probabilities(network, images, device)
        for _ in range(how.steps):
            delta = delta.detach().requires_grad_(True)
            moved = _log_probabilities(network, (images + delta).clamp(0, 1), device)
            total = _kl(original, moved).sum()
            (gradient,) = torch.autograd.grad(total, delta)
            delta = (delta.detach() + step * gradient.sign() * mask).clamp(-how.epsilon, how.epsilon)
        with torch.no_grad():
            return _kl(original, _log_probabilities(network, (images + delta).clamp(0, 1), device))

    def compute(*drawn: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.cat(list((batches or Batches(len(drawn[0]), device)).map(push, *drawn))),)

    return compute


def _log_probabilities(network: Network, images: torch.Tensor, device: Device) -> torch.Tensor:
    with device.autocast(unscaled_gradients=True):
        logits = network(images)
    return functional.log_softmax(logits.float(), dim=1)


def _kl(original: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    return (original.exp() * (original - moved)).sum(dim=1)
