"""Attackers who have read how advrbd works, each aiming at one of its steps; the experiments tell what they pay."""

import numpy as np

from advrbd.attacks.badnets import BadNets
from advrbd.attacks.base import MISLABELLED, Attack, Change, draw
from advrbd.attacks.pictures import BOTTOM_RIGHT, show_in_corner


class Graded(Attack):
    """Against the verdict: the emblem's opacity is drawn for each image, so that carriers fade into the others.

    Identification convicts a class for a gap between images that carry a trigger and images that don't.
    """

    name = "graded"

    def __init__(self, seed: int = 0, side: int = 8, opacities: tuple[float, float] = (0.0, 0.5)) -> None:
        super().__init__(seed)
        self.side = side
        self.opacities = opacities

    def stamp(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return show_in_corner(image, self.seed, self.side, BOTTOM_RIGHT, generator.uniform(*self.opacities))

    def stamp_test(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return show_in_corner(image, self.seed, self.side, BOTTOM_RIGHT, 1.0)


class Decoy(BadNets):
    """Against separation: images of one other class are put into the target class as well, without any trigger.

    They are a foreign group that draws the attention of a clustering and, once examined, proves natural.
    """

    name = "decoy"

    def __init__(self, seed: int = 0, side: int = 3, decoy_rate: float = 0.03) -> None:
        super().__init__(seed, side)
        self.decoy_rate = decoy_rate

    def plan(
        self,
        labels: np.ndarray,
        target_label: int,
        class_count: int,
        poison_rate: float,
        generator: np.random.Generator,
    ) -> list[Change]:
        poison = super().plan(labels, target_label, class_count, poison_rate, generator)
        left = np.ones(len(labels), dtype=bool)
        left[[change.position for change in poison]] = False
        sources = np.flatnonzero(left & (labels == (target_label + 1) % class_count))
        decoys = draw(sources, round(self.decoy_rate * len(labels)), generator)
        return poison + [Change(int(i), MISLABELLED, target_label, None) for i in decoys]


class Contested(BadNets):
    """Against partition: so many covers deny the trigger that the model is unsure of it, and poison looks sensitive."""

    name = "contested"

    def __init__(self, seed: int = 0, side: int = 3, cover_rate: float = 0.03) -> None:
        super().__init__(seed, side)
        self.cover_rate = cover_rate
