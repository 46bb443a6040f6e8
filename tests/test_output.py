"""The cleaned folder accounts for every file, copies what it keeps byte for byte, and never touches its input."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

import advrbd
from advrbd.data import pixels
from advrbd.data.folder import FolderIndex, index
from advrbd.errors import OutputError
from advrbd.output import (
    DROPPED,
    EXCLUDED,
    KEPT,
    MANIFEST,
    QUARANTINED,
    RELABELLED,
    Decision,
    decide,
    decisions_csv,
    emptied_classes,
    write_folder,
)
from advrbd.reports.report import FileResult, Report
from advrbd.reports.tables import COLUMNS, read_suspects

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


def cleaned(root: Path, suspects: Suspects, action: str = "relabel", floor: float = 0.5) -> dict[str, Decision]:
    """Decide, write to ``root/../out`` (and ``out-quarantine``) and return the decisions by their source."""
    read, report = scanned(root, suspects)
    decisions = decide(report, action, floor)
    out = root.parent / "out"
    write_folder(read, decisions, out, out.with_name("out-quarantine"), {"action": action})
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
    assert manifest["settings"] == {"action": "relabel"}
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


@pytest.mark.parametrize("action", ["relabel", "quarantine"])
@pytest.mark.parametrize("path", ["2/4.png", "1/0.png"])
def test_a_file_that_changed_since_the_scan_stops_everything(data, action, path):
    read, report = scanned(data, {"1/0.png": ("2", 0.9)})
    (data / path).write_bytes((data / path).read_bytes() + b"\0")
    with pytest.raises(OutputError, match=rf"{path} changed"):
        write_folder(read, decide(report, action, 0.5), data.parent / "out", data.parent / "aside", {})
    assert list(data.parent.iterdir()) == [data]


def test_a_file_that_went_away_since_the_scan_stops_everything(data):
    read, report = scanned(data, {"1/0.png": ("2", 0.9)})
    (data / "2" / "4.png").unlink()
    with pytest.raises(OutputError, match=r"2/4\.png can't be read any more"):
        write_folder(read, decide(report, "quarantine", 0.5), data.parent / "out", data.parent / "aside", {})
    assert list(data.parent.iterdir()) == [data]


@pytest.mark.parametrize("aside", ["out", "data/aside", "data", "missing/aside"])
def test_a_quarantine_that_overlaps_is_refused_before_any_work(data, aside):
    with pytest.raises(OutputError):  # and not the DatasetError that comes later: too few images
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
