"""A cleaned folder is as it was written, or every difference is named; the manifest is believed in nothing else."""

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import advrbd
from advrbd import manifest as manifests
from advrbd import reading, verification
from advrbd.data.folder import OK, FolderIndex, index
from advrbd.errors import ReportError
from advrbd.events import Progress
from advrbd.manifest import COPY, HARDLINK, LINK_MODES, MANIFEST, SYMLINK
from advrbd.output import decide, written_folder
from advrbd.reports.report import FileResult, Report
from advrbd.verification import Verification, verify

NAMES = ("new\nline.png", "back\\slash.png", "[red]\x1b[2J.png", os.fsdecode(b"\xff.png"), "\u202egnp.png", "日本.png")


@pytest.fixture
def data(tmp_path, digits_folder) -> Path:
    """Four classes of 3 digits, one of which is an inner link; class 1 has odd names, too, and a file further down."""
    root = tmp_path / "data"
    for label in "0123":
        (root / label).mkdir(parents=True)
        for number, path in enumerate(sorted(digits_folder.glob(f"{label}/*.png"))[:3]):
            shutil.copy2(path, root / label / f"{number}.png")
    (root / "0" / "2.png").unlink()
    (root / "0" / "2.png").symlink_to("../1/2.png")
    (root / "1" / "deep" / "er").mkdir(parents=True)
    for number, name in enumerate((*NAMES, "deep/er/x.png")):
        (root / "1" / name).write_bytes(b"%d" % number + path.read_bytes())
    return root


def write(root: Path, link_mode: str = COPY) -> Path:
    """``root`` cleaned to ``out`` beside it: 3/0.png becomes 2/0__from-3.png, 3/1.png goes to the quarantine."""
    found = index(root)
    hashed = [file.having(OK, hashlib.sha256((root / file.path).read_bytes()).hexdigest()) for file in found.files]
    rows = [
        FileResult(file.path, found.class_name(file), OK, file.sha256, file.path.startswith("3/"), 1.0, "2", 0.9)
        for file in hashed
    ]
    relabelled = decide(Report(tuple(rows), ()), "relabel", 0.5)
    quarantined = decide(Report(tuple(rows), ()), "quarantine", 0.5)
    decisions = tuple(
        other if one.source == "3/1.png" else one for one, other in zip(relabelled, quarantined, strict=True)
    )
    read, out = FolderIndex(root, found.classes, tuple(hashed), found.ignored), root.parent / "out"
    with written_folder(read, decisions, out, root.parent / "aside", {"action": "relabel"}, link_mode):
        pass
    return out


@pytest.fixture
def out(data) -> Path:
    return write(data)


def differences(path: Path) -> dict[str, set[str]]:
    """What ``verify`` finds, by its kind."""
    kinds: dict[str, set[str]] = {}
    for kind, name in verify(path).differences:
        kinds.setdefault(kind, set()).add(name)
    return kinds


@pytest.mark.parametrize("link_mode", LINK_MODES)
def test_what_was_written_is_as_it_was_written(data, link_mode, snapshot):
    out = write(data, link_mode)
    before = snapshot(data.parent)
    found = verify(out)
    files = len([path for path in out.rglob("*") if path.is_file()]) - 1
    sha256 = hashlib.sha256((out / MANIFEST).read_bytes()).hexdigest()
    assert found == Verification(files, link_mode, sha256)
    assert files == 3 + 10 + 5
    assert found.differences == ()
    assert snapshot(data.parent) == before


def change_a_byte(out: Path) -> None:
    path = out / "0" / "1.png"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def replace_by_a_link(path: Path, target: Path | str) -> None:
    path.unlink()
    path.symlink_to(target)


def replace_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "evil.png").touch()


def new_class(out: Path) -> None:
    (out / "00").mkdir()
    shutil.copy2(out / "0" / "0.png", out / "00" / "0.png")


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (change_a_byte, {"changed": {"0/1.png"}}),
        (lambda out: (out / "0" / "1.png").write_bytes(b""), {"changed": {"0/1.png"}}),
        (lambda out: (out / "1" / "deep" / "er" / "x.png").unlink(), {"missing": {"1/deep/er/x.png"}}),
        (lambda out: shutil.rmtree(out / "1" / "deep"), {"missing": {"1/deep/er/x.png"}}),
        (lambda out: (out / "0" / "new.png").touch(), {"unknown": {"0/new.png"}}),
        (lambda out: (out / "0" / ".hidden").touch(), {"unknown": {"0/.hidden"}}),
        (lambda out: (out / "metadata.csv").touch(), {"unknown": {"metadata.csv"}}),
        (lambda out: (out / "0" / MANIFEST).touch(), {"unknown": {f"0/{MANIFEST}"}}),
        (lambda out: (out / "1" / "empty").mkdir(), {"unknown": {"1/empty/"}}),
        (lambda out: os.mkfifo(out / "0" / "pipe.png"), {"unknown": {"0/pipe.png"}}),
        (
            lambda out: (out / "0" / "0.png").rename(out / "2" / "moved.png"),
            {"missing": {"0/0.png"}, "unknown": {"2/moved.png"}},
        ),
        (
            lambda out: (out / "2" / "0__from-3.png").replace(out / "2" / "0.png"),
            {"missing": {"2/0__from-3.png"}, "changed": {"2/0.png"}},
        ),
        (lambda out: replace_by_a_pipe(out / "0" / "0.png"), {"changed": {"0/0.png"}}),
        (lambda out: replace_by_a_folder(out / "0" / "0.png"), {"changed": {"0/0.png"}}),
        (lambda out: replace_by_a_link(out / "0" / "2.png", out.parent / "data/1/2.png"), {"link": {"0/2.png"}}),
        (lambda out: replace_by_a_link(out / "0" / "2.png", "../1/2.png"), {"link": {"0/2.png"}}),
        (lambda out: (out / "0" / "loop.png").symlink_to("loop.png"), {"link": {"0/loop.png"}}),
        (lambda out: (out / "9").symlink_to(out / "0"), {"link": {"9"}}),
        (lambda out: (out / "0" / "etc").symlink_to("/etc"), {"link": {"0/etc"}}),
        (new_class, {"class": {"00/"}}),
        (lambda out: (out / ".cache").mkdir(), {"class": {".cache/"}}),
        (
            lambda out: shutil.rmtree(out / "0"),
            {"class": {"0/"}, "missing": {"0/0.png", "0/1.png", "0/2.png"}},
        ),
        (
            lambda out: (out / "0").rename(out / "zero"),
            {"class": {"0/", "zero/"}, "missing": {"0/0.png", "0/1.png", "0/2.png"}},
        ),
    ],
)
def test_every_difference_is_named(out, harm, expected):
    harm(out)
    assert differences(out) == expected


def test_names_of_every_kind_are_found_again(out):
    for name in NAMES:
        (out / "1" / name).unlink()
    assert differences(out) == {"missing": {f"1/{name}" for name in NAMES}}


def test_a_link_where_links_were_written_has_to_lead_to_the_same_file(data):
    out = write(data, SYMLINK)
    shutil.copy2(data / "0" / "0.png", data.parent / "twin.png")
    replace_by_a_link(out / "0" / "0.png", data.parent / "twin.png")
    replace_by_a_link(out / "2" / "0.png", data / "2" / "1.png")
    replace_by_a_link(out / "2" / "1.png", "../../data/2/1.png")  # where it led before
    (out / "0" / "more.png").symlink_to(data / "0" / "0.png")
    assert differences(out) == {"link": {"0/0.png", "2/0.png", "0/more.png"}}


def test_links_show_what_became_of_the_input(data):
    out = write(data, SYMLINK)
    (data / "0" / "0.png").write_bytes(b"poison")
    (data / "2" / "0.png").unlink()
    replace_by_a_pipe(data / "2" / "1.png")
    replace_by_a_link(data / "2" / "2.png", data / "1" / "1.png")
    assert differences(out) == {"changed": {"0/0.png", "2/1.png", "2/2.png"}, "missing": {"2/0.png"}}


def test_links_that_were_turned_into_files_are_as_good(data, tmp_path):
    shutil.copytree(write(data, SYMLINK), tmp_path / "copy")  # follows them
    shutil.rmtree(data)
    assert differences(tmp_path / "copy") == {}


def test_a_hard_link_shows_what_became_of_the_input(data):
    out = write(data, HARDLINK)
    with (data / "0" / "0.png").open("ab") as file:
        file.write(b"poison")
    assert differences(out) == {"changed": {"0/0.png"}}


def test_a_file_too_large_to_have_been_scanned_isnt_read(out, monkeypatch):
    os.truncate(out / "0" / "0.png", verification.MAX_FILE_BYTES + 1)  # takes no room, but would take its time
    monkeypatch.setattr(verification.hashlib, "file_digest", lambda *_: pytest.fail("read"))
    for path in (path for path in out.rglob("*.png") if path != out / "0" / "0.png"):
        path.unlink()
    assert differences(out)["changed"] == {"0/0.png"}


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The paths that are opened from here on, resolved."""
    paths, real = [], reading._open_safely

    def remember(path, flags):
        paths.append(os.path.realpath(path))
        return real(path, flags)

    monkeypatch.setattr(reading, "_open_safely", remember)
    return paths


def test_nothing_outside_the_folder_is_opened(data, out, opened):
    outside = data / "0" / "0.png"
    replace_by_a_link(out / "0" / "0.png", outside)
    (out / "0" / "more.png").symlink_to(outside)
    (out / "more").symlink_to(data / "0")
    assert set(differences(out)) == {"link"}
    assert len(opened) == 1 + 17
    assert all(Path(path).is_relative_to(out) for path in opened)


@pytest.mark.parametrize("folder", ["0", "1/deep", "1/deep/er"])
@pytest.mark.parametrize("link_mode", LINK_MODES)
def test_a_path_through_a_link_is_refused(data, folder, link_mode, opened):
    out = write(data, link_mode)
    shutil.move(out / folder, data.parent / "elsewhere")
    (out / folder).symlink_to(data.parent / "elsewhere")
    opened.clear()  # of what writing read
    with pytest.raises(ReportError, match=rf"out/{folder} is a link"):
        verify(out)
    assert opened == [str(out / MANIFEST)]


def test_a_folder_that_cant_be_read_is_no_difference(out, monkeypatch):
    real = os.scandir

    def scandir(path):
        if Path(path) == out / "1" / "deep":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ReportError, match=r"cannot read the folder .*deep: Permission denied"):
        verify(out)


def test_a_file_that_cant_be_read_is_no_difference(out, monkeypatch):
    real = reading._open_safely

    def refusing(path, flags):
        if str(path).endswith("0/1.png"):
            raise PermissionError(13, "Permission denied")
        return real(path, flags)

    monkeypatch.setattr(reading, "_open_safely", refusing)
    with pytest.raises(ReportError, match=r"cannot read .*0/1\.png: Permission denied"):
        verify(out)


def entry_of(whole: dict, written: str = "0/0.png") -> dict:
    return next(entry for entry in whole["files"] if entry["written"] == written)


def setting(key: str, value: object, written: str = "0/0.png") -> Callable[[dict], None]:
    return lambda whole: entry_of(whole, written).update({key: value})


def symlinks_from(source: object) -> Callable[[dict], None]:
    return lambda whole: whole["settings"].update(link_mode=SYMLINK, source=source)


def without(key: str) -> Callable[[dict], None]:
    return lambda whole: whole.pop(key)


IMPOSSIBLE = "no path of a file in a class folder"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (setting("written", "../0/0.png"), rf"files\[\d+\]: \.\./0/0\.png is {IMPOSSIBLE}"),
        (setting("written", "0/../../data/0/0.png"), IMPOSSIBLE),
        (setting("written", "0/."), IMPOSSIBLE),
        (setting("written", "/0/0.png"), IMPOSSIBLE),
        (setting("written", "/etc/passwd"), IMPOSSIBLE),
        (setting("written", "0//0.png"), IMPOSSIBLE),
        (setting("written", "0/"), IMPOSSIBLE),
        (setting("written", "0.png"), IMPOSSIBLE),
        (setting("written", ""), IMPOSSIBLE),
        (setting("written", MANIFEST), IMPOSSIBLE),
        (setting("written", "0/\\x2e\\x2e/0.png"), "no escape"),
        (setting("written", "0/\\x2fetc"), "no escape"),
        (setting("written", "0/0.png\\"), "no escape"),
        (setting("written", "0/\\x00.png"), "zero byte"),
        (setting("written", "0/\\ud800.png"), "half a character"),
        (setting("written", "0/\ud800.png"), "half a character"),
        (setting("written", "0/" + "n" * 10_000_000), r"longer than 4096 bytes$"),
        (setting("written", None), "written is missing or of another type"),
        (setting("written", 1), "written is missing or of another type"),
        (setting("written", ["0/0.png"]), "written is missing or of another type"),
        (setting("written", "0/1.png"), r"0/1\.png is named twice"),
        (setting("written", "0/1.png/x.png"), r"0/1\.png is a file and a folder"),
        (setting("written", "2/x.png"), r"2/x\.png doesn't lie in the folder of its label"),
        (setting("new_label", None), "new_label is missing"),
        (setting("source", "../0.png"), IMPOSSIBLE),
        (setting("source", None), "source is missing"),
        (setting("action", "trusted"), "action is none of kept"),
        (setting("action", []), "action is missing or of another type"),
        (setting("sha256", None), "sha256 is missing"),
        (setting("sha256", ""), "sha256 isn't 64"),
        (setting("sha256", "A" * 64), "sha256 isn't 64"),
        (setting("sha256", "0" * 64 + "\n"), "sha256 isn't 64"),
        (lambda whole: whole["files"].append(whole["files"][0]), "named twice"),
        (lambda whole: whole["files"].append("0/x.png"), "where action should stand is no object"),
        (lambda whole: whole.update(files={}), "files is missing or of another type"),
        (lambda whole: whole.update(schema="advrbd.report/1"), r"schema isn't advrbd\.manifest/1"),
        (without("schema"), "schema is missing"),
        (without("files"), "files is missing"),
        (without("settings"), "settings is missing"),
        (without("class_to_idx"), "class_to_idx is missing"),
        (lambda whole: whole["settings"].update(link_mode="reflink"), "link_mode is none of copy"),
        (lambda whole: whole["settings"].update(link_mode=["copy"]), "link_mode is missing or of another type"),
        (lambda whole: whole["settings"].update(link_mode=SYMLINK), "source is missing"),
        (symlinks_from("data"), "source data isn't absolute"),
        (symlinks_from("/da\\x00ta"), "zero byte"),
        (lambda whole: whole["class_to_idx"].update(after=["0"]), "after is missing or of another type"),
        (lambda whole: whole["class_to_idx"]["after"].pop("2"), "class_to_idx.after doesn't number"),
        (lambda whole: whole["class_to_idx"]["after"].update({"3": 3}), "class_to_idx.after doesn't number"),
        (lambda whole: whole["class_to_idx"].update(after={"0": 1, "1": 0, "2": 2}), "class_to_idx.after doesn't"),
        (lambda whole: whole["class_to_idx"].update(after={"0": False, "1": 1, "2": 2}), "class_to_idx.after doesn't"),
        (lambda whole: whole["class_to_idx"].update(after={"0": 0.0, "1": 1, "2": 2}), "class_to_idx.after doesn't"),
        (lambda whole: whole["class_to_idx"].update(after={"0": 10**4000, "1": 1, "2": 2}), "class_to_idx.after"),
        (lambda whole: whole["files"].clear(), "class_to_idx.after doesn't number"),
    ],
)
def test_a_manifest_that_clean_cant_have_written_is_refused(out, harm, message, opened):
    whole = json.loads((out / MANIFEST).read_bytes())
    harm(whole)
    (out / MANIFEST).write_text(json.dumps(whole))
    with pytest.raises(ReportError, match=f"{MANIFEST} isn't as `advrbd clean` writes it: .*{message}") as caught:
        verify(out)
    assert len(str(caught.value)) < 1000
    assert opened == [str(out / MANIFEST)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "isn't as"),
        (b"{", "isn't as"),
        (b"\xff\xfe\x00", "isn't as"),
        (b"[]", "where schema should stand is no object"),
        (b"null", "where schema should stand is no object"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"schema": ' + b"1" * 10_000 + b"}", "isn't as"),
        (b'{"schema": "advrbd.manifest/1", "schema": "advrbd.manifest/1"}', "a key stands twice"),
    ],
)
def test_what_is_no_manifest_is_refused(out, content, message):
    (out / MANIFEST).write_bytes(content)
    with pytest.raises(ReportError, match=message):
        verify(out)


def test_a_manifest_too_large_to_be_read_is_refused(out, monkeypatch):
    monkeypatch.setattr(manifests, "MAX_MANIFEST_BYTES", 2**30)
    os.truncate(out / MANIFEST, 2**30 + 1)  # takes no room
    with pytest.raises(ReportError, match="too large to be read: more than 1 GiB"):
        verify(out)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.unlink(), r"doesn't exist; give a folder that `advrbd clean` wrote"),
        (replace_by_a_pipe, "not a regular file"),
        (replace_by_a_folder, "not a regular file"),
        (lambda path: replace_by_a_link(path, shutil.copy(path, path.parent.parent)), "not a regular file"),
        (lambda path: shutil.rmtree(path.parent), "doesn't exist"),
    ],
)
def test_without_a_manifest_there_is_nothing_to_tell(out, harm, message):
    harm(out / MANIFEST)
    with pytest.raises(ReportError, match=message):
        verify(out)


def test_listeners_are_told(out, monkeypatch):
    monkeypatch.setattr(verification, "CHUNK", 10)
    told = []
    verify(out, told.append)
    assert told == [Progress("verify", 10, 18, "files"), Progress("verify", 18, 18, "files")]


PROBE = """
import sys
from advrbd_cli.app import main
try:
    main()
finally:
    heavy = {"torch", "torchvision", "timm", "numpy", "sklearn", "PIL"} & set(sys.modules)
    sys.stderr.write("imported: " + ", ".join(sorted(heavy)))
"""


def run(*arguments: str, cwd: Path, program: tuple[str, ...] = ("-m", "advrbd_cli")) -> subprocess.CompletedProcess:
    command = [sys.executable, *program, "verify", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("harm", "code"), [(None, 0), (change_a_byte, 1), (shutil.rmtree, 2)])
def test_exit_codes_and_streams_without_torch(out, harm, code, snapshot):
    if harm is not None:
        harm(out)
    before = snapshot(out.parent)
    done = run("out", cwd=out.parent, program=("-c", PROBE))
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.endswith("imported: ")
    assert snapshot(out.parent) == before


def test_a_report_in_the_folder_is_refused_and_called_what_it_is(out, snapshot):
    before = snapshot(out)
    done = run("out", "-o", "out/r.csv", cwd=out.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: out/r.csv lies inside the cleaned folder out, which is never written to;")
    assert snapshot(out) == before


def test_what_a_person_is_shown(out):
    sha256 = hashlib.sha256((out / MANIFEST).read_bytes()).hexdigest()
    (out / "1" / NAMES[0]).unlink()
    change_a_byte(out)
    (out / "1" / "\x1b[2J[red]").touch()
    new_class(out)
    done = run("out", "--no-progress", cwd=out.parent)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "missing: 1/new\\nline.png",
        "changed: 0/1.png",
        "not in the manifest: 1/\\x1b[2J[red]",
        "class folder missing or extra, so class indices differ: 00/",
        "18 files in the manifest: 1 missing, 1 changed, 1 not in the manifest, "
        "1 class folder missing or extra, so class indices differ",
        f"manifest sha256: {sha256}",
    ]


def test_many_differences_are_counted(out):
    for number in range(33):
        (out / "0" / f"new{number}.png").touch()
    lines = run("out", "--no-progress", cwd=out.parent).stderr.splitlines()
    assert sum(line.startswith("not in the manifest: ") for line in lines) == 20
    assert lines[20:22] == ["... and 13 more", "18 files in the manifest: 33 not in the manifest"]


def test_a_report_on_stdout_is_all_that_is_there(out):
    (out / "1" / NAMES[3]).unlink()
    change_a_byte(out)
    done = run("out", "-o", "-", "-f", "json", "-q", cwd=out.parent)
    assert (done.returncode, done.stderr) == (1, "")
    report = json.loads(done.stdout)
    assert report.pop("manifest_sha256") == hashlib.sha256((out / MANIFEST).read_bytes()).hexdigest()
    assert report == {
        "schema": "advrbd.verification/1",
        "as_written": False,
        "files": 18,
        "link_mode": "copy",
        "differences": [
            {"difference": "missing", "path": "./1/\\xff.png"},
            {"difference": "changed", "path": "./0/1.png"},
        ],
    }
    done = run("out", "-o", "-", cwd=out.parent)
    rows = list(csv.reader(io.StringIO(done.stdout)))
    assert rows == [["difference", "path"], ["missing", "./1/\\xff.png"], ["changed", "./0/1.png"]]


def test_a_report_as_a_file(out, snapshot):
    done = run("out", "-o", "verified.JSON", cwd=out.parent)
    assert (done.returncode, done.stdout) == (0, "")
    assert json.loads((out.parent / "verified.JSON").read_bytes())["as_written"] is True
    before = snapshot(out.parent)
    for arguments in (("-o", "out/verified.json"), ("-o", "missing/verified.json"), ("-f", "json")):
        done = run("out", *arguments, cwd=out.parent)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1
    assert snapshot(out.parent) == before


@pytest.mark.parametrize("where", ["missing", "data", "data/0/0.png"])
def test_what_clean_didnt_write_is_one_line_and_exit_code_2(data, where):
    done = run(where, "-o", "-", cwd=data.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "internal" not in done.stderr


def test_the_package_offers_it(out):
    assert advrbd.verify(out).differences == ()
    assert advrbd.Verification is Verification
