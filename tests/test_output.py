"""The cleaned folder accounts for every file, copies what it keeps byte for byte, and never touches its input."""

import csv
import errno
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

import advrbd
import advrbd.pipeline
from advrbd.config import Config
from advrbd.data import files, pixels
from advrbd.data.folder import OK, FolderIndex, index
from advrbd.errors import AdvrbdError, OutputError, ReportError
from advrbd.manifest import (
    DROPPED,
    EXCLUDED,
    HARDLINK,
    KEPT,
    LINK_MODES,
    MANIFEST,
    QUARANTINED,
    RELABELLED,
    SYMLINK,
    Decision,
    emptied_classes,
)
from advrbd.method.gate import Check
from advrbd.output import decide, decisions_csv, link_cautions, written_folder
from advrbd.reports.report import FileResult, Report
from advrbd.reports.tables import COLUMNS, read_suspects, render
from advrbd_cli.app import main

Suspects = dict[str, tuple[str | None, float | None]]  # path to the suggested label and its confidence


@pytest.fixture
def data(tmp_path, digits_folder) -> Path:
    """Three classes of 5 digits; class 0 has a broken file, a note and a file two folders down, too."""
    root = tmp_path / "data"
    for label in "012":
        (root / label).mkdir(parents=True)
        for number, path in enumerate(sorted(digits_folder.glob(f"{label}/*.png"))[:5]):
            shutil.copy2(path, root / label / f"{number}.png")
    (root / "0" / "deep" / "er").mkdir(parents=True)
    shutil.copy2(path, root / "0" / "deep" / "er" / "5.png")
    (root / "0" / "broken.png").write_bytes(b"broken")
    (root / "0" / "notes.txt").write_text("not an image")
    return root


def scanned(root: Path, suspects: Suspects) -> tuple[FolderIndex, Report]:
    """``root`` as it is after a scan that found ``suspects``."""
    read, _ = pixels.load(index(root), 16)
    files = []
    for file in read.files:
        result = FileResult(file.path, read.class_name(file), file.status, file.sha256, score=0.0)
        if file.path in suspects:
            label, confidence = suspects[file.path]
            result = replace(result, suspect=True, score=1.0, suggested_label=label, suggested_confidence=confidence)
        files.append(result)
    assert set(suspects) <= {file.path for file in files}
    return read, Report(tuple(files), ())


def write_folder(*arguments) -> dict:
    """Write the folder and nothing beside it, and return the manifest."""
    with written_folder(*arguments) as manifest:
        return manifest


def cleaned(
    root: Path, suspects: Suspects, action: str = "relabel", floor: float = 0.5, link_mode: str = "copy"
) -> dict[str, Decision]:
    """Decide, write to ``root/../out`` (and ``out-quarantine``) and return the decisions by their source."""
    read, report = scanned(root, suspects)
    decisions = decide(report, action, floor)
    out = root.parent / "out"
    write_folder(read, decisions, out, out.with_name("out-quarantine"), {"action": action}, link_mode)
    return {entry.source: entry for entry in decisions}


def contents(root: Path, snapshot: Callable) -> dict[str, str]:
    """The files under ``root``, but for the manifest."""
    return {path: sha256 for path, sha256 in snapshot(root).items() if sha256 and path != MANIFEST}


SUSPECTS: Suspects = {
    "1/0.png": ("0", 0.9),  # 0/0.png is there already
    "1/1.png": ("2", 0.5),  # just sure enough
    "1/2.png": ("2", 0.4999),
    "1/3.png": ("1", 1.0),  # the label it has
    "1/4.png": (None, None),
    "0/deep/er/5.png": ("1", 0.8),
}


def test_what_becomes_of_every_file(data, snapshot):
    before = snapshot(data)
    decisions = cleaned(data, SUSPECTS)
    done = {source: (entry.action, entry.new_label, entry.written) for source, entry in decisions.items()}
    assert {source: done[source] for source in (*SUSPECTS, "0/broken.png", "0/0.png")} == {
        "1/0.png": (RELABELLED, "0", "0/0__from-1.png"),
        "1/1.png": (RELABELLED, "2", "2/1__from-1.png"),
        "1/2.png": (DROPPED, None, None),
        "1/3.png": (DROPPED, None, None),
        "1/4.png": (DROPPED, None, None),
        "0/deep/er/5.png": (RELABELLED, "1", "1/deep/er/5.png"),
        "0/broken.png": (EXCLUDED, None, None),
        "0/0.png": (KEPT, "0", "0/0.png"),
    }
    kept = {source for source, entry in decisions.items() if entry.action == KEPT}
    assert kept == {f"{label}/{number}.png" for label in "02" for number in range(5)}
    written = {entry.written: before[entry.source] for entry in decisions.values() if entry.written}
    assert contents(data.parent / "out", snapshot) == written
    assert snapshot(data) == before


def test_copies_keep_their_times(data):
    cleaned(data, SUSPECTS)
    for path in ("0/0.png", "2/4.png"):
        assert (data.parent / "out" / path).stat().st_mtime_ns == (data / path).stat().st_mtime_ns


def test_the_manifest_accounts_for_every_file(data):
    decisions = cleaned(data, SUSPECTS)
    manifest = json.loads((data.parent / "out" / MANIFEST).read_bytes())
    every = {path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file()}
    sources = [entry["source"] for entry in manifest["files"]]
    assert sorted(sources + manifest["ignored"]) == sorted(every)
    assert manifest["ignored"] == ["0/notes.txt"]
    assert manifest["counts"] == {KEPT: 10, RELABELLED: 3, DROPPED: 3, EXCLUDED: 1}
    assert manifest["settings"] == {"action": "relabel", "link_mode": "copy"}
    for entry in manifest["files"]:
        assert Decision(**entry) == decisions[entry["source"]]
    assert not (data.parent / "out-quarantine").exists()


def test_torchvision_loads_the_result_with_the_indices_of_the_manifest(data):
    cleaned(data, SUSPECTS)
    manifest = json.loads((data.parent / "out" / MANIFEST).read_bytes())
    assert manifest["class_to_idx"]["before"] == ImageFolder(data).class_to_idx
    assert manifest["class_to_idx"]["after"] == ImageFolder(data.parent / "out").class_to_idx
    assert [image.size for image, _ in ImageFolder(data.parent / "out")] == [(16, 16)] * 13


def test_an_emptied_class_is_named_and_missing(data):
    read, report = scanned(data, {f"1/{number}.png": ("2", 0.1) for number in range(5)})
    decisions = decide(report, "relabel", 0.5)
    assert emptied_classes(read, decisions) == ("1",)
    manifest = write_folder(read, decisions, data.parent / "out", data.parent / "aside", {})
    assert manifest["class_to_idx"]["after"] == {"0": 0, "2": 1} == ImageFolder(data.parent / "out").class_to_idx


def test_class_indices_where_the_first_class_is_emptied_and_another_is_filled_by_others(data):
    suspects = {
        file.path: ("2", 0.9) for file in index(data).files if file.path.startswith("0/") and "br" not in file.path
    }
    suspects |= {f"2/{number}.png": (None, None) for number in range(5)}
    cleaned(data, suspects)
    manifest = json.loads((data.parent / "out" / MANIFEST).read_bytes())
    assert manifest["class_to_idx"] == {"before": {"0": 0, "1": 1, "2": 2}, "after": {"1": 0, "2": 1}}
    assert manifest["class_to_idx"]["after"] == ImageFolder(data.parent / "out").class_to_idx
    assert len(ImageFolder(data.parent / "out")) == 11


def test_quarantined_files_alone_keep_no_class(data):
    cleaned(data, {f"1/{number}.png": ("2", 0.9) for number in range(5)}, "quarantine")
    manifest = json.loads((data.parent / "out" / MANIFEST).read_bytes())
    assert manifest["class_to_idx"]["after"] == {"0": 0, "2": 1} == ImageFolder(data.parent / "out").class_to_idx


def test_drop_leaves_suspects_out(data, snapshot):
    decisions = cleaned(data, SUSPECTS, "drop")
    assert {source for source, entry in decisions.items() if entry.action == DROPPED} == set(SUSPECTS)
    assert len(contents(data.parent / "out", snapshot)) == 10
    assert not (data.parent / "out-quarantine").exists()


def test_quarantine_puts_suspects_outside(data, snapshot):
    decisions = cleaned(data, SUSPECTS, "quarantine")
    assert {source for source, entry in decisions.items() if entry.action == QUARANTINED} == set(SUSPECTS)
    before = snapshot(data)
    assert contents(data.parent / "out-quarantine", snapshot) == {path: before[path] for path in SUSPECTS}
    assert len(contents(data.parent / "out", snapshot)) == 10
    assert {path.name for path in data.parent.iterdir()} == {"data", "out", "out-quarantine"}


def test_names_taken_by_kept_files_of_any_case_are_left_to_them(data, snapshot):
    (data / "2" / "0__from-1.png").write_bytes((data / "2" / "1.png").read_bytes())
    (data / "2" / "ONE.png").write_bytes((data / "2" / "1.png").read_bytes())
    (data / "1" / "one.PNG").write_bytes((data / "1" / "1.png").read_bytes())
    decisions = cleaned(data, {"1/0.png": ("2", 0.9), "1/one.PNG": ("2", 0.9), "0/0.png": ("2", 0.9)})
    assert decisions["1/0.png"].written == "2/0__from-1-2.png"
    assert decisions["1/one.PNG"].written == "2/one__from-1.PNG"
    assert decisions["0/0.png"].written == "2/0__from-0.png"
    assert len(contents(data.parent / "out", snapshot)) == 19  # all but the broken one


@pytest.mark.parametrize("link_mode", LINK_MODES)
@pytest.mark.parametrize("action", ["relabel", "quarantine"])
@pytest.mark.parametrize("path", ["2/4.png", "1/0.png"])
def test_a_file_that_changed_since_the_scan_stops_everything(data, action, path, link_mode):
    read, report = scanned(data, {"1/0.png": ("2", 0.9)})
    (data / path).write_bytes((data / path).read_bytes() + b"\0")
    with pytest.raises(OutputError, match=rf"{path} changed"):
        write_folder(read, decide(report, action, 0.5), data.parent / "out", data.parent / "aside", {}, link_mode)
    assert list(data.parent.iterdir()) == [data]


def test_a_file_that_went_away_since_the_scan_stops_everything(data):
    read, report = scanned(data, {"1/0.png": ("2", 0.9)})
    (data / "2" / "4.png").unlink()
    with pytest.raises(OutputError, match=r"2/4\.png can't be read any more"):
        write_folder(read, decide(report, "quarantine", 0.5), data.parent / "out", data.parent / "aside", {})
    assert list(data.parent.iterdir()) == [data]


@pytest.mark.parametrize(
    ("aside", "message"),
    [
        ("out", "overlaps the output"),
        ("data/aside", "overlaps the input"),
        ("data", "overlaps the input"),
        ("missing/aside", "doesn't exist"),
    ],
)
def test_a_quarantine_that_overlaps_is_refused_before_any_work(data, aside, message):
    with pytest.raises(OutputError, match=message):  # and not the DatasetError that comes later: too few images
        advrbd.clean(data, data.parent / "out", action="quarantine", quarantine=data.parent / aside)
    assert list(data.parent.iterdir()) == [data]


def test_a_relabelled_file_whose_folder_has_the_name_of_a_kept_file(data):
    (data / "1" / "0.png").unlink()
    (data / "1" / "0.png").mkdir()
    shutil.copy2(data / "1" / "1.png", data / "1" / "0.png" / "x.png")
    decisions = cleaned(data, {"1/0.png/x.png": ("2", 0.9)})  # 2/0.png is a kept file
    assert decisions["1/0.png/x.png"].action == RELABELLED
    assert (data.parent / "out" / decisions["1/0.png/x.png"].written).is_file()


def test_a_relabelled_file_with_a_long_name_that_is_taken(data):
    name = "n" * 250 + ".png"
    for label in "12":
        shutil.copy2(data / label / "1.png", data / label / name)
    decisions = cleaned(data, {f"1/{name}": ("2", 0.9)})
    assert (data.parent / "out" / decisions[f"1/{name}"].written).is_file()


def test_the_csv_report_says_what_was_done(data, tmp_path):
    _, report = scanned(data, SUSPECTS)
    text = decisions_csv(report, decide(report, "relabel", 0.5)).decode()
    rows = {row["path"]: row for row in csv.DictReader(io.StringIO(text, newline=""))}
    assert set(rows) == {f"./{path}" for path in (*SUSPECTS, "0/broken.png")}
    assert tuple(rows["./1/0.png"]) == (*COLUMNS, "action", "written")
    assert (rows["./1/0.png"]["action"], rows["./1/0.png"]["written"]) == (RELABELLED, "./0/0__from-1.png")
    assert (rows["./1/2.png"]["action"], rows["./1/2.png"]["written"]) == (DROPPED, "")
    assert rows["./0/broken.png"]["action"] == EXCLUDED
    (tmp_path / "report.csv").write_text(text)
    assert set(read_suspects(tmp_path / "report.csv")) == set(SUSPECTS)


@pytest.mark.parametrize("link_mode", LINK_MODES)
def test_every_link_mode_gives_the_same_folder_and_leaves_the_input_alone(data, snapshot, link_mode):
    (data / "2" / "also.png").symlink_to("../1/4.png")
    before, times = snapshot(data), {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    decisions = cleaned(data, SUSPECTS, link_mode=link_mode)
    out = data.parent / "out"
    written = {entry.written: before[entry.source] for entry in decisions.values() if entry.written}
    assert contents(out, snapshot) == written
    assert len(ImageFolder(out)) == len(written) == 14
    assert snapshot(data) == before
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == times
    manifest = json.loads((out / MANIFEST).read_bytes())
    assert manifest["settings"]["link_mode"] == link_mode
    assert link_cautions(manifest) == ()
    for entry in (entry for entry in decisions.values() if entry.written):
        source, copy = data / entry.source, out / entry.written
        assert copy.samefile(source) == (link_mode != "copy")
        assert copy.is_symlink() == (link_mode == SYMLINK)
        if link_mode == SYMLINK:
            assert copy.readlink() == source.resolve()


def test_symlinks_lead_to_the_input_whatever_it_was_called(data, monkeypatch):
    (data.parent / "alias").symlink_to(data)
    monkeypatch.chdir(data.parent)
    cleaned(Path("alias"), SUSPECTS, link_mode=SYMLINK)
    assert (data.parent / "out" / "0" / "0.png").readlink() == data / "0" / "0.png"
    manifest = json.loads((data.parent / "out" / MANIFEST).read_bytes())
    assert manifest["settings"]["source"] == str(data)


@pytest.mark.parametrize("link_mode", LINK_MODES)
def test_quarantined_files_are_copies_in_every_link_mode(data, link_mode):
    cleaned(data, SUSPECTS, "quarantine", link_mode=link_mode)
    for path in SUSPECTS:
        assert not (data.parent / "out-quarantine" / path).samefile(data / path)


def refusing(real: Callable, number: int, paths: str) -> Callable:
    """A stand-in for ``os.link`` or ``os.symlink`` that refuses what has ``paths`` in its name."""

    def link(source, *rest):
        if paths in str(source):
            raise OSError(number, os.strerror(number))
        return real(source, *rest)

    return link


def test_hard_links_that_cant_be_made_become_copies_with_one_caution(data, snapshot, monkeypatch):
    monkeypatch.setattr(os, "link", refusing(os.link, errno.EXDEV, "/2/"))
    before = snapshot(data)
    decisions = cleaned(data, SUSPECTS, link_mode=HARDLINK)
    out = data.parent / "out"
    assert contents(out, snapshot) == {e.written: before[e.source] for e in decisions.values() if e.written}
    assert (out / "0" / "0.png").samefile(data / "0" / "0.png")
    assert not (out / "2" / "0.png").samefile(data / "2" / "0.png")
    assert not (out / "2" / "0.png").is_symlink()
    (caution,) = link_cautions(json.loads((out / MANIFEST).read_bytes()))
    assert caution == "5 files were copied, since they could not be hard-linked: the output is on another file system"


def test_hard_links_to_another_file_system(data, snapshot):
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == data.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    read, report = scanned(data, SUSPECTS)
    with tempfile.TemporaryDirectory(dir=elsewhere) as folder:
        out = Path(folder) / "out"
        manifest = write_folder(read, decide(report, "drop", 0.5), out, data.parent / "aside", {}, HARDLINK)
        assert len(contents(out, snapshot)) == 10
    assert manifest["copied_instead"] == {"the output is on another file system": 10}


def test_symlinks_that_cant_be_made_stop_everything(data, monkeypatch):
    monkeypatch.setattr(os, "symlink", refusing(os.symlink, errno.EPERM, "/2/"))
    with pytest.raises(OutputError, match=r"cannot link to .*Operation not permitted; use --link-mode copy"):
        cleaned(data, SUSPECTS, link_mode=SYMLINK)
    assert list(data.parent.iterdir()) == [data]


@pytest.mark.parametrize("link_mode", LINK_MODES)
def test_two_files_under_one_name_stop_everything(data, link_mode):
    read, report = scanned(data, {})
    first, *others = decide(report, "relabel", 0.5)
    decisions = (first, *(replace(e, written=first.written) if e.source == "2/4.png" else e for e in others))
    with pytest.raises(OutputError):  # as on a file system that takes two names for one
        write_folder(read, decisions, data.parent / "out", data.parent / "aside", {}, link_mode)
    assert list(data.parent.iterdir()) == [data]


@pytest.mark.parametrize("link_mode", LINK_MODES)
def test_a_file_that_became_a_link_out_of_the_input_is_refused(data, link_mode):
    read, report = scanned(data, {})
    shutil.move(data / "2" / "4.png", data.parent / "secret.png")
    (data / "2" / "4.png").symlink_to(data.parent / "secret.png")
    with pytest.raises(OutputError, match=r"2/4\.png changed"):
        write_folder(read, decide(report, "relabel", 0.5), data.parent / "out", data.parent / "aside", {}, link_mode)
    assert not (data.parent / "out").exists()


@pytest.mark.parametrize("link_mode", LINK_MODES)
@pytest.mark.parametrize("change", ["fifo", "link to zeros", "large", "folder"])
def test_what_a_file_became_since_the_scan_is_not_read(data, link_mode, change, monkeypatch):
    read, report = scanned(data, {})
    path = data / "2" / "4.png"
    path.unlink()
    match change:
        case "fifo":  # would wait for ever for somebody to write into it
            os.mkfifo(path)
        case "link to zeros":
            path.symlink_to("/dev/zero")
        case "large":
            monkeypatch.setattr(files, "MAX_FILE_BYTES", 2**20)
            path.touch()
            os.truncate(path, 2**40)  # more than there is memory
        case "folder":
            path.mkdir()
    with pytest.raises(OutputError, match=r"2/4\.png changed"):
        write_folder(read, decide(report, "relabel", 0.5), data.parent / "out", data.parent / "aside", {}, link_mode)
    assert list(data.parent.iterdir()) == [data]


@pytest.mark.parametrize("taken", ["out", "aside"])
def test_where_one_target_cant_be_renamed_there_is_none(data, taken, monkeypatch):
    read, report = scanned(data, {"1/0.png": ("2", 0.9)})
    out, aside, tried, rename = data.parent / "out", data.parent / "aside", [], Path.rename

    def refused(self: Path, target: Path) -> Path:
        tried.append(target.name)
        if target.name == taken:
            raise OSError(errno.EIO, "the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OutputError, match=rf"cannot write .*{taken}: the disk is gone"):
        write_folder(read, decide(report, "quarantine", 0.5), out, aside, {})
    assert tried == ["aside", "out"][: len(tried)]
    assert list(data.parent.iterdir()) == [data]


def test_a_quarantine_that_somebody_else_made_meanwhile_is_left_to_them(data, monkeypatch):
    read, report = scanned(data, {"1/0.png": ("2", 0.9)})
    chmod = Path.chmod

    def late(self: Path, mode: int) -> None:
        chmod(self, mode)
        (data.parent / "aside").mkdir(exist_ok=True)
        (data.parent / "aside" / "mine").touch()

    monkeypatch.setattr(Path, "chmod", late)
    with pytest.raises(OutputError, match=r"cannot write .*aside"):
        write_folder(read, decide(report, "quarantine", 0.5), data.parent / "out", data.parent / "aside", {})
    assert sorted(data.parent.rglob("*")) == sorted(
        [data, *data.rglob("*"), data.parent / "aside", data.parent / "aside" / "mine"]
    )


def test_what_is_no_link_mode_is_refused_before_any_work(data):
    with pytest.raises(ValueError, match="link_mode must be one of copy, hardlink, symlink, not 'reflink'"):
        advrbd.clean(data, data.parent / "out", link_mode="reflink")


def test_clean_takes_the_link_mode_and_hands_on_the_caution(digits_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(advrbd.pipeline, "relearn", lambda *_: None)  # what is tested here needs no model
    monkeypatch.setattr(advrbd.pipeline, "fine_tune", lambda *_: None)
    monkeypatch.setattr(advrbd.pipeline, "check", lambda *_: Check("good", (), ()))
    monkeypatch.setattr(os, "link", refusing(os.link, errno.EMLINK, "/7/"))
    (tmp_path / "report.csv").write_bytes(render(Report((), ()), "csv"))
    config = Config(model="test_resnet", device="cpu")
    out = tmp_path / "out"
    done = advrbd.clean(digits_folder, out, config, report=tmp_path / "report.csv", link_mode=HARDLINK)
    assert done.cautions == ("30 files were copied, since they could not be hard-linked: Too many links",)
    assert done.manifest["settings"]["link_mode"] == HARDLINK
    assert sum((out / entry.written).samefile(digits_folder / entry.source) for entry in done.decisions) == 270


def test_clean_takes_a_report_as_scan_returned_it(digits_folder, tmp_path, monkeypatch):
    for name in ("relearn", "fine_tune"):
        monkeypatch.setattr(advrbd.pipeline, name, lambda *_: None)
    monkeypatch.setattr(advrbd.pipeline, "relabel", lambda *_: (0, 0.0))
    monkeypatch.setattr(advrbd.pipeline, "check", lambda *_: Check("good", (), ()))
    monkeypatch.setattr(advrbd.pipeline, "find", None)  # it doesn't scan again
    read, _ = pixels.load(index(digits_folder), 16)
    files = tuple(FileResult(file.path, read.class_name(file), OK, file.sha256) for file in read.files)
    report = Report((replace(files[0], suspect=True), *files[1:]), ())
    config = Config(model="test_resnet", device="cpu")
    done = advrbd.clean(digits_folder, tmp_path / "out", config, report=report)
    assert [entry.source for entry in done.decisions if entry.action == DROPPED] == [files[0].path]
    with pytest.raises(ReportError, match="scan the folder again"):
        advrbd.clean(digits_folder, tmp_path / "other", config, report=replace(report, files=files[:-1]))


@pytest.mark.parametrize(("options", "expected"), [((), "copy"), (("--link-mode", "symlink"), SYMLINK)])
def test_the_program_passes_the_link_mode_on(options, expected, data, monkeypatch):
    passed = {}

    def clean(*_, **named):
        passed.update(named)
        raise AdvrbdError("that's all that is tested here")

    monkeypatch.setattr(advrbd.pipeline, "clean", clean)
    monkeypatch.setattr(sys, "argv", ["advrbd", "clean", "data", "--out", "out", *options])
    monkeypatch.chdir(data.parent)
    with pytest.raises(SystemExit):
        main()
    assert passed["link_mode"] == expected
