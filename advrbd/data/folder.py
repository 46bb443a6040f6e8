"""The index of an image folder, by the rules of ``torchvision.datasets.ImageFolder``.

Top folder = class, any depth below, torchvision's extensions, plain sorted order. Unlike torchvision's, this index
keeps relative POSIX paths, says of every entry what became of it, never opens anything but a regular file, and
follows no link out of the tree: the folder is the attacker's.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from advrbd.errors import DatasetError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
MAX_FILE_BYTES = 512 * 2**20  # what is larger is never read
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "dev"})

OK = "ok"
UNREADABLE = "unreadable"  # not an image that Pillow decodes completely
TOO_LARGE = "too-large"  # more pixels or bytes than the limits allow: never decoded
NOT_A_FILE = "not-a-file"  # a FIFO, a socket, a device: never opened
REFUSED_LINK = "refused-link"  # a link out of the folder, a loop or a dangling one: never followed
DECODER_CRASHED = "decoder-crashed"  # it ended the process that decoded it, twice
TOO_SLOW = "too-slow"  # not decoded within the time limit
VANISHED = "vanished"  # listed, then gone or locked by the time it was read
STATUSES = (OK, UNREADABLE, TOO_LARGE, NOT_A_FILE, REFUSED_LINK, DECODER_CRASHED, TOO_SLOW, VANISHED)


@dataclass(frozen=True, slots=True)  # slots, since there may be millions
class ImageFile:
    """One entry of the folder: ``path`` relative to its root (POSIX, no leading ``./``), ``label`` a class index,
    ``length`` in bytes when it was listed."""

    path: str
    label: int
    status: str = OK
    sha256: str = ""
    length: int = 0

    def having(self, status: str, sha256: str) -> "ImageFile":
        """The same file after it was read."""
        return replace(self, status=status, sha256=sha256)


Read = Callable[[str], tuple[bytes | None, str, str]]
"""From the path of an ``ImageFile`` to its bytes, its status and its SHA-256: unless it is ``ok``, None and ``""``."""


class Store(Protocol):
    """What files lie in that are no files of the file system: an archive."""

    def opened(self) -> AbstractContextManager[Read]:
        """A context that reads; several threads may share it."""


@dataclass(frozen=True)
class FolderIndex:
    """What ``root`` holds: class names in torchvision's order, image files sorted as torchvision sorts them.

    ``ignored`` are the files that are no images by their extension, or lie outside any class folder. ``layout`` says
    how the input was read (``sources`` has the others). The files lie in ``store``, or under ``root`` where it is None.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[ImageFile, ...]
    ignored: tuple[str, ...] = ()
    layout: str = "folder"
    store: Store | None = None

    @property
    def place(self) -> Path | Store:
        """What ``files.opened`` reads the files from."""
        return self.store or self.root

    @property
    def statuses(self) -> Counter[str]:
        """How many files have which status, as far as is known."""
        return Counter(file.status for file in self.files)

    def class_name(self, file: ImageFile) -> str:
        return self.classes[file.label]


def index(root: str | os.PathLike, split: str | None = None) -> FolderIndex:
    """List the images under ``root`` (or ``root/split``) without opening any of them.

    Raises ``DatasetError`` when the folder is missing, isn't a folder, has no or only one class folder, or holds
    nothing but splits such as ``train`` and ``val``.
    """
    root = Path(root)
    check_is_folder(root)
    root = split_folder(root, split)
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(f"cannot read {root}: {error.strerror}") from error
    classes = tuple(entry.name for entry in entries if _is_folder(entry))
    check_classes(root, classes, split)

    real_root = root.resolve()
    files: list[ImageFile] = []
    ignored = [entry.name for entry in entries if not _is_folder(entry)]
    for label, name in enumerate(classes):
        _walk(root, real_root, name, label, files, ignored)
    return FolderIndex(root, classes, tuple(files), tuple(ignored))


def lost_in_words(statuses: Mapping[str, int]) -> str:
    """What a count of files by their status says of those that can't be used, as "2 unreadable"; empty without any."""
    return ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()) if status != OK)


def check_every_class(index: FolderIndex) -> None:
    """Raise ``DatasetError`` where a class holds no file that can be read, as far as is known."""
    readable = {file.label for file in index.files if file.status == OK}
    empty = [label for label in range(len(index.classes)) if label not in readable]
    if empty:
        names = ", ".join(repr(index.classes[label]) for label in empty[:5])
        lost = sorted({file.status for file in index.files if file.label in empty})
        why = f" ({', '.join(lost)})" if lost else ""
        raise DatasetError(f"no readable image in class {names}{why}; remove the folder or mend it")


def check_is_folder(root: Path) -> None:
    """Raise ``DatasetError`` where ``root`` is missing or isn't a folder."""
    if not root.exists():
        raise DatasetError(f"no such folder: {root}")
    if not root.is_dir():
        raise DatasetError(f"{root} is a file; give the folder that holds one sub-folder of images per class")


def split_folder(root: Path, split: str | None) -> Path:
    """``root``, or its sub-folder ``split``; raises ``DatasetError`` when there is none."""
    if split is None:
        return root
    if split in ("", ".", "..") or Path(split).name != split or not (root / split).is_dir():
        raise DatasetError(f"{root} has no split folder named {split!r}")
    if not (root / split).resolve().is_relative_to(root.resolve()):
        raise DatasetError(f"{root / split} is a link out of {root}, which isn't followed; name where it leads")
    return root / split


def check_classes(root: Path, classes: tuple[str, ...], split: str | None) -> None:
    """Raise ``DatasetError`` for class folders that are none, one only, or splits."""
    if classes and split is None and {name.lower() for name in classes} <= SPLIT_NAMES:
        raise DatasetError(
            f"{root} holds only splits ({', '.join(classes)}), no classes; scan one of them with --split {classes[0]}"
        )
    if not classes:
        raise DatasetError(f"{root} holds no class folders; put the images of each class into a sub-folder of its own")
    if len(classes) == 1:
        raise DatasetError(f"{root} holds one class only ({classes[0]}); at least two are needed to train a classifier")


def _walk(root: Path, real_root: Path, top: str, label: int, files: list[ImageFile], ignored: list[str]) -> None:
    """Append what lies under ``root/top``, in the order of ``sorted(os.walk(...))`` that torchvision uses."""
    found: list[tuple[str, list[str]]] = []
    pending, walked = [top], {real_root}  # links may lead around, but no folder is walked twice in one class
    while pending:
        folder = pending.pop()
        real = Path(os.path.realpath(root / folder))
        if real in walked or not real.is_relative_to(real_root):
            files.append(ImageFile(folder, label, REFUSED_LINK))
            continue
        walked.add(real)
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name, reverse=True)
        except OSError:
            files.append(ImageFile(folder, label, VANISHED))
            continue
        found.append((folder, sorted(entry.name for entry in entries if not _is_folder(entry))))
        pending += [f"{folder}/{entry.name}" for entry in entries if _is_folder(entry)]

    for folder, names in sorted(found):
        for path in (f"{folder}/{name}" for name in names):
            if path.lower().endswith(EXTENSIONS):
                status, length = file_status(f"{root}/{path}", real_root)
                files.append(ImageFile(path, label, status, length=length))
            else:
                ignored.append(path)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def file_status(path: str, real_root: Path) -> tuple[str, int]:
    """What is known of a file before it is opened, its status and its length in bytes; the folder that it lies in was
    followed already."""
    is_link = False
    try:
        found = os.lstat(path)
        if is_link := stat.S_ISLNK(found.st_mode):
            target = Path(os.path.realpath(path))
            if not target.is_relative_to(real_root):
                return REFUSED_LINK, 0
            found = target.stat()
    except OSError:
        return REFUSED_LINK if is_link else VANISHED, 0
    return (OK, found.st_size) if stat.S_ISREG(found.st_mode) else (NOT_A_FILE, 0)
