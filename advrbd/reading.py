"""Reading what others made: regular files alone, paths that lead down, and JSON that says one thing only."""

import io
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from advrbd.errors import AdvrbdError

MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4096  # what file systems take
SHA256 = re.compile("[0-9a-f]{64}")


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


def read_regular(path: str | os.PathLike) -> bytes:
    """All of the regular file that ``path`` names or links to.

    Raises ``OSError`` as ``open_regular`` does; its ``strerror`` says why.
    """
    with io.BufferedReader(open_regular(os.path.realpath(path))) as file:
        return file.read()


def read_at_most(path: str | os.PathLike, most: int, refused: type[AdvrbdError], follow: bool = True) -> bytes:
    """All of a regular file that holds no more than ``most`` bytes; ``refused`` is raised for one that holds more.

    Raises ``OSError`` as ``open_regular`` does, for links as well unless they are to be followed.
    """
    with io.BufferedReader(open_regular(os.path.realpath(path) if follow else path)) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1) if size <= most else b""  # it may grow meanwhile
    if max(size, len(data)) > most:
        raise refused(f"{path} is too large to be read: more than {most >> 30} GiB")
    return data


def _open_safely(path: str, flags: int) -> int:
    """What was a file a moment ago may be a link or a FIFO by now; Windows has no such flags."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def inner_path(text: str) -> str:
    """A relative POSIX path that leads nowhere but down, without the ``./`` that it may start with.

    Raises ``ValueError`` for an absolute one, one with ``..`` or empty parts, and for what no file system can hold.
    """
    while text.startswith("./"):
        text = text[2:]
    if not leads_down(text):
        raise ValueError("leads elsewhere than down")
    check_possible(text)
    if max(len(os.fsencode(part)) for part in text.split("/")) > MAX_NAME_BYTES:
        raise ValueError(f"has a name longer than {MAX_NAME_BYTES} bytes")
    return text


def leads_down(path: str) -> bool:
    """Whether a POSIX path is relative and without ``..``, ``.``, empty parts and zero bytes."""
    parts = tuple(path.split("/"))
    split = Path(path).parts  # on Windows, that splits more than POSIX does
    return split == parts and ".." not in parts and "\0" not in path


def check_possible(path: str) -> None:
    """Raise ``ValueError`` for a path that no system call takes."""
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError as error:
        raise ValueError("holds half a character") from error
    if "\0" in path:
        raise ValueError("holds a zero byte")
    if size > MAX_PATH_BYTES:
        raise ValueError(f"is longer than {MAX_PATH_BYTES} bytes")


def parse_json(text: str | bytes, finite: bool = False) -> Any:
    """What ``text`` says in JSON. Raises ``ValueError`` where it is none, says two things under one key of an object,
    is nested too deeply to be read or, with ``finite``, holds what is no number."""
    try:
        return json.loads(text, object_pairs_hook=_keys_once, parse_constant=_no_number if finite else None)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _keys_once(pairs: list[tuple[str, object]]) -> dict:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return made


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")
