"""Stage 1 (Algorithm 1): the images that an adversarial patch moves most are the clean seeds.

Poisoned images are the more robust ones, since the model follows the trigger whatever else is in the image; the
paper calls the seeds D_c and the rest, which holds the poisoned images, D_u.
"""

from dataclasses import dataclass

import torch

from advrbd.config import PartitionSettings
from advrbd.events import Progress
from advrbd.method.perturbation import divergence
from advrbd.model.factory import Network
from advrbd.model.inference import Batches
from advrbd.model.run import Run

BATCH = 256
GPU_PIXELS = 2**21  # 2048 images of 32 px at once: a GPU that gets few waits for the processor; sets what is drawn, too


@dataclass(frozen=True)
class Partition:
    """``divergence`` float32 [M], nats, larger = more sensitive; ``seeds`` bool [M], the trusted images D_c.

    Both are in the order of the examples that were scored.
    """

    divergence: torch.Tensor
    seeds: torch.Tensor


def partition(run: Run, network: Network, examples: torch.Tensor, settings: PartitionSettings) -> Partition:
    """Score the images ``examples`` (int64 [M]) and take the most sensitive ``settings.rate`` *of each class* as seeds.

    By class, because the seeds have to stand for every class in what follows. The divergence is the mean over
    ``settings.masks`` patches.
    """

    def compute() -> dict[str, torch.Tensor]:
        return {"divergence": _divergences(run, network, examples, settings)}

    score = run.steps.remember("partition", (examples,), run.generator, compute)["divergence"]
    labels = run.labels[examples]
    seeds = torch.zeros(len(score), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        count = max(1, round(settings.rate * len(members)))
        seeds[members[score[members].topk(count).indices]] = True
    return Partition(score, seeds)


def _divergences(run: Run, network: Network, examples: torch.Tensor, settings: PartitionSettings) -> torch.Tensor:
    """The mean divergence float32 [M] of each image over the patches."""
    network.eval()
    size = max(BATCH, GPU_PIXELS // run.pixels.size**2) if run.device.device.type == "cuda" else BATCH
    scores, batches = [], Batches(size, run.device)
    for chunk in examples.split(size):
        images = run.pixels.batch(chunk, run.device.device)
        drawn = [
            divergence(network, images, settings, run.device, run.generator, batches).cpu()
            for _ in range(settings.masks)
        ]
        scores.append(torch.stack(drawn).mean(dim=0))
        run.notify(Progress("partition", sum(map(len, scores)), len(examples)))
    return torch.cat(scores)
