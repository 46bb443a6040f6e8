"""Stage 1 (Algorithm 1): the images that an adversarial patch moves most are the clean seeds.

Poisoned images are the more robust ones, since the model follows the trigger whatever else is in the image; the
paper calls the seeds D_c and the rest, which holds the poisoned images, D_u.
"""

from dataclasses import dataclass

import torch

from advrbd.config import PartitionSettings
from advrbd.data.pixels import Pixels
from advrbd.events import Notify, Progress, ignore
from advrbd.method.perturbation import divergence
from advrbd.model.device import Device
from advrbd.model.factory import Network

BATCH = 256


@dataclass(frozen=True)
class Partition:
    """``divergence`` float32 [M], nats, larger = more sensitive; ``seeds`` bool [M], the trusted images D_c.

    Both are in the order of the examples that were scored.
    """

    divergence: torch.Tensor
    seeds: torch.Tensor


def partition(
    network: Network,
    pixels: Pixels,
    examples: torch.Tensor,
    labels: torch.Tensor,
    settings: PartitionSettings,
    device: Device,
    generator: torch.Generator,
    notify: Notify = ignore,
) -> Partition:
    """Score the images ``examples`` (int64 [M]) and take the most sensitive ``settings.rate`` *of each class* as seeds.

    ``labels`` int64 [M] are theirs. By class, because the seeds have to stand for every class in what follows.
    The divergence is the mean over ``settings.masks`` patches.
    """
    network.eval()
    scores = []
    for chunk in examples.split(BATCH):
        images = pixels.batch(chunk, device.device)
        drawn = [divergence(network, images, settings, device, generator).cpu() for _ in range(settings.masks)]
        scores.append(torch.stack(drawn).mean(dim=0))
        notify(Progress("partition", sum(map(len, scores)), len(examples)))
    score = torch.cat(scores)
    seeds = torch.zeros(len(score), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        count = max(1, round(settings.rate * len(members)))
        seeds[members[score[members].topk(count).indices]] = True
    return Partition(score, seeds)
