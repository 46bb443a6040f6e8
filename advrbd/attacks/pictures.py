"""What triggers are drawn from: pictures that come from a seed alone, and how they get into an image."""

from functools import lru_cache

import numpy as np
from PIL import Image

CELLS = 8
REFERENCE_SIDE = 32  # sizes of triggers are given for images of this side
BOTTOM_RIGHT = 3


def scaled(pixels: float, image: np.ndarray) -> int:
    """A length given for a 32-pixel image, in the pixels of ``image``; at least one."""
    return max(1, round(pixels * min(image.shape[:2]) / REFERENCE_SIDE))


@lru_cache(maxsize=4)  # as large as an image each
def draw_pattern(seed: int, width: int, height: int) -> np.ndarray:
    """A picture of random coloured cells, uint8 [height, width, 3], the same motif at every size."""
    cells = np.random.default_rng(seed).integers(0, 256, (CELLS, CELLS, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))


@lru_cache(maxsize=16)
def draw_emblem(seed: int, side: int) -> np.ndarray:
    """A round badge of four saturated colours on a dark rim, uint8 [side, side, 4]; outside it is transparent."""
    fine = side * max(1, min(16, 1024 // side))  # large emblems have smooth edges anyway, and memory is finite
    y, x = (np.mgrid[:fine, :fine] + 0.5) / fine * 2 - 1
    radius, generator = np.hypot(x, y), np.random.default_rng([seed, 1])
    colours = generator.permuted(np.tile(np.array([0, 90, 255]), (4, 1)), axis=1)
    turn = generator.uniform(0, 2 * np.pi)
    sector = ((np.arctan2(y, x) + turn) % (2 * np.pi) / (np.pi / 2)).astype(int) % 4
    badge = np.dstack([colours[sector], np.where(radius < 1, 255, 0)]).astype(np.uint8)
    badge[(radius >= 0.8) & (radius < 1), :3] = 20
    return np.asarray(Image.fromarray(badge).resize((side, side), Image.Resampling.BOX))


def paste(image: np.ndarray, emblem: np.ndarray, top: int, left: int, opacity: float = 1.0) -> np.ndarray:
    """A copy of ``image`` with ``emblem`` (uint8 [h, w, 4]) mixed in at that place."""
    height, width = emblem.shape[:2]
    pasted = image.copy()
    there = pasted[top : top + height, left : left + width]
    alpha = opacity * emblem[..., 3:] / 255
    there[...] = np.round((1 - alpha) * there + alpha * emblem[..., :3])
    return pasted


def show_in_corner(image: np.ndarray, seed: int, side: int, corner: int, opacity: float) -> np.ndarray:
    """A copy of ``image`` with an emblem in a corner: 0 and 1 are the top left and right ones, 2 and 3 those below.

    ``side`` is that of the emblem in an image of 32 pixels.
    """
    side = scaled(side, image)
    top, left = (image.shape[0] - side) * (corner // 2), (image.shape[1] - side) * (corner % 2)
    return paste(image, draw_emblem(seed, side), top, left, opacity)


def mix(image: np.ndarray, picture: np.ndarray, alpha: float | np.ndarray) -> np.ndarray:
    """(1 - alpha) of the image and alpha of the picture."""
    return np.round((1 - alpha) * image + alpha * picture).astype(np.uint8)
