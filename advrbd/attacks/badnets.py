"""BadNets: a small white square in the bottom right corner (Gu et al. 2019, IEEE Access 7; paper Table I, 3x3)."""

import numpy as np

from advrbd.attacks.base import Attack
from advrbd.attacks.pictures import scaled


class BadNets(Attack):
    """Eq. 1 of the paper: x + m * (t - x) with a square mask m, ``side`` of a 32-pixel image's 32 pixels wide."""

    name = "badnets"

    def __init__(self, seed: int = 0, side: int = 3) -> None:
        super().__init__(seed)
        self.side = side

    def stamp(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        side = scaled(self.side, image)
        stamped = image.copy()
        stamped[-side:, -side:] = 255
        return stamped
