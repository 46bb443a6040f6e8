"""Many small scans and cleans leave nothing behind: no memory, no file, no process; and all say the same bytes."""

import multiprocessing
import os
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from fuzz_decoder import originals
from small import SMALL, few_images_are_enough, small_clean, small_folder
from test_decoders import FAULTY

import advrbd
from advrbd.data import decoders
from advrbd.reports.tables import render

RUNS = int(os.environ.get("ADVRBD_TEST_RUNS", "100"))  # in one process; a tenth as many more in one each
WARM_UP = 5
GROWTH = 32 * 2**20  # bytes that resident memory may have grown by when the last run is over

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc to count in"),
]


@dataclass(frozen=True)
class Held:
    """What this process holds; ``memory`` is resident, in bytes, ``children`` those of it that haven't ended."""

    memory: int
    files: int
    threads: int
    children: int
    temporary: int


def held() -> Held:
    memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    files, temporary = (len(list(Path(place).iterdir())) for place in ("/proc/self/fd", tempfile.gettempdir()))
    return Held(memory, files, threading.active_count(), children(), temporary)


def children() -> int:
    parents = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            parents.append(int(status.read_text().rpartition(")")[2].split()[1]))
    return parents.count(os.getpid())


@pytest.fixture
def data(digits_folder, tmp_path, monkeypatch) -> Path:
    """A small poisoned folder with hostile files in each class, one of which ends its decoder."""
    root = small_folder(digits_folder, tmp_path)
    for number, image in enumerate(originals().values()):
        (root / "1" / f"{number}.png").write_bytes(image[: len(image) // 2])
    (root / "0" / "crash.png").write_bytes(b"abort")
    (root / "0" / "out.png").symlink_to("/etc/passwd")
    os.mkfifo(root / "1" / "fifo.png")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(decoders, "PROGRAM", FAULTY)
    return root


def scanned(data: Path) -> bytes:
    with few_images_are_enough():
        return render(advrbd.scan(data, SMALL), "csv", all_files=True)


def scan_alone(data: Path, target: Path, temporary: Path) -> None:
    decoders.PROGRAM, tempfile.tempdir = FAULTY, str(temporary)
    target.write_bytes(scanned(data))
    left = held()
    assert (left.children, left.temporary) == (0, 0)


def test_runs_in_one_process_and_in_a_row_of_them_leave_nothing(data, tmp_path, snapshot, capsys):
    before, at_start, seen, first = snapshot(data), held(), [], scanned(data)
    assert Counter(line.split(b",")[6] for line in first.splitlines())[b"decoder-crashed"] == 1
    cleaned: dict[str, str] = {}
    for number in range(WARM_UP + RUNS):
        assert scanned(data) == first
        if number % 5 == 0:
            place = tmp_path / f"clean{number}"
            place.mkdir()
            small_clean(data, place)
            cleaned = cleaned or snapshot(place)
            assert snapshot(place) == cleaned
        seen.append(held())
    settled, last = seen[WARM_UP - 1], seen[-1]
    with capsys.disabled():
        print(f"\n{RUNS} runs, resident memory in MiB: {[each.memory >> 20 for each in seen]}")
    assert last.memory - settled.memory < GROWTH
    assert {(each.files, each.threads, each.children, each.temporary) for each in seen[WARM_UP - 1 :]} == {
        (settled.files, settled.threads, at_start.children, 0)
    }
    processes = multiprocessing.get_context("forkserver")  # its server imports torch once, and never uses it
    processes.set_forkserver_preload(["test_soak"])
    (tmp_path / "own").mkdir()  # in the other one, what makes the processes has a file of its own
    for number in range(RUNS // 10):
        target = tmp_path / f"alone{number}.csv"
        process = processes.Process(target=scan_alone, args=(data, target, tmp_path / "own"))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert target.read_bytes() == first
    assert snapshot(data) == before
