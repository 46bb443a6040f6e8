"""What goes wrong around a run: signals, full disks, closed streams, and others who write to the same places.

After each of them the input is as it was, what was to be written is whole or absent, nothing temporary is left, and the
exit code is neither 0 nor 1. SECURITY.md has the table that these tests stand behind.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import advrbd.pipeline
from advrbd.attacks import BadNets
from advrbd.attacks.plant import plant
from advrbd.config import Config
from advrbd.data import pixels
from advrbd.data.folder import index
from advrbd.errors import AdvrbdError, OutputError, WorkDirError
from advrbd.manifest import QUARANTINED
from advrbd.memory import Memory
from advrbd.method.gate import Check
from advrbd.model import saved
from advrbd.model.device import choose_device
from advrbd.model.factory import ModelSpec, build, choose_model
from advrbd.output import decide, written_folder
from advrbd.preparation import prepare
from advrbd.reports.report import FileResult, Report
from advrbd.reports.tables import render
from advrbd.workdir import WorkDir
from advrbd.writing import check_target_file, check_target_folder, write_together, write_whole
from advrbd_cli import console
from advrbd_cli.app import main

resource = pytest.importorskip("resource", reason="Windows has neither these limits nor these signals")
COMMAND = f"{sys.executable} -m advrbd_cli"


# Streams that are closed or full

STUBBED = """
import sys, types
from advrbd.reports.report import Report
sys.modules["advrbd.pipeline"] = types.SimpleNamespace(scan=lambda *_, **__: Report((), ()))
from advrbd_cli.app import main
main()
"""


@pytest.mark.parametrize(
    ("command", "code", "stderr"),
    [
        ("{advrbd} schema | true", 2, "error: cannot write to stdout: Broken pipe\n"),
        ("{advrbd} schema > /dev/full", 2, "error: cannot write to stdout: No space left on device\n"),
        ("{advrbd} schema >&-", 2, "error: cannot write to stdout: it is closed\n"),
        ("{advrbd} --help | true", 2, ""),
        ("{advrbd} bogus 2> /dev/full", 2, ""),
        ("{advrbd} bogus 2>&1 >&- <&- | true", 2, ""),
        ("{scan} -o r.csv 2>&1 | true", 0, ""),
        ("{scan} -o r.csv 2> /dev/full", 0, ""),
        ("{scan} -o r.csv >&- 2>&- <&-", 0, ""),
        ("{advrbd} verify ../data -o - >&-", 2, "error: cannot write to stdout: it is closed\n"),
        ("{scan} -q -o - --html r.csv | true", 2, "error: cannot write to stdout: Broken pipe\n"),
    ],
)
def test_streams_that_are_closed_or_full(command, code, stderr, tmp_path):
    (tmp_path / "scan.py").write_text(STUBBED)
    for name in ("data", "run"):
        (tmp_path / name).mkdir()
    line = command.format(advrbd=COMMAND, scan=f"{sys.executable} ../scan.py scan ../data -f csv")
    environment = os.environ | {"PYTHONPATH": str(Path(advrbd.__file__).parents[1])}
    shell = ["bash", "-c", f"set -o pipefail; {line}"]
    done = subprocess.run(shell, cwd=tmp_path / "run", env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, stderr)
    written = [path.read_bytes() for path in (tmp_path / "run").iterdir()]
    assert len(written) == ("r.csv" in command)
    assert not written or written[0].startswith((b"path,label,", b"<!doctype html>")), written


# Signals

BUSY = """
import sys, time
from pathlib import Path
from advrbd.config import DecodingSettings
from advrbd.data.decoders import Decoders
from advrbd.writing import NewFolder
from advrbd_cli.exits import guard
def program(standalone_mode):
    with Decoders(DecodingSettings(), 1) as decoders, NewFolder(Path("out")) as folder:
        decoders.decode([b"none"], 16)
        (folder / "half").touch()
        print(*(process._process.pid for process in decoders._running), flush=True)
        time.sleep(600)
guard(program)
"""


def has_ended(process: int) -> bool:
    """Whether the process is gone, but for a zombie that nobody has collected."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize(
    ("number", "code", "stderr"),
    [
        (signal.SIGINT, 130, "error: interrupted (SIGINT)\n"),
        (signal.SIGTERM, 143, "error: interrupted (SIGTERM)\n"),
        (signal.SIGHUP, 129, "error: interrupted (SIGHUP)\n"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to look into")
def test_signals_that_end_a_run(number, code, stderr, tmp_path):
    def listen() -> None:  # what runs in the background, or under nohup, starts out deaf to these
        for each in (signal.SIGINT, signal.SIGHUP):
            signal.signal(each, signal.SIG_DFL)

    command, pipes = [sys.executable, "-c", BUSY], {"stdout": -1, "stderr": -1, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, preexec_fn=listen, **pipes) as process:
        decoder = int(process.stdout.readline())
        assert len(list(tmp_path.iterdir())) == 1
        for _ in range(3):  # as `timeout` and terminals that close do: more than one
            process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (code, stderr)
    deadline = time.monotonic() + 60
    while not has_ended(decoder):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    left = [path.name for path in tmp_path.iterdir()]
    assert "out" not in left
    assert len(left) == (number == signal.SIGKILL)  # then a hidden folder stays


def test_a_signal_that_was_switched_off_stays_so(tmp_path):
    code = "import os, signal; from advrbd_cli.exits import guard\n"
    code += "guard(lambda standalone_mode: os.kill(os.getpid(), signal.SIGHUP))"
    deaf = partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)  # nohup
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, preexec_fn=deaf).returncode == 0


# Full disks, as files that may not grow over a limit: the system's answer comes from the same calls


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """No file that this process writes may be larger than ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def clean_folder(root: Path, place: Path, suspects: int = 0) -> None:
    """The part of ``clean`` that writes the folders."""
    read, _ = pixels.load(index(root), 16)
    found = [FileResult(file.path, read.class_name(file), file.status, file.sha256) for file in read.files]
    found[:suspects] = [replace(file, suspect=True) for file in found[:suspects]]
    decisions = decide(Report(tuple(found), ()), "quarantine", 0.5)
    assert sum(entry.action == QUARANTINED for entry in decisions) == suspects
    with written_folder(read, decisions, place / "out", place / "aside", {}):
        pass


def keep_a_step(_root: Path, place: Path) -> None:
    with WorkDir(place / "work", {}, resume=True) as steps:
        steps.remember("step", (), torch.Generator(), lambda: {"value": torch.zeros(10_000)})


def store_pixels(_root: Path, place: Path) -> None:
    pixels._allocate(1000, 16, Memory(0, place))


def save_model(_root: Path, place: Path) -> None:
    device = choose_device("cpu")
    name, arguments, size = choose_model("test_resnet", 16, device)
    spec = ModelSpec(name, 2, size, arguments=arguments)
    saved.save_model(place / "model", build(spec, device, torch.Generator()), ("a", "b"))


def plant_a_copy(root: Path, place: Path) -> None:
    plant(root, place / "poisoned", BadNets(), "0")


WRITING = {
    "report": (1000, lambda _, place: write_whole(place / "r.csv", bytes(2000))),
    "report, at its last byte": (1999, lambda _, place: write_whole(place / "r.csv", bytes(2000))),
    "two at a time": (1000, lambda _, place: write_together({place / "new": b"", place / "r.csv": bytes(2000)})),
    "cleaned folder": (50, clean_folder),
    "quarantine": (50, partial(clean_folder, suspects=100)),
    "manifest": (4000, clean_folder),
    "model": (10_000, save_model),
    "work directory": (100, keep_a_step),
    "step": (10_000, keep_a_step),
    "pixel store": (100_000, store_pixels),
    "poisoned copy": (50, plant_a_copy),
    "truth": (4000, plant_a_copy),
}


@pytest.mark.parametrize("step", WRITING)
def test_a_full_disk_leaves_what_was_there(step, digits_folder, tmp_path, snapshot):
    for name in ("r.csv", "poisoned.truth.csv"):
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "work").mkdir()
    before, (size, write) = snapshot(tmp_path), WRITING[step]
    with no_file_over(size), pytest.raises(AdvrbdError, match="File too large") as told:
        write(digits_folder, tmp_path)
    assert len(str(told.value).splitlines()) == 1
    kept = {name: sha256 for name, sha256 in snapshot(tmp_path).items() if name not in ("work/lock", "work/run.json")}
    assert kept == before
    write(digits_folder, tmp_path)  # once there is room, it goes on
    assert snapshot(tmp_path) != before or step == "pixel store"


# What others do meanwhile to the places that ``clean`` writes to


@pytest.fixture(scope="module")
def prepared(digits_folder):
    """What ``clean`` knows of the digits before it trains."""
    return prepare(digits_folder, Config(model="test_resnet", device="cpu"))


@pytest.fixture
def clean(prepared, digits_folder, tmp_path, monkeypatch) -> Callable[..., int]:
    """A function that runs ``advrbd clean`` in ``tmp_path/work`` without its training, and gives the exit code.

    Its first argument is called where the training would end.
    """
    work = tmp_path / "work"
    work.mkdir()
    suspect = next(file for file in prepared[0].files)
    found = Report((FileResult(suspect.path, "0", "ok", suspect.sha256, True, 1.0),), ())
    (work / "report.csv").write_bytes(render(found, "csv"))

    def run(meanwhile: Callable[[Path], object], *options: str) -> int:
        arguments = ["clean", str(digits_folder), "--out", "to/out", "--report", "report.csv", "-o", "to/r.csv"]
        monkeypatch.setattr(sys, "argv", ["advrbd", *arguments, *options])
        monkeypatch.setattr(advrbd.pipeline, "check", lambda *_: (meanwhile(work) and None) or Check("good", (), ()))
        with pytest.raises(SystemExit) as ending:
            main()
        return ending.value.code or 0

    (work / "to").mkdir()
    (work / "to" / "r.csv").write_bytes(b"old")
    monkeypatch.setattr(advrbd.pipeline, "prepare", lambda *_: prepared)
    monkeypatch.setattr(advrbd.pipeline, "relearn", lambda run, *_: build(run.spec, run.device, torch.Generator()))
    monkeypatch.setattr(advrbd.pipeline, "fine_tune", lambda *_: None)
    monkeypatch.setattr(console, "state", console.State())
    monkeypatch.chdir(work)
    return run


def test_the_outputs_of_a_clean_are_all_there(clean, tmp_path):
    assert clean(lambda _: None, "--action", "quarantine") == 0
    assert {path.name for path in (tmp_path / "work" / "to").iterdir()} == {
        "out",
        "out-quarantine",
        "out.safetensors",
        "r.csv",
    }
    assert (tmp_path / "work" / "to" / "r.csv").read_bytes().startswith(b"path,")
    assert advrbd.verify(tmp_path / "work" / "to" / "out").differences == ()


def make(path: str) -> Callable[[Path], None]:
    """Somebody makes the file ``path``."""

    def made(work: Path) -> None:
        (work / path).parent.mkdir(exist_ok=True)
        (work / path).write_text("mine")

    return made


def fill_the_disk(_work: Path) -> None:
    """From now on there is room for small files and for the manifest alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert soft == resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))


@pytest.fixture
def unlimited() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("meanwhile", "code", "message"),
    [
        pytest.param(fill_the_disk, 2, "to/out.safetensors: File too large", id="full disk"),
        pytest.param(make("to/out/mine"), 2, "Directory not empty", id="a folder appears"),
        pytest.param(make("to/out"), 2, "Not a directory", id="a file appears"),
        pytest.param(make("to/out-quarantine/mine"), 2, "Directory not empty", id="a quarantine appears"),
        pytest.param(make("to/out.safetensors"), 2, "out.safetensors exists already", id="a model appears"),
        pytest.param(lambda work: (work / "to" / "r.csv").unlink() or make("to/r.csv/mine")(work), 2, "r.csv", id="r"),
        pytest.param(lambda work: shutil.rmtree(work / "to"), 2, "cannot write beside", id="the parent vanishes"),
        pytest.param(lambda _: os.kill(os.getpid(), signal.SIGTERM), 143, "interrupted (SIGTERM)", id="told to end"),
    ],
)
@pytest.mark.usefixtures("unlimited")
def test_a_clean_that_fails_at_its_end_leaves_all_as_it_was(
    meanwhile, code, message, clean, digits_folder, tmp_path, snapshot, capfd
):
    work, data, seen = tmp_path / "work", snapshot(digits_folder), {}

    def happens(where: Path) -> None:
        try:
            meanwhile(where)
        finally:
            seen.update(snapshot(where))

    assert clean(happens, "--action", "quarantine") == code
    (told,) = (line for line in capfd.readouterr().err.splitlines() if "error" in line)
    assert message in told
    assert snapshot(work) == seen
    assert snapshot(digits_folder) == data


def test_a_signal_while_the_outputs_are_written_takes_them_all_away(clean, tmp_path, snapshot, monkeypatch):
    real, work = os.fsync, tmp_path / "work"

    def late(handle: int) -> None:  # the folders have their names by now
        assert (work / "to" / "out").is_dir()
        real(handle)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(os, "fsync", late)
    before = snapshot(work)
    assert clean(lambda _: None, "--action", "quarantine") == 143
    assert snapshot(work) == before


def test_of_files_that_belong_together_a_new_one_goes_where_a_later_one_cant_be_written(tmp_path):
    (tmp_path / "r.csv").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*r\.csv"):
        write_together({tmp_path / "model": b"new", tmp_path / "r.csv": b"new"})
    assert list(tmp_path.iterdir()) == [tmp_path / "r.csv"]


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that may be read but not written to, by a user who isn't allowed everything."""
    with tempfile.TemporaryDirectory() as folder:
        path, before = Path(folder), os.geteuid()
        path.chmod(0o555)
        try:
            if before == 0:
                os.seteuid(65534)
            yield path
        finally:
            os.seteuid(before)
            path.chmod(0o755)


def test_a_read_only_target_is_refused_before_any_work(read_only):
    for check in (check_target_file, check_target_folder):
        with pytest.raises(OutputError, match="is read-only"):
            check(read_only / "new", Path("/elsewhere"), *(["--output"] if check is check_target_file else []))
    with pytest.raises(OutputError, match="Permission denied"):
        write_whole(read_only / "new", b"")
    with pytest.raises(WorkDirError, match="Permission denied"), WorkDir(read_only / "work", {}, resume=False):
        pass
    assert not list(read_only.iterdir())
