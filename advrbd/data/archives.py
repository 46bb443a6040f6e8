"""What a zip or tar archive holds, and the bytes of its members: nothing is unpacked by name, no name is repaired.

Archives are the attacker's like folders. What an unpacking program could understand in another way (a member named
twice, ``..``, what comes after the end) refuses the whole archive, since a trainer might see other images than a scan.
"""

import gzip
import hashlib
import io
import os
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import BinaryIO, Generic, TypeVar, cast

from advrbd.data.folder import MAX_FILE_BYTES, NOT_A_FILE, OK, REFUSED_LINK, TOO_LARGE, UNREADABLE
from advrbd.errors import DatasetError
from advrbd.reading import inner_path, open_regular
from advrbd.writing import printable

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
MOST_RATIO = 100  # of unpacked to packed bytes: images hardly shrink
ALWAYS_UNPACKED = 2 * 2**30  # bytes that an archive may unpack to, whatever the ratio
MAX_HEADER_BYTES = 2**20  # in a tar, where tarfile would read gigabytes of them, or backwards
ENCRYPTED = 1  # among the flags of a zip's member
DOS = 0  # what a zip's member was made on
EXTRA = struct.Struct("<HH")  # the kind and the length of an extra field
UNICODE_PATH = 0x7075
UTF_8 = 0x800  # among the flags: how the name is stored
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others take as much memory as the archive asks for
ANEW = "make a new archive without it"
CORRUPT = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    LookupError,
    OverflowError,
    RuntimeError,  # encrypted, unknown methods, and headers nested too deeply
    gzip.BadGzipFile,
)


Where = TypeVar("Where", zipfile.ZipInfo, tarfile.TarInfo)


@dataclass(frozen=True)
class Member(Generic[Where]):
    """One member: its ``path`` (POSIX), its ``status`` as for a file, None for a folder, and its ``size`` in bytes."""

    path: str
    status: str | None
    size: int
    where: Where


class Container(Generic[Where]):
    """An open archive: its ``members`` by their paths, and their bytes for any thread."""

    def __init__(self, path: Path, members: list[Member[Where]]) -> None:
        self.members: dict[str, Member[Where]] = {}
        self._lock = Lock()
        for member in members:
            same = self.members.setdefault(member.path, member)
            if same is not member and not (same.status is None and member.status is None):
                raise DatasetError(f"{path} holds {printable(member.path)} twice, which may be two images; {ANEW}")
        files = {name for name, member in self.members.items() if member.status is not None}
        folders = {str(parent) for name in self.members for parent in PurePosixPath(name).parents}
        if both := min(files & folders, default=None):
            raise DatasetError(f"{path} holds {printable(both)} as a file and as a folder; {ANEW}")

    def read(self, member: Member[Where]) -> tuple[bytes | None, str, str]:
        """The bytes of a member, its status and its SHA-256: unless it is ``ok``, None and ``""``."""
        if member.status != OK:
            return None, member.status or NOT_A_FILE, ""
        try:
            with self._lock:
                data = self._bytes_of(member)
        except (*CORRUPT, OSError):
            return None, UNREADABLE, ""
        if len(data) != member.size:
            return None, UNREADABLE, ""
        return data, OK, hashlib.sha256(data).hexdigest()

    def _bytes_of(self, member: Member[Where]) -> bytes:
        raise NotImplementedError


class Zip(Container[zipfile.ZipInfo]):
    """As its central directory says, which is what Python, Info-ZIP and most others go by."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._zip = zipfile.ZipFile(file)
        found = self._zip.infolist()
        _check_total(path, sum(info.file_size for info in found), os.fstat(file.fileno()).st_size)
        named = ((info, _path(path, _zip_name(path, info))) for info in found)
        super().__init__(path, [Member(name, _zip_status(info), info.file_size, info) for info, name in named if name])

    def _bytes_of(self, member: Member[zipfile.ZipInfo]) -> bytes:
        with self._zip.open(member.where) as stream:
            return stream.read(member.size + 1)


class Tar(Container[tarfile.TarInfo]):
    """As its headers say from the first to the end, after which there may be nothing but zeros."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._file = file
        file.seek(0)
        bounded = cast("BinaryIO", _Headers(file))  # it has all of a file that reading headers takes
        headers = tarfile.open(fileobj=bounded, mode="r:", encoding="utf-8")  # noqa: SIM115 - the file isn't its
        members, end = [], -1
        for info in headers:
            if info.size < 0 or headers.offset <= end:
                raise tarfile.ReadError("a header that leads backwards")
            end = headers.offset
            if name := _path(path, info.name):
                members.append(Member(name, _tar_status(info), info.size, info))
        file.seek(headers.offset)
        if len(file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it doesn't end as a tar does")
        file.seek(headers.offset)
        while chunk := file.read(2**20):
            if chunk.strip(b"\0"):
                raise tarfile.ReadError("a broken header, or something after the end")
        super().__init__(path, members)

    def _bytes_of(self, member: Member[tarfile.TarInfo]) -> bytes:
        self._file.seek(member.where.offset_data)
        return self._file.read(member.size)


class _Headers:
    """A file for tarfile, which reads headers of any size that they claim."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header of an impossible size")
        return self._file.read(size)


@contextmanager
def opened(path: Path) -> Iterator[Container]:
    """The archive at ``path``, by its suffix a zip or a tar.

    A compressed tar is unpacked as one file without a name, which is gone with the process: gzip can't be read from the
    middle. Raises ``DatasetError`` when the archive can't be read, is cut off or broken, unpacks to too much, or could
    be understood in more ways than one.
    """
    name = path.name.lower()
    with ExitStack() as files:
        try:
            file = files.enter_context(io.BufferedReader(open_regular(os.path.realpath(path))))
            if name.endswith(ZIP_SUFFIXES):
                container: Container = Zip(path, file)
            elif name.endswith(".tar"):
                container = Tar(path, file)
            else:
                unpacked = files.enter_context(tempfile.TemporaryFile(prefix="advrbd-"))
                _unpack(path, file, unpacked)
                container = Tar(path, unpacked)
        except CORRUPT as error:
            raise DatasetError(f"{path} is cut off, broken, or no such archive: {error}") from error
        except OSError as error:
            raise DatasetError(f"cannot read {path}: {error.strerror}") from error
        yield container


def _unpack(path: Path, file: BinaryIO, target: BinaryIO) -> None:
    size = os.fstat(file.fileno()).st_size
    with gzip.open(file) as stream:
        while chunk := stream.read(2**20):
            _check_total(path, target.tell() + len(chunk), size)
            try:
                target.write(chunk)
                target.flush()
            except OSError as error:
                where = tempfile.gettempdir()
                raise DatasetError(f"{where} has no room for {path} unpacked; set TMPDIR, or unpack it") from error


def _check_total(path: Path, unpacked: int, packed: int) -> None:
    if unpacked > max(ALWAYS_UNPACKED, MOST_RATIO * packed):
        raise DatasetError(f"{path} would unpack to over {MOST_RATIO} times its size, as no archive of images does")


def _path(archive: Path, name: str) -> str:
    """The path of a member as it would be unpacked; empty for the folder that the archive is of."""
    if name in (".", "./"):
        return ""
    try:
        return inner_path(name.removesuffix("/"))
    except ValueError as error:
        raise DatasetError(f"{archive} holds {printable(name)[:100]!r}, which {error}; {ANEW}") from error


def _zip_name(archive: Path, info: zipfile.ZipInfo) -> str:
    """The name of a member, if there is only one: some programs take that of an extra field, which Python 3.12 began
    to, or take DOS's word for what a backslash means."""
    name, extra = info.orig_filename, info.extra
    codes = ("utf-8" if info.flag_bits & UTF_8 else "cp437"), "utf-8"
    same = [name.encode(code, errors="surrogateescape") for code in codes]  # as it is stored, or as it is read
    other = info.create_system == DOS and "\\" in name and "/" not in name
    while len(extra) >= EXTRA.size:
        kind, length = EXTRA.unpack_from(extra)
        field, extra = extra[EXTRA.size :][:length], extra[EXTRA.size + length :]
        other |= kind == UNICODE_PATH and field[5:] not in same  # after a version and a checksum
    if other:
        raise DatasetError(f"{archive} holds {printable(name)[:100]}, which has another name as well; {ANEW}")
    return name


def _zip_status(info: zipfile.ZipInfo) -> str | None:
    mode = info.external_attr >> 16  # where it was made on a system with such modes, else zero
    if stat.S_ISLNK(mode):
        return REFUSED_LINK
    if info.is_dir():
        return None
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return NOT_A_FILE
    if info.flag_bits & ENCRYPTED or info.compress_type not in PACKED:
        return UNREADABLE
    return TOO_LARGE if info.file_size > MAX_FILE_BYTES else OK


def _tar_status(info: tarfile.TarInfo) -> str | None:
    if info.isdir():
        return None
    if info.issym() or info.islnk():
        return REFUSED_LINK
    if not info.isreg():
        return NOT_A_FILE
    if info.issparse():
        return UNREADABLE
    return TOO_LARGE if info.size > MAX_FILE_BYTES else OK
