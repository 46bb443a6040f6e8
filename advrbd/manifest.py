"""``advrbd-manifest.json``, which accounts for every file: what it is, made and read back.

By the time that it is read back it may be anybody's work. Nothing is opened by a path from it: the paths are names to
look up among the files that are there. They are checked all the same, so that a manifest that ``clean`` can't have
written is refused rather than half-believed.
"""

import hashlib
import os
from bisect import bisect_left
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from advrbd.data.folder import FolderIndex
from advrbd.errors import ReportError
from advrbd.reading import SHA256, check_possible, leads_down, parse_json, read_at_most
from advrbd.writing import printable, unprintable

MANIFEST = "advrbd-manifest.json"
SCHEMA = "advrbd.manifest/1"

KEPT = "kept"
RELABELLED = "relabelled"
DROPPED = "dropped"
QUARANTINED = "quarantined"
EXCLUDED = "excluded"  # couldn't be read, so nothing can be said of it
ACTIONS = (KEPT, RELABELLED, DROPPED, QUARANTINED, EXCLUDED)

COPY = "copy"
HARDLINK = "hardlink"
SYMLINK = "symlink"
LINK_MODES = (COPY, HARDLINK, SYMLINK)

MAX_MANIFEST_BYTES = 2 * 2**30  # several million files
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Decision:
    """What becomes of one file. ``written`` is its path in the output (or the quarantine), None if it is left out."""

    source: str
    action: str
    label: str
    new_label: str | None
    written: str | None
    sha256: str


@dataclass(frozen=True)
class Entry:
    """A file as it was written: its SHA-256 in hex, and its path in the input, where a symlink leads to."""

    sha256: str
    source: str


@dataclass(frozen=True)
class Manifest:
    """What a cleaned folder holds: ``files`` by their path in it (POSIX, sorted), ``classes`` in the order of indices.

    ``source`` is the absolute path of the input where files are symlinks to it, else None; ``sha256`` is of the
    manifest's own bytes.
    """

    files: dict[str, Entry]
    classes: tuple[str, ...]
    link_mode: str
    source: str | None
    sha256: str

    @cached_property
    def _paths(self) -> list[str]:
        return list(self.files)

    def has_files_in(self, folder: str) -> bool:
        """Whether a file lies in ``folder``, at any depth."""
        start = bisect_left(self._paths, f"{folder}/")
        return start < len(self._paths) and self._paths[start].startswith(f"{folder}/")


def made_manifest(index: FolderIndex, decisions: tuple[Decision, ...], settings: dict) -> dict:
    """The manifest as JSON values, of the folder that holds what was decided; names are escaped as in reports."""
    empty = emptied_classes(index, decisions)
    return {
        "schema": SCHEMA,
        "counts": dict(sorted(Counter(entry.action for entry in decisions).items())),
        "class_to_idx": {
            "before": {printable(name): i for i, name in enumerate(index.classes)},
            "after": {printable(n): i for i, n in enumerate(n for n in index.classes if n not in empty)},
        },
        "ignored": [printable(path) for path in index.ignored],
        "files": [
            {key: printable(value) if isinstance(value, str) else value for key, value in asdict(entry).items()}
            for entry in decisions
        ],
        "settings": settings,
    }


def emptied_classes(index: FolderIndex, decisions: tuple[Decision, ...]) -> tuple[str, ...]:
    """The classes that have no file left: they are missing from the output, so class indices shift."""
    left = {entry.new_label for entry in decisions if entry.new_label is not None}
    return tuple(name for name in index.classes if name not in left)


def read_manifest(root: Path) -> Manifest:
    """The manifest of the cleaned folder ``root``.

    Raises ``ReportError`` when there is none, or when it isn't what ``clean`` writes: a path that leads out of the
    folder, a file named twice, another type, another schema.
    """
    path = root / MANIFEST
    try:
        data = read_at_most(path, MAX_MANIFEST_BYTES, ReportError, follow=False)
    except FileNotFoundError as error:
        raise ReportError(f"{path} doesn't exist; give a folder that `advrbd clean` wrote") from error
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror}") from error
    try:
        return _parse(parse_json(data), hashlib.sha256(data).hexdigest())
    except ValueError as error:
        raise ReportError(f"{path} isn't as `advrbd clean` writes it: {error}") from error


def _parse(whole: object, sha256: str) -> Manifest:
    """The manifest in ``whole``; a ``ValueError`` names the first thing that ``clean`` wouldn't have written."""
    if _member(whole, "schema", str) != SCHEMA:
        raise ValueError(f"its schema isn't {SCHEMA}")
    settings = _member(whole, "settings", dict)
    link_mode = _member(settings, "link_mode", str)
    if link_mode not in LINK_MODES:
        raise ValueError(f"link_mode is none of {', '.join(LINK_MODES)}")
    source = _absolute(_member(settings, "source", str)) if link_mode == SYMLINK else None
    files: dict[str, Entry] = {}
    for number, member in enumerate(_member(whole, "files", list)):
        try:
            written, entry = _entry(member)
            if written in files:
                raise ValueError(f"{_short(written)} is named twice")
        except ValueError as error:
            raise ValueError(f"files[{number}]: {error}") from error
        if written is not None:
            files[written] = entry
    after = _member(_member(whole, "class_to_idx", dict), "after", dict)
    manifest = Manifest(dict(sorted(files.items())), _classes(after, files), link_mode, source, sha256)
    if both := next(filter(manifest.has_files_in, files), None):
        raise ValueError(f"{_short(both)} is a file and a folder")
    return manifest


def _entry(member: object) -> tuple[str | None, Entry]:
    """The path of a file in the cleaned folder, None if it was left out, and what is known of it."""
    action = _member(member, "action", str)
    if action not in ACTIONS:
        raise ValueError(f"action is none of {', '.join(ACTIONS)}")
    source, sha256 = _inner_path(_member(member, "source", str), 1), _member(member, "sha256", str)
    if action not in (KEPT, RELABELLED):  # what went to the quarantine lies in another folder
        return None, Entry(sha256, source)
    written = _inner_path(_member(member, "written", str))
    if not SHA256.fullmatch(sha256):
        raise ValueError("sha256 isn't 64 hexadecimal digits")
    if written.split("/")[0] != unprintable(_member(member, "new_label", str)):
        raise ValueError(f"{_short(written)} doesn't lie in the folder of its label")
    return written, Entry(sha256, source)


def _member(mapping: object, key: str, kind: type[Kind]) -> Kind:
    """``mapping[key]``, which has to be there and of that kind."""
    if not isinstance(mapping, dict):
        raise ValueError(f"where {key} should stand is no object")
    member = mapping.get(key)
    if not isinstance(member, kind):
        raise ValueError(f"{key} is missing or of another type")
    return member


def _inner_path(text: str, least: int = 2) -> str:
    """A path as it was escaped, ``class/.../name``: it may lead nowhere but down, and has to be possible.

    It has at least so many parts: a table may name files that lie in no folder.
    """
    path = _possible(text)
    if path.count("/") + 1 < least or not leads_down(path):
        raise ValueError(f"{_short(path)} is no path of a file in a class folder")
    return path


def _absolute(text: str) -> str:
    path = _possible(text)
    if not os.path.isabs(path):  # noqa: PTH117 - Path would tidy what it is given
        raise ValueError(f"the source {_short(path)} isn't absolute")
    return path


def _possible(text: str) -> str:
    """The path that was escaped as ``text``, if a file system can hold it."""
    path = unprintable(text)
    try:
        check_possible(path)
    except ValueError as error:
        raise ValueError(f"{_short(path)} {error}") from error
    return path


def _classes(after: dict, files: dict[str, Entry]) -> tuple[str, ...]:
    """The class names by index; they have to be those of ``files``, counted as torchvision counts them."""
    classes = tuple(sorted({path.split("/")[0] for path in files}))
    stated = {(unprintable(name), repr(index)) for name, index in after.items()}
    if stated != {(name, repr(index)) for index, name in enumerate(classes)}:
        raise ValueError("class_to_idx.after doesn't number the class folders of its files in their order")
    return classes


def _short(path: str) -> str:
    shown = printable(path)
    return shown if len(shown) <= 100 else f"{shown[:100]}..."
