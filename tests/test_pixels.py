"""Every file that can be decoded becomes the RGB pixels that it shows; every other one gets a status and harms none."""

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from sklearn.datasets import load_sample_image
from torchvision.datasets.folder import default_loader

from advrbd.config import DecodingSettings
from advrbd.data import files, pixels
from advrbd.data.folder import OK, TOO_LARGE, UNREADABLE, VANISHED, FolderIndex, index
from advrbd.errors import DatasetError
from advrbd.events import Progress
from advrbd.memory import Memory

SIDE = 32


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A real photograph, 32x32."""
    return Image.fromarray(load_sample_image("flower.jpg")).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


@pytest.fixture
def two_classes(tmp_path, photo) -> Path:
    for label in "ab":
        (tmp_path / label).mkdir()
        photo.save(tmp_path / label / "good.png")
    return tmp_path


def load_one(root: Path, name: str, image: Image.Image, **options) -> np.ndarray:
    """``image`` as it comes back from the store, int64 [SIDE, SIDE, 3]."""
    image.save(root / "a" / name, **options)
    read, store = pixels.load(index(root), SIDE)
    row = [file.path for file in read.files].index(f"a/{name}")
    assert read.files[row].status == OK
    return store.images[row].numpy().astype(int)


def grey(image: Image.Image) -> np.ndarray:
    return np.repeat(np.asarray(image.convert("L"), int)[:, :, None], 3, axis=2)


def test_plain_modes_become_the_same_rgb(two_classes, photo):
    colours = np.asarray(photo, int)
    half_transparent = Image.new("L", photo.size, 255)
    half_transparent.paste(0, (0, 0, SIDE, SIDE // 2))
    rgba, la = photo.copy(), photo.convert("L")
    rgba.putalpha(half_transparent)
    la.putalpha(half_transparent)
    palette = photo.quantize(16)
    bits = photo.convert("1")
    assert np.array_equal(load_one(two_classes, "rgb.png", photo), colours)
    assert np.array_equal(load_one(two_classes, "rgba.png", rgba), colours)
    assert np.array_equal(load_one(two_classes, "l.pgm", photo.convert("L")), grey(photo))
    assert np.array_equal(load_one(two_classes, "la.png", la), grey(photo))
    assert np.array_equal(load_one(two_classes, "p.png", palette), np.asarray(palette.convert("RGB")))
    assert np.array_equal(
        load_one(two_classes, "clear.png", palette, transparency=3), np.asarray(palette.convert("RGB"))
    )
    assert np.array_equal(load_one(two_classes, "1.tif", bits), grey(bits))


def test_jpegs_keep_their_colours_in_cmyk_too(two_classes, photo):
    for name, image in (("rgb.jpg", photo), ("cmyk.jpeg", photo.convert("CMYK"))):
        loaded = load_one(two_classes, name, image, quality=95, subsampling=0)
        assert np.abs(loaded - np.asarray(photo, int)).mean() < 3


DEEP = {"i16.png": np.uint16, "i16.tif": np.uint16, "i32.tif": np.int32, "float.tif": np.float32}


@pytest.mark.parametrize(("name", "kind"), DEEP.items())
def test_deep_greys_are_scanned_as_either_trainer_sees_them(two_classes, photo, name, kind):
    deep = Image.fromarray((np.asarray(photo.convert("L"), int) * 257).astype(kind))
    red, green, blue = load_one(two_classes, name, deep).transpose(2, 0, 1)
    assert np.abs(red - grey(photo)[..., 0]).max() <= 1
    assert np.array_equal(red, green)
    assert np.array_equal(blue, np.asarray(default_loader(two_classes / "a" / name))[..., 2])


@pytest.mark.parametrize(("name", "kind"), DEEP.items())
def test_a_trigger_that_scaling_hides_is_seen(two_classes, photo, name, kind):
    stamped = np.asarray(photo.convert("L"), int) * 257 + 256
    trigger = np.indices((6, 6)).sum(axis=0) % 2 * 255
    stamped[-6:, -6:] = trigger
    seen = load_one(two_classes, name, Image.fromarray(stamped.astype(kind)))
    assert seen[-6:, -6:, 0].max() == 0  # of 65535: black to whoever scales
    assert np.array_equal(seen[-6:, -6:, 2], trigger)


def test_8_bits_in_16_are_scanned_as_torchvision_loads_them(two_classes, photo):
    dark = np.asarray(photo.convert("L"), np.uint16)  # at most 255 of 65535
    assert np.array_equal(load_one(two_classes, "dark.png", Image.fromarray(dark)), grey(photo))


@pytest.mark.parametrize("scale", [1 / 255, 1])
def test_float_greys_are_scaled_to_what_they_show(two_classes, photo, scale):
    image = Image.fromarray(np.asarray(photo.convert("L"), np.float32) * np.float32(scale))
    assert np.abs(load_one(two_classes, "float.tiff", image) - grey(photo)).max() <= 1


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e9])
def test_one_odd_number_hides_nothing(two_classes, photo, odd):
    values = np.asarray(photo.convert("L"), np.float32).copy()
    values[0, 0] = odd
    seen = load_one(two_classes, "odd.tiff", Image.fromarray(values))[..., 2]
    assert np.array_equal(seen.flatten()[1:], grey(photo)[..., 2].flatten()[1:])


def test_exif_orientation_is_applied(two_classes, photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture has to be turned a quarter clockwise
    assert np.array_equal(load_one(two_classes, "turned.png", photo, exif=exif), np.rot90(np.asarray(photo), -1))


def test_what_torchvision_loads_is_not_unreadable_for_its_exif(two_classes, photo):
    loaded = load_one(two_classes, "odd.png", photo, exif=b"no exif at all")
    assert np.array_equal(loaded, np.asarray(default_loader(two_classes / "a" / "odd.png")))


def test_hashes_are_of_the_bytes_on_disk(digits_folder):
    read, _ = pixels.load(index(digits_folder), 16)
    for file in read.files[::50]:
        assert file.sha256 == hashlib.sha256((digits_folder / file.path).read_bytes()).hexdigest()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG file of a few bytes whose header promises ``width`` x ``height`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_broken_files_get_a_status_and_leave_their_neighbours_alone(digits_folder, tmp_path, photo):
    good = sorted(digits_folder.glob("[01]/*.png"))[20:40]
    jpeg = io.BytesIO()
    photo.save(jpeg, "JPEG")
    bad = {
        "truncated.png": good[0].read_bytes()[:-30],
        "truncated.jpg": jpeg.getvalue()[: len(jpeg.getvalue()) // 2],
        "empty.png": b"",
        "garbage.png": np.random.default_rng(0).bytes(500),
        "text.webp": b"<html>404 not found</html>",
        "bomb.png": png_claiming(60_000, 60_000),
        "large.png": png_claiming(9_000, 9_000),  # too few pixels for Pillow to warn of
    }
    for label in "ab":
        (tmp_path / label).mkdir()
        for number, path in enumerate(good):
            (tmp_path / label / f"{chr(97 + number)}.png").write_bytes(path.read_bytes())
        for name, data in bad.items():
            (tmp_path / label / name).write_bytes(data)
    events = []
    read, store = pixels.load(index(tmp_path), 16, events.append)

    assert len(read.files) == len(store) == 2 * (len(good) + len(bad))
    for file, row in zip(read.files, store.images, strict=True):
        name = Path(file.path).name
        expected = TOO_LARGE if name in ("bomb.png", "large.png") else UNREADABLE if name in bad else OK
        assert (name, file.status) == (name, expected)
        assert file.sha256 == hashlib.sha256((tmp_path / file.path).read_bytes()).hexdigest()
        shown = np.asarray(default_loader(tmp_path / file.path)) if name not in bad else np.zeros((16, 16, 3))
        assert np.array_equal(row, shown)
    assert events[-1] == Progress("decode", len(read.files), len(read.files))


def test_no_format_that_starts_another_program_is_decoded(two_classes, monkeypatch):
    started = []

    def ghostscript(*arguments, **_):
        started.append(arguments)
        raise OSError("gs was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    path = two_classes / "a" / "postscript.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert files.read_image(path, SIDE)[1] == UNREADABLE
    assert not started
    with Image.open(path) as image, pytest.raises(OSError, match="gs was started"):
        image.load()  # so it would have, had Pillow not been told which formats to try


def test_limits_on_pixels_and_bytes(two_classes, monkeypatch):
    Image.new("RGB", (SIDE, SIDE + 1)).save(two_classes / "a" / "larger.png")
    read, _ = pixels.load(index(two_classes), SIDE, settings=DecodingSettings(max_pixels=SIDE * SIDE))
    assert [(file.status, bool(file.sha256)) for file in read.files] == [(OK, True), (TOO_LARGE, True), (OK, True)]
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 10)
    assert files.read_file(two_classes / "a" / "good.png") == (None, TOO_LARGE, "")  # not even read


def test_a_file_that_goes_away_after_listing(two_classes, photo):
    photo.save(two_classes / "a" / "short-lived.png")
    listed = index(two_classes)
    (two_classes / "a" / "short-lived.png").unlink()
    read, _ = pixels.load(listed, SIDE)
    assert [file.status for file in read.files] == [OK, VANISHED, OK]


def test_a_class_without_a_readable_image_is_an_error(two_classes):
    (two_classes / "b" / "good.png").write_bytes(b"not any more")
    (two_classes / "c").mkdir()
    with pytest.raises(DatasetError, match=r"no readable image in class 'b', 'c'"):
        pixels.load(index(two_classes), SIDE)


def test_the_store_on_disk_holds_what_the_one_in_memory_holds(digits_folder, monkeypatch, tmp_path):
    listed = index(digits_folder)
    _, in_memory = pixels.load(listed, 16)
    mapped, memmap = [], np.memmap
    monkeypatch.setattr(np, "memmap", lambda *args, **named: mapped.append(args) or memmap(*args, **named))
    _, on_disk = pixels.load(listed, 16, memory=Memory(0, tmp_path))
    assert len(mapped) == 1
    assert torch.equal(in_memory.images, on_disk.images)
    some = torch.tensor([7, 299, 7])
    assert torch.equal(in_memory.batch(some, torch.device("cpu")), on_disk.batch(some, torch.device("cpu")))


@pytest.mark.parametrize("shape", [(30, 90), (90, 30)])
def test_images_are_squashed_never_cropped(two_classes, shape):
    image = np.zeros((*shape, 3), np.uint8)
    height, width = shape[0] // 10, shape[1] // 10
    corners = {(0, 0): (255, 0, 0), (0, -1): (0, 255, 0), (-1, 0): (0, 0, 255), (-1, -1): (255, 255, 255)}
    for (row, column), colour in corners.items():
        image[
            slice(height) if row == 0 else slice(-height, None), slice(width) if column == 0 else slice(-width, None)
        ] = colour
    loaded = load_one(two_classes, "corners.png", Image.fromarray(image))
    assert loaded.shape == (SIDE, SIDE, 3)
    for corner, colour in corners.items():
        assert np.abs(loaded[corner] - colour).max() < 40


def test_batches_are_floats_in_0_to_1_channels_first(digits_folder):
    _, store = pixels.load(index(digits_folder), 16)
    indices = torch.tensor([299, 0, 5])
    batch = store.batch(indices, torch.device("cpu"))
    assert batch.shape == (3, 3, 16, 16)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert (batch.min(), batch.max()) == (0, 1)
    assert torch.equal((batch * 255).round().to(torch.uint8).permute(0, 2, 3, 1), store.images[indices])


def test_statistics_are_of_the_examples_only(digits_folder):
    _, store = pixels.load(index(digits_folder), 16)
    examples = torch.arange(100, 300)
    mean, std = store.statistics(examples, torch.Generator())
    values = store.images[examples].double() / 255
    assert mean == pytest.approx(values.mean(dim=(0, 1, 2)).tolist(), abs=1e-4)
    assert std == pytest.approx(values.std(dim=(0, 1, 2)).tolist(), abs=1e-4)


def test_the_typical_side_is_a_median_that_broken_files_dont_move(tmp_path):
    for number, size in enumerate([(8, 8), (40, 40), (20, 80), (50, 50), (500, 500)]):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / str(number % 2) / f"{number}.png")
    for name, data in (("bomb.png", png_claiming(60_000, 60_000)), ("garbage.png", b"garbage")):
        (tmp_path / "0" / name).write_bytes(data)
    assert pixels.typical_side(index(tmp_path)) == 40
    with pytest.raises(DatasetError, match="no readable image"):
        pixels.typical_side(FolderIndex(tmp_path, ("a", "b"), ()))
