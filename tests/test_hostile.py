"""Every kind of file that an attacker may put into a folder has one answer, and never changes a neighbour's row."""

import io
import os
import socket
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from fuzz_decoder import ANSWERS, SETTINGS, SIZE, mutated, originals
from fuzz_targets import TARGETS, furnished
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from watch import Watch

import advrbd.pipeline
from advrbd.config import Config, DecodingSettings
from advrbd.data import files, pixels
from advrbd.data.decoders import Decoders
from advrbd.data.folder import NOT_A_FILE, OK, REFUSED_LINK, TOO_LARGE, UNREADABLE, VANISHED, index
from advrbd.reading import open_regular
from advrbd_cli.app import app

VALID = originals()
PLAIN = [name for name in VALID if name.endswith(" 0")]  # one picture, nothing after it that could be missing


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.fixture(scope="module")
def good(digits_folder) -> bytes:
    return next(digits_folder.glob("3/*.png")).read_bytes()


@pytest.fixture
def place(tmp_path, good) -> Path:
    """A folder of two classes with a good file each; hostile ones belong into ``a``."""
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        (tmp_path / "data" / label / "good.png").write_bytes(good)
    return tmp_path / "data"


def statuses(place: Path, good: bytes, decoding: DecodingSettings = SETTINGS) -> dict[str, str]:
    """The status of every file but the good ones, whose pixels have to be their own."""
    read, store = pixels.load(index(place), 16, settings=decoding)
    expected = np.asarray(Image.open(io.BytesIO(good)).convert("RGB"))
    for file, row in zip(read.files, store.images, strict=True):
        if file.path.endswith("/good.png"):
            assert file.status == OK
            assert np.array_equal(row, expected)
        elif file.status != OK:
            assert not row.any()
    return {file.path: file.status for file in read.files if not file.path.endswith("/good.png")}


def test_what_is_cut_off_anywhere_is_unreadable(place, good):
    for number, name in enumerate(PLAIN):
        for eighth in range(8):
            cut = VALID[name][: len(VALID[name]) * eighth // 8]
            (place / "a" / f"{number:02}-{eighth}.png").write_bytes(cut)
    found = statuses(place, good)
    assert len(found) == 8 * len(PLAIN)
    readable = [name for name, status in found.items() if status == OK]
    assert [PLAIN[int(Path(name).name[:2])] for name in readable] in ([], ["PNG 1 0"])  # its picture ends early
    assert set(found.values()) <= {OK, UNREADABLE}


def test_the_bytes_say_what_a_file_is_and_not_its_name(place, good):
    for number, (name, data) in enumerate(VALID.items()):
        (place / "a" / f"{number:02}.{'png' if name.startswith('TIFF') else 'tif'}").write_bytes(data)
    assert set(statuses(place, good).values()) == {OK}


def test_other_formats_of_pillow_are_unreadable(place, good):
    image = Image.open(io.BytesIO(good)).convert("RGB")
    for form in ("ICO", "TGA", "PCX", "EPS", "PDF", "JPEG2000", "SGI", "ICNS", "DDS"):
        image.save(place / "a" / f"{form}.png", form)
    assert set(statuses(place, good).values()) == {UNREADABLE}


BOMB = zlib.compress(bytes(64 * 2**20))
HUGE = {  # a header of each format that promises more pixels than there is memory
    "bmp": b"BM" + struct.pack("<IHHI", 99, 0, 0, 54) + struct.pack("<IiiHH6I", 40, 50_000, 50_000, 1, 24, *[0] * 6),
    "pgm": b"P5 60000 60000 255\n" + bytes(99),
    "gif": b"GIF89a"
    + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0)
    + b","
    + struct.pack("<4HB", 0, 0, 9, 9, 0)
    + b"\2\0",
    "png": b"\x89PNG\r\n\x1a\n"
    + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0))
    + png_chunk(b"IDAT", b""),
}


def test_bombs_are_refused_by_their_headers(place, good):
    for suffix, data in HUGE.items():
        (place / "a" / f"{suffix}.png").write_bytes(data)
    for kind, start in (("zTXt", b"k\0\0"), ("iCCP", b"k\0\0"), ("iTXt", b"k\0\1\0\0\0")):
        (place / "a" / f"{kind}.png").write_bytes(good[:33] + png_chunk(kind.encode(), start + BOMB) + good[33:])
    expected = {f"a/{suffix}.png": TOO_LARGE for suffix in HUGE}
    assert statuses(place, good) == expected | {f"a/{kind}.png": UNREADABLE for kind in ("zTXt", "iCCP", "iTXt")}


@pytest.mark.parametrize("name", PLAIN)
def test_more_pixels_than_are_allowed_in_any_format(place, good, name):
    (place / "a" / "larger.png").write_bytes(VALID[name])  # 13x11
    (place / "a" / "good.png").unlink()
    (place / "b" / "good.png").unlink()
    Image.new("RGB", (13, 10)).save(place / "a" / "small.png")
    Image.new("RGB", (13, 10)).save(place / "b" / "small.png")
    found = statuses(place, good, DecodingSettings(max_pixels=13 * 10))
    assert found == {"a/larger.png": TOO_LARGE, "a/small.png": OK, "b/small.png": OK}


def test_a_picture_that_unpacks_to_more_than_it_claims(place, good):
    header = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0))
    (place / "a" / "more.png").write_bytes(header + png_chunk(b"IDAT", BOMB) + png_chunk(b"IEND", b""))
    assert set(statuses(place, good).values()) <= {OK, UNREADABLE}


def test_the_smallest_and_the_thinnest(place, good):
    for size in ((1, 1), (1, 4000), (4000, 1)):
        Image.new("RGB", size, "red").save(place / "a" / f"{size[0]}x{size[1]}.png")
    assert set(statuses(place, good).values()) == {OK}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("moving.png", "GIF"),
        ("moving.png", "PNG"),
        ("moving.webp", "WEBP"),
        ("pages.tif", "TIFF"),
    ],
)
def test_of_several_pictures_the_first_is_scanned(place, name, form):
    colours = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    lossless = {"lossless": True} if form == "WEBP" else {}
    colours[0].save(place / "a" / name, form, save_all=True, append_images=colours[1:], **lossless)
    read, store = pixels.load(index(place), 16)
    (row,) = (number for number, file in enumerate(read.files) if file.path == f"a/{name}")
    assert np.abs(store.images[row].numpy().astype(int) - (255, 0, 0)).max() <= 1


def test_a_colour_profile_changes_nothing(place, good):
    image = Image.open(io.BytesIO(good)).convert("RGB")
    profiles = {"srgb": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), "junk": b"\xff" * 5000}
    for name, profile in profiles.items():
        image.save(place / "a" / f"{name}.png", icc_profile=profile)
    read, store = pixels.load(index(place), 16)
    assert [file.status for file in read.files] == [OK] * 4
    assert all(np.array_equal(row, store.images[0]) for row in store.images)


def test_a_file_that_is_something_else_too_is_scanned_as_the_image(place, good):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("evil.py", "raise SystemExit")
    comment = b"*/alert(1)/*<script>alert(1)</script>"
    jpeg = VALID["JPEG RGB 0"]
    for name, data in {
        "zip.png": good + archive.getvalue(),
        "page.png": good + b"<html>" + comment,
        "chunk.png": good[:33] + png_chunk(b"tEXt", b"Comment\0" + comment) + good[33:],
        "script.jpg": jpeg[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + jpeg[2:],
        "page-first.png": b"<html>" + comment + good,
        "zip-first.png": archive.getvalue() + good,
    }.items():
        (place / "a" / name).write_bytes(data)
    first = {"a/page-first.png": UNREADABLE, "a/zip-first.png": UNREADABLE}
    scanned = {f"a/{name}": OK for name in ("zip.png", "page.png", "chunk.png", "script.jpg")}
    assert statuses(place, good) == scanned | first


def test_sockets_and_devices_are_never_opened(place, good, monkeypatch):
    monkeypatch.chdir(place / "a")  # an address is short
    expected = {"a/socket.png": NOT_A_FILE}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
        with suppress(PermissionError):  # root's alone
            os.mknod(place / "a" / "zero.png", 0o020666, os.makedev(1, 5))
            expected["a/zero.png"] = NOT_A_FILE
        (place / "a" / "link.png").symlink_to("/dev/zero")
        assert statuses(place, good) == expected | {"a/link.png": REFUSED_LINK}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_the_right_to_read_it(place, good):
    (place / "a" / "locked.png").write_bytes(good)
    (place / "a" / "locked.png").chmod(0)
    assert statuses(place, good) == {"a/locked.png": VANISHED}


def test_hard_links_are_files_like_others(place, good):
    (place / "a" / "twin.png").hardlink_to(place / "b" / "good.png")
    assert statuses(place, good) == {"a/twin.png": OK}


NAMES = (
    "new\nline.png", "[/x].png", "[red]x.png", "\x1b[2J\x07.png", "-rf.png", "=1+1.png", "'; rm -rf;.png", "..png",
    os.fsdecode(b"\xff\xfe.png"), "\u202egnp.exe.png", "\u200b.png", "\ufeff.png", "A.png", "a.png", "\u00e9.png",
    "e\u0301.png", "x" * 251 + ".png", "%s%n.png", "\\..\\x.png", "nul.png", " .png", "\u2028.png", "\U0001f600.png",
)  # fmt: skip


def test_names_of_every_kind_are_scanned(place, good):
    for name in NAMES:
        (place / "a" / name).parent.mkdir(exist_ok=True)
        (place / "a" / name).write_bytes(good)
    (place / "a" / os.fsdecode(b"\xff folder\n")).mkdir()
    (place / "a" / os.fsdecode(b"\xff folder\n") / "x.png").write_bytes(good)
    found = statuses(place, good)
    assert len(found) == len(NAMES) + 1
    assert set(found.values()) == {OK}


def test_many_entries_in_one_folder(place):
    for number in range(20_000):
        (place / "a" / f"{number}.png").touch()
    listed = index(place)
    assert len(listed.files) == 20_002
    assert [file.path for file in listed.files] == sorted(file.path for file in listed.files)


def replaced(path: Path, change: str, outside: Path) -> None:
    path.unlink()
    match change:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "link out":
            path.symlink_to(outside)
        case "link to itself":
            path.symlink_to(path.name)
        case "folder above":
            path.parent.rename(path.parent.with_name("moved"))
            path.parent.symlink_to(outside.parent)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ("gone", VANISHED),
        ("fifo", NOT_A_FILE),
        ("folder", NOT_A_FILE),
        ("link out", REFUSED_LINK),
        ("link to itself", NOT_A_FILE),
        ("folder above", REFUSED_LINK),
    ],
)
def test_a_file_that_becomes_another_after_it_was_listed(place, good, change, status):
    outside = place.parent / "outside" / "file.png"
    outside.parent.mkdir()
    outside.write_bytes(good)
    (place / "a" / "deep").mkdir()
    (place / "a" / "deep" / "file.png").write_bytes(good)
    listed = index(place)
    replaced(place / "a" / "deep" / "file.png", change, outside)
    pixels.typical_side(listed)  # would wait for ever for somebody to write into the FIFO
    read, _ = pixels.load(listed, 16)
    found = {file.path: (file.status, file.sha256) for file in read.files}
    assert found["a/deep/file.png"] == (status, "")


def test_a_folder_that_becomes_a_link_while_a_file_is_opened(place, good, monkeypatch):
    outside = place.parent / "outside" / "file.png"
    outside.parent.mkdir()
    outside.write_bytes(good)
    path = place / "a" / "deep" / "file.png"
    path.parent.mkdir()
    path.write_bytes(good)

    def open_late(real):
        replaced(path, "folder above", outside)
        return open_regular(real)

    monkeypatch.setattr(files, "open_regular", open_late)
    assert files.read_file(path, str(place.resolve())) == (None, REFUSED_LINK, "")


def test_a_path_that_cant_be_followed_costs_its_row_alone(place, monkeypatch):
    def fail(_):
        raise OSError(22, "Invalid argument")  # what Python 3.11 says of a link that is exchanged meanwhile

    monkeypatch.setattr(files.os.path, "realpath", fail)
    assert files.read_file(place / "a" / "1.png", str(place)) == (None, VANISHED, "")


def test_a_file_that_grows_while_it_is_read_is_read_to_the_limit(place, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 100)
    monkeypatch.setattr(os, "fstat", lambda _: os.stat_result([0o100644] + [0] * 9))
    (place / "a" / "growing.png").write_bytes(bytes(101))
    assert files.read_file(place / "a" / "growing.png") == (None, TOO_LARGE, "")


changes = st.lists(st.tuples(*[st.integers(0, 2**16 - 1)] * 3), min_size=1, max_size=6)
hostile = st.builds(mutated, st.sampled_from(list(VALID.values())), changes)


@pytest.fixture(scope="module")
def decoders():
    with Decoders(SETTINGS, 1) as started:
        yield started


def assert_answered(decoders: Decoders, data: bytes, good: bytes) -> None:
    """Any bytes get pixels or a status, from the very process that answers on the next file as if nothing had been."""
    ((found, status), (_, after)) = decoders.decode([data, good], SIZE)
    assert (status in ANSWERS, after) == (True, OK)
    assert (status == OK) == (found is not None)
    assert found is None or (found.shape, found.dtype) == ((SIZE, SIZE, 3), np.uint8)
    assert len(decoders.measure([data])) <= 1


@settings(max_examples=300)
@given(data=hostile | st.binary(max_size=200))
def test_any_bytes_get_an_answer(decoders, good, data):
    assert_answered(decoders, data, good)


@pytest.mark.slow
@settings(max_examples=5000)
@given(data=hostile)
def test_a_great_many_bytes_get_an_answer(decoders, good, data):
    assert_answered(decoders, data, good)


@pytest.fixture(scope="session")
def watch() -> Watch:
    return Watch()


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_is_handed_over_gets_an_answer_or_an_error(name, tmp_path, watch):
    target, place = TARGETS[name], furnished(tmp_path / "place")

    @settings(max_examples=50)
    @given(seed=st.sampled_from(target.seeds), several=changes, repaired=st.booleans())
    def holds(seed, several, repaired):
        data = mutated(seed, several)
        target.check(target.repaired(data) if repaired else data, place, watch)

    for seed in target.seeds:
        assert target.repaired(seed) == seed
        target.check(seed, place, watch)
    holds()


@pytest.mark.parametrize(
    "touch",
    [
        pytest.param(lambda out: out.write_text("x"), id="write"),
        pytest.param(lambda out: out.with_name("read").read_bytes(), id="read"),
        pytest.param(lambda out: list(out.parent.iterdir()), id="list"),
        pytest.param(lambda out: out.mkdir(), id="make"),
        pytest.param(lambda _: os.system("true"), id="start"),
        pytest.param(lambda out: (out.parent / "place" / "inside").write_text("x"), id="write inside"),
    ],
)
def test_the_watch_hears_what_a_reader_must_not_do(touch, tmp_path, watch):
    place = furnished(tmp_path / "place")
    (tmp_path / "read").touch()
    with pytest.raises(AssertionError), watch.over(place):
        touch(tmp_path / "out")
    with watch.over(place):
        (place / "a" / "1.png").read_bytes()


@pytest.mark.parametrize("command", [("scan", "data"), ("clean", "data", "--out", "out")])
def test_the_program_passes_the_limit_on_pixels_on(command, monkeypatch, tmp_path):
    class Told(Exception):
        pass

    def tell(*arguments, **_):
        raise Told(next(entry for entry in arguments if isinstance(entry, Config)))

    monkeypatch.setattr(advrbd.pipeline, command[0], tell)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for options, expected in (((), DecodingSettings()), (("--max-pixels", "99"), DecodingSettings(max_pixels=99))):
        with pytest.raises(Told) as told:
            app([*command, *options], standalone_mode=False)
        assert told.value.args[0] == Config(decoding=expected)
