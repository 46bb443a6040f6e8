"""Reading what others made: regular files alone, paths that lead down, and JSON that says one thing only."""

import io
import os
import stat
from pathlib import Path

MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4096  # what file systems take


class NotAFileError(OSError):
    """What should be opened is a link, a folder, a FIFO, a device."""


def open_regular(path: str | os.PathLike) -> io.FileIO:
    """Open a regular file to read it, and nothing else: neither a link nor a FIFO, which would wait for a writer.

    Raises ``NotAFileError`` for anything else, and other ``OSError`` where it can't be opened.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise NotAFileError(None, "not a regular file")
    file = open(path, "rb", buffering=0, opener=_open_safely)  # noqa: SIM115 - handed over
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise NotAFileError(None, "not a regular file")


def read_regular(path: str | os.PathLike, size: int = -1) -> bytes:
    """Up to ``size`` bytes of the regular file that ``path`` names or links to, by default all of it.

    Raises ``OSError`` as ``open_regular`` does; its ``strerror`` says why.
    """
    with io.BufferedReader(open_regular(os.path.realpath(path))) as file:
        return file.read(size)


def _open_safely(path: str, flags: int) -> int:
    """What was a file a moment ago may be a link or a FIFO by now; Windows has no such flags."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def inner_path(text: str) -> str:
    """A relative POSIX path that leads nowhere but down, without the ``./`` that it may start with.

    Raises ``ValueError`` for an absolute one, one with ``..`` or empty parts, and for what no file system can hold.
    """
    while text.startswith("./"):
        text = text[2:]
    parts = tuple(text.split("/"))
    try:
        lengths = [len(os.fsencode(part)) for part in parts]
    except UnicodeEncodeError as error:
        raise ValueError("holds half a character") from error
    if "\0" in text or ".." in parts or Path(text).parts != parts:  # on Windows, that splits more than POSIX does
        raise ValueError("leads elsewhere than down")
    if max(lengths) > MAX_NAME_BYTES or sum(lengths) + len(parts) > MAX_PATH_BYTES:
        raise ValueError("is longer than a file system takes")
    return text


def keys_once(pairs: list[tuple[str, object]]) -> dict:
    """For ``json.loads(object_pairs_hook=...)``: an object, or ``ValueError`` where a key stands twice in it."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return made
