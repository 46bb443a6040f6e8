"""The one training loop: every stage trains through ``train``, and says only what a batch's targets are.

Learning, unlearning and relearning differ in nothing but the labels that an image has when it is drawn. Who needs
another loss than the cross-entropy says so by an ``Objective``.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import nn
from torch.nn import functional

from advrbd.config import TrainingSettings
from advrbd.data.augment import augment
from advrbd.data.pixels import Pixels
from advrbd.errors import DeviceError, DivergedError, ModelError, is_out_of_memory
from advrbd.events import Notify, Progress, ignore
from advrbd.model.batch_norm import shared_batch_norm
from advrbd.model.device import Device, out_of_memory
from advrbd.model.factory import Network
from advrbd.model.helping import handed_out
from advrbd.model.peers import ALONE
from advrbd.model.recorded import Recorded, Step

Targets = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""Maps image indices [B] to class labels int64 [B], drawing from the generator where they are random."""


def given(labels: torch.Tensor) -> Targets:
    """Targets that never change: ``labels`` int64 [N] of all images."""
    return lambda indices, _: labels[indices]


Objective = Callable[[Network, torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps the network, a batch float [B, 3, S, S] in [0, 1] and its labels int64 [B] to the loss that a step lowers."""


def cross_entropy(network: Network, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The objective of plain learning: the mean cross-entropy of the batch."""
    return functional.cross_entropy(network(images).float(), labels)


def train(
    network: Network,
    pixels: Pixels,
    examples: torch.Tensor,
    targets: Targets,
    settings: TrainingSettings,
    device: Device,
    generator: torch.Generator,
    notify: Notify = ignore,
    stage: str = "train",
    objective: Objective | None = None,
) -> float:
    """Train ``network`` in place on the images ``examples`` (int64 [M]) and return the last epoch's mean loss.

    The loss is the ``objective``, by default the cross-entropy. Several processes
    share each batch; who brings an ``objective``, which can't be told to others, trains in this one alone.

    SGD with Nesterov momentum for networks with batch normalisation, AdamW for the others; the learning rate rises
    linearly over the first ``settings.rise`` of the steps and falls linearly to zero after. Raises ``DivergedError``
    after an epoch whose mean loss isn't finite, ``ModelError`` where there are fewer than two images, ``DeviceError``
    when the device has no memory for a batch.
    """
    if len(examples) < 2:  # batch normalisation can't work on one
        raise ModelError(f"{len(examples)} images are too few to train on ({stage})")
    batch_size, steps_per_epoch, epochs = settings.length(len(examples))
    device = device if objective is None else replace(device, peers=ALONE)
    size = {"batch_size": batch_size, "steps": epochs * steps_per_epoch}
    learn = _learner(network, device, settings, objective, **size)
    shift = round(settings.shift * pixels.size)

    def step(indices: torch.Tensor) -> torch.Tensor:
        labels = targets(indices, generator).to(device.device, non_blocking=True)
        images = augment(pixels.batch(indices, device.device), settings.flip, shift, generator)
        return learn(*device.peers.deal(images, labels))

    network.train()
    mean_loss, started = math.nan, time.perf_counter()
    images_per_epoch = steps_per_epoch * batch_size
    with (
        device.seeded(generator),  # dropout and the like draw from torch's global generator
        handed_out(device, "train", network, settings=asdict(settings), seed=torch.initial_seed(), **size),
    ):
        for epoch in range(1, epochs + 1):
            order = examples[torch.randperm(len(examples), generator=generator)][:images_per_epoch]
            try:
                mean_loss = float(torch.stack([step(indices) for indices in order.split(batch_size)]).mean())
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                what = f"training on {batch_size} images of {pixels.size} px at once"
                raise out_of_memory(device, what) from error
            if not math.isfinite(mean_loss):
                raise DivergedError(f"training diverged ({stage}); try another --model or --seed")
            speed = epoch * images_per_epoch / (time.perf_counter() - started)
            detail = f"epoch {epoch}/{epochs}, loss {mean_loss:.3f}, {speed:.0f} images/s"
            notify(Progress(stage, epoch * images_per_epoch, epochs * images_per_epoch, detail=detail))
    network.zero_grad()  # recorded steps keep the gradients of the last one, and with them all of their memory
    network.eval()
    return mean_loss


def learning(
    network: Network, device: Device, settings: dict, seed: int, batch_size: int, steps: int
) -> Callable[[torch.Tensor, torch.Tensor], tuple[()]]:
    """A helper's part in ``train``: a function that makes a step on its share of a batch, images and labels."""
    torch.manual_seed(seed + device.peers.rank)  # no two processes drop the same
    how = TrainingSettings(**settings)
    learn = _learner(network.train(), device, how, None, batch_size, steps)

    def step(images: torch.Tensor, labels: torch.Tensor) -> tuple[()]:
        learn(images, labels)
        return ()

    return step


def _learner(
    network: Network,
    device: Device,
    settings: TrainingSettings,
    objective: Objective | None,
    batch_size: int,
    steps: int,
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A function that makes one of so many ``steps`` on a batch, of which it gets the share of this process, and
    returns the loss on all of it. Gradients are summed, so that all processes make the same step."""
    peers = device.peers
    if batch_size < peers.count:
        raise DeviceError(f"{peers.count} processes can't share batches of {batch_size} images; start fewer")
    half_precise = device.autocast_dtype is torch.float16
    # an objective of somebody else may draw or decide something anew in each step
    recorded = device.device.type == "cuda" and not half_precise and peers.count == 1 and objective is None
    lowered = objective or cross_entropy
    optimizer = _optimizer(network, settings, device, recorded)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _triangle(steps, settings.rise))
    scaler = torch.amp.GradScaler(device.device.type, enabled=half_precise)

    def descend(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with device.autocast(), shared_batch_norm(peers):
            loss = lowered(network, images, labels) * (len(images) / batch_size)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        loss = loss.detach()
        peers.add_([loss] + [each.grad for each in network.parameters() if each.grad is not None])
        scaler.step(optimizer)
        scaler.update()
        return loss

    step: Step = Recorded(descend) if recorded else descend

    def learn(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = step(images, labels)
        schedule.step()
        return loss

    return learn


def _triangle(steps: int, rise: float) -> Callable[[int], float]:
    """The factor of the learning rate at a step: up from 0 to 1 over the share ``rise`` of the steps, then down."""
    top = max(1, round(steps * rise))
    return lambda step: min((step + 1) / top, max(0.0, (steps - step) / max(1, steps - top)))


def _optimizer(network: Network, settings: TrainingSettings, device: Device, recorded: bool) -> torch.optim.Optimizer:
    """Where its steps are ``recorded``, it reads the learning rate on the device, since a number would be kept."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    # in float16, fused SGD would take a step that overflowed for its first, and keep a momentum that was never written
    fused = (device.device.type == "cuda" and device.autocast_dtype is not torch.float16) or None

    def rate(number: float) -> float | torch.Tensor:
        return torch.tensor(number, device=device.device) if recorded else number

    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        groups = [dict(params=decayed, weight_decay=settings.weight_decay), dict(params=plain, weight_decay=0.0)]
        return torch.optim.SGD(groups, rate(settings.learning_rate), momentum=0.9, nesterov=True, fused=fused)
    groups = [dict(params=decayed, weight_decay=0.05), dict(params=plain, weight_decay=0.0)]
    return torch.optim.AdamW(groups, rate(settings.learning_rate / 100), fused=fused, capturable=recorded)
