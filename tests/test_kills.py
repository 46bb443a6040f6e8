"""A clean that is killed at any moment leaves nothing half-written, and goes on to the same bytes.

The process is forked from one that has imported everything and run nothing, and is ended by SIGKILL, which it sends
itself right before a change of the file system that it was told, or is sent at a random time.
"""

import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from small import small_clean, small_folder
from watch import changes

KILLS = int(os.environ.get("ADVRBD_TEST_KILLS", "100"))  # half of them at random times
TARGETS = ("out", "out-quarantine", "model", "report.csv")
LEFT = re.compile(r"\.(out|out-quarantine|model|report\.csv)\.[a-z0-9_]{8}")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that start at once are made by fork")


def moment(event: str, path: object, place: Path) -> str:
    """A change of the file system in words that are the same in every run."""
    if isinstance(path, int) or not Path(os.fsdecode(path)).is_relative_to(place):
        return f"{event} elsewhere"
    parts = Path(os.fsdecode(path)).relative_to(place).parts or (".",)
    first, *rest = (re.sub(r"^\.(.+)\.[a-z0-9_]{8}$", r"\1", part) for part in parts)  # without what is random
    return " ".join((event, first, *(rest if first == "work" else [])))


def clean_until(data: Path, place: Path, log: Path, last: str | None) -> None:
    """A clean that writes down its moments in ``log``, and kills itself right before ``last``."""
    heard = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def hear(event: str, arguments: tuple) -> None:
        if changes(event, arguments):
            now = moment(event, arguments[0], place)
            os.write(heard, f"{now}\n".encode())
            if now == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)
    small_clean(data, place, work_dir=place / "work", resume=True)


def started(data: Path, place: Path, last: str | None) -> multiprocessing.Process:
    place.mkdir(exist_ok=True)
    log_of(place).unlink(missing_ok=True)
    processes = multiprocessing.get_context("forkserver")  # its server imports torch once, and never uses it
    processes.set_forkserver_preload(["test_kills"])
    process = processes.Process(target=clean_until, args=(data, place, log_of(place), last))
    process.start()
    return process


def log_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.log")


def written(found: dict[str, str], *targets: str) -> dict[str, str]:
    """Of the snapshot of a place that which belongs to the targets."""
    return {path: sha256 for path, sha256 in found.items() if path.split("/")[0] in targets}


@dataclass(frozen=True)
class Whole:
    """A clean of ``data`` that nobody killed: what it wrote, in how many seconds, and its moments in their order."""

    data: Path
    files: dict[str, str]
    seconds: float
    moments: tuple[str, ...]


@pytest.fixture
def whole(digits_folder, tmp_path, snapshot) -> Iterator[Whole]:
    data, place, begun = small_folder(digits_folder, tmp_path), tmp_path / "whole", time.monotonic()
    before = snapshot(data)
    process = started(data, place, None)
    process.join()
    assert process.exitcode == 0
    moments = tuple(dict.fromkeys(log_of(place).read_text().splitlines()))
    yield Whole(data, written(snapshot(place), *TARGETS), time.monotonic() - begun, moments)
    assert snapshot(data) == before


@dataclass(frozen=True)
class Run:
    """A clean into ``place`` that is killed and resumed; ``fell`` counts the moments after which it was killed."""

    whole: Whole
    place: Path
    snapshot: Callable[[Path], dict[str, str]]
    fell: Counter[str]

    def goes_on(self, last: str | None = None, seconds: float = 10**9) -> bool:
        """Go on up to the moment ``last``, or for so many seconds; whether it was killed before its end."""
        process, deadline = started(self.whole.data, self.place, last), time.monotonic() + seconds
        while process.is_alive() and time.monotonic() < deadline:
            process.join(0.01)
        process.kill()
        process.join()
        found = self.snapshot(self.place)
        if process.exitcode == 0:
            assert written(found, *TARGETS) == self.whole.files
            return False
        assert process.exitcode == -signal.SIGKILL
        for target in TARGETS:
            assert written(found, target) in ({}, written(self.whole.files, target)), target
        moments = log_of(self.place).read_text().splitlines() if log_of(self.place).exists() else []
        self.fell[moments[-1] if moments else "start"] += 1
        self._tidy()
        return True

    def _tidy(self) -> None:
        """Remove what was written, and what was left beside it, as the user would before a clean is run again."""
        for entry in self.place.iterdir():
            if entry.name != "work":
                assert entry.name in TARGETS or LEFT.fullmatch(entry.name)
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def kill_at(moments: Iterable[str], run: Run) -> None:
    """Kill the run at each of them, which come one after the other, and let it come to its end."""
    for moment in moments:
        run.goes_on(moment)
    assert not run.goes_on()


def test_a_clean_that_is_killed_as_it_writes_goes_on(whole, tmp_path, snapshot):
    names = ("os.rename work 001", "open out", "os.rename out", "os.rename model", "os.rename report.csv")
    moments = [next(moment for moment in whole.moments if moment.startswith(name)) for name in names]
    run = Run(whole, tmp_path / "run", snapshot, Counter())
    kill_at(moments, run)
    assert run.fell.total() == len(moments)


@pytest.mark.slow
def test_kills_at_every_step_and_at_random_times_lose_nothing(whole, tmp_path, snapshot):
    fell, generator, numbers = Counter(), random.Random(0), count()

    def fresh() -> Run:
        return Run(whole, tmp_path / f"run{next(numbers)}", snapshot, fell)

    while fell.total() < KILLS // 2:
        kill_at(whole.moments[: KILLS // 2 - fell.total()], fresh())
    at_steps = fell.copy()
    while fell.total() < KILLS:
        run = fresh()
        while run.goes_on(seconds=generator.uniform(0, 1.5 * whole.seconds)):
            pass
    assert len(at_steps) >= min(KILLS // 2, len(whole.moments))
    for name, kills in (("at steps", at_steps), ("at random times", fell - at_steps)):
        print(f"{name}: {dict(kills)}")
