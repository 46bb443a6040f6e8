"""SIG: a faint sinusoid over images of the target class, labels unchanged (Barni et al. 2019, arXiv:1902.11237)."""

import numpy as np

from advrbd.attacks.base import Attack


class SIG(Attack):
    """x + delta sin(2 pi f j / W) over the columns j; ``delta`` in pixel units of [0, 1] (40/255 as in BackdoorBench).

    Clean-label: only images of the target class are poisoned.
    """

    name = "sig"

    def __init__(self, seed: int = 0, delta: float = 40 / 255, frequency: float = 6.0) -> None:
        super().__init__(seed)
        self.delta = delta
        self.frequency = frequency

    def sources(self, labels: np.ndarray, target_label: int) -> np.ndarray:
        return labels == target_label

    def stamp(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        columns = np.arange(image.shape[1]) / image.shape[1]
        wave = 255 * self.delta * np.sin(2 * np.pi * self.frequency * columns)
        return np.clip(np.round(image + wave[None, :, None]), 0, 255).astype(np.uint8)
