"""Blend: a whole picture mixed into the image (Chen et al. 2017, arXiv:1712.05526; paper Table I, alpha 0.2)."""

import numpy as np

from advrbd.attacks.base import Attack
from advrbd.attacks.pictures import draw_pattern, mix


class Blend(Attack):
    """(1 - alpha) x + alpha t with a picture t of coloured cells, drawn from the seed and scaled to the image."""

    name = "blend"

    def __init__(self, seed: int = 0, alpha: float = 0.2) -> None:
        super().__init__(seed)
        self.alpha = alpha

    def stamp(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return mix(image, draw_pattern(self.seed, image.shape[1], image.shape[0]), self.alpha)
