"""An interrupted run goes on where it was and comes to the same report; the work of another run is refused."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import advrbd
from advrbd import pipeline
from advrbd.attacks import BadNets
from advrbd.attacks.plant import plant
from advrbd.config import (
    Config,
    EnhancementSettings,
    IdentificationSettings,
    RelearningSettings,
    SeparationSettings,
    TrainingSettings,
)
from advrbd.errors import OutputError, ReportError, WorkDirError
from advrbd.events import Note, Progress
from advrbd.model import run as run_module
from advrbd.reports.tables import render
from advrbd.workdir import LOCK, RUN, SUFFIX, WorkDir, check_usable
from advrbd.writing import write_whole

SHORT = TrainingSettings(epochs=2, minimum_steps=0, batch_size=64)
QUICK = Config(
    model="test_resnet",
    warm_up=SHORT,
    separation=SeparationSettings(few=0, parts=(2,), examined=(1,)),  # two classes at most, so there is a rest to clean
    enhancement=EnhancementSettings(rounds=2, steps=4, training=SHORT),
    # whatever so short a training says of it, all of a class that is examined is suspected, and heard
    identification=IdentificationSettings(ambiguity_limit=99.0, even_odds=1e-6, most_against=0.0),
    relearning=RelearningSettings(clean=SHORT, fine_tuning=SHORT),
    looks=2,
)


class Stopped(BaseException):
    """Whatever ends a process: Ctrl-C, SIGTERM, a power cut."""


@pytest.fixture
def data(digits_folder, tmp_path, monkeypatch) -> Path:
    """The first four digits, 30 each, an eighth of them with a large trigger and the label 0."""
    for label in "0123":
        shutil.copytree(digits_folder / label, tmp_path / "clean" / label)
    plant(tmp_path / "clean", tmp_path / "data", BadNets(side=8), "0", 0.12)
    monkeypatch.setattr(pipeline, "MINIMUM_IMAGES", 20)  # a quick scan leaves few to clean
    return tmp_path / "data"


def scanned(data: Path, **options) -> dict:
    """The JSON report of a quick scan, but for how long it took."""
    report = json.loads(render(advrbd.scan(data, QUICK, **options), "json", all_files=True))
    del report["run"]["seconds"]
    return report


def stop_after(steps: int):
    """A listener that ends the run once so many steps have begun."""
    begun: list[str] = []

    def notify(event) -> None:
        if isinstance(event, Progress) and event.stage != "decode" and event.stage not in begun[-1:]:
            begun.append(event.stage)
            if len(begun) > steps:
                raise Stopped

    return notify


def test_an_interrupted_scan_goes_on_and_comes_to_the_same_report(data, tmp_path, snapshot):
    before, work = snapshot(data), tmp_path / "work"
    whole = scanned(data)
    assert whole["run"]["looks"] == 2
    assert any(file["suspect"] for file in whole["files"])
    kept, steps = [], 1
    while True:  # one step further every time
        try:
            report = scanned(data, work_dir=work, resume=True, notify=stop_after(steps))
            break
        except Stopped:
            kept.append(len(list(work.glob(f"*{SUFFIX}"))))
            steps = 1
    assert report == whole
    assert kept == sorted(set(kept))  # every run got further
    assert len(kept) >= 5
    assert snapshot(data) == before


def test_an_interrupted_clean_with_a_rescan_goes_on_and_writes_the_same_folder(data, tmp_path, snapshot):
    whole = advrbd.clean(data, tmp_path / "whole", QUICK, rescan=True)
    kept = []
    while True:
        try:
            options = {"work_dir": tmp_path / "work", "resume": True, "notify": stop_after(3)}
            again = advrbd.clean(data, tmp_path / "again", QUICK, rescan=True, **options)
            break
        except Stopped:
            kept.append(len(list((tmp_path / "work").glob(f"*{SUFFIX}"))))
            assert not (tmp_path / "again").exists()
    assert len(kept) >= 3
    assert kept == sorted(set(kept))
    assert whole.report.suspects
    assert (again.check, again.decisions, again.manifest) == (whole.check, whole.decisions, whole.manifest)
    assert again.check.rescan is not None
    assert snapshot(tmp_path / "again") == snapshot(tmp_path / "whole")
    weights = (network.parameters() for network in (whole.network, again.network))
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))


def store_scanned(data: Path, work: Path, target: Path) -> None:
    """What a process runs that may be killed: a scan with a work directory, and its report in the file ``target``."""
    write_whole(target, json.dumps(scanned(data, work_dir=work, resume=True)).encode())


def killed_and_resumed(data: Path, work: Path, kill_when: Callable[[int], bool]) -> tuple[dict, int]:
    """The report of a scan that is killed the hard way whenever ``kill_when(its process)`` says so and started again,
    and how often it was."""
    processes = multiprocessing.get_context("forkserver")  # its server imports torch once, and never uses it
    processes.set_forkserver_preload(["test_workdir"])
    target, kills = work.with_suffix(".json"), 0
    while True:
        process = processes.Process(target=store_scanned, args=(data, work, target))
        process.start()
        while process.is_alive() and not kill_when(process.pid):
            process.join(0.01)
        process.kill()
        process.join()
        if process.exitcode == 0:
            return json.loads(target.read_bytes()), kills
        assert process.exitcode == -signal.SIGKILL
        assert not target.exists()
        kills += 1


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that start at once are made by fork")


@needs_fork
def test_a_scan_that_is_killed_goes_on(data, tmp_path):
    work, limits = tmp_path / "work", iter((1, 4, 10**9))
    started: dict[int, int] = {}

    def enough(process: int) -> bool:
        if process not in started:
            started[process] = next(limits)
        return len(list(work.glob(f"*{SUFFIX}"))) >= started[process]

    assert killed_and_resumed(data, work, enough) == (scanned(data), 2)


def test_a_finished_scan_is_not_trained_again_and_clean_takes_its_work_over(data, tmp_path, monkeypatch):
    whole = scanned(data, work_dir=tmp_path / "work")
    heard = []
    with monkeypatch.context() as nothing:
        nothing.setattr(run_module, "train", lambda *_, **__: pytest.fail("trained again"))
        assert scanned(data, work_dir=tmp_path / "work", resume=True, notify=heard.append) == whole
    kept = len(list((tmp_path / "work").glob(f"*{SUFFIX}")))
    assert Note(f"work directory: {kept} steps of an interrupted run are there") in heard

    trained = []
    original = run_module.train
    monkeypatch.setattr(run_module, "train", lambda *args: trained.append(args[8]) or original(*args))
    other = replace(QUICK, relearning=RelearningSettings(fine_tuning=SHORT))
    with pytest.raises(WorkDirError, match=r"other config.relearning.clean.batch_size"):
        advrbd.clean(data, tmp_path / "out", other, work_dir=tmp_path / "work", resume=True)
    advrbd.clean(data, tmp_path / "out", QUICK, work_dir=tmp_path / "work", resume=True)
    assert trained[0] == "relearn"
    assert not {stage for stage in trained if "warm-up" in stage or "enhance" in stage}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "other config.seed"),
        ({"looks": 1}, "other config.looks"),
        ({"model": "test_vit"}, "other config.model, model.name"),
    ],
)
def test_the_work_of_other_settings_is_refused(data, tmp_path, change, message):
    with pytest.raises(Stopped):
        scanned(data, work_dir=tmp_path / "work", notify=stop_after(1))
    with pytest.raises(WorkDirError, match=message):
        advrbd.scan(data, replace(QUICK, **change), work_dir=tmp_path / "work", resume=True)


def test_the_work_on_another_folder_is_refused_and_so_is_what_was_not_asked_for(data, tmp_path):
    with pytest.raises(Stopped):
        scanned(data, work_dir=tmp_path / "work", notify=stop_after(1))
    with pytest.raises(WorkDirError, match="add --resume to go on"):
        scanned(data, work_dir=tmp_path / "work")
    file = next((data / "0").iterdir())
    file.rename(file.with_name("another.png"))
    with pytest.raises(WorkDirError, match=r"a run with other files.*; choose a new folder"):
        scanned(data, work_dir=tmp_path / "work", resume=True)


def opened(path: Path, resume: bool = True) -> WorkDir:
    with WorkDir(path, {"config": {"seed": 0}}, resume) as steps:
        return steps


def test_a_run_that_is_nested_too_deeply_is_refused(tmp_path):
    (tmp_path / RUN).write_text("[" * 200_000)
    for use in (check_usable, opened):
        with pytest.raises(WorkDirError, match="nested too deeply; choose a new folder"):
            use(tmp_path)


def test_a_folder_with_other_things_in_it_is_refused(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    with pytest.raises(WorkDirError, match="no work directory"):
        opened(tmp_path / "letters")
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["dear.txt"]
    (tmp_path / "letters" / RUN).write_text('{"of": "another program"}')
    with pytest.raises(WorkDirError, match="no work directory"):
        opened(tmp_path / "letters")
    assert sorted(path.name for path in (tmp_path / "letters").iterdir()) == ["dear.txt", RUN]
    with pytest.raises(WorkDirError, match="cannot use the work directory"):
        opened(tmp_path / "letters" / "dear.txt")
    with pytest.raises(WorkDirError, match="cannot use the work directory"):
        opened(tmp_path / "no" / "work")


def test_two_runs_at_a_time_dont_share_a_folder(tmp_path):
    opened(tmp_path / "work")
    with FileLock(tmp_path / "work" / LOCK), pytest.raises(WorkDirError, match="in use by another run"):
        opened(tmp_path / "work")
    opened(tmp_path / "work")


def test_a_lock_goes_with_the_process_that_was_killed(tmp_path):
    opened(tmp_path / "work")
    program = "import sys, time, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); "
    program += "time.sleep(600)"
    command = [sys.executable, "-c", program, str(tmp_path / "work" / LOCK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(WorkDirError, match="in use by another run"):
            opened(tmp_path / "work")
        process.kill()
    opened(tmp_path / "work")


@pytest.mark.parametrize("clock", [0, 2**33])
def test_the_clock_means_nothing(tmp_path, clock):
    calls: list[int] = []
    for _ in range(2):
        with WorkDir(tmp_path / "work", {}, resume=True) as steps:
            counted(steps, 1, calls)
        for path in (tmp_path / "work").iterdir():
            os.utime(path, (clock, clock))
    assert calls == [1]


@pytest.mark.parametrize("other", [0, 1])
def test_what_another_run_leaves_until_the_folder_is_locked_counts(tmp_path, monkeypatch, other):
    acquire = FileLock.acquire

    def late(self, *arguments, **options):
        with monkeypatch.context() as inner:
            inner.setattr(FileLock, "acquire", acquire)
            with WorkDir(tmp_path / "work", {"config": {"seed": other}}, resume=False) as steps:
                counted(steps, 1, [])
        return acquire(self, *arguments, **options)

    monkeypatch.setattr(FileLock, "acquire", late)
    with pytest.raises(WorkDirError, match=r"other config\.seed" if other else "add --resume"):
        opened(tmp_path / "work", resume=False)
    assert json.loads((tmp_path / "work" / RUN).read_bytes())["config"] == {"seed": other}


def killed_while_writing(path: Path, monkeypatch) -> None:
    """Leave of ``path`` what a process leaves that is killed before it can rename it."""
    with monkeypatch.context() as nothing:
        nothing.setattr(Path, "replace", lambda *_: None)
        write_whole(path, b"half")
    assert not path.exists()


def test_what_was_half_written_when_a_run_was_killed_is_removed(tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    killed_while_writing(work / RUN, monkeypatch)
    with WorkDir(work, {}, resume=False) as steps:
        counted(steps, 1, [])
        (step,) = work.glob(f"*{SUFFIX}")
    assert sorted(path.name for path in work.iterdir()) == [step.name, LOCK, RUN]
    step.unlink()
    for name in (step.name, "002-enhance-a-look-of-a-long-name-0123456789abcdef.safetensors", "1000-look-1"):
        killed_while_writing(work / name, monkeypatch)
    (work / ".mine").touch()
    with WorkDir(work, {}, resume=True) as steps:
        assert steps.kept == 0
    assert sorted(path.name for path in work.iterdir()) == [".mine", LOCK, RUN]


@pytest.mark.parametrize("library", ["numpy", "pillow", "scikit-learn", "torchvision"])
def test_the_work_of_another_version_of_a_library_is_refused(data, tmp_path, monkeypatch, library):
    with pytest.raises(Stopped):
        scanned(data, work_dir=tmp_path / "work", notify=stop_after(0))
    real = pipeline.version
    monkeypatch.setattr(pipeline, "version", lambda name: "0.1" if name == library else real(name))
    with pytest.raises(WorkDirError, match=rf"other versions\.{library};"):
        scanned(data, work_dir=tmp_path / "work", resume=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": "advrbd.work/1"}', b"\xff"])
def test_a_work_directory_that_says_nothing_sensible_is_refused(tmp_path, content):
    opened(tmp_path / "work")
    (tmp_path / "work" / RUN).write_bytes(content)
    with pytest.raises(WorkDirError, match="choose a new folder"):
        opened(tmp_path / "work")


def counted(steps: WorkDir, number: int, calls: list[int]) -> torch.Tensor:
    """A step on ``number`` that draws one random value; ``calls`` tells that it was computed."""
    generator = torch.Generator().manual_seed(0)

    def compute() -> dict[str, torch.Tensor]:
        calls.append(number)
        return {"value": torch.rand(3, generator=generator)[::2]}

    value = steps.remember("Schritt / 1", (torch.tensor(number),), generator, compute)["value"]
    return torch.cat([value, torch.rand(1, generator=generator)])


def test_tensors_that_share_their_memory_are_kept_all_the_same(tmp_path):
    weights = torch.arange(3.0)
    for _ in range(2):  # computed, then read
        with WorkDir(tmp_path / "work", {}, resume=True) as steps:
            kept = steps.remember("train", (), torch.Generator(), lambda: {"one": weights, "same": weights})
        assert torch.equal(kept["one"], kept["same"])


def test_a_step_is_found_again_only_after_the_same_steps_with_the_same_inputs(tmp_path):
    calls: list[int] = []

    def run(*numbers: int) -> list[torch.Tensor]:
        with WorkDir(tmp_path / "work", {}, resume=True) as steps:
            return [counted(steps, number, calls) for number in numbers]

    first, again = run(1, 2), run(1, 2)
    assert calls == [1, 2]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))  # and what is drawn after it
    run(2)
    run(3, 2)
    assert calls == [1, 2, 2, 3, 2]
    assert run(1, 2, 2) and calls[5:] == [2]


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, None])
def test_a_damaged_step_is_named(tmp_path, content):
    with WorkDir(tmp_path / "work", {}, resume=True) as steps:
        counted(steps, 1, [])
    (file,) = (tmp_path / "work").glob(f"001-schritt-1-*{SUFFIX}")
    file.write_bytes(file.read_bytes()[:-5] if content is None else content)
    with WorkDir(tmp_path / "work", {}, resume=True) as steps, pytest.raises(WorkDirError, match="remove it") as told:
        counted(steps, 1, [])
    assert file.name in str(told.value)


def test_a_work_directory_in_the_input_or_the_output_is_refused_before_any_work(data, tmp_path, snapshot):
    before = snapshot(data)
    with pytest.raises(OutputError, match="overlaps the input"):
        advrbd.scan(data, QUICK, work_dir=data / "work")
    for work in ("out", "out/work"):
        with pytest.raises(OutputError, match="overlaps the output"):
            advrbd.clean(data, tmp_path / "out", QUICK, work_dir=tmp_path / work)
    aside = tmp_path / "out-quarantine"
    with pytest.raises(OutputError, match="overlaps the quarantine"):
        advrbd.clean(data, tmp_path / "out", QUICK, action="quarantine", work_dir=aside)
    with pytest.raises(ReportError):  # no quarantine is written: what is refused is what comes next
        advrbd.clean(data, tmp_path / "out", QUICK, report=tmp_path / "missing", work_dir=aside)
    assert snapshot(data) == before
    assert not (tmp_path / "out").exists()
