"""What tests share: a dataset and settings for a whole scan or clean in about a second of processor time, and a model
that needs no training."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import advrbd.pipeline
import advrbd.preparation
from advrbd.attacks import BadNets
from advrbd.attacks.plant import plant
from advrbd.config import (
    Config,
    EnhancementSettings,
    IdentificationSettings,
    PartitionSettings,
    RelearningSettings,
    SeparationSettings,
    TrainingSettings,
)
from advrbd.model.saved import model_bytes
from advrbd.output import decisions_csv
from advrbd.writing import write_together

SHORT = TrainingSettings(epochs=4, minimum_steps=0, batch_size=16)
SMALL = Config(
    model="test_resnet",
    device="cpu",
    looks=1,
    warm_up=SHORT,
    partition=PartitionSettings(masks=1, steps=1),
    separation=SeparationSettings(starts=1, parts=(2,), examined=(1,)),
    enhancement=EnhancementSettings(rounds=1, steps=2, training=SHORT),
    identification=IdentificationSettings(ambiguity_limit=5.0, most_against=0.0),  # hears suspects where there are any
    relearning=RelearningSettings(clean=SHORT, fine_tuning=SHORT),
)


class Rows(nn.Module):
    """Sees the class whose row is the brightest, of so many, and ranks the others likewise; it learns nothing."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean(dim=(1, 3))[:, : self.classes]

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return 40 * features


def small_folder(digits_folder: Path, place: Path) -> Path:
    """Two digits, 30 each, an eighth of them with a large trigger and the label 0."""
    for label in "01":
        shutil.copytree(digits_folder / label, place / "unpoisoned" / label)
    plant(place / "unpoisoned", place / "data", BadNets(side=8), "0", 0.12)
    return place / "data"


@contextmanager
def few_images_are_enough() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (advrbd.pipeline, advrbd.preparation):
            patch.setattr(module, "MINIMUM_IMAGES", 20)
        yield


def small_clean(data: Path, place: Path, **options) -> None:
    """What ``advrbd clean`` writes, into ``place``: ``out``, ``out-quarantine``, ``model`` and ``report.csv``."""
    with few_images_are_enough():
        finish = partial(write_beside, place)
        advrbd.clean(data, place / "out", SMALL, action="quarantine", finish=finish, **options)


def write_beside(place: Path, cleaned: advrbd.pipeline.Cleaned) -> None:
    weights = model_bytes("model", cleaned.network, cleaned.classes)
    table = decisions_csv(cleaned.report, cleaned.decisions)
    write_together({place / "model": weights, place / "report.csv": table})
