"""Who accepts a suspect accepts its bytes in its class: it is still told, but not counted, and no dataset can do it."""

import csv
import hashlib
import io
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import advrbd.pipeline
from advrbd.config import Config, RelearningSettings, TrainingSettings
from advrbd.data.folder import OK, UNREADABLE, FolderIndex
from advrbd.errors import DatasetError, ReportError, SettingsError, SuspectsFound
from advrbd.manifest import MANIFEST
from advrbd.method import gate
from advrbd.method.findings import Findings
from advrbd.output import cautions_of, decide, decisions_csv
from advrbd.reports.accepted import accept, read_baseline, read_ignore_file
from advrbd.reports.report import POISONED, ClassVerdict, FileResult, Report
from advrbd.reports.subset import choose, restrict, split_names
from advrbd.reports.tables import fingerprint, read_report, render
from advrbd.writing import printable
from advrbd_cli import console
from advrbd_cli.app import main
from advrbd_cli.scan import summarise

FIRST, SECOND, THIRD = "1" * 64, "2a" * 32, "3" * 64
FOUND = Report(
    (
        FileResult("cat/1.png", "cat", OK, FIRST, True, 1.0, "dog", 0.9),
        FileResult("cat/2.png", "cat", OK, SECOND, True, 0.9),
        FileResult("cat/3.png", "cat", UNREADABLE, THIRD),
        FileResult("dog/4.png", "dog", OK, "4" * 64, False, 0.0),
    ),
    (ClassVerdict("cat", 3, 2, POISONED), ClassVerdict("dog", 1, 0, "clean")),
)


def line(sha256: str, path: str = "cat/1.png") -> str:
    return f"{sha256}  {path}\n"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working directory ``work`` beside the folder ``data`` with the files of ``FOUND``."""
    for file in FOUND.files:
        (tmp_path / "data" / file.path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / file.path).write_bytes(b"x")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.fixture
def scan(place, monkeypatch, capfd):  # noqa: ARG001 - it runs in that place
    """A function from options to the exit code, stderr and the JSON report of a scan that found ``report``."""

    def run(*options: str, report: Report = FOUND) -> SimpleNamespace:
        calls = []
        monkeypatch.setattr(advrbd.pipeline, "scan", lambda *_, **__: calls.append(0) or report)
        monkeypatch.setattr(console, "state", console.State())
        monkeypatch.setattr(sys, "argv", ["advrbd", "scan", "../data", "-o", "-", "-f", "json", *options])
        with pytest.raises(SystemExit) as ending:
            main()
        out, err = capfd.readouterr()
        return SimpleNamespace(
            code=ending.value.code or 0, err=err, report=json.loads(out) if out else None, scanned=bool(calls)
        )

    return run


def assert_refused(done: SimpleNamespace, message: str) -> None:
    assert (done.code, done.report, done.scanned) == (2, None, False)
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("form", ["csv", "json", "jsonl"])
def test_a_baseline_of_any_format_takes_its_suspects_out_of_the_count(form, scan):
    Path(f"old.{form}").write_bytes(render(FOUND, form))
    done = scan("--baseline", f"old.{form}")
    assert done.code == 0
    assert f"2 suspected of being poisoned, 2 of them accepted (old.{form})" in done.err
    assert "next:" not in done.err
    assert [row["suspect"] for row in done.report["files"]] == [True, True, False]  # they stay findings
    by = {"by": f"old.{form}"}
    first = {"path": "./cat/1.png", "sha256": FIRST} | by
    assert done.report["accepted"] == [first, {"path": "./cat/2.png", "sha256": SECOND} | by]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("advrbd-report.csv", ("--baseline", "advrbd-report.csv")),
        ("old.csv", ("--baseline", "old.csv", "-o", "sub/../old.csv")),
        ("old.csv", ("--baseline", "old.csv", "-o", "link.csv")),
        ("old.csv", ("--baseline", "old.csv", "-o", "-", "--html", "old.csv")),
        ("mine.txt", ("--ignore-file", "mine.txt", "-o", "mine.txt")),
        (".advrbdignore", ("-o", ".advrbdignore")),
        ("list", ("--files-from", "list", "-o", "list")),
        ("mine.toml", ("--config", "mine.toml", "-o", "mine.toml")),
        ("pyproject.toml", ("-o", "pyproject.toml")),
    ],
)
def test_no_output_takes_the_place_of_what_the_scan_reads(scan, name, options):
    Path("link.csv").symlink_to("old.csv")
    Path("sub").mkdir()
    lines = {"list": "cat/1.png\n", "mine.txt": line(FIRST), ".advrbdignore": line(FIRST)}
    Path(name).write_text(render(FOUND, "csv").decode() if name.endswith(".csv") else lines.get(name, ""))
    before = Path(name).read_bytes()
    done = scan(*(() if "-o" in options else ("-o", "advrbd-report.csv")), *options)
    assert_refused(done, f"would overwrite {name}, which this run reads")
    assert Path(name).read_bytes() == before


def test_what_isnt_read_may_be_overwritten(scan):
    Path("pyproject.toml").write_text("")
    assert scan("--no-config", "-o", "pyproject.toml").code == 1
    assert Path("pyproject.toml").read_bytes() == render(FOUND, "json")


@pytest.mark.parametrize("output", ["--output", "--save-model"])
@pytest.mark.parametrize("source", ["--report", "--baseline", "--ignore-file", "--config"])
def test_no_output_takes_the_place_of_what_a_clean_reads(place, monkeypatch, capfd, output, source):
    text = "" if source == "--config" else line(FIRST) if source == "--ignore-file" else render(FOUND, "csv").decode()
    (place / "kept").write_text(text)
    started = []
    monkeypatch.setattr(advrbd.pipeline, "clean", lambda *_, **__: started.append(0))
    monkeypatch.setattr(
        sys, "argv", ["advrbd", "clean", "../data", "--out", "new", source, "../kept", output, "../kept"]
    )
    with pytest.raises(SystemExit) as ending:
        main()
    assert (ending.value.code, started, (place / "kept").read_text()) == (2, [], text)
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert ("exists already" if output == "--save-model" else f"which this run reads ({source})") in err


def test_what_is_new_still_counts(scan):
    Path("old.csv").write_bytes(render(replace(FOUND, files=FOUND.files[1:]), "csv"))
    done = scan("--baseline", "old.csv")
    assert done.code == 1
    assert "2 suspected of being poisoned, 1 of them accepted (old.csv)" in done.err
    assert "advrbd clean ../data --baseline old.csv --out CLEAN" in done.err
    assert scan("--baseline", "old.csv", "--fail-on", "2").code == 0
    assert scan("--baseline", "old.csv", "--fail-on", "25%").code == 1
    assert scan("--baseline", "old.csv", "--fail-on", "26%").code == 0


def test_a_renamed_file_is_still_accepted_and_a_changed_one_is_not(scan):
    Path("old.csv").write_bytes(render(FOUND, "csv"))
    renamed = replace(FOUND, files=(replace(FOUND.files[0], path="cat/renamed/1.png"),))
    assert scan("--baseline", "old.csv", report=renamed).code == 0
    changed = replace(FOUND, files=(replace(FOUND.files[0], sha256="5" * 64),))
    assert scan("--baseline", "old.csv", report=changed).code == 1


@pytest.mark.parametrize("option", ["--baseline", "--ignore-file"])
def test_a_copy_in_another_class_is_not_accepted(scan, option):
    Path("old").write_bytes(render(FOUND, "csv") if option == "--baseline" else (line(FIRST) + line(SECOND)).encode())
    moved = replace(FOUND.files[0], path="dog/1.png", label="dog")
    done = scan(option, "old", report=replace(FOUND, files=(*FOUND.files[:2], moved)))
    assert done.code == 1
    assert [entry["path"] for entry in done.report["accepted"]] == ["./cat/1.png", "./cat/2.png"]
    assert "3 suspected of being poisoned, 2 of them accepted (old)" in done.err


@pytest.mark.parametrize("name", ["odd\n", "back\\slash", "\u202egnp", os.fsdecode(b"\xff"), " *", "ä b"])
def test_classes_with_odd_names_can_be_accepted(tmp_path, name):
    odd = FileResult(f"{name}/1.png", name, OK, FIRST, True, 1.0)
    report = Report((odd, replace(odd, path="dog/1.png", label="dog")), ())
    (tmp_path / "old.csv").write_bytes(render(report, "csv"))
    (tmp_path / "list").write_text(f"\\{line(FIRST, printable(odd.path))}", encoding="utf-8")
    (tmp_path / "raw").write_bytes(FIRST.encode() + b" *" + os.fsencode(name.replace("\\", "\\\\")) + b"/1.png\r\n")
    assert len(accept(report, read_baseline(tmp_path / "old.csv")).open_suspects) == 0
    assert [file.label for file in accept(report, read_ignore_file(tmp_path / "list")).open_suspects] == ["dog"]
    if "\n" not in name:
        assert [file.label for file in accept(report, read_ignore_file(tmp_path / "raw")).open_suspects] == ["dog"]


@pytest.mark.parametrize("form", ["csv", "json", "jsonl"])
@pytest.mark.parametrize("label", ["cat", "-1", "'-1"])
def test_a_baseline_accepts_by_the_label_where_a_table_gives_it(tmp_path, form, label):
    first, second = (replace(file, path=Path(file.path).name, label=label) for file in FOUND.files[:2])
    (tmp_path / "old").write_bytes(render(Report((first, replace(second, path="images/2.png")), ()), form))
    accepted = read_baseline(tmp_path / "old")
    assert accepted == {(FIRST, label): "old", (SECOND, label): "old"}
    others = [replace(second, path="images/2.png", label=other) for other in ("images", f"'{label}", label[1:])]
    assert accept(Report((first, *others), ()), accepted).open_suspects == tuple(others)


def test_a_report_on_a_table_is_its_own_baseline(scan, place):
    (place / "data" / "images").mkdir()
    (place / "data" / "images" / "1.png").write_bytes(b"x")
    labelled = replace(FOUND, files=(replace(FOUND.files[0], path="images/1.png"),))
    Path("old.csv").write_bytes(render(labelled, "csv"))
    done = scan("--baseline", "old.csv", report=labelled)
    assert (done.code, [entry["path"] for entry in done.report["accepted"]]) == (0, ["./images/1.png"])


def test_the_csv_columns_stay_as_they_are():
    one = accept(FOUND, {(FIRST, "cat"): "old"})
    assert len(one.open_suspects) == 1
    assert render(one, "csv") == render(FOUND, "csv")
    assert render(one, "jsonl") == render(FOUND, "jsonl")


def test_strict_and_unread_files_are_not_softened(scan):
    Path("old.csv").write_bytes(render(FOUND, "csv"))
    assert scan("--baseline", "old.csv", "--strict").code == 2


def test_an_ignore_file_in_the_working_directory_is_read(scan):
    Path(".advrbdignore").write_text(f"# looked at in May\n\n{line(FIRST)}")
    done = scan()
    assert done.code == 1
    assert "1 of them accepted (.advrbdignore)" in done.err
    Path(".advrbdignore").write_text(line(FIRST) + "\\" + line(SECOND.upper(), "cat/odd\\\\name.png"))
    assert scan().code == 0
    assert scan("--no-config").code == 1


def test_a_named_ignore_file_takes_the_place_of_the_default_one(scan):
    Path(".advrbdignore").write_text(line(FIRST))
    Path("mine.txt").write_text(line(SECOND))
    accepted = scan("--ignore-file", "mine.txt").report["accepted"]
    assert [entry["path"] for entry in accepted] == ["./cat/2.png"]
    Path("old.csv").write_bytes(render(replace(FOUND, files=FOUND.files[:1]), "csv"))
    assert scan("--ignore-file", "mine.txt", "--baseline", "old.csv").code == 0


def test_the_dataset_accepts_nothing(scan, place, monkeypatch, capfd):
    own = place / "data" / ".advrbdignore"
    own.write_text(line(FIRST) + line(SECOND))
    done = scan()
    assert (done.code, done.report["accepted"]) == (1, [])
    assert "warning: the scanned folder holds an .advrbdignore; it isn't read" in done.err
    assert_refused(scan("--ignore-file", str(own)), "lies in the scanned folder")
    (place / "data" / "old.csv").write_bytes(render(FOUND, "csv"))
    assert_refused(scan("--baseline", "../data/old.csv"), "lies in the scanned folder")
    Path(".advrbdignore").symlink_to(own)
    assert scan().code == 1
    monkeypatch.chdir(place / "data" / "cat")
    (place / "data" / "cat" / ".advrbdignore").write_text(line(FIRST) + line(SECOND))
    monkeypatch.setattr(sys, "argv", ["advrbd", "scan", str(place / "data"), "-o", "-"])
    with pytest.raises(SystemExit) as ending:
        main()
    assert ending.value.code == 1
    own.unlink()
    with pytest.raises(SystemExit) as ending:
        main()
    assert ending.value.code == 1
    assert capfd.readouterr().err.count("it isn't read") == 2


@pytest.mark.parametrize(
    "text",
    [
        "cat/1.png\n",
        "12345  cat/1.png\n",
        f"{FIRST}cat/1.png\n",
        f"{FIRST}0\n",
        *(f"{FIRST}  {path}\n" for path in ("", "1.png", "./1.png", "/cat/1.png", "../cat/1.png", "././1.png", "cat/")),
    ],
)
def test_a_line_that_accepts_nothing_is_refused(scan, text):
    Path(".advrbdignore").write_text(line(SECOND) + text)
    assert_refused(scan(), ".advrbdignore, line 2: should be a SHA-256")


def test_what_cant_be_read_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="cannot read the ignore file"):
        read_ignore_file(tmp_path / "missing")
    with pytest.raises(ReportError, match="cannot read the report"):
        read_baseline(tmp_path / "missing")


def test_only_the_class_counts_in_the_path_of_an_ignore_file(tmp_path):
    (tmp_path / "list").write_bytes(
        b"\xef\xbb\xbf" + f"{FIRST}\tcat/any thing\r\n{SECOND} *./a cat/\0".encode() + b"\xff/3\n"
    )
    assert read_ignore_file(tmp_path / "list") == {(FIRST, "cat"): "list", (SECOND, "a cat"): "list"}


def test_a_pipeline_in_python_raises_for_open_suspects_only():
    one = accept(FOUND, {(FIRST, "cat"): "old"})
    with pytest.raises(SuspectsFound, match="1 suspected files, labelled cat"):
        one.raise_for_suspects()
    assert [file.path for file in one.open_suspects] == ["cat/2.png"]
    assert (
        accept(one, dict.fromkeys([(FIRST, "cat"), (SECOND, "cat"), ("f" * 64, "cat")], "old")).raise_for_suspects()
        is None
    )


@pytest.mark.parametrize("name", ["./cat/2.png", "cat/2.png", "../data/cat/2.png", "{data}/cat/2.png"])
def test_only_the_listed_files_are_reported(scan, place, name):
    Path("list").write_text(f"{name.format(data=place / 'data')}\ndog/4.png\r\n\n")
    done = scan("--files-from", "list", "--all-files")
    assert done.code == 1
    assert [row["path"] for row in done.report["files"]] == ["./cat/2.png", "./dog/4.png"]
    assert done.report["cautions"] == ["only 2 of 4 files are reported; 1 suspects are among the others"]
    assert done.report["classes"][0]["suspects"] == 2  # the verdict is the whole folder's
    assert "2 files in 2 classes: 1 suspected of being poisoned; 1 among the files left out" in done.err
    assert "next: advrbd clean ../data --out CLEAN" in done.err  # without the report, which isn't whole
    assert done.report["restricted"] is True
    assert done.report["files_sha256"] == fingerprint(FOUND.files)  # and the fingerprint, too


@pytest.mark.parametrize("all_files", [False, True])
def test_clean_refuses_a_report_on_some_of_the_files(place, monkeypatch, capfd, all_files):
    part = restrict(FOUND, frozenset({"cat/2.png"}))
    Path("part.json").write_bytes(render(part, "json", all_files))
    assert read_baseline("part.json") == {(SECOND, "cat"): "part.json"}  # those were looked at
    monkeypatch.setattr(sys, "argv", ["advrbd", "clean", "../data", "--report", "part.json", "--out", "new"])
    with pytest.raises(SystemExit) as ending:
        main()
    err = capfd.readouterr().err
    assert (ending.value.code, err.count("\n")) == (2, 1)
    assert "part.json is a report on some of the files only (--files-from)" in err
    assert sorted(path.name for path in (place / "work").iterdir()) == ["part.json"]
    Path("whole.json").write_bytes(render(FOUND, "json"))
    earlier = read_report("whole.json")
    assert earlier.suspects == {"cat/1.png": (FIRST, "cat"), "cat/2.png": (SECOND, "cat")}
    assert not earlier.restricted
    assert earlier.files_sha256 == fingerprint(FOUND.files)


def test_a_restricted_that_is_neither_true_nor_false_is_refused(place):  # noqa: ARG001 - it runs in that place
    Path("odd.json").write_bytes(render(FOUND, "json").replace(b'"restricted": false', b'"restricted": "no"'))
    with pytest.raises(ReportError, match="restricted should be true or false"):
        read_report("odd.json")


def test_suspects_elsewhere_dont_decide_the_exit_code(scan):
    Path("list").write_text("dog/4.png\n")
    assert scan("--files-from", "list").code == 0


def test_a_list_on_stdin_with_zero_bytes(scan, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"cat/1.png\0dog/4.png\0")))
    done = scan("--files-from", "-", "-0")
    assert [row["path"] for row in done.report["files"]] == ["./cat/1.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat/9.png\n", "cat/9.png (--files-from) is no image of ../data"),
        ("\x1b[2J\n", "\\x1b[2J (--files-from) is no image"),
        ("../data\n", "../data (--files-from) is no image"),
        ("cat\n", "cat (--files-from) is no image"),
        ("\n", "--files-from names no files"),
    ],
)
def test_names_that_nobody_has_are_refused_before_the_scan(scan, text, message):
    Path("list").write_text(text)
    assert_refused(scan("--files-from", "list"), message)


def test_a_list_that_isnt_there_is_refused(scan):
    assert_refused(scan("--files-from", "missing"), "cannot read --files-from missing")
    assert_refused(scan("-0"), "--null says")


@pytest.mark.parametrize("option", ["--baseline", "--ignore-file", "--files-from", "--config"])
def test_a_pipe_is_refused_not_waited_for(scan, option):
    os.mkfifo("pipe")
    assert_refused(scan(option, "pipe"), "pipe: not a regular file")
    Path("link").symlink_to("pipe")
    assert_refused(scan(option, "link"), "link: not a regular file")


def test_pipes_of_the_default_names_are_passed_over(scan):
    os.mkfifo(".advrbdignore")
    os.mkfifo("pyproject.toml")
    assert scan().code == 1


def test_links_to_lists_and_reports_are_followed(scan):
    Path("old.csv").write_bytes(render(FOUND, "csv"))
    Path("link.csv").symlink_to("old.csv")
    assert scan("--baseline", "link.csv").code == 0


def test_clean_refuses_a_pipe_for_a_report(place, monkeypatch, capfd):  # noqa: ARG001 - it runs in that place
    os.mkfifo("pipe")
    monkeypatch.setattr(sys, "argv", ["advrbd", "clean", "../data", "--report", "pipe", "--out", "new"])
    with pytest.raises(SystemExit) as ending:
        main()
    assert (ending.value.code, capfd.readouterr().err) == (
        2,
        "error: cannot read the report pipe: not a regular file\n",
    )


def test_a_name_that_could_mean_two_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = ["cat/1.png", "data/cat/1.png"]  # the second is a decoy, to be taken for the first
    with pytest.raises(DatasetError, match=r"could mean cat/1\.png and data/cat/1\.png"):
        choose(["data/cat/1.png"], paths, Path("data"))
    assert choose([str(tmp_path / "data" / "cat" / "1.png")], paths, Path("data")) == {"cat/1.png"}
    odd = ["cat/\n.png", "cat/\\n.png"]
    with pytest.raises(DatasetError, match="could mean"):
        choose(["cat/\\n.png"], odd, Path("data"))
    assert choose(["cat/\n.png"], odd, Path("data")) == {"cat/\n.png"}
    assert choose(["./cat/\\\\n.png"], odd, Path("data")) == {"cat/\\n.png"}


def test_names_in_any_encoding():
    assert split_names(b"a b\n\xff\r\n\n") == ["a b", os.fsdecode(b"\xff")]
    assert split_names(b"a\nb\0\0c", null=True) == ["a\nb", "c"]


def test_accepting_and_restricting_go_together():
    both = accept(restrict(FOUND, frozenset({"cat/2.png"})), {(FIRST, "cat"): "old", (SECOND, "cat"): "old"})
    assert (both.accepted_by, both.open_suspects) == ({"old": 1}, ())


def test_whoever_accepts_the_same_bytes_in_another_class_is_told_as_well(capsys, monkeypatch):
    monkeypatch.setattr(console, "state", console.State())
    copies = (replace(FOUND.files[0], path=f"{label}/1.png", label=label) for label in ("cat", "dog"))
    sha256 = FOUND.files[0].sha256
    found = accept(replace(FOUND, files=tuple(copies)), {(sha256, "cat"): "a.csv", (sha256, "dog"): "b.csv"})
    summarise(found, None)
    assert "2 of them accepted (a.csv, b.csv)" in capsys.readouterr().err
    index = FolderIndex(Path("data"), ("cat", "dog"), ())
    decisions = decide(found, "drop", 0.75)
    cautions = cautions_of(index, found, decisions, {"copied_instead": {}})
    assert "2 suspects were kept, since they are accepted (a.csv, b.csv)" in cautions


@pytest.fixture(scope="module")
def cleaned(digits_folder, tmp_path_factory):
    """A clean of 300 digits in which two files of class 3 were suspected, and the first of them accepted."""
    root = tmp_path_factory.mktemp("accepted")
    shutil.copytree(digits_folder, root / "data")
    paths = [path.relative_to(root / "data").as_posix() for path in sorted((root / "data").glob("3/*.png"))[:2]]
    hashes = [hashlib.sha256((root / "data" / path).read_bytes()).hexdigest() for path in paths]
    files = tuple(FileResult(path, "3", OK, sha, True, 1.0) for path, sha in zip(paths, hashes, strict=True))
    (root / "old.csv").write_bytes(render(Report(files, ()), "csv"))
    once = TrainingSettings(epochs=1, minimum_steps=0)
    relearning = replace(RelearningSettings(), clean=once, fine_tuning=once)
    config = Config(model="test_resnet", device="cpu", relearning=relearning)
    accepted = dict.fromkeys([(hashes[0], "3"), (hashes[1], "4"), ("f" * 64, "3")], ".advrbdignore")
    options = dict(report=root / "old.csv", accepted=accepted, action="drop")
    return root, paths, hashes, advrbd.clean(root / "data", root / "out", config, **options)


def test_clean_keeps_accepted_files_as_they_are(cleaned):
    root, (kept, dropped), (accepted, _), done = cleaned
    assert (root / "out" / kept).read_bytes() == (root / "data" / kept).read_bytes()
    assert not (root / "out" / dropped).exists()
    actions = {entry.source: entry.action for entry in done.decisions}
    assert (actions[kept], actions[dropped]) == ("kept", "dropped")
    assert done.cautions[0] == "1 suspects were kept, since they are accepted (.advrbdignore)"
    assert json.loads((root / "out" / MANIFEST).read_text())["settings"]["accepted"] == [accepted]
    assert advrbd.verify(root / "out").differences == ()
    assert next(entry for entry in done.check.classes if entry.label == "3").kept == 29


def test_the_report_of_a_clean_still_names_what_was_accepted(cleaned):
    _, (kept, dropped), _, done = cleaned
    rows = csv.DictReader(io.StringIO(decisions_csv(done.report, done.decisions).decode()))
    told = [(row["path"], row["suspect"], row["action"], row["written"]) for row in rows]
    assert told == [(f"./{kept}", "true", "kept", f"./{kept}"), (f"./{dropped}", "true", "dropped", "")]


@pytest.mark.parametrize(
    ("suspects", "accepted", "failures", "doubts"), [([1, 2], [1, 2, 3], 0, 1), ([1, 2], [1], 1, 0), ([], [1], 1, 0)]
)
def test_another_scan_may_suspect_what_was_accepted(monkeypatch, suspects, accepted, failures, doubts):
    found = Findings.nothing(5)
    found.suspects[suspects], found.verdicts = True, {0: POISONED}
    monkeypatch.setattr(gate, "find", lambda *_: found)
    mask = torch.zeros(5, dtype=torch.bool)
    mask[accepted] = True
    run = advrbd.pipeline.Run(None, torch.zeros(5), None, None, None)
    result = gate.Result(torch.arange(5), torch.arange(5), torch.zeros(5), mask)
    verdict, *heard = gate._look_again(run, result, Config())
    assert verdict == POISONED
    assert tuple(map(len, heard)) == (failures, doubts)


def test_the_command_hands_the_accepted_ones_to_clean(place, monkeypatch, capfd):
    Path(".advrbdignore").write_text(line(FIRST))
    heard = []

    def refuse(*_, accepted, **__):
        heard.append(accepted)
        raise DatasetError("enough")

    monkeypatch.setattr(advrbd.pipeline, "clean", refuse)
    monkeypatch.setattr(sys, "argv", ["advrbd", "clean", "../data", "--out", "new"])
    with pytest.raises(SystemExit):
        main()
    assert heard == [{(FIRST, "cat"): ".advrbdignore"}]
    assert "error: enough" in capfd.readouterr().err
    assert not (place / "work" / "new").exists()
