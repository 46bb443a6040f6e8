"""Is a cleaned folder still what ``clean`` wrote? Every file is hashed again and compared with the manifest.

The folder is walked without following a link, and only regular files are opened that the walk met and the manifest
names. The targets of links are opened only where the folder was written with symlinks, and only where they lead to
the very file that the manifest names. It tells what was changed since by accident or behind one's back; who rewrites
the manifest too can't be noticed, so the result holds its SHA-256 to compare with one that was kept elsewhere.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from advrbd.data.folder import MAX_FILE_BYTES
from advrbd.errors import ReportError
from advrbd.events import Notify, Progress, ignore
from advrbd.manifest import MANIFEST, Entry, Manifest, read_manifest
from advrbd.reading import NotAFileError, open_regular
from advrbd.text import csv_bytes, json_bytes
from advrbd.writing import printable

SCHEMA = "advrbd.verification/1"
COLUMNS = ("difference", "path")
CHUNK = 1024  # files in flight

SAME = "same"
MISSING = "missing"
CHANGED = "changed"
UNKNOWN = "unknown"
LINK = "link"
CLASS = "class"


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found. Paths are relative (POSIX) and sorted; those of folders end in ``/``.

    ``missing``: named by the manifest and gone. ``changed``: other bytes than were written, or no regular file any
    more. ``unknown``: not named by the manifest, hidden files too; an unknown folder is named and not entered.
    ``links``: symbolic links that weren't written, or lead elsewhere now. ``classes``: class folders that are missing
    or extra, so that class indices aren't ``class_to_idx.after`` of the manifest. ``files`` is how many files the
    manifest names, ``manifest_sha256`` is of its own bytes.
    """

    files: int
    link_mode: str
    manifest_sha256: str
    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def differences(self) -> tuple[tuple[str, str], ...]:
        """All of them as pairs of the kind of difference and the path."""
        kinds = {
            MISSING: self.missing,
            CHANGED: self.changed,
            UNKNOWN: self.unknown,
            LINK: self.links,
            CLASS: self.classes,
        }
        return tuple((kind, path) for kind, paths in kinds.items() for path in paths)


def verify(path: str | os.PathLike, notify: Notify = ignore) -> Verification:
    """Compare the cleaned folder ``path`` with its manifest.

    A regular file with the right bytes is right in any link mode. Raises ``ReportError`` when the folder or the
    manifest can't be read, the manifest isn't what ``clean`` writes, or a path in it leads through a link.
    """
    root = Path(path)
    manifest = read_manifest(root)
    found: dict[str, os.DirEntry] = {}
    kinds: dict[str, list[str]] = {kind: [] for kind in (SAME, MISSING, CHANGED, UNKNOWN, LINK, CLASS)}
    class_folders = set()
    for name, entry in _walk(root, manifest):
        is_folder = entry.is_dir(follow_symlinks=False)
        if is_folder and "/" not in name:
            class_folders.add(name)
        elif name in manifest.files:
            found[name] = entry
        elif name != MANIFEST:
            kinds[LINK if entry.is_symlink() else UNKNOWN].append(f"{name}/" if is_folder else name)
    for name, state in _compared(manifest, found, notify):
        kinds[state].append(name)
    kinds[MISSING] += manifest.files.keys() - found.keys()
    kinds[CLASS] = [f"{name}/" for name in class_folders ^ set(manifest.classes)]
    listed = [tuple(sorted(kinds[kind])) for kind in (MISSING, CHANGED, UNKNOWN, LINK, CLASS)]
    return Verification(len(manifest.files), manifest.link_mode, manifest.sha256, *listed)


def render(verification: Verification, form: str) -> bytes:
    """The report as ``csv`` or ``json``, a row per difference; paths start with ``./`` and are escaped."""
    rows = [{"difference": kind, "path": printable(f"./{path}")} for kind, path in verification.differences]
    match form:
        case "csv":
            return csv_bytes(COLUMNS, rows)
        case "json":
            whole = {
                "schema": SCHEMA,
                "as_written": not rows,
                "files": verification.files,
                "link_mode": verification.link_mode,
                "manifest_sha256": verification.manifest_sha256,
                "differences": rows,
            }
            return json_bytes(whole)
    raise ValueError(f"unknown format {form!r}")


def _walk(root: Path, manifest: Manifest) -> Iterator[tuple[str, os.DirEntry]]:
    """What lies in ``root`` and its known folders, by relative path; of known folders the classes alone are named."""
    pending = [""]
    while pending:
        above = pending.pop()
        try:
            with os.scandir(root / above) as entries:
                listed = list(entries)
        except OSError as error:
            raise ReportError(f"cannot read the folder {root / above}: {error.strerror}") from error
        for entry in listed:
            name = f"{above}{entry.name}"
            known = manifest.has_files_in(name)
            if known and entry.is_symlink():
                raise ReportError(f"{root / name} is a link, but the manifest has files in it; nothing was compared")
            entered = known and entry.is_dir(follow_symlinks=False)
            if entered:
                pending.append(f"{name}/")
            if not entered or not above:
                yield name, entry


def _compared(manifest: Manifest, found: dict[str, os.DirEntry], notify: Notify) -> Iterator[tuple[str, str]]:
    """The path and the state of every file that was found."""
    names = list(found)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(names), CHUNK):
            chunk = names[start : start + CHUNK]
            states = pool.map(lambda name: _state(found[name], manifest.files[name], manifest), chunk)
            yield from zip(chunk, states, strict=True)
            notify(Progress("verify", start + len(chunk), len(names), "files"))


def _state(entry: os.DirEntry, expected: Entry, manifest: Manifest) -> str:
    """Whether a file is as it was written, or else how not."""
    path = entry.path
    if entry.is_symlink():
        path = os.path.realpath(path)
        if manifest.source is None or path != os.path.realpath(Path(manifest.source, expected.source)):
            return LINK
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:  # never scanned, so never written
                return CHANGED
            return SAME if hashlib.file_digest(file, "sha256").hexdigest() == expected.sha256 else CHANGED
    except NotAFileError:
        return CHANGED
    except (FileNotFoundError, NotADirectoryError):  # a link to what is no more
        return MISSING
    except OSError as error:
        raise ReportError(f"cannot read {printable(path)}: {error.strerror}") from error
