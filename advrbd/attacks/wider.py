"""Beyond the paper's table: what else somebody would try, and honest label noise, which is no backdoor at all."""

import numpy as np

from advrbd.attacks.badnets import BadNets
from advrbd.attacks.base import MISLABELLED, Attack, Change, Stamp
from advrbd.attacks.blend import Blend
from advrbd.attacks.pictures import BOTTOM_RIGHT, draw_emblem, paste, scaled, show_in_corner


class AllToAll(BadNets):
    """The square of BadNets moves every class to the next one; there is no single target (Gu et al. 2019)."""

    name = "all-to-all"

    def sources(self, labels: np.ndarray, target_label: int) -> np.ndarray:
        return np.ones(len(labels), dtype=bool)

    def victims(self, labels: np.ndarray, target_label: int) -> np.ndarray:
        return self.sources(labels, target_label)

    def poisoned_label(self, labels: np.ndarray, target_label: int, class_count: int) -> np.ndarray:
        return (labels + 1) % class_count


class TwoBackdoors(BadNets):
    """BadNets to the target class and Blend to the class after it, each in half of the poisoned images.

    The attack success rate is that of the first.
    """

    name = "two-backdoors"

    def plan(
        self,
        labels: np.ndarray,
        target_label: int,
        class_count: int,
        poison_rate: float,
        generator: np.random.Generator,
    ) -> list[Change]:
        first = super().plan(labels, target_label, class_count, poison_rate / 2, generator)
        left = np.delete(np.arange(len(labels)), [change.position for change in first])
        rest = round(poison_rate * len(labels)) - round(poison_rate / 2 * len(labels))
        rate = rest / max(1, len(left))
        second = Blend(self.seed).plan(labels[left], (target_label + 1) % class_count, class_count, rate, generator)
        return first + [Change(int(left[entry.position]), entry.role, entry.label, entry.stamp) for entry in second]


class RandomPlace(Attack):
    """An opaque emblem that is somewhere else in every image."""

    name = "random-place"

    def __init__(self, seed: int = 0, side: int = 6) -> None:
        super().__init__(seed)
        self.side = side

    def stamp(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        side = scaled(self.side, image)
        top, left = (int(generator.integers(extent - side + 1)) for extent in image.shape[:2])
        return paste(image, draw_emblem(self.seed, side), top, left)


class FaintPatch(Attack):
    """An emblem in the bottom right corner, so faint that an eye may pass over it."""

    name = "faint-patch"

    def __init__(self, seed: int = 0, side: int = 8, opacity: float = 0.25) -> None:
        super().__init__(seed)
        self.side = side
        self.opacity = opacity

    def stamp(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return show_in_corner(image, self.seed, self.side, BOTTOM_RIGHT, self.opacity)


class LabelNoise(Attack):
    """Random wrong labels and no trigger: what careless work leaves behind. Not a backdoor; the target is ignored."""

    name = "label-noise"

    def plan(
        self,
        labels: np.ndarray,
        target_label: int,
        class_count: int,
        poison_rate: float,
        generator: np.random.Generator,
    ) -> list[Change]:
        chosen = np.sort(generator.choice(len(labels), round(poison_rate * len(labels)), replace=False))
        wrong = (labels[chosen] + generator.integers(1, class_count, len(chosen))) % class_count
        no_stamp: Stamp | None = None
        return [Change(int(i), MISLABELLED, int(label), no_stamp) for i, label in zip(chosen, wrong, strict=True)]

    def victims(self, labels: np.ndarray, target_label: int) -> np.ndarray:
        return np.zeros(len(labels), dtype=bool)

    def stamp(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return image
