"""Plant a backdoor: write a copy of an image folder with some of its images poisoned, and the truth beside it."""

import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from advrbd.attacks.base import CLEAN, Attack, Change, Stamp
from advrbd.data.decoding import decode
from advrbd.data.files import read_file, read_image
from advrbd.data.folder import OK, FolderIndex, ImageFile, lost_in_words
from advrbd.data.sources import index_class_folders
from advrbd.errors import DatasetError
from advrbd.events import Caution, Notify, Progress, ignore
from advrbd.text import csv_bytes
from advrbd.writing import Names, NewFolder, check_target_file, check_target_folder, in_class, printable, write_whole

TELL_EVERY = 100  # images
TRUTH_COLUMNS = ("path", "role", "label", "original_label", "original_path")


@dataclass(frozen=True)
class PlantedFile:
    """One file of the poisoned copy: ``role`` is poison, cover, mislabelled or clean; paths as in the index."""

    path: str
    role: str
    label: str
    original_label: str
    original_path: str


def plant(
    root: str | os.PathLike,
    out: str | os.PathLike,
    attack: Attack,
    target_label: str,
    poison_rate: float = 0.05,
    seed: int = 0,
    notify: Notify = ignore,
    known: dict[str, str] | None = None,
) -> tuple[PlantedFile, ...]:
    """Write ``root`` to the new folder ``out`` with ``poison_rate`` of its images poisoned, and ``out.truth.csv``.

    Clean files are copied byte for byte. Poisoned files keep their format, without loss where it knows how; they
    move to the folder of their new label (``target_label``, in most attacks). What can't be read, or was drawn and
    can't be decoded, is left out, with a caution; ``known`` is that of ``draw_plan``. Raises ``DatasetError`` or
    ``OutputError``; nothing is half-written.
    """
    out = Path(out)
    source = index_class_folders(root)
    check_target_folder(out, source.root)
    truth_path = out.with_name(out.name + ".truth.csv")
    check_target_file(truth_path, source.root, "--out")
    target = class_number(source, target_label)
    check_poison_rate(poison_rate)

    known = {} if known is None else known
    files, plan, generator = draw_plan(source, attack, target, poison_rate, seed, known, notify)
    if not plan:
        raise DatasetError(f"{attack.name} would poison no file; raise the poison rate")
    folder = NewFolder(out)
    with ExitStack() as undone:
        undone.push(folder.undo)
        with folder as temporary:
            planted = _write_files(source, files, plan, temporary, generator, known)
        write_whole(truth_path, _truth_csv(planted))
    copied = {entry.original_path for entry in planted}
    lost = Counter(known.get(file.path, file.status) for file in source.files if file.path not in copied)
    if lost:
        notify(Caution(f"{lost.total()} files of {source.root} aren't in the copy: {lost_in_words(lost)}"))
    return tuple(sorted(planted, key=lambda entry: entry.path))


def class_number(source: FolderIndex, name: str) -> int:
    """The label that images of the class have. Raises ``DatasetError`` where there is no class of that name."""
    if name not in source.classes:
        known = ", ".join(source.classes[:20])
        raise DatasetError(f"{source.root} has no class {name!r}; its classes are {known}")
    return source.classes.index(name)


def check_poison_rate(rate: float) -> None:
    """Raise ``DatasetError`` where the rate is no share that can be poisoned."""
    if not 0 < rate < 1:
        raise DatasetError(f"a poison rate of {rate:g} makes no sense; give a share between 0 and 1")


def draw_plan(
    source: FolderIndex,
    attack: Attack,
    target: int,
    poison_rate: float,
    seed: int,
    known: dict[str, str],
    notify: Notify,
) -> tuple[list[ImageFile], list[Change], np.random.Generator]:
    """The files to copy, what ``attack`` does to them by their position, and the generator that draws on.

    An image that is drawn and can't be decoded is left out, and all are drawn again. ``known`` has the status of each
    image that was decoded, by its path: what it holds isn't decoded again, and what is decoded is added to it.
    """
    files = [file for file in source.files if file.status == OK]
    while True:
        labels, generator = np.array([file.label for file in files], dtype=np.int64), np.random.default_rng(seed)
        plan = attack.plan(labels, target, len(source.classes), poison_rate, generator)
        drawn = {files[change.position].path for change in plan if change.stamp}
        new = sorted(drawn - known.keys())
        for done, path in enumerate(new, 1):
            _, known[path], _ = read_image(source.root / path, None)
            if done % TELL_EVERY == 0 or done == len(new):
                notify(Progress("check", done, len(new)))
        broken = {path for path in drawn if known[path] != OK}
        if not broken:
            return files, plan, generator
        files = [file for file in files if file.path not in broken]  # whatever else is known, so that draws don't vary


def _write_files(
    source: FolderIndex,
    files: list[ImageFile],
    plan: list[Change],
    out: Path,
    generator: np.random.Generator,
    known: dict[str, str],
) -> list[PlantedFile]:
    """Write the copy of each of ``files`` below ``out``, changed as ``plan`` says."""
    changes = {change.position: change for change in plan}
    names = Names(file.path for file in files)
    planted = []
    for position, file in enumerate(files):
        data, status, _ = read_file(source.root / file.path)
        if data is None:
            known[file.path] = status
            continue
        change, label = changes.get(position), source.class_name(file)
        path = file.path
        if change and change.label != file.label:
            path = names.claim(in_class(path, source.classes[change.label]), label)
        destination = out / path
        destination.parent.mkdir(parents=True, exist_ok=True)
        if change and change.stamp:
            _stamp_file(data, destination, change.stamp, generator)
        else:
            destination.write_bytes(data)
        role = change.role if change else CLEAN
        planted.append(PlantedFile(path, role, path.split("/")[0], label, file.path))
    return planted


def _stamp_file(data: bytes, destination: Path, stamp: Stamp, generator: np.random.Generator) -> None:
    image, status = decode(data, None)
    if image is None:
        raise DatasetError(f"a file changed while it was copied to {destination}: {status}; try again")
    stamped = Image.fromarray(stamp(np.asarray(image), generator))
    match destination.suffix.lower():
        case ".jpg" | ".jpeg":
            stamped.save(destination, quality=95, subsampling=0)
        case ".webp":
            stamped.save(destination, lossless=True)
        case ".pgm":
            stamped.save(destination, format="PPM")
        case _:
            stamped.save(destination)


def _truth_csv(planted: list[PlantedFile]) -> bytes:
    rows = (
        {
            "path": printable(f"./{file.path}"),
            "role": file.role,
            "label": printable(file.label),
            "original_label": printable(file.original_label),
            "original_path": printable(f"./{file.original_path}"),
        }
        for file in sorted(planted, key=lambda entry: entry.path)
    )
    return csv_bytes(TRUTH_COLUMNS, rows)
