"""How good a detection and a model are, given the truth."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from advrbd.attacks.base import CLEAN, COVER, MISLABELLED, POISON, Attack
from advrbd.data.pixels import Pixels
from advrbd.model.device import choose_device
from advrbd.model.factory import Network
from advrbd.model.inference import infer
from advrbd.reports.report import FileResult


@dataclass(frozen=True)
class Detection:
    """Counts of files. Covers (trigger, true label) and mislabelled files (wrong label, no trigger) are neither
    positives nor negatives; they stand apart.

    ``auroc`` is that of the score, poisoned against clean files; NaN where nothing was planted.
    """

    poisoned: int
    found: int
    clean: int
    false_alarms: int
    covers: int
    covers_flagged: int
    mislabelled: int
    mislabelled_flagged: int
    auroc: float

    @property
    def true_positive_rate(self) -> float:
        return self.found / self.poisoned if self.poisoned else float("nan")

    @property
    def false_positive_rate(self) -> float:
        return self.false_alarms / self.clean if self.clean else float("nan")


def detection(files: Iterable[FileResult], role: dict[str, str]) -> Detection:
    """Hold the files of a report against the truth: the role of each path, ``clean`` for those that aren't in it."""
    readable = [file for file in files if file.score is not None]
    roles = np.array([role.get(file.path, CLEAN) for file in readable])
    suspects = np.array([file.suspect for file in readable], dtype=bool)
    score = np.array([file.score for file in readable])
    poisoned, clean, cover, mislabelled = (roles == role for role in (POISON, CLEAN, COVER, MISLABELLED))
    auroc = float("nan")
    if poisoned.any() and clean.any():
        auroc = float(roc_auc_score(poisoned[poisoned | clean], score[poisoned | clean]))
    return Detection(
        int(poisoned.sum()),
        int((suspects & poisoned).sum()),
        int(clean.sum()),
        int((suspects & clean).sum()),
        int(cover.sum()),
        int((suspects & cover).sum()),
        int(mislabelled.sum()),
        int((suspects & mislabelled).sum()),
        auroc,
    )


def accuracy(network: Network, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of ``images`` (uint8 [N, S, S, 3], at the network's input size) that get their label."""
    pixels = Pixels(torch.from_numpy(images))
    outputs = infer(network, pixels, torch.arange(len(images)), choose_device(str(network.mean.device)))
    return float((outputs.logits.argmax(dim=1) == torch.from_numpy(labels)).float().mean())


def attack_success_rate(
    network: Network, attack: Attack, victims: Iterable[tuple[np.ndarray, int]], generator: np.random.Generator
) -> float:
    """Share of the ``victims``, one at least, that get the attacker's label once they carry the trigger.

    They come one by one, an image as large as its file is (uint8 [H, W, 3]) and the label that the attacker wants.
    """
    size = network.spec.image_size
    stamped, wanted = zip(*((stamp(image, attack, size, generator), label) for image, label in victims), strict=True)
    return accuracy(network, np.stack(stamped), np.array(wanted))


def stamp(image: np.ndarray, attack: Attack, size: int, generator: np.random.Generator) -> np.ndarray:
    """A test image with its trigger, uint8 [size, size, 3].

    The trigger goes into the image as large as it is, and only then is it scaled, as it is with the training images: a
    warp isn't the same when it comes after the scaling.
    """
    return squash(attack.stamp_test(image, generator), size)


def squash(image: np.ndarray, size: int) -> np.ndarray:
    """The image as a square, as the training images are."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
