"""A report says the same in every format, and what is read back are its suspects, whatever the files are called."""

import csv
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

import advrbd
from advrbd.config import Config, EnhancementSettings, TrainingSettings
from advrbd.data import pixels
from advrbd.data.folder import OK, REFUSED_LINK, TOO_SLOW, UNREADABLE, FolderIndex, ImageFile, index
from advrbd.errors import ReportError, SuspectsFound
from advrbd.events import Caution
from advrbd.method.findings import from_report
from advrbd.reports import tables
from advrbd.reports.report import CLEAN, POISONED, SUSPICIOUS, UNEXAMINED, ClassVerdict, FileResult, Report
from advrbd.reports.subset import restrict
from advrbd.reports.tables import (
    COLUMNS,
    FORMATS,
    SCHEMA,
    Earlier,
    fingerprint,
    read_report,
    read_suspects,
    render,
)
from advrbd.writing import printable

READABLE = ("csv", "json", "jsonl")
SHA = "ab" * 32


def suspect(path: str, suggested: str | None = None) -> FileResult:
    label = path.split("/")[0]
    return FileResult(path, label, OK, SHA, True, 0.98765432, suggested, None if suggested is None else 0.75)


MIXED = Report(
    (
        FileResult("cat/1.png", "cat", OK, SHA, False, 0.01),
        suspect("cat/2.png", "dog"),
        FileResult("cat/broken.png", "cat", UNREADABLE, SHA),
        suspect("dog/3.png"),
        FileResult("dog/4.png", "dog", OK, SHA, False, 0.0),
        FileResult("dog/link.png", "dog", REFUSED_LINK, ""),
    ),
    (ClassVerdict("cat", 3, 1, POISONED, {"ambiguity": 0.1}), ClassVerdict("dog", 3, 1, SUSPICIOUS)),
    ("look 3 still found suspects",),
    {"seconds": 1.5},
)


def read_back(data: bytes, folder: Path, form: str = "csv") -> dict[str, str]:
    (folder / f"report.{form}").write_bytes(data)
    suspects = read_suspects(folder / f"report.{form}")
    return {path: sha256 for path, (sha256, _) in suspects.items()}


def rows(data: bytes, form: str) -> list[dict]:
    if form == "csv":
        return list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    if form == "json":
        return json.loads(data)["files"]
    return [json.loads(line) for line in data.decode().splitlines()]


@pytest.mark.parametrize("form", READABLE)
def test_a_report_holds_suspects_and_unread_files_or_all(form):
    paths = [f"./{file.path}" for file in MIXED.files]
    assert [row["path"] for row in rows(render(MIXED, form), form)] == [paths[i] for i in (1, 2, 3, 5)]
    assert [row["path"] for row in rows(render(MIXED, form, all_files=True), form)] == paths
    for row in rows(render(MIXED, form), form):
        assert tuple(row) == COLUMNS


@pytest.mark.parametrize("form", READABLE)
def test_unread_files_have_a_row_but_are_no_suspects(form, tmp_path):
    status = {row["path"]: row["status"] for row in rows(render(MIXED, form), form)}
    assert status["./cat/broken.png"] == UNREADABLE
    assert status["./dog/link.png"] == REFUSED_LINK
    for all_files in (False, True):
        assert read_back(render(MIXED, form, all_files), tmp_path, form) == {"cat/2.png": SHA, "dog/3.png": SHA}
    contradictory = Report((replace(MIXED.files[2], suspect=True), MIXED.files[1]), ())
    assert read_back(render(contradictory, form), tmp_path, form) == {"cat/2.png": SHA}


def test_csv_cells():
    _, first, broken, second, _ = render(MIXED, "csv").decode().split("\n", 4)
    assert first == f"./cat/2.png,cat,true,0.9877,dog,0.7500,ok,{SHA}"
    assert broken == f"./cat/broken.png,cat,false,,,,unreadable,{SHA}"
    assert second == f"./dog/3.png,dog,true,0.9877,,,ok,{SHA}"


def test_json_holds_the_verdicts_too():
    whole = json.loads(render(MIXED, "json"))
    assert (whole["schema"], whole["verdict"], whole["cautions"]) == (SCHEMA, POISONED, ["look 3 still found suspects"])
    assert whole["run"] == {"seconds": 1.5}
    cat = {"label": "cat", "files": 3, "suspects": 1, "verdict": POISONED, "evidence": {"ambiguity": 0.1}}
    assert whole["classes"][0] == cat
    first = whole["files"][0]
    assert (first["score"], first["suggested_label"], first["suggested_confidence"]) == (0.9877, "dog", 0.75)
    assert whole["files"][1]["score"] is None


ODD_NAMES = [
    "line\nbreak",
    "comma,quote\"'",
    '"',
    "=1+1",
    "'=1",
    " space ",
    "./dot",
    "back\\slash",
    "\u2028\x85\x0b\x1c",
    os.fsdecode(b"\xff\xc3"),
    "日本",
    "\ufeff",
]
name = st.one_of(
    st.sampled_from(ODD_NAMES),
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=6),
    st.binary(min_size=1, max_size=6).map(os.fsdecode).filter(lambda text: "/" not in text and "\0" not in text),
)
file_paths = st.builds(lambda label, file: f"{label}/{file}.png", name, name)
paths = st.lists(file_paths, max_size=8, unique_by=printable)  # names that are shown alike are a matter of their own


@pytest.mark.parametrize(
    "form",
    [
        "csv",
        "json",
        "jsonl",
    ],
)
@given(paths, paths)
@example(["a/carriage\rreturn.png"], [])
@example(["a/return\r\nand newline.png"], [])
def test_every_file_name_survives_a_round_trip(form, tmp_path_factory, suspects, others):
    assume(form != "jsonl" or suspects or others)
    hashes = {path: f"{number:064x}" for number, path in enumerate(suspects)}
    files = [FileResult(path, path.split("/")[0], OK, hashes[path], True, 1.0, "=odd\n") for path in suspects]
    files += [FileResult(path, path.split("/")[0], UNREADABLE, SHA) for path in others if path not in hashes]
    data = render(Report(tuple(files), ()), form)
    expected = {printable(path): sha256 for path, sha256 in hashes.items()}
    assert read_back(data, tmp_path_factory.getbasetemp(), form) == expected


@pytest.mark.parametrize("form", READABLE)
@pytest.mark.parametrize("odd", ODD_NAMES)
def test_odd_file_names_survive_a_round_trip(form, odd, tmp_path):
    report = Report((suspect(f"{odd}/{odd}.png", odd), suspect("z/last.png")), ())
    assert list(read_back(render(report, form), tmp_path, form)) == [printable(f"{odd}/{odd}.png"), "z/last.png"]


@pytest.mark.parametrize("start", "=+-@\t")
def test_no_cell_of_a_csv_is_a_formula(start):
    report = Report((suspect(f"{start}1/{start}2.png", f"{start}3"),), ())
    (row,) = rows(render(report, "csv"), "csv")
    assert not [cell for cell in row.values() if cell.startswith(tuple("=+-@\t\r"))]


@pytest.mark.parametrize("form", READABLE)
@pytest.mark.parametrize("label", ["-1", "'-1", "''-1", "'", "'cat", "''", "=\n"])
def test_labels_come_back_as_they_were_and_no_two_alike(form, label, tmp_path):
    (tmp_path / "r").write_bytes(render(Report((replace(suspect("images/1.png"), label=label),), ()), form))
    assert read_suspects(tmp_path / "r") == {"images/1.png": (SHA, printable(label))}


@pytest.mark.parametrize(
    "form",
    [
        "csv",
        "json",
        "jsonl",
    ],
)
def test_a_report_without_suspects_can_be_read(form, tmp_path):
    assert read_back(render(Report((), ()), form), tmp_path, form) == {}


def test_a_csv_without_rows_has_its_header():
    assert render(Report((), ()), "csv").decode() == ",".join(COLUMNS) + "\n"


@pytest.mark.parametrize("form", READABLE)
def test_line_ends_of_windows_are_read(tmp_path, form):
    data = render(MIXED, form).replace(b"\n", b"\r\n")
    assert read_back(data, tmp_path, form) == {"cat/2.png": SHA, "dog/3.png": SHA}


def test_the_table_has_one_line_a_file_and_no_control_characters():
    report = Report((suspect("a/two\nlines.png"), suspect("a/\x1b[2Jclear.png"), suspect("b/\u202egnp.exe")), ())
    text = render(report, "table").decode()
    assert [line.split()[0] for line in text.splitlines()] == [
        "path",
        "./a/two\\nlines.png",
        "./a/\\x1b[2Jclear.png",
        "./b/\\u202egnp.exe",
    ]
    assert text.replace("\n", "").isprintable()
    assert len(render(Report((), ()), "table").decode().splitlines()) == 1


def test_an_unknown_format_is_an_error():
    assert {*READABLE, "table"} == set(FORMATS)
    with pytest.raises(ValueError, match="yaml"):
        render(MIXED, "yaml")


HEADER = ",".join(COLUMNS)
ROW = {"path": "./a/1.png", "label": "a", "suspect": True, "status": OK, "sha256": SHA}


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe\x00garbage",
        b"hello\n",
        b"path,label\n./a/1.png,a\n",
        HEADER.replace("sha256", "md5").encode() + b"\n",
        HEADER.encode() + b"\n./a/1.png,a,true\n",
        b"[]",
        b"{",
        b"{}",
        b"{\n}",
        b'{"path": "./a/1.png"}\n',
        json.dumps({"schema": "advrbd.report/2", "files": []}, indent=1).encode(),
        json.dumps({"schema": SCHEMA, "files": [None]}, indent=1).encode(),
        json.dumps({"schema": SCHEMA, "files": [ROW | {"path": 3}]}, indent=1).encode(),
        json.dumps({"schema": SCHEMA, "files": [ROW | {"label": ["a"]}]}, indent=1).encode(),
        json.dumps({"schema": SCHEMA}, indent=1).encode(),
        json.dumps(ROW).encode() + b'\n{"path": "./a/2',
        render(MIXED, "json")[:-20],
        render(MIXED, "table"),
    ],
)
def test_what_is_no_report_is_refused(data, tmp_path):
    with pytest.raises(ReportError, match="report"):
        read_back(data, tmp_path)


def test_a_report_that_isnt_there_is_refused(tmp_path):
    for path in (tmp_path / "missing.csv", tmp_path):
        with pytest.raises(ReportError, match="cannot read the report"):
            read_suspects(path)


def test_raise_for_suspects():
    with pytest.raises(SuspectsFound, match="2 suspected files, labelled cat, dog"):
        MIXED.raise_for_suspects()
    nobody = (MIXED.files[0], MIXED.files[2])
    with pytest.raises(SuspectsFound, match="without any one file to accuse: cat"):  # a trigger all the same
        Report(nobody, MIXED.classes).raise_for_suspects()
    assert Report(nobody, MIXED.classes, whole_sha256=SHA).raise_for_suspects() is None  # others may be to blame
    assert Report(nobody, MIXED.classes[1:]).raise_for_suspects() is None
    both = tuple(replace(entry, verdict=POISONED) for entry in MIXED.classes)
    accepted = replace(MIXED.files[1], accepted_by="old.csv")
    with pytest.raises(SuspectsFound, match="without any one file to accuse: dog"):  # whatever another class has
        Report((*nobody, accepted), both).raise_for_suspects()


@pytest.mark.parametrize(
    ("verdicts", "worst"),
    [
        ([], CLEAN),
        ([CLEAN, CLEAN], CLEAN),
        ([CLEAN, UNEXAMINED], UNEXAMINED),  # could not look is no clean bill of health
        ([SUSPICIOUS, UNEXAMINED, CLEAN], SUSPICIOUS),
        ([CLEAN, POISONED, SUSPICIOUS], POISONED),
    ],
)
def test_the_verdict_is_that_of_the_worst_class(verdicts, worst):
    assert Report((), tuple(ClassVerdict("a", 1, 0, verdict) for verdict in verdicts)).verdict == worst


def test_a_scan_reports_every_file_sorted_by_its_path(tmp_path, digits_folder):
    for number, path in enumerate(sorted(digits_folder.glob("[01]/*.png"))):
        for folder in (f"b{path.parent.name}", f"b{path.parent.name}/below"):
            target = tmp_path / folder / f"{'z' if number % 2 else 'a'}{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (tmp_path / "b0" / os.fsdecode(b"\xff.png")).write_bytes(path.read_bytes())
    Image.new("RGB", (16, 16)).save(tmp_path / "b0" / "\U0001f600.png")  # above \udcff by bytes, below it in Python
    (tmp_path / "b1" / "broken.png").write_bytes(b"broken")
    once = TrainingSettings(epochs=1, minimum_steps=0)
    hardly = EnhancementSettings(rounds=1, steps=1, training=once)
    config = Config(model="test_resnet", device="cpu", looks=1, warm_up=once, enhancement=hardly)
    report = advrbd.scan(tmp_path, config)
    paths = [os.fsencode(file.path) for file in report.files]
    assert paths == sorted(os.fsencode(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert [(file.path, file.status, file.score) for file in report.unread] == [("b1/broken.png", UNREADABLE, None)]
    assert sum(entry.files for entry in report.classes) == len(paths)


DEEP = 100_000
HOSTILE = {
    "named twice": json.dumps({"schema": SCHEMA, "files": [ROW, ROW]}).encode(),
    "a key twice": json.dumps({"schema": SCHEMA, "files": [ROW]}).encode()[:-1] + b', "files": []}',
    "not a number": json.dumps({"schema": SCHEMA, "files": [ROW | {"score": float("nan")}]}).encode(),
    "a huge number": b'{"schema": "' + SCHEMA.encode() + b'", "files": [], "x": ' + b"9" * 5000 + b"}",
    "a suspect of another type": json.dumps({"schema": SCHEMA, "files": [ROW | {"suspect": 1}]}).encode(),
    "files of another type": json.dumps({"schema": SCHEMA, "files": {"a": ROW}}).encode(),
    "rows of another type": json.dumps({"schema": SCHEMA, "files": ["path"]}).encode(),
    "a path of another type": json.dumps({"schema": SCHEMA, "files": [ROW | {"path": ["a"]}]}).encode(),
    "a hash of another type": json.dumps({"schema": SCHEMA, "files": [ROW | {"sha256": 3}]}).encode(),
    "no hash": json.dumps({"schema": SCHEMA, "files": [ROW | {"sha256": "ab"}]}).encode(),
    "half a character": json.dumps({"schema": SCHEMA, "files": [ROW | {"path": "\ud800"}] * 2}).encode(),
    "no fingerprint": json.dumps({"schema": SCHEMA, "files": [ROW], "files_sha256": "../../etc"}).encode(),
    "a fingerprint of another type": json.dumps({"schema": SCHEMA, "files": [ROW], "files_sha256": [SHA]}).encode(),
    "nested lists": b'{"schema": ' + b"[" * DEEP,
    "nested objects": b'{"a":' * DEEP,
    "nested lines": b'{"path": ' + b"[" * DEEP + b"]" * DEEP + b"}\n",
    "zero bytes": HEADER.encode() + b"\n\0\0\0\n",
    "ten million cells": HEADER.encode() + b"\n" + b"," * 10_000_000 + b"\n",
    "ten million columns": HEADER.encode() + b"," * 10_000_000 + b"\n./a/1.png\n",
    "a huge cell": HEADER.encode() + b"\n" + b"x" * 10_000_000 + b",a,true,1,,,ok,\n",
    "an open quote": HEADER.encode() + b'\n"./a/1.png,a,true\n' * 50_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_report_is_one_error(tmp_path, name):
    with pytest.raises(ReportError, match="is no report of `advrbd scan`") as error:
        read_back(HOSTILE[name], tmp_path)
    assert len(str(error.value).replace(str(tmp_path), "")) < 300


def test_a_report_too_large_to_be_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_REPORT_BYTES", 100)
    with pytest.raises(ReportError, match="too large to be read"):
        read_back(render(MIXED, "csv"), tmp_path)


LISTED = FolderIndex(
    Path("data"),
    ("cat", "dog"),
    tuple(ImageFile(file.path, int(file.label == "dog"), file.status, file.sha256) for file in MIXED.files),
)


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "cat/../../secret.png",
        "/etc/passwd",
        "./cat/2.png",
        "cat//2.png",
        "cat\\x2f2.png",
        "cat/2.png\0",
        "CAT/2.png",
        "x" * 1_000_000,
        "\x1b[2J",
    ],
)
def test_a_path_that_isnt_in_the_folder_is_refused(path):
    with pytest.raises(ReportError, match="isn't in data; scan the folder again") as error:
        from_report(LISTED, Earlier({path: (SHA, "cat")}))
    assert len(str(error.value)) < 300
    assert str(error.value).isprintable()


def test_a_suspect_with_another_hash_is_refused():
    with pytest.raises(ReportError, match="isn't the file that the report was made of"):
        from_report(LISTED, Earlier({"cat/2.png": ("cd" * 32, "cat")}))
    found = from_report(LISTED, Earlier({"cat/2.png": (SHA, "cat")})).suspects
    assert found.tolist() == [False, True, False, False, False, False]


def with_file(listed: FolderIndex, position: int, *files: ImageFile) -> FolderIndex:
    """``listed`` with the file at ``position`` replaced by ``files``."""
    return replace(listed, files=(*listed.files[:position], *files, *listed.files[position + 1 :]))


FIRST = LISTED.files[0]


@pytest.mark.parametrize(
    "changed",
    [
        with_file(LISTED, 0),
        with_file(LISTED, 0, FIRST, replace(FIRST, path="cat/added.png")),
        with_file(LISTED, 0, replace(FIRST, sha256="cd" * 32)),
        with_file(LISTED, 0, replace(FIRST, path="cat/renamed.png")),
        with_file(LISTED, 5, replace(LISTED.files[5], status=OK, sha256=SHA)),
        with_file(LISTED, 0, replace(FIRST, label=1)),
    ],
    ids=["removed", "added", "changed", "renamed", "no link any more", "labelled anew, as in a table"],
)
@pytest.mark.parametrize(("form", "all_files"), [("json", False), ("json", True), ("csv", True), ("jsonl", True)])
def test_a_folder_that_changed_since_the_report_is_refused(tmp_path, form, all_files, changed):
    (tmp_path / f"r.{form}").write_bytes(render(MIXED, form, all_files))
    earlier = read_report(tmp_path / f"r.{form}")
    assert from_report(LISTED, earlier).suspects.sum() == 2
    with pytest.raises(ReportError, match="removed, changed or labelled anew since; scan the folder again"):
        from_report(changed, earlier)


@pytest.mark.parametrize("form", ["csv", "json", "jsonl"])
def test_a_file_that_could_not_be_read_then_but_can_be_now_was_never_scanned(tmp_path, form):
    slow = with_file(LISTED, 0, replace(FIRST, status=TOO_SLOW))
    report = Report(
        tuple(FileResult(file.path, LISTED.class_name(file), file.status, file.sha256) for file in slow.files),
        (ClassVerdict("cat", 6, 0, CLEAN),),
    )
    (tmp_path / f"r.{form}").write_bytes(render(report, form))
    earlier = read_report(tmp_path / f"r.{form}")
    assert from_report(slow, earlier).suspects.sum() == 0
    with pytest.raises(ReportError, match="can be read now, but couldn't be when it was scanned"):
        from_report(LISTED, earlier)


def test_what_a_report_says_of_classes_comes_back_where_it_says_it(tmp_path):
    names = LISTED.classes
    verdicts = [SUSPICIOUS, POISONED, UNEXAMINED, CLEAN][: len(names)]
    classes = tuple(ClassVerdict(name, 3, 0, verdict) for name, verdict in zip(names, verdicts, strict=False))
    files = tuple(FileResult(file.path, LISTED.class_name(file), file.status, file.sha256) for file in LISTED.files)
    report = Report(files, classes, run={"exhausted": True})
    for form, told in (("json", True), ("csv", False), ("jsonl", False)):
        (tmp_path / f"r.{form}").write_bytes(render(report, form))
        found = from_report(LISTED, read_report(tmp_path / f"r.{form}"))
        assert (found.told, found.exhausted) == (told, told)
        expected = [entry.verdict for entry in classes] if told else [CLEAN] * len(names)
        assert [found.verdicts[label] for label in range(len(names))] == expected


def test_a_report_that_was_never_written_says_what_it_would_as_json(tmp_path):
    report = replace(MIXED, run={"exhausted": True, "control_found": False})
    (tmp_path / "r.json").write_bytes(render(report, "json"))
    earlier = read_report(report)
    assert earlier == read_report(tmp_path / "r.json")
    assert (earlier.exhausted, earlier.control_found, len(earlier.suspects)) == (True, False, 2)
    with pytest.raises(ReportError, match="this is a report on some of the files only"):
        read_report(restrict(report, frozenset({"cat/2.png"})))
    with pytest.raises(ReportError, match="added, removed, changed"):  # what was left out of it by hand isn't trusted
        from_report(LISTED, read_report(replace(report, files=report.files[:2])))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_report_of_suspects_only_cant_tell_what_was_added(tmp_path, form):
    (tmp_path / f"r.{form}").write_bytes(render(MIXED, form))
    assert read_report(tmp_path / f"r.{form}").files_sha256 is None


def test_the_order_of_rows_and_an_acquittal_by_hand_change_no_fingerprint(tmp_path):
    head, *lines = render(MIXED, "csv", all_files=True).decode().splitlines(keepends=True)
    edited = head + "".join(reversed(lines)).replace("true", "FALSE")
    (tmp_path / "r.csv").write_text(edited)
    earlier = read_report(tmp_path / "r.csv")
    assert (earlier.suspects, earlier.files_sha256) == ({}, fingerprint(MIXED.files))


@given(st.dictionaries(file_paths, st.sampled_from([SHA, "cd" * 32, ""]), min_size=1))
def test_fingerprints_are_the_same_for_the_same_files_only(hashes):
    files = [FileResult(path, "a", OK, sha256) for path, sha256 in hashes.items()]
    assert fingerprint(files) == fingerprint(files[::-1])
    assert fingerprint(files) != fingerprint(files[1:])
    assert fingerprint(files) != fingerprint([replace(files[0], sha256="ef" * 32), *files[1:]])
    assert fingerprint(files) != fingerprint([replace(files[0], path=f"{files[0].path}x\n"), *files[1:]])


def test_a_fingerprint_is_of_labels_too_where_paths_dont_say_them():
    files = [FileResult("im/1.png", "cat", OK, SHA), FileResult("im/2.png", "dog", OK, SHA)]
    swapped = [replace(files[0], label="dog"), replace(files[1], label="cat")]
    assert fingerprint(files) == fingerprint(files[::-1]) != fingerprint(swapped)
    lines = [FileResult("im/1.png\tcat", "dog", OK, SHA), FileResult("im/1.png", "cat\tdog", OK, SHA)]
    assert fingerprint(lines[:1]) != fingerprint(lines[1:])  # no tab is left to take one for the other


@pytest.mark.parametrize("form", ["csv", "json", "jsonl"])
@given(st.dictionaries(file_paths, st.tuples(st.booleans(), st.sampled_from(["cat", "=1", "'=1", ""])), min_size=1))
def test_all_files_of_any_name_come_back_with_their_fingerprint(form, tmp_path_factory, suspected):
    assume(not all(flag for flag, _ in suspected.values()))
    files = tuple(
        FileResult(path, label or path.split("/")[0], OK, SHA, flag, 0.5) for path, (flag, label) in suspected.items()
    )
    place = tmp_path_factory.getbasetemp() / f"all.{form}"
    place.write_bytes(render(Report(files, ()), form, all_files=True))
    suspects = {printable(file.path): (SHA, printable(file.label)) for file in files if file.suspect}
    verdicts = {} if form == "json" else None
    assert read_report(place) == Earlier(suspects, fingerprint(files), verdicts=verdicts)


@pytest.mark.parametrize("report", ["report.json", "all.csv"])
def test_clean_refuses_a_folder_that_a_file_was_added_to(tmp_path, digits_folder, snapshot, report):
    data = shutil.copytree(digits_folder, tmp_path / "data")
    listed, _ = pixels.load(index(data), 16)
    files = tuple(FileResult(file.path, listed.class_name(file), OK, file.sha256, score=0.0) for file in listed.files)
    (tmp_path / "report.json").write_bytes(render(Report(files, ()), "json"))
    (tmp_path / "all.csv").write_bytes(render(Report(files, ()), "csv", all_files=True))
    (data / "9" / "added.png").write_bytes((data / files[0].path).read_bytes() + b"other bytes")
    before, heard = snapshot(tmp_path), []
    config = Config(model="test_resnet", device="cpu")
    with pytest.raises(ReportError, match="some were added, removed, changed or labelled anew since"):
        advrbd.clean(data, tmp_path / "out", config, report=tmp_path / report, notify=heard.append)
    assert snapshot(tmp_path) == before
    assert not [event for event in heard if isinstance(event, Caution)]


def test_clean_says_that_a_report_of_suspects_only_cant_tell(tmp_path, digits_folder):
    (tmp_path / "report.csv").write_bytes(render(Report((suspect("9/../../../etc/passwd"),), ()), "csv"))
    heard = []
    with pytest.raises(ReportError, match="isn't in"):
        advrbd.clean(
            digits_folder,
            tmp_path / "out",
            Config(model="test_resnet", device="cpu"),
            report=tmp_path / "report.csv",
            notify=heard.append,
        )
    assert "names suspects only" in heard[0].message
    assert isinstance(heard[0], Caution)
    assert [path.name for path in tmp_path.iterdir()] == ["report.csv"]
