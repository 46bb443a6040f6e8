"""How good a detection and a model are, given the truth."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
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
    network: Network, attack: Attack, images: np.ndarray, labels: np.ndarray, target_label: int, class_count: int
) -> float:
    """Share of the attack's victims among the test images that get the attacker's label once they carry the trigger."""
    generator = np.random.default_rng(attack.seed)
    victims = attack.victims(labels, target_label)
    wanted = attack.poisoned_label(labels, target_label, class_count)[victims]
    stamped = np.stack([attack.stamp_test(image, generator) for image in images[victims]])
    return accuracy(network, stamped, wanted)
