"""Data sets in the layout that the benchmark reads: ``train/`` and ``test/``, each with a folder per class."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from advrbd.benchmark.digits import digits, write_image_folder
from advrbd.errors import BenchmarkError
from advrbd.writing import NewFolder

DOWNLOADS = ("cifar10", "cifar100", "imagenette")


def digits_data(place: Path) -> Path:
    """The folder ``digits`` in ``place``, made of scikit-learn's digits where it isn't there yet."""
    root = place / "digits"
    if not root.is_dir():
        place.mkdir(parents=True, exist_ok=True)
        images, labels, test_images, test_labels = digits()
        with NewFolder(root) as folder:
            write_image_folder(images, labels, folder / "train")
            write_image_folder(test_images, test_labels, folder / "test")
    return root


def download(name: str, place: Path) -> Path:
    """Fetch one of ``DOWNLOADS`` through torchvision and write it to the new folder ``place/name``; PNG, any size kept.

    Raises ``BenchmarkError`` for an unknown name, a folder that is there already, or a network that isn't.
    """
    if name not in DOWNLOADS:
        raise BenchmarkError(f"unknown data set {name!r}; there are {', '.join(DOWNLOADS)}")
    root = place / name
    if root.exists():
        raise BenchmarkError(f"{root} exists already; use it with --data {root}, or remove it")
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=place) as archive, NewFolder(root) as folder:
        for part, is_train in (("train", True), ("test", False)):
            try:
                dataset = _opener(name)(archive, is_train)
            except (OSError, RuntimeError) as error:  # urllib's errors are the former, a wrong checksum is the latter
                raise BenchmarkError(f"can't download {name}: {error}; try again, or lay it out by hand") from error
            write_dataset(dataset, [_first(entry) for entry in dataset.classes], folder / part)
    return root


def write_dataset(pairs: Iterable[tuple[Image.Image, int]], classes: list[str], root: Path) -> None:
    """Write images with their class numbers, as a torchvision dataset gives them, to ``root/CLASS/NUMBER.png``."""
    for name in classes:
        (root / name).mkdir(parents=True)
    for number, (image, label) in enumerate(pairs):
        image.save(root / classes[label] / f"{number:06d}.png")


def _opener(name: str) -> Callable[[str, bool], Any]:
    from torchvision import datasets

    if name == "imagenette":
        return lambda archive, train: datasets.Imagenette(archive, "train" if train else "val", "160px", download=True)
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    return lambda archive, train: kind(archive, train, download=True)


def _first(names: str | tuple[str, ...]) -> str:
    """Imagenette's classes have several names each."""
    return names if isinstance(names, str) else names[0]
