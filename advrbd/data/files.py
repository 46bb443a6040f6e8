"""The bytes of one file of the dataset: read once, so that the SHA-256 is of what is decoded."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from advrbd.data.decoding import decode
from advrbd.data.folder import MAX_FILE_BYTES, NOT_A_FILE, OK, REFUSED_LINK, TOO_LARGE, VANISHED, Read, Store
from advrbd.reading import NotAFileError, open_regular


@contextmanager
def opened(place: Path | Store) -> Iterator[Read]:
    """A context that reads the files of a dataset, in any order and from any thread: those under a folder, or stored.

    Raises ``DatasetError`` when a store can't be opened.
    """
    if isinstance(place, Path):
        real_root = os.path.realpath(place)
        yield lambda path: read_file(place / path, real_root)
    else:
        with place.opened() as read:
            yield read


def read_file(path: Path, real_root: str | None = None) -> tuple[bytes | None, str, str]:
    """The bytes of a file, its status and its SHA-256.

    What the index said may be over: a file that has become a FIFO, or a link out of ``real_root`` (a path without
    links), isn't opened. Unless the status is ``ok`` there are no bytes, and the hash is empty.
    """
    try:
        real = os.path.realpath(path)
        if _is_outside(real, real_root):
            return None, REFUSED_LINK, ""
        with io.BufferedReader(open_regular(real)) as file:
            if real_root is not None and _is_outside(_place_of(file.fileno(), real), real_root):
                return None, REFUSED_LINK, ""  # a folder above it became a link since
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                return None, TOO_LARGE, ""
            data = file.read(MAX_FILE_BYTES + 1)  # it may be growing
    except NotAFileError:
        return None, NOT_A_FILE, ""
    except OSError:
        return None, VANISHED, ""
    if len(data) > MAX_FILE_BYTES:
        return None, TOO_LARGE, ""
    return data, OK, hashlib.sha256(data).hexdigest()


def _is_outside(real: str, real_root: str | None) -> bool:
    return real_root is not None and not real.startswith(os.path.join(real_root, ""))  # noqa: PTH118 - twice as fast


def _place_of(descriptor: int, real: str) -> str:
    """Where an open file lies, if the system tells (Linux does), else ``real``, where it was opened."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - as above
    except OSError:
        return real


def read_image(path: Path, size: int | None) -> tuple[np.ndarray | None, str, str]:
    """Decode one file in this process: its pixels uint8 [H, W, 3], at ``size`` unless that is None, status, hash.

    For files of one's own, or that a scan has decoded already: what they do to a decoder they do to this process.
    Pixels are None unless the status is ``ok``; the SHA-256 is empty where the bytes couldn't be had.
    """
    data, status, sha256 = read_file(path)
    if data is None:
        return None, status, sha256
    image, status = decode(data, size)
    return None if image is None else np.asarray(image), status, sha256
