"""Plant a backdoor: write a copy of an image folder with some of its images poisoned, and the truth beside it."""

import csv
import io
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from advrbd.attacks.base import CLEAN, Attack, Change, Stamp
from advrbd.data.files import read_image
from advrbd.data.folder import OK, FolderIndex, ImageFile
from advrbd.data.sources import index_class_folders
from advrbd.errors import DatasetError
from advrbd.reports.tables import csv_cell
from advrbd.writing import Names, NewFolder, check_target_file, check_target_folder, in_class, printable, write_whole

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
) -> tuple[PlantedFile, ...]:
    """Write ``root`` to the new folder ``out`` with ``poison_rate`` of its images poisoned, and ``out.truth.csv``.

    Clean files are copied byte for byte. Poisoned files keep their format, without loss where it knows how; they
    move to the folder of their new label (``target_label``, in most attacks). Raises ``DatasetError`` or
    ``OutputError``; nothing is half-written.
    """
    out = Path(out)
    source = index_class_folders(root)
    check_target_folder(out, source.root)
    truth_path = out.with_name(out.name + ".truth.csv")
    check_target_file(truth_path, source.root, "--out")
    if target_label not in source.classes:
        raise DatasetError(f"{root} has no class {target_label!r}; its classes are {', '.join(source.classes[:20])}")
    if not 0 < poison_rate < 1:
        raise DatasetError(f"a poison rate of {poison_rate:g} makes no sense; give a share between 0 and 1")

    files = [file for file in source.files if file.status == OK]
    labels = np.array([file.label for file in files])
    generator = np.random.default_rng(seed)
    target = source.classes.index(target_label)
    plan = attack.plan(labels, target, len(source.classes), poison_rate, generator)
    folder = NewFolder(out)
    with ExitStack() as undone:
        undone.push(folder.undo)
        with folder as temporary:
            planted = _write_files(source, files, plan, temporary, generator)
        write_whole(truth_path, _truth_csv(planted))
    return tuple(sorted(planted, key=lambda entry: entry.path))


def _write_files(
    source: FolderIndex, files: list[ImageFile], plan: list[Change], out: Path, generator: np.random.Generator
) -> list[PlantedFile]:
    """Write the copy of each of ``files`` below ``out``, changed as ``plan`` says."""
    changes = {change.position: change for change in plan}
    names = Names(file.path for file in files)
    planted = []
    for position, file in enumerate(files):
        change, label = changes.get(position), source.class_name(file)
        path = file.path
        if change and change.label != file.label:
            path = names.claim(in_class(path, source.classes[change.label]), label)
        destination = out / path
        destination.parent.mkdir(parents=True, exist_ok=True)
        if change and change.stamp:
            _stamp_file(source.root / file.path, destination, change.stamp, generator)
        else:
            shutil.copyfile(source.root / file.path, destination)
        role = change.role if change else CLEAN
        planted.append(PlantedFile(path, role, path.split("/")[0], label, file.path))
    return planted


def _stamp_file(source: Path, destination: Path, stamp: Stamp, generator: np.random.Generator) -> None:
    pixels, status, _ = read_image(source, None)
    if pixels is None:
        raise DatasetError(f"cannot poison {source}: {status}; remove it or mend it")
    stamped = Image.fromarray(stamp(pixels, generator))
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
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(TRUTH_COLUMNS)
    for file in sorted(planted, key=lambda entry: entry.path):
        paths = printable(f"./{file.path}"), printable(f"./{file.original_path}")
        labels = (csv_cell(printable(label)) for label in (file.label, file.original_label))
        rows.writerow((paths[0], file.role, *labels, paths[1]))
    return text.getvalue().encode()
