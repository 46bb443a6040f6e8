"""Which experiments there are to choose from, and what a choice comes to: units, and the defences of each."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from advrbd.attacks import AWARE, WIDER
from advrbd.baselines import INSTALLED
from advrbd.benchmark.defences import CLEANING, DEFENCES, FIGURES
from advrbd.benchmark.matrix import EIGHT, NO_ATTACK, Matrix, Unit
from advrbd.benchmark.settings import apply_overrides, parse_overrides
from advrbd.config import Config
from advrbd.errors import BenchmarkError

LONGEST_NAME = 200  # file systems take 255 bytes, and temporary names are longer
MANY_SOURCES = tuple(name for name in EIGHT if name not in ("sig", "tact"))  # than the images of one class
ALL = "all"
GROUPS = {
    "paper": EIGHT,
    "wider": tuple(attack.name for attack in WIDER),
    "aware": tuple(attack.name for attack in AWARE),
    ALL: (NO_ATTACK, *EIGHT, *(attack.name for attack in WIDER + AWARE)),
}
INSTALLED_HERE = all(find_spec(package) for package in ("art", "cleanlab"))
EVERY_DEFENCE = tuple(name for name in DEFENCES if name != FIGURES and (INSTALLED_HERE or name not in INSTALLED))
SCANNED, CLEANED = (NO_ATTACK, "scan"), (NO_ATTACK, "scan", "advrbd")
CIFAR, OTHERS = ("cifar10",), ("imagenette", "cifar100", "tiny-imagenet")

# `small` has to end within 90 minutes on two cores with bfloat16; it took 54 (examples/reproduce/small.md), as long as
# the dozen trainings of advrbd's own length, five of them cleanlab's, stay at 32 epochs. Much of the rest has a length
# of its own, whatever the number of images.
SMALL = Matrix(
    None,
    ("badnets", "blend", "tact"),
    EVERY_DEFENCE,
    seeds=(11,),
    per_class=250,
    budget=0.25,
)
SMOKE = Matrix(None, ("badnets",), (*CLEANED, "fine-tuning"), seeds=(11,), per_class=100)

_FULL = Matrix(CIFAR, EIGHT, SCANNED, seeds=(11,), per_class=5000)
_CHANGES = (
    *("partition.rate=0.1", "partition.rate=0.3", "partition.rate=0.5"),  # with the default, .2: Figure 7
    *("partition.patch=0.25", "partition.patch=0.75", "partition.patch=1.0"),
    *("partition.epsilon=0.03", "partition.epsilon=0.12", "partition.steps=1", "partition.steps=4"),
    *("partition.masks=1", "partition.masks=4", "separation.parts=2 separation.examined=6", "enhancement.rounds=1"),
    *("enhancement.steps=60", "enhancement.steps=240"),
    *("enhancement.training.learning_rate=0.02", "enhancement.training.learning_rate=0.1"),
    *("identification.even_odds=0.1", "identification.even_odds=0.4", "looks=1"),
)
PRESETS: dict[str, tuple[Matrix, ...]] = {
    "smoke": (SMOKE,),
    "small": (SMALL,),
    # meant for a GPU, where `auto` is ResNet-18, and full-size data sets; the most important first
    "paper": (
        replace(_FULL, attacks=(NO_ATTACK, *EIGHT), defences=EVERY_DEFENCE),  # Tables II, III, IV and VII
        replace(_FULL, attacks=(NO_ATTACK, *EIGHT), defences=CLEANED, models=("resnet34", "mobilenetv2_100")),  # VI
        *(replace(_FULL, datasets=(name,), attacks=(NO_ATTACK, *EIGHT), defences=EVERY_DEFENCE) for name in OTHERS),
        replace(_FULL, attacks=MANY_SOURCES, defences=CLEANED, rates=(0.1, 0.15, 0.2)),  # Table V
        replace(_FULL, datasets=CIFAR + OTHERS, attacks=(NO_ATTACK,), seeds=(11, 12, 13)),  # false alarms
        replace(_FULL, rates=(0.01, 0.003)),  # at any rate?
        replace(_FULL, seeds=(12, 13)),  # spread
        replace(_FULL, attacks=GROUPS["wider"] + GROUPS["aware"]),
        replace(_FULL, attacks=("badnets", "blend", "sig", "wanet"), models=("vit_tiny_patch16_224", "convnext_atto")),
        # each choice moved alone; an attack that is easy and two that are not
        *(
            replace(
                _FULL,
                attacks=(NO_ATTACK, "badnets", "tact", "adaptive-blend"),
                defences=CLEANED if "partition.rate" in change else SCANNED,
                overrides=parse_overrides(change.split()),
            )
            for change in _CHANGES
        ),
    ),
}
"""By name, the matrices of an experiment in the order in which they are run."""


def plan(
    matrices: Sequence[Matrix], folders: Sequence[Path], changes: Mapping[str, Any] | None = None
) -> dict[Unit, tuple[str, ...]]:
    """The units of ``matrices`` on the data sets ``folders``, in order, and what each is to be put through.

    ``changes`` replace fields of all the matrices. A unit that several matrices name gets the defences of all of them.
    What a defence needs is added to it: the scan to what goes on from there, for example. Raises ``BenchmarkError``
    for whatever makes no sense, before any work.
    """
    matrices = [replace(matrix, **(changes or {})) for matrix in matrices]
    folders = [folder.resolve() for folder in folders]
    if len({folder.name for folder in folders}) < len(folders):
        raise BenchmarkError("two of the data folders have the same name; results go by the name")
    for folder in folders:
        _check_data(folder, {matrix.target for matrix in matrices})
    planned: dict[Unit, set[str]] = {}
    for matrix in matrices:
        for name in ("attacks", "defences", "rates", "models", "seeds"):
            if not getattr(matrix, name):
                raise BenchmarkError(f"--{name} names nothing; give it one at least, or leave it out")
        matrix = replace(matrix, attacks=_attacks(matrix.attacks), defences=_defences(matrix.defences))
        if not all(0 < rate < 1 for rate in matrix.rates):
            raise BenchmarkError("a rate is a share between 0 and 1; the unpoisoned folder is the attack none")
        if matrix.per_class < 1 or matrix.budget <= 0:
            raise BenchmarkError("the images per class and the budget have to be more than 0")
        try:
            apply_overrides(Config(), matrix.overrides)
        except ValueError as error:
            raise BenchmarkError(f"--override makes no sense: {error}") from error
        for unit in matrix.units(folders):
            planned.setdefault(unit, set()).update(matrix.defences)
    if not planned:
        wanted = dict.fromkeys(name for matrix in matrices for name in matrix.datasets or ())
        raise BenchmarkError(f"no data folder has one of the names that are asked for: {', '.join(wanted)}")
    if any(len(os.fsencode(unit.name)) > LONGEST_NAME for unit in planned):
        raise BenchmarkError("too many overrides: the results' names, which hold them, are too long")
    return {unit: tuple(name for name in DEFENCES if name in names) for unit, names in planned.items()}


def _attacks(names: Sequence[str]) -> tuple[str, ...]:
    found = dict.fromkeys(name for word in names for name in GROUPS.get(word, (word,)))
    if unknown := [name for name in found if name not in GROUPS[ALL]]:
        known = ", ".join((*GROUPS[ALL], *GROUPS))
        raise BenchmarkError(f"unknown attack {unknown[0]!r}; there are {known}")
    return tuple(found)


def _defences(names: Sequence[str]) -> tuple[str, ...]:
    """Each with what it builds on. ``all`` is every one whose packages are there, ``cleaning`` cleaning and what it is
    compared with."""
    groups = {ALL: EVERY_DEFENCE, "cleaning": CLEANING}
    found = dict.fromkeys(name for word in names for name in groups.get(word, (word,)))
    if unknown := [name for name in found if name not in DEFENCES]:
        raise BenchmarkError(f"unknown defence {unknown[0]!r}; there are {', '.join((*DEFENCES, *groups))}")
    if not INSTALLED_HERE and (lacking := [name for name in found if name in INSTALLED]):
        raise BenchmarkError(f"{lacking[0]} needs packages that aren't here: pip install '.[bench]'")
    return tuple(dict.fromkeys(name for one in found for name in (*DEFENCES[one].after, one)))


def _check_data(folder: Path, targets: set[int]) -> None:
    classes = {}
    for part in ("train", "test"):
        if not (folder / part).is_dir():
            raise BenchmarkError(f"{folder} has no folder {part}/; a data set holds train/ and test/ with its classes")
        classes[part] = sorted(entry.name for entry in (folder / part).iterdir() if entry.is_dir())
    if classes["train"] != classes["test"]:
        raise BenchmarkError(f"train/ and test/ of {folder} don't hold the same classes")
    for target in targets:
        if not 0 <= target < len(classes["train"]):
            known = f"the classes 0 to {len(classes['train']) - 1}"
            raise BenchmarkError(f"{folder} has {known}, so none with number {target}")
