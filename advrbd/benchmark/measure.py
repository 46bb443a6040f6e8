"""How good a model is on test images: its accuracy, and how often the trigger brings what the attacker wants."""

import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from advrbd.attacks import Attack
from advrbd.benchmark.metrics import accuracy, squash, stamp
from advrbd.config import Config
from advrbd.data import folder
from advrbd.data.files import read_image
from advrbd.data.folder import FolderIndex, ImageFile
from advrbd.errors import DatasetError
from advrbd.events import Notify, ignore
from advrbd.model.factory import Network
from advrbd.pipeline import train_plainly

MOST_TEST_IMAGES = 2000


@dataclass(frozen=True)
class HeldOutImages:
    """Test images at the model's input size, uint8 [N, S, S, 3], with their ``labels``.

    ``stamped`` are the attack's victims among them with the trigger in place, and ``wanted`` the labels that the
    attacker wants for those; both are None without an attack.
    """

    images: np.ndarray
    labels: np.ndarray
    stamped: np.ndarray | None = None
    wanted: np.ndarray | None = None


def read_held_out(root: Path, size: int, attack: Attack | None, target: int, trusted: int = 0) -> HeldOutImages:
    """Read at most ``MOST_TEST_IMAGES`` of ``root``, the same ones every time, at ``size`` pixels.

    None of them is among ``read_trusted``'s.
    """
    index = folder.index(root)
    files, _ = _share_out(index, trusted)
    labels = np.array([file.label for file in files])
    victims = attack.victims(labels, target) if attack else np.zeros(len(files), bool)
    generator = np.random.default_rng(attack.seed if attack else 0)
    images, stamped = [], []
    for file, is_victim in zip(files, victims, strict=True):
        pixels = _read(root / file.path)
        images.append(squash(pixels, size))
        if attack and is_victim:
            stamped.append(stamp(pixels, attack, size, generator))
    if attack is None or not stamped:
        return HeldOutImages(np.stack(images), labels)
    wanted = attack.poisoned_label(labels, target, len(index.classes))[victims]
    return HeldOutImages(np.stack(images), labels, np.stack(stamped), wanted)


def read_trusted(root: Path, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` clean images of ``root`` uint8 [K, S, S, 3] at ``size`` pixels that are surely clean, labels int64 [K].

    K is less than ``count`` where it would be more than half of what there is to measure on.
    """
    _, files = _share_out(folder.index(root), count)
    images = [squash(_read(root / file.path), size) for file in files]
    return np.stack(images), np.array([file.label for file in files])


def _share_out(index: FolderIndex, trusted: int) -> tuple[list[ImageFile], list[ImageFile]]:
    """The files to measure on, and ``trusted`` others; a small test set has to be shared."""
    measured = random.Random(0).sample(index.files, min(MOST_TEST_IMAGES, len(index.files)))
    taken = {file.path for file in measured}
    rest = [file for file in index.files if file.path not in taken]
    kept = len(measured) - min(max(0, trusted - len(rest)), len(measured) // 2)
    return measured[:kept], random.Random(0).sample(rest, min(trusted, len(rest))) + measured[kept:]


def judge(network: Network, held_out: HeldOutImages) -> dict:
    """Accuracy ``acc``, and attack success rate ``asr``: the share of the victims that get the label wanted."""
    success = None
    if held_out.stamped is not None and held_out.wanted is not None:
        success = round(accuracy(network, held_out.stamped, held_out.wanted), 4)
    return {"acc": round(accuracy(network, held_out.images, held_out.labels), 4), "asr": success}


def train_and_judge(data: Path, config: Config, held_out: HeldOutImages, notify: Notify = ignore) -> dict:
    """What a model is worth that was trained on ``data`` as if every file were trusted, and the training's seconds."""
    started = time.perf_counter()
    network = train_plainly(data, config, notify=notify)
    return {"seconds": round(time.perf_counter() - started, 1)} | judge(network, held_out)


def _read(path: Path) -> np.ndarray:
    pixels, status, _ = read_image(path, None)
    if pixels is None:
        raise DatasetError(f"the test image {path} can't be used: {status}")
    return pixels
