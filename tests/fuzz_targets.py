"""What reads hostile bytes in this process, small valid bytes for each, and a check of what becomes of any others.

A target gives an answer that can be, or raises an ``AdvrbdError``. Meanwhile it writes nothing, starts nothing, and
opens nothing but what lies in the folder that it was given. ``fuzz_coverage`` looks for bytes for which that isn't so.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import chdir, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy  # noqa: F401 - decoding imports it when it needs it, and would do so under the watch
import typer
from fuzz_decoder import ANSWERS, originals
from typer.exceptions import TyperException
from watch import Watch

from advrbd.data import files, sources
from advrbd.data.decoding import decode, measure
from advrbd.data.folder import OK, STATUSES
from advrbd.errors import AdvrbdError
from advrbd.manifest import MANIFEST
from advrbd.manifest import SCHEMA as MANIFEST_SCHEMA
from advrbd.reading import inner_path
from advrbd.reports.accepted import read_baseline, read_ignore_file
from advrbd.reports.report import ClassVerdict, FileResult, Report
from advrbd.reports.subset import choose, split_names
from advrbd.reports.tables import read_report, render
from advrbd.verification import verify
from advrbd_cli.app import app

COMMAND = typer.main.get_command(app)
MAX_PIXELS = 2**16
SHA256 = "0" * 64
DEEP = b"[" * 3000
DIGITS = b"9" * 5000  # more than Python makes a number of


@dataclass(frozen=True)
class Target:
    """``lay`` puts bytes that were handed over into a folder, which holds an image each in two classes, and returns
    where; ``read`` reads them there.

    ``seeds`` are valid, or nearly so. ``repaired`` mends the checksums of changed bytes, behind which a reader would
    see nothing of the changes.
    """

    lay: Callable[[bytes, Path], Path]
    read: Callable[[Path], None]
    seeds: tuple[bytes, ...]
    repaired: Callable[[bytes], bytes] = bytes

    def check(self, data: bytes, place: Path, watch: Watch) -> None:
        """Assert that ``data`` gets an answer that can be, or an error that says why not."""
        path = self.lay(data, place)
        with warnings.catch_warnings(), watch.over(place):
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files, as in a decoder
            try:
                self.read(path)
            except AdvrbdError as error:
                assert str(error)


def furnished(place: Path) -> Path:
    """The new folder ``place`` with an image each in two classes."""
    for label in "ab":
        (place / label).mkdir(parents=True)
        (place / label / "1.png").write_bytes(PNG)
    return place


def as_file(name: str) -> Callable[[bytes, Path], Path]:
    def lay(data: bytes, place: Path) -> Path:
        (place / name).write_bytes(data)
        return place / name

    return lay


def as_metadata(name: str) -> Callable[[bytes, Path], Path]:
    """The folder is what is read, and the file is one in it."""
    return lambda data, place: as_file(name)(data, place).parent


def as_folder(data: bytes, place: Path) -> Path:
    """A folder with an entry for each line: what it is, and its name; of a link also, after a zero byte, the target."""
    root = place / "folder"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for line in data.split(b"\n")[:30]:
        name, _, target = line[1:].partition(b"\0")
        with suppress(OSError, ValueError):  # no name that a file system takes
            path = root / inner_path(os.fsdecode(name))
            if not Path(os.path.realpath(path.parent)).is_relative_to(root):
                continue  # nothing is made behind a link
            path.parent.mkdir(parents=True, exist_ok=True)
            match line[:1]:
                case b"d":
                    path.mkdir()
                case b"l":
                    path.symlink_to(os.fsdecode(target))
                case b"p":
                    os.mkfifo(path)
                case _:
                    path.write_bytes(PNG)
    return root


def read_image(path: Path) -> None:
    data = path.read_bytes()
    image, status = decode(data, 8, MAX_PIXELS)
    assert status in ANSWERS
    assert (image is not None) == (status == OK)
    assert image is None or (image.size, image.mode) == ((8, 8), "RGB")
    measure(data)


def read_dataset(path: Path) -> None:
    """List a dataset, and read each of its files."""
    found = sources.index(path)
    assert len(set(found.classes)) == len(found.classes) > 1
    assert len({file.path for file in found.files}) == len(found.files)
    with files.opened(found.place) as read:
        for file in found.files:
            assert inner_path(file.path) == file.path
            assert file.status in STATUSES
            assert found.class_name(file)
            data, status, sha256 = read(file.path)
            assert (data is None) == (status != OK)
            assert sha256 == ("" if data is None else hashlib.sha256(data).hexdigest())
            assert file.status == OK or data is None


def read_earlier(path: Path) -> None:
    """A report, as ``clean`` and as ``--baseline`` take it."""
    for reader in (read_report, read_baseline):
        with suppress(AdvrbdError):
            reader(path)


def read_names(path: Path) -> None:
    for null in (False, True):
        with suppress(AdvrbdError):
            choose(split_names(path.read_bytes(), null), ["a/1.png", "b/1.png"], path.parent)


def read_as_settings(path: Path) -> None:
    """Settings, up to where a scan would begin."""
    arguments = ["-q", "--config", str(path), "data"]
    with chdir(path.parent), suppress(TyperException), COMMAND.make_context("advrbd", ["scan", *arguments]) as group:
        COMMAND.commands["scan"].make_context("scan", arguments, parent=group)


# Seeds


def packed_as_zip(method: int) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        for name in ("a/1.png", "b/1.png", "b/deep/2.png", "notes.txt"):
            archive.writestr(zipfile.ZipInfo(name), PNG, method)
    return data.getvalue()


def packed_as_tar(form: int) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=form) as archive:
        for name in ("a/1.png", "b/1.png", f"b/{'x' * 120}/\u00e9.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PNG)
            archive.addfile(info, io.BytesIO(PNG))
        link = tarfile.TarInfo("a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../etc/passwd"
        archive.addfile(link)
    return data.getvalue()


def with_tar_checksums(data: bytes) -> bytes:
    whole = bytearray(data)
    for at in range(0, len(whole) - 511, 512):
        block = whole[at : at + 512]
        if block[257:262] == b"ustar":
            total = sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")
            whole[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(whole)


def with_png_checksums(data: bytes) -> bytes:
    """The checksums of the chunks, as far as their lengths lead."""
    whole, at = bytearray(data), 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(whole):
        end = at + 8 + int.from_bytes(whole[at : at + 4], "big")
        if end + 4 > len(whole):
            break
        whole[end : end + 4] = struct.pack(">I", zlib.crc32(whole[at + 4 : end]))
        at = end + 4
    return bytes(whole)


IMAGES = originals()
PNG = IMAGES["PNG 1 0"]
ZIPS = tuple(map(packed_as_zip, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
TARS = tuple(map(packed_as_tar, (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))
TABLE = b"path,label\na/1.png,cat\n./b/1.png,dog\nb/none.png,dog\n"
LINES = b'{"file_name": "a/1.png", "label": 0}\n{"file_name": "b/1.png", "label": "dog"}\n'
REPORT = Report(
    (
        FileResult("a/1.png", "a", OK, SHA256, True, 0.9, "b", 0.8),
        FileResult("b/1.png", "b", OK, SHA256, score=0.1),
        FileResult("b/2.png", "b", "unreadable", ""),
    ),
    (ClassVerdict("a", 1, 1, "poisoned"), ClassVerdict("b", 2, 0, "clean")),
)
NAMED = {"source": "a/1.png", "written": "a/1.png", "old_label": "a", "new_label": "a", "sha256": SHA256}
WRITTEN = json.dumps(
    {
        "schema": MANIFEST_SCHEMA,
        "class_to_idx": {"before": {"a": 0, "b": 1}, "after": {"a": 0, "b": 1}},
        "files": [
            NAMED | {"action": "kept"},
            NAMED | {"action": "relabelled", "written": "b/1.png", "new_label": "b"},
            NAMED | {"action": "dropped", "written": None, "new_label": None},
        ],
        "settings": {"link_mode": "symlink", "source": "/data"},
    }
).encode()
IGNORED = f"# seen\n{SHA256}  a/1.png\n\\{SHA256} *./b/x\\x0a.png\n".encode()
SETTINGS = b'seed = 3\nformat = "json"\n[scan]\nfail-on = 0.5\nbaseline = "r.csv"\n[clean]\naction = "drop"\n'
ENTRIES = b"fa/1.png\nfb/deep/1.png\nlc/1.png\0../../..\nld\0a\nlb/2.png\0../a/1.png\npb/3.png\nde/4.png\nfREADME"


def rendered(form: str) -> bytes:
    return render(REPORT, form, all_files=True)


TARGETS = {
    "image": Target(as_file("1.png"), read_image, tuple(IMAGES.values()), with_png_checksums),
    "folder": Target(as_folder, read_dataset, (ENTRIES,)),
    "zip": Target(
        as_file("a.zip"), read_dataset, tuple(map(packed_as_zip, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    ),
    "tar": Target(as_file("a.tar"), read_dataset, TARS, with_tar_checksums),
    "tgz": Target(as_file("a.tgz"), read_dataset, tuple(gzip.compress(data, mtime=0) for data in TARS)),
    "csv": Target(as_file("t.csv"), read_dataset, (TABLE,)),
    "jsonl": Target(as_file("t.jsonl"), read_dataset, (LINES, DEEP)),
    "metadata": Target(as_metadata("metadata.csv"), read_dataset, (TABLE.replace(b"path", b"file_name"),)),
    "report-csv": Target(as_file("r.csv"), read_earlier, (rendered("csv"),)),
    "report-json": Target(as_file("r.json"), read_earlier, (rendered("json"), rendered("jsonl"), b'{"files":' + DEEP)),
    "manifest": Target(as_metadata(MANIFEST), verify, (WRITTEN, DEEP)),
    "ignore": Target(as_file(".advrbdignore"), read_ignore_file, (IGNORED,)),
    "list": Target(as_file("names.txt"), read_names, (b"a/1.png\r\n./b/1.png\n",)),
    "settings": Target(
        as_file("s.toml"), read_as_settings, (SETTINGS, b"seed = " + DEEP, b"seed = " + DIGITS, b"seed = 0x" + DIGITS)
    ),
}
