"""Pictures for the page of a report: files read again, shrunk and encoded anew.

Not one byte of the attacker's files gets into the page, and none that isn't of the image that was scanned: a file
whose SHA-256 has changed since gives no picture.
"""

import base64
import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from advrbd.config import DecodingSettings
from advrbd.data.decoding import decode
from advrbd.data.files import opened
from advrbd.data.folder import Read, Store
from advrbd.reports.report import FileResult

THUMBNAIL_SIDE = 96
LOSSLESS_SIDE = 48  # up to here PNG: JPEG would smear what a trigger of three pixels is made of
MEAN_SIDE = 64
MEAN_SAMPLE = 500

Result = TypeVar("Result")


@dataclass(frozen=True)
class Picture:
    """What an ``img`` element needs: a ``data:`` address, and width and height in pixels."""

    address: str
    width: int
    height: int


@dataclass(frozen=True)
class Comparison:
    """What some files of a class have in common that its others don't, uint8 [64, 64, 3] each.

    ``mean`` is of ``count`` files, ``mean_of_others`` of ``count_of_others``; ``difference`` is the absolute one per
    channel, ``amplification`` times as bright as it is, so that its largest value is 255.
    """

    mean: np.ndarray
    mean_of_others: np.ndarray
    difference: np.ndarray
    count: int
    count_of_others: int
    amplification: float


def thumbnails(
    files: Sequence[FileResult], place: Path | Store, max_pixels: int = DecodingSettings.max_pixels
) -> list[Picture | None]:
    """A picture of each file in ``place``, at most 96 pixels wide and high; None where the file changed since.

    ``max_pixels`` is the limit that the files were scanned with: none of the pictures has more.
    """

    def shrunk(file: FileResult) -> Picture | None:
        pixels = _read_again(file, read, None, max_pixels)
        if pixels is None:
            return None
        image = Image.fromarray(pixels)
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
        return picture(np.asarray(image), lossless=max(image.size) <= LOSSLESS_SIDE)

    with opened(place) as read:
        return _in_threads(shrunk, files, max_pixels)


def compare(
    files: Sequence[FileResult],
    others: Sequence[FileResult],
    place: Path | Store,
    max_pixels: int = DecodingSettings.max_pixels,
) -> Comparison | None:
    """Compare the mean image of ``files`` with that of ``others``, of at most 500 spread-out ones each.

    ``max_pixels`` is as for ``thumbnails``. None where either has no file left that is still what was scanned.
    """
    with opened(place) as read:
        mean, count = _mean(files, read, max_pixels)
        mean_of_others, count_of_others = _mean(others, read, max_pixels)
    if not count or not count_of_others:
        return None
    apart = np.abs(mean - mean_of_others)
    amplification = 255 / max(1.0, float(apart.max()))
    return Comparison(
        _as_bytes(mean),
        _as_bytes(mean_of_others),
        _as_bytes(apart * amplification),
        count,
        count_of_others,
        amplification,
    )


def picture(pixels: np.ndarray, lossless: bool = True) -> Picture:
    """Pixels uint8 [H, W, 3] as a PNG, or as a JPEG where it needn't be ``lossless``."""
    data = io.BytesIO()
    if lossless:
        Image.fromarray(pixels).save(data, "PNG", optimize=True)
    else:
        Image.fromarray(pixels).save(data, "JPEG", quality=80, subsampling=0)
    address = f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(data.getvalue()).decode()}"
    return Picture(address, width=pixels.shape[1], height=pixels.shape[0])


def _mean(files: Sequence[FileResult], read: Read, max_pixels: int) -> tuple[np.ndarray, int]:
    """The mean image float64 [64, 64, 3] in 0..255 of a spread-out sample of ``files``, and how many it is of."""
    size = min(len(files), MEAN_SAMPLE)
    sample = [files[number * len(files) // size] for number in range(size)]
    total, count = np.zeros((MEAN_SIDE, MEAN_SIDE, 3)), 0
    for pixels in _in_threads(lambda file: _read_again(file, read, MEAN_SIDE, max_pixels), sample, max_pixels):
        if pixels is not None:
            total += pixels
            count += 1
    return total / max(1, count), count


def _read_again(file: FileResult, read: Read, size: int | None, max_pixels: int) -> np.ndarray | None:
    """The pixels of a file uint8 [H, W, 3], at ``size`` unless that is None; None unless its bytes were scanned."""
    try:
        data, _, sha256 = read(file.path)
    except ValueError:  # a report may hold a zero byte in a name, a folder can't
        return None
    if data is None or sha256 != file.sha256:
        return None
    image, _ = decode(data, size, max_pixels)
    return None if image is None else np.asarray(image)


def _in_threads(function: Callable[[FileResult], Result], files: Iterable[FileResult], max_pixels: int) -> list[Result]:
    """``function`` of every file, in order; what it returns should be small."""
    with (
        warnings.catch_warnings(),
        _pillow_allows(max_pixels),
        ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
    ):
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files: the scan has told what there is to tell
        return list(pool.map(function, files))


@contextmanager
def _pillow_allows(max_pixels: int) -> Iterator[None]:
    """Pillow has a limit of its own, for the whole process, which may be lower than that of the scan."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None if before is None else max(before, max_pixels)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _as_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
