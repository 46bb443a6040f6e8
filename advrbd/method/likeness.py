"""Which images show the same scene (ours, not the paper's): frames of a video, crops, versions of one photo.

Whoever learned one frame knows the others, as whoever learned a trigger knows every image that carries it. Only where
all frames of a scene are learned together can it be told what carries over from one half of a group to the other.
"""

import torch
from sklearn.cluster import DBSCAN
from torch.nn import functional

from advrbd.model.run import Run

SIDE = 8
SAME = 0.93
MOST = 10_000
CHUNK = 1024


def scenes(run: Run, examples: torch.Tensor) -> torch.Tensor:
    """The scene, int64 [M] from 0 on, of each of the images ``examples`` (int64 [M]).

    Two images are of one scene where they, or one and the other's mirror image, correlate by more than ``SAME`` at
    ``SIDE`` x ``SIDE`` pixels, and so are two that others link. A trigger hardly moves that. More than ``MOST`` images
    are taken for scenes of their own: comparing them with each other would take too long.
    """
    if len(examples) > MOST:
        return torch.arange(len(examples))
    seen = torch.cat([_thumbnails(run, chunk) for chunk in examples.split(CHUNK)])
    radius = (2 * (1 - SAME)) ** 0.5  # of vectors of length one
    return torch.from_numpy(DBSCAN(eps=radius, min_samples=1).fit_predict(seen.flatten(1).numpy()))


def _thumbnails(run: Run, examples: torch.Tensor) -> torch.Tensor:
    """Small versions, float32 [M, 3, SIDE, SIDE] of mean 0 and length 1, all turned the same way round."""
    small = functional.adaptive_avg_pool2d(run.pixels.batch(examples, run.device.device), SIDE).cpu()
    small = small - small.mean(dim=(1, 2, 3), keepdim=True)
    small = functional.normalize(small.flatten(1), dim=1).view_as(small)
    left, right = small[..., : SIDE // 2], small[..., SIDE // 2 :].flip(-1)
    turned = (left - right).sum(dim=(1, 2, 3)) < 0
    return torch.where(turned[:, None, None, None], small.flip(-1), small)
