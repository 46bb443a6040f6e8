"""The poisoned folder of one unit, and what the defences that are measured on it share."""

import json
import os
import random
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from advrbd.attacks import ATTACKS, Attack
from advrbd.attacks.base import CLEAN, POISON
from advrbd.attacks.plant import PlantedFile, plant
from advrbd.benchmark.matrix import NO_ATTACK, Unit
from advrbd.benchmark.measure import HeldOutImages, read_held_out, read_trusted
from advrbd.data import folder
from advrbd.data.folder import FolderIndex
from advrbd.data.pixels import Pixels
from advrbd.errors import BenchmarkError
from advrbd.events import Notify, ignore
from advrbd.method.relearning import relearn
from advrbd.model.device import Device, choose_device
from advrbd.model.factory import Network
from advrbd.model.run import Run
from advrbd.model.saved import load_model, save_model
from advrbd.preparation import prepare, usable

TRUSTED_SHARE = 0.05
"""So many images, as a share of the training images, are given to a defence that needs some that are surely clean."""


@dataclass(frozen=True)
class Case:
    """A folder to defend, ``data``, what was ``planted`` in it, and what is ``known`` of it from earlier steps.

    ``directory`` is the unit's own for what a step makes; it goes when the unit ends. ``report`` is where the scan's
    report is, or goes. Whatever is decoded or trained is so when it is first asked for.
    """

    unit: Unit
    directory: Path
    data: Path
    planted: tuple[PlantedFile, ...]
    report: Path
    known: dict
    notify: Notify = ignore

    @cached_property
    def role(self) -> dict[str, str]:
        """What every file of the folder is: poison, cover, mislabelled or clean."""
        return {entry.path: entry.role for entry in self.planted}

    @property
    def poison_rate(self) -> float:
        """The true share of poisoned files."""
        return sum(entry.role == POISON for entry in self.planted) / len(self.planted)

    @property
    def device(self) -> Device:
        """Where everything is computed."""
        return choose_device(self.unit.config.device)

    @cached_property
    def attack(self) -> Attack | None:
        return None if self.unit.attack == NO_ATTACK else ATTACKS[self.unit.attack](seed=self.unit.seed)

    @property
    def trusted_count(self) -> int:
        return round(TRUSTED_SHARE * len(self.planted))

    @cached_property
    def held_out(self) -> HeldOutImages:
        """The test images to measure on; those that are handed out as trusted are none of them."""
        size = self.prepared[1].spec.image_size
        return read_held_out(self.unit.data / "test", size, self.attack, self.unit.target, self.trusted_count)

    @cached_property
    def prepared(self) -> tuple[FolderIndex, Run]:
        """The folder and the means to learn from it; device, model and order of draws are those of ``advrbd.clean``."""
        return prepare(self.data, self.unit.config, notify=self.notify)

    def with_trusted(self) -> tuple[Run, torch.Tensor]:
        """The same run with trusted images behind those of the folder, and where they are (int64 [K]).

        They are test images, as many as ``TRUSTED_SHARE`` of the training images, that nothing is measured on.
        """
        run = self.prepared[1]
        images, labels = read_trusted(self.unit.data / "test", run.spec.image_size, self.trusted_count)
        together = torch.cat([run.pixels.images.cpu(), torch.from_numpy(images)])
        positions = torch.arange(len(run.labels), len(together))
        store = Pixels(together).to(run.device.device)
        return replace(run, pixels=store, labels=torch.cat([run.labels, torch.from_numpy(labels)])), positions

    @cached_property
    def undefended(self) -> Network:
        """The model that somebody would get who trusted every file: trained once a unit, then read from its file."""
        index, run = self.prepared
        path = self.directory / "undefended.safetensors"
        if path.is_file():
            return load_model(path, str(run.device.device))[0]
        # draws of its own: whoever comes after draws the same whether the model was trained or read
        own = torch.Generator()
        own.set_state(run.generator.get_state())
        network = relearn(replace(run, generator=own), usable(index), self.unit.config.relearning)
        save_model(path, network, index.classes)
        return network


def lay_out(unit: Unit, directory: Path) -> tuple[Path, tuple[PlantedFile, ...]]:
    """Draw the unit's images, plant its attack in them, and keep the truth in ``directory`` for ``open_case``.

    Returns the folder to defend and what was done to each of its files. ``directory`` is empty before. Raises
    ``BenchmarkError`` where a class is left without images: labels are numbers, and would mean others in the test set.
    """
    drawn, poisoned = directory / "subset", directory / "poisoned"
    draw_subset(unit.data / "train", drawn, unit.per_class, unit.seed)
    index, classes = folder.index(drawn), folder.index(unit.data / "test").classes
    if unit.attack == NO_ATTACK:
        data, named = drawn, ((file.path, index.class_name(file)) for file in index.files)
        planted = tuple(PlantedFile(path, CLEAN, label, label, path) for path, label in named)
    else:
        data, attack = poisoned, ATTACKS[unit.attack](seed=unit.seed)
        planted = plant(drawn, poisoned, attack, classes[unit.target], unit.rate, unit.seed)
    if folder.index(data).classes != classes:
        raise BenchmarkError(f"{unit.name}: what is drawn and poisoned hasn't the classes of the test set")
    truth = {"data": data.name, "planted": [asdict(entry) for entry in planted]}
    (directory / "planted.json").write_text(json.dumps(truth))
    return data, planted


def open_case(unit: Unit, directory: Path, report: Path, known: dict, notify: Notify = ignore) -> Case:
    """The case that ``lay_out`` made in ``directory``, in another process."""
    truth = json.loads((directory / "planted.json").read_text())
    planted = tuple(PlantedFile(**entry) for entry in truth["planted"])
    return Case(unit, directory, directory / truth["data"], planted, report, known, notify)


def draw_subset(source: Path, target: Path, per_class: int, seed: int) -> None:
    """Link ``per_class`` random images of each class of ``source`` into the new folder ``target``."""
    generator = random.Random(seed)
    index = folder.index(source)
    for label in range(len(index.classes)):
        files = [file.path for file in index.files if file.label == label]
        link_files(source, target, sorted(generator.sample(files, min(per_class, len(files)))))


def link_files(source: Path, target: Path, paths: Iterable[str]) -> None:
    """Link the files at the relative ``paths`` into ``target``; copy them where no link leads, as to another disk."""
    for path in paths:
        destination = target / path
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / path, destination)
        except OSError:
            shutil.copyfile(source / path, destination)
