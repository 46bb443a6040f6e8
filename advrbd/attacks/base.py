"""What an attack is: a rule for choosing images, and a trigger for their pixels."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

POISON = "poison"
COVER = "cover"


@dataclass(frozen=True)
class Selection:
    """Which images an attack takes, as positions: ``poison`` gets trigger and target label, ``cover`` keeps its own."""

    poison: np.ndarray
    cover: np.ndarray


class Attack(ABC):
    """A backdoor attack with all its settings; the trigger itself is drawn from ``seed``, never a known picture.

    Images are uint8 arrays [height, width, 3] of any size.
    """

    name: str

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def select(
        self, labels: np.ndarray, target_label: int, poison_rate: float, generator: np.random.Generator
    ) -> Selection:
        """Draw ``poison_rate`` of all images from the classes other than the target; dirty-label, without covers."""
        sources = np.flatnonzero(labels != target_label)
        count = min(len(sources), round(poison_rate * len(labels)))
        return Selection(np.sort(generator.choice(sources, count, replace=False)), np.empty(0, np.int64))

    @abstractmethod
    def stamp(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The training image with its trigger; ``image`` is left as it is."""

    def stamp_test(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The trigger as the attacker shows it to the trained model; the same as in training unless overridden."""
        return self.stamp(image, generator)
