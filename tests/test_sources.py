"""Whatever way a dataset is handed over, its images and labels are the same, and what has two meanings is refused."""

import gzip
import io
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import advrbd
import advrbd.pipeline
from advrbd.attacks import BadNets
from advrbd.attacks.plant import plant
from advrbd.config import Config
from advrbd.data import archives, folder, pixels, sources
from advrbd.data.folder import NOT_A_FILE, OK, REFUSED_LINK, TOO_LARGE, UNREADABLE, VANISHED, FolderIndex
from advrbd.errors import DatasetError, OutputError, ReportError
from advrbd.manifest import MANIFEST
from advrbd.method.gate import Check
from advrbd.reading import inner_path
from advrbd.reports.html import render_html
from advrbd.reports.report import FileResult, Report
from advrbd.reports.tables import render
from advrbd_cli import console
from advrbd_cli.app import main

PACKED = ("zip", "tar", "tar.gz", "tgz")
FORMATS = {"zip": "zip", "tar": "tar", "tar.gz": "gztar", "tgz": "gztar"}


@pytest.fixture
def data(tmp_path, digits_folder) -> Path:
    """Three classes of 3 digits; ``1`` has one file two folders down, a note and a broken image."""
    root = tmp_path / "data"
    for label in "012":
        (root / label).mkdir(parents=True)
        for number, path in enumerate(sorted(digits_folder.glob(f"{label}/*.png"))[:3]):
            shutil.copy2(path, root / label / f"{number}.png")
    (root / "1" / "deep" / "er").mkdir(parents=True)
    shutil.copy2(path, root / "1" / "deep" / "er" / "5.png")
    (root / "1" / "broken.png").write_bytes(b"broken")
    (root / "1" / "notes.txt").write_text("not an image")
    return root


def pack(root: Path, suffix: str, base: str = ".") -> Path:
    """An archive of ``root`` beside it, with ``base`` before the class folders."""
    above = root if base == "." else root.parent
    made = Path(shutil.make_archive(str(root.parent / "packed"), FORMATS[suffix], above, base))
    return made.rename(root.parent / f"packed.{suffix}")


def assert_same_images(found: FolderIndex, root: Path) -> None:
    expected, theirs = pixels.load(folder.index(root), 16)
    read, ours = pixels.load(found, 16)
    assert (read.classes, read.files) == (expected.classes, expected.files)
    assert torch.equal(ours.images, theirs.images)


@pytest.mark.parametrize("base", [".", "data"])
@pytest.mark.parametrize("suffix", PACKED)
def test_an_archive_is_read_like_the_folder_that_it_is_of(data, suffix, base, snapshot):
    packed = pack(data, suffix, base)
    before = snapshot(data.parent)
    found = sources.index(packed)
    assert_same_images(found, data)
    assert sources.told(found) == f"read as: {suffix[:3].replace('tgz', 'tar')} of an ImageFolder, 3 classes"
    assert found.ignored == ("1/notes.txt",)
    assert pixels.typical_side(found) == pixels.typical_side(folder.index(data))
    assert snapshot(data.parent) == before


@pytest.mark.parametrize("base", [".", "whole"])
@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_a_split_of_an_archive(data, suffix, base):
    whole = data.parent / "whole"
    for split in ("train", "val"):
        shutil.copytree(data, whole / split)
    packed = pack(whole, suffix, base)
    with pytest.raises(DatasetError, match=r"only splits.*--split train"):
        sources.index(packed)
    with pytest.raises(DatasetError, match="no split folder named 'test'"):
        sources.index(packed, "test")
    assert_same_images(sources.index(packed, "val"), data)


def test_a_lone_split_folder_in_an_archive_isnt_passed_through(data):
    shutil.copytree(data, data.parent / "whole" / "train")
    packed = pack(data.parent / "whole", "zip")
    with pytest.raises(DatasetError, match="--split train"):
        sources.index(packed)
    assert_same_images(sources.index(packed, "train"), data)


def test_what_lies_beside_the_only_folder_is_listed(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in ("README.md", "inner.zip", "data/a/1.png", "data/b/2.png", "data/b/more.tar", "__MACOSX/x/._1.png"):
            file.writestr(name, b"x")
    found = sources.index(tmp_path / "a.zip")
    assert [entry.path for entry in found.files] == ["a/1.png", "b/2.png"]
    assert set(found.ignored) == {"README.md", "inner.zip", "b/more.tar", "__MACOSX/x/._1.png"}


def zipped(path: Path, *members: str | zipfile.ZipInfo) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for member in ("a/1.png", *members, "b/1.png"):
            file.writestr(member, b"x")
    return path


def tarred(path: Path, *members: tarfile.TarInfo, end: bytes = b"") -> Path:
    with tarfile.open(path, "w") as file:
        for member in (tarfile.TarInfo("a/1.png"), *members, tarfile.TarInfo("b/1.png")):
            file.addfile(member, io.BytesIO(bytes(member.size)))
    path.write_bytes(path.read_bytes() + end)
    return path


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def zip_member(name: str, mode: int) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.external_attr = mode << 16
    return made


NAMES = {
    "../x.png": "leads elsewhere",
    "a/../../x.png": "leads elsewhere",
    "a/../b.png": "leads elsewhere",
    "/etc/x.png": "leads elsewhere",
    "a//x.png": "leads elsewhere",
    "a/./x.png": "leads elsewhere",
    "a/" + "n" * 256: "longer than",
    "a/1.png": "twice",
    "./a/1.png": "twice",
    "a/1.png/2.png": "as a file and as a folder",
    "a": "as a file and as a folder",
    "metadata.csv": "holds metadata.csv, whose labels",
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_can_be_understood_in_another_way_refuses_the_archive(tmp_path, name):
    for path in (zipped(tmp_path / "x.zip", name), tarred(tmp_path / "x.tar", tar_member(name))):
        with pytest.raises(DatasetError, match=NAMES[name]):
            sources.index(path)
    assert {path.name for path in tmp_path.iterdir()} == {"x.zip", "x.tar"}


def test_a_zero_byte_in_a_name_of_a_zip_is_refused(tmp_path):
    path = zipped(tmp_path / "x.zip", "a/2.pngZ.txt")
    path.write_bytes(path.read_bytes().replace(b"a/2.pngZ.txt", b"a/2.png\0.txt"))
    with pytest.raises(DatasetError, match="leads elsewhere"):
        sources.index(path)


def test_ignored_files_are_counted_by_their_endings(data):
    (data / "1/notes.txt").unlink()
    assert sources.told_ignored(sources.index(data)) is None
    for name in ("0/1.gif", "0/2.GIF", "1/notes", "loose.png", "1/\x1b.a\x07b"):
        (data / name).touch()
    assert sources.told_ignored(sources.index(data)) == (
        "5 files are ignored: .gif 2, .png 1, .a\\x07b 1, no ending 1 "
        "(no image's name, or outside of the class folders)"
    )
    table(data, "metadata.csv", ("file_name", "label"), ("0/0.png", "a"), ("1/0.png", "b"))
    told = sources.told_ignored(sources.index(data))  # the images without a row are told by themselves
    assert told.startswith("4 files are ignored: .gif 2, ") and ".png" not in told


def test_what_finder_adds_to_a_zip_is_no_news(tmp_path):
    path = zipped(tmp_path / "x.zip", "__MACOSX/a/._1.png", "__MACOSX/b/._1.png")
    assert len(sources.index(path).ignored) == 2
    assert sources.told_ignored(sources.index(path)) is None


def extra_field(kind: int, data: bytes) -> bytes:
    return struct.pack("<HH", kind, len(data)) + data


@pytest.mark.parametrize(
    ("name", "says", "system"),
    [
        ("a/notes.txt", "a/2.png", 3),  # the field that Info-ZIP and Python from 3.12 on go by
        ("a/2.png", "b/2.png", 3),
        ("a\\2.png", None, 0),  # of DOS: Info-ZIP makes it a/2.png
        ("a/\u0161.png", "a/2.png", 0),
    ],
)
def test_a_member_with_two_names_refuses_the_archive(tmp_path, name, says, system):
    member = zipfile.ZipInfo("a/2.png")
    member.filename = member.orig_filename = name
    member.create_system = system
    if says:
        other = struct.pack("<BI", 1, zlib.crc32(name.encode())) + says.encode()
        member.extra = extra_field(0x5455, b"\1\0\0\0\0") + extra_field(0x7075, other)
    with pytest.raises(DatasetError, match="which has another name as well; make a new archive without it"):
        sources.index(zipped(tmp_path / "x.zip", member))


@pytest.mark.parametrize("name", ["a/2.png", "a/\u00e9\u4e2d.png"])
def test_a_name_that_stands_twice_in_a_zip_is_one_name(tmp_path, name):
    member = zipfile.ZipInfo(name)
    member.extra = extra_field(0x7075, struct.pack("<BI", 1, zlib.crc32(name.encode())) + name.encode())
    found = sources.index(zipped(tmp_path / "x.zip", member))
    assert [file.path for file in found.files] == ["a/1.png", name, "b/1.png"]


@pytest.mark.parametrize(("name", "code_page"), [("a/\u00e9.png", "cp437"), ("a/\u8868.png", "cp932")])
def test_a_name_as_windows_programs_store_it_is_one_name(name, code_page):
    """In an old code page, with the same in UTF-8 in a field; in Japanese, a backslash is half of a character."""
    member = zipfile.ZipInfo("a")
    member.orig_filename = name.encode(code_page).decode("cp437")  # as Python reads it
    member.create_system = 0
    if code_page == "cp437":
        member.extra = extra_field(0x7075, struct.pack("<BI", 1, zlib.crc32(name.encode(code_page))) + name.encode())
    else:
        assert "\\" in member.orig_filename
    assert archives._zip_name(Path("x.zip"), member) == member.orig_filename


def test_what_is_no_regular_member_has_a_row_and_is_never_read(tmp_path):
    special = {
        "a/link.png": (tar_member("a/link.png", tarfile.SYMTYPE, "/etc/passwd"), stat.S_IFLNK, REFUSED_LINK),
        "a/linked": (tar_member("a/linked", tarfile.SYMTYPE, ".."), stat.S_IFLNK, REFUSED_LINK),
        "a/pipe.png": (tar_member("a/pipe.png", tarfile.FIFOTYPE), stat.S_IFIFO, NOT_A_FILE),
        "a/tty.png": (tar_member("a/tty.png", tarfile.CHRTYPE), stat.S_IFCHR, NOT_A_FILE),
    }
    expected = {"a/1.png": OK, "b/1.png": OK} | {name: status for name, (_, _, status) in special.items()}
    by_zip = zipped(tmp_path / "x.zip", *(zip_member(name, mode) for name, (_, mode, _) in special.items()))
    by_tar = tarred(tmp_path / "x.tar", *(member for member, _, _ in special.values()))
    for path in (by_zip, by_tar):
        assert {file.path: file.status for file in sources.index(path).files} == expected
    hard = tarred(tmp_path / "y.tar", tar_member("a/hard.png", tarfile.LNKTYPE, "a/1.png"))
    assert {file.path: file.status for file in sources.index(hard).files}["a/hard.png"] == REFUSED_LINK
    for path in (zipped(tmp_path / "z.zip", zip_member("c", stat.S_IFLNK)),):
        with pytest.raises(DatasetError, match="c is a link where class folders are"):
            sources.index(path)


def read_statuses(path: Path) -> dict[str, str]:
    found = sources.index(path)
    with found.place.opened() as read:
        return {file.path: read(file.path)[1] for file in found.files}


def test_members_that_cant_be_read_cost_their_row_alone(tmp_path, monkeypatch):
    odd = zipped(tmp_path / "x.zip", "a/encrypted.png", "a/method.png", "a/sum.png", "a/size.png")
    raw = bytearray(odd.read_bytes())
    for name, offset, value in (("encrypted", 8, 1), ("method", 10, 14), ("sum", 16, 7), ("size", 24, 9)):
        at = raw.rindex(f"a/{name}.png".encode()) - 46  # the central directory's entry comes last
        assert raw[at : at + 4] == b"PK\1\2"
        struct.pack_into("<H", raw, at + offset, value)
    odd.write_bytes(raw)
    expected = {f"a/{name}.png": UNREADABLE for name in ("encrypted", "method", "size", "sum")}
    assert read_statuses(odd) == expected | {"a/1.png": OK, "b/1.png": OK}
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 1)
    large = tar_member("a/large.png")
    large.size = 2
    assert read_statuses(tarred(tmp_path / "x.tar", large))["a/large.png"] == TOO_LARGE


@pytest.mark.parametrize("suffix", PACKED)
def test_bombs_and_what_is_cut_off_anywhere_is_refused_in_one_line(data, suffix, monkeypatch):
    packed = pack(data, suffix)
    whole = packed.read_bytes()
    for eighth in range(8):
        packed.write_bytes(whole[: len(whole) * eighth // 8])
        if suffix == "tar" and not whole[len(whole) * eighth // 8 :].strip(b"\0"):
            continue  # nothing but padding is missing
        with pytest.raises(DatasetError, match=r"cut off, broken|no class folders|only \(") as error:
            sources.index(packed)
        assert "\n" not in str(error.value)
    packed.write_bytes(whole)
    monkeypatch.setattr(archives, "ALWAYS_UNPACKED", 0)
    monkeypatch.setattr(archives, "MOST_RATIO", 0.5)
    if suffix != "tar":
        with pytest.raises(DatasetError, match="would unpack to over"):
            sources.index(packed)


def test_no_tar_ends_before_its_end(tmp_path):
    path = tarred(tmp_path / "x.tar")
    good = path.read_bytes()
    at = good.index(b"b/1.png")
    hidden = {
        "a broken header in the middle": good[:at] + b"X" + good[at + 1 :],
        "more after the end": good + good,
        "a negative size": good[: at + 124] + b"\xff" * 11 + b"\x80" + good[at + 136 :],
    }
    for broken in hidden.values():
        path.write_bytes(broken)
        with pytest.raises(DatasetError, match="cut off, broken"):
            sources.index(path)
    (tmp_path / "x.tgz").write_bytes(gzip.compress(good) + b"junk")
    with pytest.raises(DatasetError, match="cut off, broken"):
        sources.index(tmp_path / "x.tgz")


def test_a_header_that_claims_gigabytes_isnt_read(tmp_path):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**33
    (tmp_path / "x.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(DatasetError, match="impossible size"):
        sources.index(tmp_path / "x.tar")


parts = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=4), st.sampled_from(["..", ".", "", "a", "b.png", "\0", "n" * 256])
)


@given(st.lists(parts, max_size=4).map("/".join))
def test_a_path_that_is_taken_leads_into_the_folder(text):
    with tempfile.TemporaryDirectory() as root:
        try:
            path = inner_path(text)
        except ValueError:
            assert {"", ".", "..", "n" * 256}.intersection(text.split("/")) or "\0" in text
            return
        real = Path(root).resolve()
        assert (real / path).resolve().is_relative_to(real) and (real / path) != real
        assert inner_path(path) == path == os.path.normpath(path)


@settings(max_examples=40)
@given(st.lists(st.lists(parts, min_size=1, max_size=3).map("/".join), max_size=5))
def test_any_names_in_a_zip_are_listed_once_or_refused(names):
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "x.zip"
        try:
            zipped(path, *(f"c/{name}.png".replace("\0", "") for name in dict.fromkeys(names)))
        except (ValueError, UserWarning):  # zipfile doesn't write all, and warns of two of one name
            return
        try:
            found = sources.index(path)
        except DatasetError:
            return
        listed = [entry.path for entry in found.files] + list(found.ignored)
        assert len(set(listed)) == len(listed) == 2 + len(set(names))  # none is left out
        assert all(inner_path(name) == name for name in listed)


def table(root: Path, name: str, *rows: tuple) -> Path:
    """Rows as the suffix of ``name`` has it; the first one is the header."""
    path = root / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(dict(zip(rows[0], row, strict=True))) + "\n" for row in rows[1:]))
    else:
        path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["labels.csv", "LABELS.JSONL".lower(), "metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("split", [None, "train"])
def test_labels_from_a_file(data, name, split):
    is_metadata = name.startswith("metadata")
    if split and is_metadata:
        data = data.rename(data.parent / "train")
    rows = [("./0/0.png", "cat"), ("1/deep/er/5.png", 7), ("1/broken.png", "cat"), ("gone.png", "cat"), ("2/0.png", 7)]
    path = table(data, name, ("file_name", "label"), *rows)
    given_path = (data.parent if split else data) if is_metadata else path
    found = sources.index(given_path, split if is_metadata else None)
    read, _ = pixels.load(found, 16)
    assert {file.path: (read.class_name(file), file.status) for file in read.files} == {
        "0/0.png": ("cat", OK),
        "1/broken.png": ("cat", UNREADABLE),
        "gone.png": ("cat", VANISHED),
        "1/deep/er/5.png": ("7", OK),
        "2/0.png": ("7", OK),
    }
    assert found.classes == ("7", "cat")
    assert ("2 classes" in sources.told(found)) and ("7 images have no row" in sources.told(found)) == is_metadata


def test_metadata_above_the_splits_names_their_folders(data):
    whole = data.parent / "whole"
    shutil.copytree(data, whole / "train")
    rows = [("train/0/0.png", "x"), ("train/1/0.png", "y"), ("val/1.png", "x"), ("val/2.png", "z")]
    table(whole, "metadata.csv", ("file_name", "label"), *rows)
    with pytest.raises(DatasetError, match="--split train"):
        sources.index(whole)
    assert [file.path for file in sources.index(whole, "train").files] == ["0/0.png", "1/0.png"]


def test_metadata_without_labels_leaves_them_to_the_class_folders(data):
    plain = folder.index(data)
    table(data, "metadata.csv", ("file_name", "caption"), ("0/0.png", "a nought"))
    found = sources.index(data)
    assert (found.files, found.classes, found.layout) == (plain.files, plain.classes, sources.FOLDER)
    assert sources.told(found) is None
    assert set(found.ignored) - set(plain.ignored) == {"metadata.csv"}


BAD_ROWS = {
    (("/etc/x.png", "a"),): "line 2: the path '/etc/x.png' leads elsewhere",
    (("../x.png", "a"),): "leads elsewhere",
    (("0/0.png", "a"), ("./0/0.png", "b")): "line 3 names 0/0.png again",
    (("0/0.txt", "a"),): "none of the extensions",
    (("0/0.png", ""),): "can't be the name of a class folder",
    (("0/0.png", ".."),): "can't be the name of a class folder",
    (("0/0.png", "a/b"),): "can't be the name of a class folder",
    (("0/0.png", "x" * 300),): "can't be the name of a class folder",
    (("0/0.png", "a\0"),): "can't be the name of a class folder",
    (("0/0.png", "a"), ("0/1.png", "a")): "names 1 classes",
}


@pytest.mark.parametrize("rows", BAD_ROWS)
@pytest.mark.parametrize("name", ["l.csv", "l.jsonl"])
def test_a_row_that_cant_be_believed_refuses_the_table(data, name, rows):
    message = BAD_ROWS[rows]
    if name.endswith("l"):  # it has no header
        message = message.replace("line 2", "line 1").replace("line 3", "line 2")
    with pytest.raises(DatasetError, match=message):
        sources.index(table(data, name, ("path", "label"), *rows))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a column path or"),
        ("0/0.png,a\n0/1.png,b\n", "needs a column path or"),
        ("path;label\n0/0.png;a\n", "needs a column path or"),
        ("path,path,label\n", "two columns have one name"),
        ("path,image,label\n", "path and image mean the same"),
        ("path,label,mask_file_name\n", "has several images"),
        ("path,label\n0/0.png\n", "line 2 has 1 cells, the header 2"),
        ('path,label\n"0/0.png,a\n', "unexpected end of data"),
        ("path,label\n\xff", "codec can't decode"),
    ],
)
def test_what_is_no_table_is_refused(data, text, message):
    (data / "l.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match=message):
        sources.index(data / "l.csv")


@pytest.mark.parametrize(
    "line",
    ['{"path": "0/0.png", "label": [1]}', '{"path": 1, "label": 1}', '{"path":"a","path":"b"}', "[]", "[" * 99999],
)
def test_a_line_of_json_that_says_something_else_is_refused(data, line):
    (data / "l.jsonl").write_text('{"path": "0/1.png", "label": 1}\n' + line)
    with pytest.raises(DatasetError, match=r"l\.jsonl"):
        sources.index(data / "l.jsonl")


def test_a_table_leads_nowhere_through_links(data):
    secret = data.parent / "outside" / "secret.png"
    secret.parent.mkdir()
    shutil.copy2(data / "0" / "0.png", secret)
    (data / "out").symlink_to(secret.parent)
    (data / "0" / "link.png").symlink_to(secret)
    rows = [("out/secret.png", "a"), ("0/link.png", "a"), ("0/0.png", "a"), ("1/0.png", "b")]
    found = sources.index(table(data, "l.csv", ("path", "label"), *rows))
    assert [file.path for file in found.files if file.status == REFUSED_LINK] == ["0/link.png", "out/secret.png"]
    outside = table(secret.parent, "m.csv", ("file_name", "label"), ("0/0.png", "a"), ("1/0.png", "b"))
    (data / "metadata.csv").symlink_to(outside)
    with pytest.raises(DatasetError, match="link out of"):
        sources.index(data)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["metadata.csv", "metadata.jsonl"], "one metadata file"), (["metadata.parquet"], "in CSV or JSON lines")],
)
def test_metadata_that_isnt_read_is_refused(data, names, message):
    for name in names:
        (data / name).touch()
    with pytest.raises(DatasetError, match=message):
        sources.index(data)


def test_what_needs_class_folders_refuses_the_rest(data):
    packed = pack(data, "zip")
    table(data, "metadata.csv", ("file_name", "label"), ("0/0.png", "a"), ("1/0.png", "b"))
    for path in (packed, data):
        with pytest.raises(DatasetError, match="needs a folder with one sub-folder of images per class"):
            plant(path, data.parent / "out", BadNets(), "0")


@pytest.fixture
def digits_in(digits_folder, tmp_path) -> Callable[[str], Path]:
    """The 300 digits handed over in one of the ways; the table names its classes anew."""

    def make(kind: str) -> Path:
        root = tmp_path / "data" / "digits"
        shutil.copytree(digits_folder, root)
        if kind in FORMATS:
            return pack(root, kind, "digits")
        rows = [(path.relative_to(root).as_posix(), f"c{path.parent.name}") for path in sorted(root.glob("*/*.png"))]
        made = table(root, "metadata.csv" if kind == "metadata" else kind, ("file_name", "label"), *rows)
        return root if kind == "metadata" else made

    return make


@pytest.mark.parametrize("kind", ["zip", "tgz", "labels.csv", "metadata"])
def test_clean_writes_an_image_folder_from_any_of_them(digits_in, kind, tmp_path, monkeypatch, snapshot):
    monkeypatch.setattr(advrbd.pipeline, "relearn", lambda *_: None)  # what is tested here needs no model
    monkeypatch.setattr(advrbd.pipeline, "fine_tune", lambda *_: None)
    monkeypatch.setattr(advrbd.pipeline, "check", lambda *_: Check("good", (), ()))
    path = digits_in(kind)
    before = snapshot(tmp_path / "data")
    read, _ = pixels.load(sources.index(path), 16)
    rows = tuple(FileResult(file.path, read.class_name(file), OK, file.sha256, score=0.0) for file in read.files)
    (tmp_path / "report.json").write_bytes(render(Report(rows, ()), "json", all_files=True))
    config = Config(model="test_resnet", device="cpu")
    done = advrbd.clean(path, tmp_path / "out", config, report=tmp_path / "report.json")
    assert snapshot(tmp_path / "data") == before
    written = {file.path for file in folder.index(tmp_path / "out").files}
    mark = "c0/0/" if kind in ("labels.csv", "metadata") else "0/"
    assert len(written) == 300
    assert sum(name.startswith(mark) for name in written) == 30
    assert done.report.run["input"] == {"labels.csv": "table", "metadata": "metadata", "tgz": "tar", "zip": "zip"}[kind]
    assert json.loads((tmp_path / "out" / MANIFEST).read_bytes())["counts"] == {"kept": 300}
    assert advrbd.verify(tmp_path / "out").differences == ()


def test_labels_that_change_after_the_report_are_noticed(digits_in, tmp_path):
    path = digits_in("labels.csv")
    read, _ = pixels.load(sources.index(path), 16)
    rows = tuple(FileResult(file.path, read.class_name(file), OK, file.sha256, score=0.0) for file in read.files)
    (tmp_path / "report.json").write_bytes(render(Report(rows, ()), "json"))
    head, first, *lines = path.read_text().splitlines(keepends=True)
    assert lines[-1].split(",")[-1] != first.split(",")[-1]
    path.write_text(head + first.replace(first.split(",")[-1], lines[-1].split(",")[-1]) + "".join(lines))
    config = Config(model="test_resnet", device="cpu")
    with pytest.raises(ReportError, match="labelled anew since; scan the folder again"):
        advrbd.clean(path, tmp_path / "out", config, report=tmp_path / "report.json")


def test_an_archive_has_no_files_to_link_to(data, tmp_path):
    with pytest.raises(OutputError, match="--link-mode copy"):
        advrbd.clean(pack(data, "zip"), tmp_path / "out", link_mode="symlink")


def test_the_page_shows_pictures_from_an_archive(data):
    packed = pack(data, "zip")
    read, _ = pixels.load(sources.index(packed), 16)
    rows = tuple(FileResult(file.path, read.class_name(file), OK, file.sha256, True, 1.0) for file in read.files[:2])
    page = render_html(Report(rows, ()), packed, place=sources.place(packed)).decode()
    assert page.count("data:image/png") == 2
    assert "data-home" not in page
    odd = render_html(Report((FileResult("x/1.png", "cat", OK, "ab" * 32, True, 1.0),), ()), data).decode()
    assert 'data-home="cat/x/1.png"' in odd


REFUSED = {
    "scan ../packed.zip -o ../packed.zip -f csv": "would overwrite ../packed.zip, which this run reads",
    "scan ../data/l.csv -o ../data/report.csv": "lies inside the scanned folder",
    "scan l.csv --root ../data -o ../data/report.csv": "lies inside the scanned folder",
    "scan ../packed.zip -o nowhere/r.csv": "cannot write nowhere/r.csv: the folder nowhere doesn't exist",
    "scan ../packed.zip --html ../data": "../data is a folder",
    "scan ../packed.tgz -o r.csv --html /dev/null": "is a device or a pipe; give --html",
    "scan l.csv --root ../missing": "no such folder: ../missing",
    "scan l.csv --root ../packed.zip": "--root ../packed.zip is no folder; give the one that the paths in l.csv start",
    "scan nowhere/l.csv": "cannot read nowhere/l.csv: No such file or directory",
    "clean ../data --out ../data/out": "../data/out overlaps the input",
    "scan ../data/l.csv --split train": "--split is for folders and archives",
    "scan ../data --root ..": "--root is for a CSV",
    "scan ../data/l.csv --ignore-file ../data/ignored": "lies in the scanned folder",
    "clean ../data/l.csv --out ../data/out --save-model model": "overlaps the input",
    "clean ../packed.zip --out out --link-mode hardlink": "use --link-mode copy",
}


@pytest.fixture
def work(data, monkeypatch) -> Path:
    """A working directory beside ``data`` and its archive, with a table in both."""
    pack(data, "zip")
    pack(data, "tgz")
    work = data.parent / "work"
    work.mkdir()
    for place in (data, work):
        table(place, "l.csv", ("path", "label"), ("0/0.png", "a"), ("1/0.png", "b"))
    monkeypatch.chdir(work)
    monkeypatch.setattr(console, "state", console.State())
    return work


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_cant_be_is_refused_in_one_line(work, arguments, monkeypatch, capsys, snapshot):
    before = snapshot(work.parent)
    monkeypatch.setattr(sys, "argv", ["advrbd", *arguments.split(), "--device", "cpu"])
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert told[-1].startswith("error: ")
    assert REFUSED[arguments] in told[-1]
    assert snapshot(work.parent) == before


@pytest.mark.parametrize(
    ("name", "read_as"),
    [
        ("packed.zip", "zip of an ImageFolder, 3 classes"),
        ("packed.tgz", "tar of an ImageFolder, 3 classes"),
        ("data/l.csv", "paths and labels of images in ../data, 2 classes"),
    ],
)
def test_the_program_says_how_it_read_its_input(work, name, read_as):
    done = subprocess.run(
        [sys.executable, "-m", "advrbd_cli", "scan", f"../{name}", "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(advrbd.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    first, *_, last = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert first == f"read as: {read_as}"
    assert last.startswith("error: ")
    assert "fewer than 100 images" in last
    assert not any(work.glob("advrbd*"))
