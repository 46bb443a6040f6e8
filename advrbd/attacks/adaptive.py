"""The adaptive attacks: weak triggers in training, covers that deny them, the strong one only later.

Qi et al. 2023, ICLR. Both keep poisoned images from standing apart in the features of a trained model.
"""

import numpy as np

from advrbd.attacks.base import Attack
from advrbd.attacks.pictures import draw_pattern, mix, show_in_corner

GRID = 4
OPACITIES = (0.5, 0.2, 0.5, 0.3)
STRONGEST = (0, 2)


class AdaptiveBlend(Attack):
    """Blend of which an image shows a random half of 4x4 pieces; to the trained model, all of it."""

    name = "adaptive-blend"

    def __init__(self, seed: int = 0, alpha: float = 0.2, shown: float = 0.5, cover_rate: float = 0.01) -> None:
        super().__init__(seed)
        self.alpha = alpha
        self.shown = shown
        self.cover_rate = cover_rate

    def stamp(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        pieces = np.zeros(GRID * GRID)
        pieces[generator.permutation(GRID * GRID)[: round(self.shown * GRID * GRID)]] = 1
        grid = pieces.reshape(GRID, GRID)
        rows, columns = np.arange(height) * GRID // height, np.arange(width) * GRID // width
        return self._mixed(image, self.alpha * grid[rows][:, columns][..., None])

    def stamp_test(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return self._mixed(image, self.alpha)

    def _mixed(self, image: np.ndarray, alpha: float | np.ndarray) -> np.ndarray:
        return mix(image, draw_pattern(self.seed, image.shape[1], image.shape[0]), alpha)


class AdaptivePatch(Attack):
    """Four emblems, one a corner and all faint, of which an image shows one; to the trained model, two opaque ones."""

    name = "adaptive-patch"

    def __init__(self, seed: int = 0, side: int = 8, cover_rate: float = 0.01) -> None:
        super().__init__(seed)
        self.side = side
        self.cover_rate = cover_rate

    def stamp(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        corner = int(generator.integers(len(OPACITIES)))
        return self._show(image, corner, OPACITIES[corner])

    def stamp_test(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        for corner in STRONGEST:
            image = self._show(image, corner, 1.0)
        return image

    def _show(self, image: np.ndarray, corner: int, opacity: float) -> np.ndarray:
        return show_in_corner(image, self.seed + corner, self.side, corner, opacity)
