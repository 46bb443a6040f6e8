"""A work directory: what a long run has trained so far, so that one that was interrupted goes on where it was.

Nearly all of a run's time goes into training and into scoring images. Each of these steps leaves its tensors and the
state of the random generator in a file of its own, written whole or not at all; the next run repeats everything else,
finds these, and comes to the same report. Nothing is stored as a pickle, and the files are only believed where the
run is the same: the same files, settings, device and versions.
"""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from advrbd.errors import WorkDirError
from advrbd.reading import parse_json
from advrbd.text import json_bytes
from advrbd.writing import write_whole

RUN = "run.json"
LOCK = "lock"
FAMILY = "advrbd.work/"
SCHEMA = f"{FAMILY}1"
SUFFIX = ".safetensors"
GENERATOR = "random generator"
TEMPORARY = re.compile(r"\.(run\.json|\d{3,}-[a-z0-9.-]*)\.[a-z0-9_]{8}")  # what write_whole leaves when it is killed

Tensors = dict[str, torch.Tensor]


class Steps:
    """The steps of a run in their order; this one remembers nothing."""

    def remember(
        self, stage: str, inputs: tuple[torch.Tensor, ...], generator: torch.Generator, compute: Callable[[], Tensors]
    ) -> Tensors:
        """What ``compute`` makes of ``inputs`` and draws from ``generator``, now or in a run that was interrupted; the
        generator ends as it did there."""
        return compute()


class WorkDir(Steps):
    """The steps of a run that are kept in the folder ``path``; a context, since one run at a time may use it.

    ``run`` says which run it is, as JSON values; ``kept`` is how many steps were there at the start. Raises
    ``WorkDirError`` where the folder holds those of another run, is in use, can't be written, or isn't empty while
    ``resume`` wasn't asked for.
    """

    def __init__(self, path: Path, run: dict, resume: bool) -> None:
        self.path, self.kept = path, 0
        self._count, self._history = 0, hashlib.sha256()
        self._run = {"schema": SCHEMA} | json.loads(json.dumps(run))
        self._resume = resume
        self._lock = FileLock(path / LOCK, timeout=0)

    def __enter__(self) -> "WorkDir":
        try:
            self.path.mkdir(exist_ok=True)
            self._known(self._listed())  # a folder of somebody else's is refused before it gets a lock
            self._lock.acquire()
        except Timeout as error:
            raise WorkDirError(f"{self.path} is in use by another run; give this one a folder of its own") from error
        except OSError as error:
            raise self._unusable(error) from error
        try:
            held = self._listed()  # again, now that no other run can change it
            self._check(self._known(held))
            self._tidy()
            self.kept = sum(name.endswith(SUFFIX) for name in held)
            write_whole(self.path / RUN, json_bytes(self._run))
        except BaseException as error:
            self._lock.release()
            if isinstance(error, OSError):
                raise self._unusable(error) from error
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def remember(
        self, stage: str, inputs: tuple[torch.Tensor, ...], generator: torch.Generator, compute: Callable[[], Tensors]
    ) -> Tensors:
        path = self._file_of(stage, (*inputs, generator.get_state()))
        if path.is_file():
            tensors = _read(path)
            generator.set_state(tensors.pop(GENERATOR))
            return tensors
        tensors = compute()
        # clones, since safetensors refuses layers of a model that share their memory
        stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        write_whole(path, save(stored | {GENERATOR: generator.get_state()}))
        return tensors

    def _file_of(self, stage: str, inputs: tuple[torch.Tensor, ...]) -> Path:
        """Where the next step is kept. Its name holds a digest of all that led here, so that a step is found again only
        if every one before it was the same, whatever else was run in this folder."""
        self._count += 1
        self._history.update(stage.encode())
        for tensor in inputs:
            self._history.update(f"\0{tensor.dtype}{tuple(tensor.shape)}".encode())
            self._history.update(tensor.cpu().contiguous().numpy().tobytes())
        slug = re.sub("[^a-z0-9]+", "-", stage.lower()).strip("-")[:60]
        return self.path / f"{self._count:03d}-{slug}-{self._history.hexdigest()[:16]}{SUFFIX}"

    def _listed(self) -> list[str]:
        """The names of what is kept here."""
        names = [entry.name for entry in self.path.iterdir()]
        return [name for name in names if name != LOCK and not TEMPORARY.fullmatch(name)]

    def _known(self, held: list[str]) -> dict | None:
        """Which run it is that ``held`` is of, None if that is nothing. Refuses what is no work directory."""
        if not held:
            return None
        try:
            known = parse_json((self.path / RUN).read_bytes())
        except FileNotFoundError:
            known = None
        except (OSError, ValueError) as error:
            raise WorkDirError(f"cannot read {self.path / RUN}: {error}; choose a new folder") from error
        if not isinstance(known, dict) or not str(known.get("schema")).startswith(FAMILY):
            raise WorkDirError(f"{self.path} isn't empty and no work directory; choose a new folder")
        return known

    def _tidy(self) -> None:
        """Remove what a run that was killed had begun to write."""
        for entry in list(self.path.iterdir()):
            if TEMPORARY.fullmatch(entry.name):
                entry.unlink()

    def _unusable(self, error: OSError) -> WorkDirError:
        return WorkDirError(f"cannot use the work directory {self.path}: {error.strerror}")

    def _check(self, known: dict | None) -> None:
        """Refuse the work of another run, and any that wasn't asked for."""
        if known is None:
            return
        if other := _differences(known, self._run):
            raise WorkDirError(f"{self.path} belongs to a run with other {', '.join(other[:3])}; choose a new folder")
        if not self._resume:
            raise WorkDirError(f"{self.path} holds an interrupted run; add --resume to go on, or choose a new folder")


def check_usable(path: Path) -> None:
    """Refuse what no run could use as its work directory, and write nothing; what belongs to which run shows later."""
    if path.exists():
        work = WorkDir(path, {}, resume=True)
        try:
            work._known(work._listed())
        except OSError as error:
            raise work._unusable(error) from error
    elif not path.parent.is_dir():
        raise WorkDirError(f"cannot use the work directory {path}: the folder {path.parent} doesn't exist")


def _read(path: Path) -> Tensors:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if GENERATOR not in tensors:
            raise ValueError("no generator")
        return tensors
    except (OSError, SafetensorError, ValueError) as error:
        raise WorkDirError(f"{path} can't be read; remove it, and its step is run again") from error


def _differences(known: dict, wanted: dict) -> list[str]:
    """The keys of ``wanted`` that ``known`` has other values for, in the words of the settings."""
    differ = []
    for key in wanted.keys() | known.keys():
        if isinstance(wanted.get(key), dict) and isinstance(known.get(key), dict):
            differ += [f"{key}.{inner}" for inner in _differences(known[key], wanted[key])]
        elif wanted.get(key) != known.get(key):
            differ.append(key)
    return sorted(differ)
