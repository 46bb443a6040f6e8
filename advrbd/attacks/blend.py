"""Blend: a whole picture mixed into the image (Chen et al. 2017, arXiv:1712.05526; paper Table I, alpha 0.2)."""

from functools import lru_cache

import numpy as np
from PIL import Image

from advrbd.attacks.base import Attack

CELLS = 8


class Blend(Attack):
    """(1 - alpha) x + alpha t with a picture t of coloured cells, drawn from the seed and scaled to the image."""

    name = "blend"

    def __init__(self, seed: int = 0, alpha: float = 0.2) -> None:
        super().__init__(seed)
        self.alpha = alpha

    def stamp(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        trigger = draw_pattern(self.seed, image.shape[1], image.shape[0])
        mixed = (1 - self.alpha) * image + self.alpha * trigger
        return np.round(mixed).astype(np.uint8)


@lru_cache(maxsize=64)
def draw_pattern(seed: int, width: int, height: int) -> np.ndarray:
    """A picture of random coloured cells, uint8 [height, width, 3], the same motif at every size."""
    cells = np.random.default_rng(seed).integers(0, 256, (CELLS, CELLS, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))
