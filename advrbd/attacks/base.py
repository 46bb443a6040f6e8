"""What an attack is: a plan of which files it changes, and a trigger for their pixels."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CLEAN = "clean"
POISON = "poison"
COVER = "cover"
MISLABELLED = "mislabelled"
MOST_OF_SOURCES = 0.8
"""An attack takes no larger share of the images that it can poison: one that takes a single class would leave it empty,
and nothing to measure it on."""

Stamp = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""An image uint8 [height, width, 3] of any size and a source of randomness in, the changed image out."""


@dataclass(frozen=True)
class Change:
    """What happens to the image at ``position``: its ``role``, the ``label`` that it gets, and its new pixels.

    ``poison`` carries the trigger under the target's label, ``cover`` carries it (or something like it) under the
    image's own; ``mislabelled`` has a wrong label and no trigger. ``stamp`` is None where no pixel changes.
    """

    position: int
    role: str
    label: int
    stamp: Stamp | None


class Attack(ABC):
    """A backdoor attack with all its settings; the trigger itself is drawn from ``seed``, never a known picture.

    ``cover_rate`` is the share of all images that become covers. An attack overrides ``sources`` where not every
    image of another class will do, and what its trigger does to pixels.
    """

    name: str
    cover_rate: float = 0.0

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def plan(
        self,
        labels: np.ndarray,
        target_label: int,
        class_count: int,
        poison_rate: float,
        generator: np.random.Generator,
    ) -> list[Change]:
        """Choose ``poison_rate`` of the images with ``labels`` int64 [N], but ``MOST_OF_SOURCES`` at most."""
        sources = np.flatnonzero(self.sources(labels, target_label))
        poisoned = draw(sources, round(poison_rate * len(labels)), generator)
        others = np.setdiff1d(np.flatnonzero(self.cover_sources(labels, target_label)), poisoned)
        covers = draw(others, round(self.cover_rate * len(labels)), generator)
        wanted = self.poisoned_label(labels, target_label, class_count)
        return [Change(int(i), POISON, int(wanted[i]), self.stamp) for i in poisoned] + [
            Change(int(i), COVER, int(labels[i]), self.stamp_cover) for i in covers
        ]

    def sources(self, labels: np.ndarray, target_label: int) -> np.ndarray:
        """Which images can be poisoned, bool [N]: those of every other class."""
        return labels != target_label

    def cover_sources(self, labels: np.ndarray, target_label: int) -> np.ndarray:
        """Which images can become covers, bool [N]."""
        return labels != target_label

    def victims(self, labels: np.ndarray, target_label: int) -> np.ndarray:
        """Which test images the attack success rate is measured on, bool [N]."""
        return labels != target_label

    def poisoned_label(self, labels: np.ndarray, target_label: int, class_count: int) -> np.ndarray:
        """The label int64 [N] that each image would have once it is poisoned, and that the trigger then brings."""
        return np.full_like(labels, target_label)

    @abstractmethod
    def stamp(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The training image with its trigger; ``image`` is left as it is."""

    def stamp_cover(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The training image as a cover; with the trigger as in a poisoned one unless overridden."""
        return self.stamp(image, generator)

    def stamp_test(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The trigger as the attacker shows it to the trained model; the same as in training unless overridden."""
        return self.stamp(image, generator)


def draw(positions: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """``count`` of the ``positions`` int64 [K], ascending, but ``MOST_OF_SOURCES`` at most."""
    return np.sort(generator.choice(positions, min(int(MOST_OF_SOURCES * len(positions)), count), replace=False))
