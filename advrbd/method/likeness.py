"""Which images show the same (ours, not the paper's): frames of a video, crops, versions of one photo.

Whoever learned one frame knows the others, as whoever learned a trigger knows every image that carries it. Only where
all frames of a scene are learned together can it be told what carries over from one half of a group to the other, and
what a network says of twenty versions of a picture it says once. A trigger hardly changes what an image is like.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from torch.nn import functional

from advrbd.model.run import Run

SIDE = 8
SAME = 0.93
MOST = 10_000
MOST_COUNTED = 1000
CHUNK = 256


def scenes(run: Run, examples: torch.Tensor) -> torch.Tensor:
    """The scene, int64 [M] in 0..M-1, of each of the images ``examples`` (int64 [M]).

    Two images are of one scene where they are alike by more than ``SAME``, and so are two that others link, as the
    first and the last frame of a film. Images without contrast are like no other. More than ``MOST`` are taken for
    scenes of their own: to compare them all would take too long.
    """
    count = len(examples)
    if not 0 < count <= MOST:
        return torch.arange(count)
    scene, every = np.arange(count), np.arange(count)
    for start, likeness in _likeness(run, examples):
        one, other = (likeness > SAME).nonzero().T.cpu().numpy()
        first = np.unique(scene, return_index=True)[1][scene]
        ends = np.concatenate([one + start, every]), np.concatenate([other, first])
        links = coo_array((np.ones(len(ends[0]), dtype=bool), ends), shape=(count, count))
        scene = connected_components(links, directed=False)[1]
    return torch.from_numpy(scene).long()


def count_pictures(run: Run, examples: torch.Tensor) -> int:
    """How many pictures the images ``examples`` (int64 [M]) show, 1..M, 0 where there are none: those that are alike by
    more than ``SAME`` on average show one. More than ``MOST_COUNTED`` images are that many pictures: where there are so
    many, their number is in no doubt, and to compare them all would take too long.

    Not by links, as scenes are: one link after the other, most handwritten zeros are of one scene.
    """
    count = len(examples)
    if not 1 < count <= MOST_COUNTED:
        return count
    likeness = torch.cat([rows for _, rows in _likeness(run, examples)]).double().cpu()
    apart = (1 - (likeness + likeness.T) / 2).clamp_min(0).fill_diagonal_(0)
    return int(fcluster(linkage(squareform(apart.numpy()), "average"), 1 - SAME, "distance").max())


def _likeness(run: Run, examples: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """How like each of M images is to all of them, a few of them at a time, since all pairs may be a hundred million:
    the position of the first, and float32 [K, M] in -1..1, the correlation of the two, or of one with the other's
    mirror image if that is more, at ``SIDE`` x ``SIDE`` pixels."""
    small = torch.cat([_thumbnails(run, chunk) for chunk in examples.split(CHUNK)])
    seen, mirrored = small.flatten(1), small.flip(-1).flatten(1)
    for start in range(0, len(examples), CHUNK):
        yield start, (seen[start : start + CHUNK] @ torch.stack([seen, mirrored]).mT).amax(dim=0)


def _thumbnails(run: Run, examples: torch.Tensor) -> torch.Tensor:
    """Small versions, float32 [K, 3, SIDE, SIDE], of mean 0 and length 1."""
    small = functional.adaptive_avg_pool2d(run.pixels.batch(examples, run.device.device), SIDE)
    small = small - small.mean(dim=(1, 2, 3), keepdim=True)
    return functional.normalize(small.flatten(1), dim=1, eps=1e-3).view_as(small)
