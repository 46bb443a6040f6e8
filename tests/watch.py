"""What Python code does outside of itself, heard by an audit hook, so that a test can say what it must not do."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHANGES = {"os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink"}
CHANGES |= {"os.truncate", "os.utime"}
FOREIGN = CHANGES | {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"}
FOREIGN |= {"pickle.find_class", "socket.bind", "socket.connect", "socket.getaddrinfo"}
LISTING = {"os.scandir", "os.listdir"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def changes(event: str, arguments: tuple) -> bool:
    """Whether what an audit hook heard of changes a file or a folder, the first of the arguments."""
    return event in CHANGES or (event == "open" and bool(arguments[2] & WRITES))


class Watch:
    """Hears what Python does outside (PEP 578). One for a process: what listens there can't be taken away."""

    def __init__(self) -> None:
        self._place: str | None = None
        self._heard: list[tuple] = []
        self._modules = tuple(f"{os.path.realpath(path)}/" for path in sys.path if path)  # some are imported late
        sys.addaudithook(self._hear)

    @contextmanager
    def over(self, place: Path) -> Iterator[None]:
        """A context in which nothing but ``place`` may be read, and nothing written but temporary files."""
        self._heard.clear()
        self._place = os.path.realpath(place)
        try:
            yield
        finally:
            self._place = None
        assert not self._heard, self._heard

    def _hear(self, event: str, arguments: tuple) -> None:
        if self._place is None:
            return
        foreign = event in FOREIGN
        if event == "open":
            path = arguments[0]
            foreign = not self._is_temporary(path) and (changes(event, arguments) or self._lies_outside(path))
        elif event in LISTING:
            foreign = self._lies_outside(arguments[0])
        if foreign:  # kept, not raised: what is raised here, a decoder's own ``except`` could swallow
            self._heard.append((event, *arguments))

    def _lies_outside(self, path: object) -> bool:
        if isinstance(path, int):
            return False
        return not f"{os.path.realpath(os.fsdecode(path))}/".startswith((f"{self._place}/", *self._modules))

    def _is_temporary(self, path: object) -> bool:
        """Whether it is a file descriptor, or what ``tempfile`` opens: the folder itself, for a file without a name."""
        return isinstance(path, int) or os.fsdecode(path) == tempfile.gettempdir() or ".pyc." in os.fsdecode(path)
