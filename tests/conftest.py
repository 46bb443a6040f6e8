"""What the tests share: a small real image folder, and a fingerprint of a tree to prove that it was left alone."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from advrbd.benchmark.digits import digits, write_image_folder

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core, so one thread a process; torch isn't imported yet
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("advrbd", deadline=None, derandomize=True, database=None)
settings.load_profile("advrbd")


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 handwritten digits of 16x16 pixels, 30 a class. Copy it before you change it."""
    images, labels, _, _ = digits()
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:30] for label in range(10)]))
    root = tmp_path_factory.mktemp("shared") / "digits"
    write_image_folder(images[chosen], labels[chosen], root)
    return root


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, str]]:
    """A function from a folder to all that lies in it: relative path to SHA-256 (``""`` for a folder)."""

    def take(root: Path) -> dict[str, str]:
        return {
            path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            for path in root.rglob("*")
        }

    return take


SHARED_INPUTS = {"digits_folder", "clean_digits", "poisoned"}
"""Fixtures that are a folder, or a tuple that begins with one, and live longer than a test."""


@pytest.fixture(scope="session")
def first_seen() -> dict[Path, dict[str, str]]:
    """What the shared input folders held when the first test got them."""
    return {}


@pytest.fixture(autouse=True)
def _shared_inputs_are_left_alone(
    request: pytest.FixtureRequest, snapshot: Callable[[Path], dict[str, str]], first_seen: dict
) -> Iterator[None]:
    """Whatever a test runs on them, no byte of the shared input folders changes."""
    made = [request.getfixturevalue(name) for name in sorted(SHARED_INPUTS.intersection(request.fixturenames))]
    folders = [value if isinstance(value, Path) else value[0] for value in made]
    for folder in folders:
        if folder not in first_seen:
            first_seen[folder] = snapshot(folder)
    yield
    for folder in folders:
        assert snapshot(folder) == first_seen[folder]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with whole scans first, so that no process ends with them while the others have nothing left to do."""
    items.sort(key=lambda item: item.path.name not in ("test_pipeline.py", "test_drill_cli.py"))
