"""What the tests share: a small real image folder, and a fingerprint of a tree to prove that it was left alone."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from advrbd.benchmark.digits import digits, write_image_folder
from advrbd.data.sources import territory

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


def state_of(place: Path) -> dict[str, tuple]:
    """What nobody may change: names, kinds, rights, times, where links lead, and bytes; no link is followed."""
    state = {}
    for path in (place, *place.rglob("*")):
        found = path.lstat()
        held = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        state[str(path)] = (found.st_mode, found.st_size, found.st_mtime_ns, hash(held))
    return state


def leaving_alone(run: Callable) -> Callable:
    """``run``, which is ``scan`` or ``clean``, with an assertion that its input is afterwards as it was before."""

    @wraps(run)
    def checked(path: str | os.PathLike, *arguments, **options) -> object:
        place = territory(Path(path), options.get("root"))
        before = state_of(place) if place.exists() else {}
        try:
            return run(path, *arguments, **options)
        finally:
            assert (state_of(place) if place.exists() else {}) == before, f"the input {place} was changed"

    return checked


@pytest.fixture(autouse=True)
def _inputs_are_left_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No scan and no clean in this process changes its input, whatever that is; a test that does so meanwhile, in the
    place of an attacker, is marked ``changes_input``."""
    pipeline = sys.modules.get("advrbd.pipeline")  # it brings torch along, which many tests don't need
    if pipeline is not None and request.node.get_closest_marker("changes_input") is None:
        for name in ("scan", "clean"):
            monkeypatch.setattr(pipeline, name, leaving_alone(getattr(pipeline, name)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with whole scans first, so that no process ends with them while the others have nothing left to do."""
    items.sort(key=lambda item: item.path.name not in ("test_pipeline.py", "test_drill_cli.py"))
