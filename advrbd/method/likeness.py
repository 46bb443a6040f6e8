"""Which images show the same scene (ours, not the paper's): frames of a video, crops, versions of one photo.

Whoever learned one frame knows the others, as whoever learned a trigger knows every image that carries it. Only where
all frames of a scene are learned together can it be told what carries over from one half of a group to the other.
"""

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch.nn import functional

from advrbd.model.run import Run

SIDE = 8
SAME = 0.87
MOST = 10_000
CHUNK = 256
FRAMES = 8  # images of one scene, from which on they may be frames; fewer are merely alike, as digits are


def scenes(run: Run, examples: torch.Tensor) -> torch.Tensor:
    """The scene, int64 [M] in 0..M-1, of each of the images ``examples`` (int64 [M]).

    Two images are of one scene where one, or its mirror image, correlates with the other by more than ``SAME`` at
    ``SIDE`` x ``SIDE`` pixels, and so are two that others link. A trigger hardly moves that. Images without contrast
    are like no other. More than ``MOST`` are taken for scenes of their own: to compare them all would take too long.
    """
    count = len(examples)
    if not 0 < count <= MOST:
        return torch.arange(count)
    small = torch.cat([_thumbnails(run, chunk) for chunk in examples.split(CHUNK)])
    seen, mirrored = small.flatten(1), small.flip(-1).flatten(1)
    scene, every = np.arange(count), np.arange(count)
    for start in range(0, count, CHUNK):  # all pairs at once may be a hundred million
        likeness = (seen[start : start + CHUNK] @ torch.stack([seen, mirrored]).mT).amax(dim=0)
        one, other = (likeness > SAME).nonzero().T.cpu().numpy()
        first = np.unique(scene, return_index=True)[1][scene]
        ends = np.concatenate([one + start, every]), np.concatenate([other, first])
        links = coo_array((np.ones(len(ends[0]), dtype=bool), ends), shape=(count, count))
        scene = connected_components(links, directed=False)[1]
    return torch.from_numpy(scene).long()


def _thumbnails(run: Run, examples: torch.Tensor) -> torch.Tensor:
    """Small versions, float32 [K, 3, SIDE, SIDE], of mean 0 and length 1."""
    small = functional.adaptive_avg_pool2d(run.pixels.batch(examples, run.device.device), SIDE)
    small = small - small.mean(dim=(1, 2, 3), keepdim=True)
    return functional.normalize(small.flatten(1), dim=1, eps=1e-3).view_as(small)
