"""What a trained network says of images: logits and penultimate features, batch by batch, nothing learned."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from advrbd.data.pixels import Pixels
from advrbd.errors import DivergedError, is_out_of_memory
from advrbd.model.device import Device, out_of_memory
from advrbd.model.factory import Network
from advrbd.model.helping import handed_out

BATCH = 512
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outputs:
    """Per image, on the CPU: ``logits`` float32 [M, classes] and ``features`` float32 [M, F]."""

    logits: torch.Tensor
    features: torch.Tensor

    @property
    def probabilities(self) -> torch.Tensor:
        return self.logits.softmax(dim=1)


@dataclass(frozen=True)
class Predictions:
    """Per image, on the CPU: the most probable ``classes`` int64 [M] and ``features`` float32 [M, F].

    What there is room for where all images of a folder with many classes are asked about."""

    classes: torch.Tensor
    features: torch.Tensor


class Batches:
    """Work on a device, up to ``size`` images at a time: half as many from the moment that its memory runs out.

    For what looks at each image by itself. What trains isn't cut: the size of its batches is part of the method.
    """

    def __init__(self, size: int, device: Device) -> None:
        self.size, self._device = size, device

    def map(self, compute: Callable[..., Result], *tensors: torch.Tensor) -> Iterator[Result]:
        """What ``compute`` makes of the ``tensors`` [M, ...], batch by batch in their order.

        Raises ``DeviceError`` where there is no memory for a single image.
        """
        count, start = len(tensors[0]), 0
        while True:
            stop = min(start + self.size, count)
            try:
                result = compute(*(tensor[start:stop] for tensor in tensors))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if stop - start <= 1:
                    raise out_of_memory(self._device, "a single image") from error
                self.size = (stop - start) // 2
                continue
            yield result
            start = stop
            if start == count:
                return


def infer(network: Network, pixels: Pixels, indices: torch.Tensor, device: Device, mirror: bool = False) -> Outputs:
    """Run ``network`` in eval mode on the images ``indices`` (int64 [M]); with ``mirror`` average over both sides.

    Raises ``DivergedError`` where it says anything but finite numbers, from which no verdict may follow.
    """
    return Outputs(*_gather(_asked(network, pixels, indices, device, mirror), len(indices)))


def predict(network: Network, pixels: Pixels, indices: torch.Tensor, device: Device) -> Predictions:
    """As ``infer``, but of the logits only which of them is the largest."""
    asked = _asked(network, pixels, indices, device, mirror=False)
    return Predictions(*_gather(((logits.argmax(dim=1), features) for logits, features in asked), len(indices)))


def _asked(
    network: Network, pixels: Pixels, indices: torch.Tensor, device: Device, mirror: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits and features of one batch of images after the other."""
    network.eval()
    answer, peers = answering(network, device, mirror), device.peers
    with handed_out(device, "infer", network, mirror=mirror):
        for chunk in indices.split(BATCH):
            own = answer(*peers.deal(pixels.batch(chunk, device.device)))
            logits, features = peers.collect(own, len(chunk))
            if not (logits.isfinite().all() and features.isfinite().all()):
                advice = "try another --model or --seed"
                raise DivergedError(f"what the model says of some images are no finite numbers; {advice}")
            yield logits, features


def answering(
    network: Network, device: Device, mirror: bool
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """A function from images [B, 3, S, S] on ``device`` to what ``network`` says of them: logits and features."""

    @torch.no_grad()
    def ask(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        views = (images, images.flip(-1)) if mirror else (images,)
        with device.autocast():
            seen = [network.features(view) for view in views]
            said = [network.classify(view) for view in seen]
        logits, features = (torch.stack([view.float() for view in each]).mean(dim=0).cpu() for each in (said, seen))
        return logits, features

    batches = Batches(BATCH, device)

    def answer(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, features = zip(*batches.map(ask, images), strict=True)
        return torch.cat(logits), torch.cat(features)

    return answer


def _gather(batches: Iterator[tuple[torch.Tensor, ...]], count: int) -> list[torch.Tensor]:
    """The tensors of all batches, each put together to [count, ...] without ever being there twice."""
    whole: list[torch.Tensor] = []
    start = 0
    for batch in batches:
        whole = whole or [part.new_empty((count, *part.shape[1:])) for part in batch]
        for target, part in zip(whole, batch, strict=True):
            target[start : start + len(part)] = part
        start += len(batch[0])
    return whole
