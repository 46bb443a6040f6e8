"""Writing without accidents: whole files or none, no overlap with the input, no two files under one name."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from advrbd.errors import OutputError


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary name beside ``path``, then rename: a reader sees the old file or the new one.

    Raises ``OutputError`` when it can't be written; nothing is left behind then.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:40]}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def check_target_file(path: Path, source: Path) -> None:
    """Refuse a file to be written that is a folder, has no folder to lie in, or lies inside the input."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: the folder {path.parent} doesn't exist")
    if path.resolve().is_relative_to(source.resolve()):
        raise OutputError(
            f"{path} lies inside the scanned folder {source}, which is never written to; put it elsewhere"
        )


def check_target_folder(path: Path, source: Path) -> None:
    """Refuse a folder to be written that isn't empty, or that holds or lies inside the input."""
    real, real_source = path.resolve(), source.resolve()
    if real == real_source or real.is_relative_to(real_source) or real_source.is_relative_to(real):
        raise OutputError(f"{path} overlaps the input {source}; choose a folder outside it")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputError(f"{path} exists and is no folder; choose another name")
    if path.is_dir() and any(path.iterdir()):
        raise OutputError(f"{path} isn't empty; choose a new folder, or empty this one first")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: the folder {path.parent} doesn't exist")


class NewFolder:
    """A context that fills a temporary folder beside ``out`` and renames it to ``out`` when all went well."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __enter__(self) -> Path:
        try:
            self.temporary = Path(tempfile.mkdtemp(dir=self.out.parent, prefix=f".{self.out.name[:40]}."))
        except OSError as error:
            raise OutputError(f"cannot write beside {self.out}: {error.strerror}") from error
        return self.temporary

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self.temporary.chmod(0o755)
                self.temporary.rename(self.out)
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {self.out}: {error.strerror}") from error


class Names:
    """Relative POSIX paths that are in use, regardless of case, so that no file is ever written over another."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = {path.casefold() for path in taken}

    def claim(self, path: str, origin: str) -> str:
        """``path`` if it is free, else with ``__from-origin`` (and a number, if need be) before its suffix."""
        wanted = PurePosixPath(path)
        candidate, number = path, 1
        while candidate.casefold() in self._taken:
            mark = f"__from-{origin}" + (f"-{number}" if number > 1 else "")
            candidate = str(wanted.with_name(f"{wanted.stem}{mark}{wanted.suffix}"))
            number += 1
        self._taken.add(candidate.casefold())
        return candidate


def in_class(path: str, class_name: str) -> str:
    """The relative path of the file at ``path`` when it moves to the folder of ``class_name``."""
    return "/".join((class_name, *path.split("/")[1:]))


def printable(text: str) -> str:
    """A file name as text that can be stored and shown: bytes that are no UTF-8 become backslash escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
