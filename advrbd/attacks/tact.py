"""TaCT: the trigger works on images of one source class only (Tang et al. 2021, arXiv:1908.00686; paper Table I)."""

import numpy as np

from advrbd.attacks.badnets import BadNets


class TaCT(BadNets):
    """The square of BadNets: on the source class it brings the target label, on covers of all other classes nothing.

    The source is class 0, or class 1 where 0 is the target.
    """

    name = "tact"

    def __init__(self, seed: int = 0, side: int = 3, cover_rate: float = 0.01) -> None:
        super().__init__(seed, side)
        self.cover_rate = cover_rate

    def sources(self, labels: np.ndarray, target_label: int) -> np.ndarray:
        return labels == (1 if target_label == 0 else 0)

    def cover_sources(self, labels: np.ndarray, target_label: int) -> np.ndarray:
        return ~self.sources(labels, target_label) & (labels != target_label)

    def victims(self, labels: np.ndarray, target_label: int) -> np.ndarray:
        return self.sources(labels, target_label)
