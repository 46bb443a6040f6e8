"""Writing without accidents: whole files or none, no overlap with the input, no two files under one name."""

import os
import re
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path, PurePosixPath

from advrbd.errors import OutputError

NAME_BYTES = 255  # what file systems take
ESCAPE = re.compile(r"\\(?:([\\nrt])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|)")
SHORT_ESCAPES = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary name beside ``path``, then rename: a reader sees the old file or the new one.

    Raises ``OutputError`` when it can't be written; nothing is left behind then.
    """
    write_together({path: data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write each of ``files`` as ``write_whole`` does, and all of them or none: all have their room before the first is
    renamed. A link stays one: what it leads to is written. They are renamed in their order, so those that may replace
    an older file go last: a new one can be removed again where a later one fails, an older one can't be brought back.
    """
    staged, made = [], []
    try:
        for path, data in files.items():
            place = Path(os.path.realpath(path))
            with tempfile.NamedTemporaryFile(dir=place.parent, prefix=f".{place.name[:40]}.", delete=False) as file:
                staged.append(Path(file.name))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            staged[-1].chmod(0o666 & ~_umask())
        for temporary, path in zip(staged, files, strict=True):
            place = Path(os.path.realpath(path))
            if not place.exists():
                made.append(place)
            temporary.replace(place)
    except BaseException as error:
        for left in staged + made:
            with suppress(OSError):
                left.unlink()
        if not isinstance(error, OSError):
            raise
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def check_target(path: Path, option: str) -> None:
    """Refuse a file to be written, which ``option`` names, that is a folder or a device, or has no folder to lie in."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file")
    is_stream = path.is_symlink() and path.absolute().parts[1:2] in (("dev",), ("proc",))  # /dev/stdout
    if is_stream or (path.exists() and not path.is_file()):  # the rename would put a file in the place of /dev/null
        raise OutputError(f"{path} is a device or a pipe; give {option} the name of a file")
    _check_parent(Path(os.path.realpath(path)) if path.is_symlink() else path)


def check_target_file(path: Path, source: Path, option: str, what: str = "the scanned folder") -> None:
    """Refuse what ``check_target`` does, and a file that lies inside ``source``; ``what`` says what that is."""
    check_target(path, option)
    if source.is_dir() and path.resolve().is_relative_to(source.resolve()):
        raise OutputError(
            f"{path} lies inside {what} {source}, which is never written to; name a place outside of it with {option}"
        )


def check_apart(path: Path, other: Path, what: str = "the input") -> None:
    """Refuse a folder to be written that holds or lies inside ``other``; ``what`` says what that is."""
    real, real_other = path.resolve(), other.resolve()
    if real == real_other or real.is_relative_to(real_other) or real_other.is_relative_to(real):
        raise OutputError(f"{path} overlaps {what} {other}; choose a folder outside it")


def check_target_folder(path: Path, other: Path, what: str = "the input") -> None:
    """Refuse a folder to be written that isn't empty, or that ``check_apart`` refuses."""
    check_apart(path, other, what)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputError(f"{path} exists and is no folder; choose another name")
    if path.is_dir() and any(path.iterdir()):
        raise OutputError(f"{path} isn't empty; choose a new folder, or empty this one first")
    if path.is_dir() and (path.is_mount() or Path.cwd().is_relative_to(path.resolve())):
        raise OutputError(
            f"no folder can take the place of {path}; name a new one inside of it, such as {path / 'out'}"
        )
    _check_parent(path)


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: the folder {path.parent} doesn't exist")
    if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise OutputError(f"cannot write {path}: the folder {path.parent} is read-only")


class NewFolder:
    """A context that fills a temporary folder beside ``out`` and renames it to ``out`` when all went well."""

    def __init__(self, out: Path) -> None:
        self.out, self._renamed = out, False

    def __enter__(self) -> Path:
        try:
            self.temporary = Path(tempfile.mkdtemp(dir=self.out.parent, prefix=f".{self.out.name[:40]}."))
        except OSError as error:
            raise OutputError(f"cannot write beside {self.out}: {error.strerror}") from error
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            if kind is None:
                self.temporary.chmod(0o777 & ~_umask())
                self.temporary.rename(self.out)
                self._renamed = True
        except OSError as failed:
            error = failed
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {self.out}: {error.strerror}") from error

    def undo(self, kind: object, *_: object) -> None:
        """For ``ExitStack.push``: remove ``out`` again where what followed went wrong, if it is the one made here."""
        if kind is not None and self._renamed:
            shutil.rmtree(self.out, ignore_errors=True)


class Names:
    """Relative POSIX paths that are in use, so that no file is ever written over another.

    Neither case nor the way an accent is composed makes another name: some file systems see no difference.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()
        for path in taken:
            self._take(path)

    def claim(self, path: str, origin: str) -> str:
        """``path`` if it is free, else with ``__from-origin`` (and a number, if need be) before its suffix.

        A path that leads through a file is flattened into its top folder.
        """
        top, *inner = path.split("/")
        if any(parent in self._files for parent in _parents(alike(path))):
            inner = ["__".join(inner)]
        suffix = PurePosixPath(f"x{inner[-1]}").suffix
        for number in count():
            mark = f"__from-{origin}"[:60] if number else ""
            mark += f"-{number}" if number > 1 else ""
            name = _cut(inner[-1].removesuffix(suffix), NAME_BYTES - len(os.fsencode(mark + suffix))) + mark + suffix
            candidate = "/".join((top, *inner[:-1], name))
            if alike(candidate) not in self._files and alike(candidate) not in self._folders:
                break
        self._take(candidate)
        return candidate

    def _take(self, path: str) -> None:
        self._files.add(alike(path))
        self._folders.update(_parents(alike(path)))


def alike(path: str) -> str:
    """What a path has in common with all those that some file system takes for the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def _parents(path: str) -> list[str]:
    return [str(parent) for parent in PurePosixPath(path).parents][:-1]


def _cut(name: str, size: int) -> str:
    return os.fsencode(name)[:size].decode("utf-8", "surrogateescape") if len(os.fsencode(name)) > size else name


def in_class(path: str, class_name: str) -> str:
    """The relative path of the file at ``path`` when it moves to the folder of ``class_name``."""
    return "/".join((class_name, *path.split("/")[1:]))


def printable(text: str) -> str:
    """A file name as one line, no two names alike: what can't be printed, and the backslash, become escapes."""
    return escaped(text.replace("\\", "\\\\"))


def unprintable(text: str) -> str:
    """The file name that ``printable`` made ``text`` of.

    Raises ``ValueError`` for a backslash that begins no escape, and for an escape of what needs none: ``\\x2e\\x2e``.
    """
    return ESCAPE.sub(_unescape, text)


def _unescape(match: re.Match) -> str:
    short, byte, *longer = match.groups()
    if short:
        return SHORT_ESCAPES[short]
    code = next((int(digits, 16) for digits in (byte, *longer) if digits), None)
    if code is None or code > sys.maxunicode or 0x20 <= code < 0x7F:
        raise ValueError(f"no escape: {match.string[match.start() :][:10]!r}")
    return chr(0xDC00 + code if byte and code >= 0x80 else code)


def escaped(text: str) -> str:
    """Text from outside as one harmless line: control characters and stray bytes as backslash escapes."""
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # a byte that is no UTF-8
    if 0x80 <= code <= 0xFF:
        return f"\\u{code:04x}"  # so that it can't be taken for such a byte
    return char.encode("unicode_escape").decode("ascii")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
