"""What a trained network says of images: logits and penultimate features, batch by batch, nothing learned."""

from dataclasses import dataclass

import torch

from advrbd.data.pixels import Pixels
from advrbd.errors import DivergedError
from advrbd.model.device import Device
from advrbd.model.factory import Network

BATCH = 512


@dataclass(frozen=True)
class Outputs:
    """Per image, on the CPU: ``logits`` float32 [M, classes] and ``features`` float32 [M, F]."""

    logits: torch.Tensor
    features: torch.Tensor

    @property
    def probabilities(self) -> torch.Tensor:
        return self.logits.softmax(dim=1)


@torch.no_grad()
def infer(network: Network, pixels: Pixels, indices: torch.Tensor, device: Device, mirror: bool = False) -> Outputs:
    """Run ``network`` in eval mode on the images ``indices`` (int64 [M]); with ``mirror`` average over both sides.

    Raises ``DivergedError`` where it says anything but finite numbers, from which no verdict may follow.
    """
    network.eval()
    logits, features = [], []
    for chunk in indices.split(BATCH):
        images = pixels.batch(chunk, device.device)
        views = (images, images.flip(-1)) if mirror else (images,)
        with device.autocast():
            seen = [network.features(view) for view in views]
            said = [network.classify(view) for view in seen]
        features.append((sum(view.float() for view in seen) / len(views)).cpu())
        logits.append((sum(view.float() for view in said) / len(views)).cpu())
    outputs = Outputs(torch.cat(logits), torch.cat(features))
    if not (outputs.logits.isfinite().all() and outputs.features.isfinite().all()):
        raise DivergedError("what the model says of some images are no finite numbers; try another --model or --seed")
    return outputs
