"""Which images show the same scene (ours, not the paper's): frames of a video, crops, versions of one photo.

Whoever learned one frame knows the others, as whoever learned a trigger knows every image that carries it. Only where
all frames of a scene are learned together can it be told what carries over from one half of a group to the other.
"""

import torch
from torch.nn import functional

from advrbd.model.run import Run

SIDE = 8
SAME = 0.87
MOST = 10_000
CHUNK = 1024
ROUNDS = 20
FRAMES = 8  # images of one scene, from which on they may be frames; fewer are merely alike, as digits are


def scenes(run: Run, examples: torch.Tensor) -> torch.Tensor:
    """The scene, int64 [M] in 0..M-1, of each of the images ``examples`` (int64 [M]).

    Two images are of one scene where one, or its mirror image, correlates with the other by more than ``SAME`` at
    ``SIDE`` x ``SIDE`` pixels, and so are two that others link. A trigger hardly moves that. Images without contrast
    are like no other. More than ``MOST`` are taken for scenes of their own: to compare them all would take too long.
    """
    scene = torch.arange(len(examples), device=run.device.device)
    if not 0 < len(examples) <= MOST:
        return scene.cpu()
    small = [_thumbnails(run, chunk) for chunk in examples.split(CHUNK)]
    seen = torch.cat([one.flatten(1) for one in small])
    mirrored = torch.cat([one.flip(-1).flatten(1) for one in small])
    for _ in range(ROUNDS):  # each takes the first scene that it is linked with, until none changes
        first = [_first(chunk @ seen.T, chunk @ mirrored.T, scene) for chunk in seen.split(CHUNK)]
        linked = torch.cat(first).minimum(scene)
        linked = linked[linked]
        if torch.equal(linked, scene):
            break
        scene = linked
    return scene.cpu()


def _first(likeness: torch.Tensor, mirrored: torch.Tensor, scene: torch.Tensor) -> torch.Tensor:
    """The first scene, int64 [K], among those of the M images that each of K is like (float32 [K, M], -1..1)."""
    return torch.where(likeness.maximum(mirrored) > SAME, scene, len(scene)).amin(dim=1)


def _thumbnails(run: Run, examples: torch.Tensor) -> torch.Tensor:
    """Small versions, float32 [K, 3, SIDE, SIDE], of mean 0 and length 1."""
    small = functional.adaptive_avg_pool2d(run.pixels.batch(examples, run.device.device), SIDE)
    small = small - small.mean(dim=(1, 2, 3), keepdim=True)
    return functional.normalize(small.flatten(1), dim=1, eps=1e-3).view_as(small)
