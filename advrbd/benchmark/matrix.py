"""What an experiment is about, as data: a matrix of attacks, rates, models, data sets and seeds, and its units."""

from dataclasses import asdict, dataclass
from pathlib import Path

from advrbd.attacks import PAPER
from advrbd.benchmark.settings import Value, apply_overrides, shown
from advrbd.config import Config

NO_ATTACK = "none"
EIGHT = tuple(attack.name for attack in PAPER)
"""The attacks of the paper."""


@dataclass(frozen=True)
class Unit:
    """What one unit is about. ``data`` holds ``train/`` and ``test/``; ``target`` is the number of the class.

    ``budget`` is the length of the baselines that train on the whole folder, as a share of their papers' epochs; below
    1, trainings of advrbd's own length don't get the more epochs of small folders.
    """

    data: Path
    per_class: int
    target: int
    model: str
    attack: str
    rate: float
    seed: int
    device: str = "auto"
    overrides: tuple[tuple[str, Value], ...] = ()
    budget: float = 1.0

    @property
    def name(self) -> str:
        """The name of the unit's files: all that tells it from the others, but for the device."""
        parts = [self.data.name, f"n{self.per_class}", f"t{self.target}", self.model, self.attack]
        parts += [f"r{self.rate:g}", f"s{self.seed}", *(f"{name}={shown(value)}" for name, value in self.overrides)]
        return "-".join(parts + ([f"b{self.budget:g}"] if self.budget != 1 else []))

    @property
    def config(self) -> Config:
        """The default settings with the overrides in them; a budget below 1 spares advrbd's longer training, too."""
        plain = () if self.budget >= 1 else (("relearning.clean.enough_steps", 0),)
        return apply_overrides(Config(model=self.model, device=self.device, seed=self.seed), (*plain, *self.overrides))

    def as_dict(self) -> dict:
        """What the unit's JSON says of it: the data set's name, since its path means nothing elsewhere."""
        key = asdict(self) | {"data": self.data.name, "overrides": dict(self.overrides)}
        return {"name": self.name, "dataset": key.pop("data"), **key}


def is_called(folder: str, name: str) -> bool:
    """Whether a data set's ``folder`` has the ``name``, or that with a remark: ``tiny-imagenet-40``."""
    return folder == name or folder.startswith(f"{name}-")


@dataclass(frozen=True)
class Matrix:
    """Every combination of its ``datasets``, ``models``, ``attacks``, ``rates`` and ``seeds`` is a unit.

    ``datasets`` are names of folders (see ``is_called``); None stands for all that there are. The unpoisoned folder,
    the attack ``none``, has one unit whatever the rates. Each unit is put through all the ``defences``.
    """

    datasets: tuple[str, ...] | None = None
    attacks: tuple[str, ...] = ("badnets", "blend", NO_ATTACK)
    defences: tuple[str, ...] = (NO_ATTACK, "scan")
    rates: tuple[float, ...] = (0.05,)
    models: tuple[str, ...] = ("auto",)
    seeds: tuple[int, ...] = (11, 12, 13)
    per_class: int = 1000
    target: int = 1
    device: str = "auto"
    budget: float = 1.0
    overrides: tuple[tuple[str, Value], ...] = ()

    def units(self, folders: list[Path]) -> list[Unit]:
        """The units on those of the ``folders`` that are meant: seed by seed, so that what is stopped early has every
        attack."""
        return [
            Unit(
                folder,
                self.per_class,
                self.target,
                model,
                attack,
                rate,
                seed,
                self.device,
                self.overrides,
                self.budget,
            )
            for seed in self.seeds
            for folder in folders
            if self.datasets is None or any(is_called(folder.name, name) for name in self.datasets)
            for model in self.models
            for attack in self.attacks
            for rate in (self.rates if attack != NO_ATTACK else (0.0,))
        ]
