"""A dataset and settings for tests that run a whole scan or clean many times: about a second of processor time each."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

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
    weights = model_bytes("model", cleaned.network, cleaned.spec, cleaned.classes)
    table = decisions_csv(cleaned.report, cleaned.decisions)
    write_together({place / "model": weights, place / "report.csv": table})
