"""How much memory a run may take for what grows with the number of images, and where pixels go that don't fit in it."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from advrbd.errors import DatasetError

DEFAULT_SHARE = 0.5  # of what is free at the start
UNKNOWN = 4 * 2**30  # free bytes where the system doesn't say
IN_MEMORY = ("tmpfs", "ramfs")  # file systems that save no memory
CGROUPS = {  # by version: the folder of the memory controller, and its files with the limit and what is used
    2: ("", "memory.max", "memory.current", "inactive_file"),
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@dataclass(frozen=True)
class Memory:
    """``budget`` in bytes for the pixels and what else grows with the number of images; the libraries, the network and
    the batches that it works on come on top. Pixels that don't fit go to a file in ``folder``. ``asked``: the user
    set the budget, so it is a limit; else it is a guess at what is fair."""

    budget: int
    folder: Path
    asked: bool = False

    def without(self, tables: int, count: int) -> "Memory":
        """What is left for pixels where ``tables`` bytes are kept of ``count`` images besides.

        Raises ``DatasetError`` where a budget that was asked for is too small for those.
        """
        if self.asked and tables > self.budget:
            raise DatasetError(
                f"{count} images take about {in_words(tables)} besides their pixels, more than the memory budget of "
                f"{in_words(self.budget)}; raise --memory-budget, or choose a --model with fewer features"
            )
        return replace(self, budget=max(0, self.budget - tables))

    def holds(self, pixels: int) -> bool:
        """Whether ``pixels`` bytes fit in the budget. Raises ``DatasetError`` if neither they nor their file do."""
        if pixels <= self.budget:
            return True
        what, advice = f"{in_words(pixels)} of pixels", "set TMPDIR or --work-dir to a folder on a disk with room"
        if _is_in_memory(self.folder):
            raise DatasetError(f"{self.folder} is itself kept in memory, so {what} can't go there; {advice}")
        if (free := shutil.disk_usage(self.folder).free) < pixels:
            raise DatasetError(f"{self.folder} has no room for {what} ({in_words(free)} are free); {advice}")
        return False


def choose_memory(budget: int | None = None, work_dir: str | os.PathLike | None = None) -> Memory:
    """The ``budget`` in bytes, by default half of what is free now; the file goes beside what ``work_dir`` keeps, if
    there is one, else to the system's folder for temporary files."""
    folder = Path(tempfile.gettempdir())
    if work_dir is not None:
        own = Path(work_dir).absolute()
        folder = own if own.is_dir() else own.parent
    return Memory(int(DEFAULT_SHARE * free_memory()) if budget is None else budget, folder, budget is not None)


def free_memory() -> int:
    """Bytes that this process may still take: what the system has available, and its control groups allow."""
    return max(0, min(_available(), *_rooms_of_cgroups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")), 2**62))


def peak_so_far() -> int:
    """The most memory that this process has held, in bytes; 0 where the system doesn't say."""
    with suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 0


def in_words(count: int) -> str:
    """A number of bytes for people."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:.1f} {unit}"
    return f"{count} bytes"


def _available() -> int:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(AttributeError, ValueError, OSError):  # no Linux, or no POSIX at all
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return UNKNOWN


def _rooms_of_cgroups(own: Path, root: Path) -> Iterator[int]:
    """What each group that this process (with the groups ``own``) is in leaves of its limit, in bytes; see cgroups(7).

    Pages of files that nobody used for a while count as free: the kernel drops them first.
    """
    with suppress(OSError):
        for line in own.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" or "memory" in controllers.split(","):
                top, limit, used, stale = CGROUPS[2 if number == "0" else 1]
                group = root / top / path.lstrip("/")
                for folder in (group, *group.parents):
                    if folder.is_relative_to(root):
                        with suppress(OSError, ValueError, KeyError):  # ValueError: the limit is "max"
                            kept = int((folder / used).read_text()) - _statistics(folder)[stale]
                            yield int((folder / limit).read_text()) - kept


def _statistics(folder: Path) -> dict[str, int]:
    lines = (folder / "memory.stat").read_text().splitlines()
    return {name: int(value) for name, value in (line.split() for line in lines)}


def _is_in_memory(folder: Path) -> bool:
    """Whether the file system of ``folder`` is kept in memory, by proc(5), ``mountinfo``; elsewhere nobody says."""
    with suppress(OSError):
        device = folder.stat().st_dev
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            mount, _, kind = line.partition(" - ")
            if mount.split()[2] == f"{os.major(device)}:{os.minor(device)}":
                return kind.split()[0] in IN_MEMORY
    return False
