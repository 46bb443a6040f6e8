"""An ImageFolder in an archive: the same files, classes and order as if it were unpacked, without doing that.

A single folder that holds all the class folders is passed through, since archives are made with and without it. Links
aren't followed: there is nothing that they could lead to.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from advrbd.data import archives
from advrbd.data.archives import Member
from advrbd.data.folder import (
    EXTENSIONS,
    REFUSED_LINK,
    SPLIT_NAMES,
    VANISHED,
    FolderIndex,
    ImageFile,
    Read,
    check_classes,
)
from advrbd.data.labels import METADATA_NAMES
from advrbd.errors import DatasetError
from advrbd.writing import printable

APPLE = "__MACOSX/"  # what Finder puts into every zip, and takes out again


@dataclass(frozen=True)
class PackedFolder:
    """The image folder in the archive at ``path``, or its sub-folder ``split``."""

    path: Path
    split: str | None = None

    def index(self, layout: str) -> FolderIndex:
        """List the images without reading any; paths are relative to the folder that holds the class folders.

        Raises ``DatasetError`` as ``folder.index`` and ``archives.opened`` do.
        """
        with archives.opened(self.path) as container:
            members = self._inner(container.members)
        inside = {member.path for member in members.values()}
        outside = [path for path, member in container.members.items() if member.status and path not in inside]
        if found := next((name for name in METADATA_NAMES if name in members), None):
            raise DatasetError(f"{self.path} holds {found}, whose labels are read in a folder only; unpack it")
        folders = _folders(members)
        links = [path for path, member in members.items() if "/" not in path and member.status == REFUSED_LINK]
        if links:
            raise DatasetError(f"{self.path}: {printable(links[0])} is a link where class folders are; {archives.ANEW}")
        classes = tuple(sorted(folders))
        check_classes(self.path, classes, self.split)
        labels = {name: label for label, name in enumerate(classes)}
        files, ignored = [], [] if self.split else outside
        for path, member in sorted(members.items(), key=_place):
            top, _, name = path.partition("/")
            if name and (member.status == REFUSED_LINK or (member.status and path.lower().endswith(EXTENSIONS))):
                files.append(ImageFile(path, labels[top], member.status, length=member.size))
            elif member.status is not None:
                ignored.append(path)
        return FolderIndex(self.path, classes, tuple(files), tuple(ignored), layout, self)

    @contextmanager
    def opened(self) -> Iterator[Read]:
        """A context that reads members by the paths of the index."""
        with archives.opened(self.path) as container:
            members = self._inner(container.members)

            def read(path: str) -> tuple[bytes | None, str, str]:
                return container.read(members[path]) if path in members else (None, VANISHED, "")

            yield read

    def _inner(self, members: dict[str, Member]) -> dict[str, Member]:
        """The members in the folder that holds the class folders, by their paths in it."""
        members = {path: member for path, member in members.items() if not path.startswith(APPLE)}
        folders = _folders(members)
        if self.split not in folders and len(folders) == 1 and not {name.lower() for name in folders} & SPLIT_NAMES:
            inner = _within(members, *folders)
            if any("/" in path or member.status is None for path, member in inner.items()):
                members = inner
        if self.split is None:
            return members
        inner = {} if "/" in self.split else _within(members, self.split)
        if not inner:
            raise DatasetError(f"{self.path} has no split folder named {self.split!r}")
        return inner


def _folders(members: dict[str, Member]) -> set[str]:
    """The names of the folders at the top."""
    return {path.split("/")[0] for path, member in members.items() if "/" in path or member.status is None}


def _within(members: dict[str, Member], folder: str) -> dict[str, Member]:
    start = f"{folder}/"
    return {path.removeprefix(start): member for path, member in members.items() if path.startswith(start)}


def _place(item: tuple[str, Member]) -> tuple[str, str, str]:
    """Sorts paths as torchvision does: by class, by folder, by name."""
    folder, _, name = item[0].rpartition("/")
    return item[0].split("/")[0], folder, name
