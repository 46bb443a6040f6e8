"""The cleaned ImageFolder: what becomes of each file, the files themselves, and the manifest that accounts for all.

Nothing but class folders and ``advrbd-manifest.json`` lies in the output, since torchvision takes every folder there
for a class; quarantined files go to a folder of their own. Files are copied byte for byte, and only if they are
still the bytes that were scanned.
"""

import csv
import hashlib
import io
import json
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from advrbd.data.folder import OK, FolderIndex
from advrbd.errors import OutputError
from advrbd.reports.report import Report
from advrbd.reports.tables import COLUMNS, csv_cell, row
from advrbd.writing import Names, NewFolder, in_class, printable

MANIFEST = "advrbd-manifest.json"
SCHEMA = "advrbd.manifest/1"

KEPT = "kept"
RELABELLED = "relabelled"
DROPPED = "dropped"
QUARANTINED = "quarantined"
EXCLUDED = "excluded"  # couldn't be read, so nothing can be said of it


@dataclass(frozen=True)
class Decision:
    """What becomes of one file. ``written`` is its path in the output (or the quarantine), None if it is left out."""

    source: str
    action: str
    label: str
    new_label: str | None
    written: str | None
    sha256: str


def decide(report: Report, action: str, confidence_floor: float) -> tuple[Decision, ...]:
    """Decide on every file of ``report``: keep it, or do with a suspect what ``action`` says.

    ``relabel`` moves a suspect to its suggested class when the confidence reaches ``confidence_floor`` and the class
    is another one, and drops it otherwise: a guess isn't worth the poison. ``drop`` and ``quarantine`` guess nothing.
    """
    names = Names(file.path for file in report.files if file.status == OK and not file.suspect)
    decisions = []
    for file in report.files:
        label, written = file.label, None
        if file.status != OK:
            done, new_label = EXCLUDED, None
        elif not file.suspect:
            done, new_label, written = KEPT, label, file.path
        elif action == "quarantine":
            done, new_label, written = QUARANTINED, None, file.path
        elif (
            action == "relabel"
            and file.suggested_label not in (None, label)
            and (file.suggested_confidence or 0) >= confidence_floor
        ):
            done, new_label = RELABELLED, file.suggested_label
            written = names.claim(in_class(file.path, new_label), label)
        else:
            done, new_label = DROPPED, None
        decisions.append(Decision(file.path, done, label, new_label, written, file.sha256))
    return tuple(decisions)


def write_folder(
    index: FolderIndex, decisions: tuple[Decision, ...], out: Path, quarantine: Path, settings: dict
) -> dict:
    """Write the folder ``out`` (and ``quarantine``, if any file goes there) and return the manifest.

    Both are filled under temporary names and renamed at the end. Raises ``OutputError`` when a file is no longer
    what was scanned, or a target can't be written; neither target exists then.
    """
    manifest = _manifest(index, decisions, settings)
    with ExitStack() as targets:
        if any(entry.action == QUARANTINED for entry in decisions):
            aside = targets.enter_context(NewFolder(quarantine))
        kept = targets.enter_context(NewFolder(out))
        for entry in decisions:
            if entry.written is not None:
                _copy(index.root, entry, aside if entry.action == QUARANTINED else kept)
        (kept / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def decisions_csv(report: Report, decisions: tuple[Decision, ...]) -> bytes:
    """The CSV report of a clean: the rows of ``scan``'s for suspects and unread files, and what was done with each."""
    made = {entry.source: entry for entry in decisions}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*COLUMNS, "action", "written"))
    for file in report.files:
        if file.suspect or file.status != OK:
            entry, done = row(file), made[file.path]
            written = "" if done.written is None else printable(f"./{done.written}")
            writer.writerow([csv_cell(entry[column]) for column in COLUMNS] + [done.action, written])
    return text.getvalue().encode()


def emptied_classes(index: FolderIndex, decisions: tuple[Decision, ...]) -> tuple[str, ...]:
    """The classes that have no file left: they are missing from the output, so class indices shift."""
    left = {entry.new_label for entry in decisions if entry.new_label is not None}
    return tuple(name for name in index.classes if name not in left)


def _manifest(index: FolderIndex, decisions: tuple[Decision, ...], settings: dict) -> dict:
    empty = emptied_classes(index, decisions)
    return {
        "schema": SCHEMA,
        "counts": dict(sorted(Counter(entry.action for entry in decisions).items())),
        "class_to_idx": {
            "before": {printable(name): i for i, name in enumerate(index.classes)},
            "after": {printable(n): i for i, n in enumerate(n for n in index.classes if n not in empty)},
        },
        "ignored": [printable(path) for path in index.ignored],
        "files": [
            {key: printable(value) if isinstance(value, str) else value for key, value in asdict(entry).items()}
            for entry in decisions
        ],
        "settings": settings,
    }


def _copy(root: Path, entry: Decision, target: Path) -> None:
    source, destination = root / entry.source, target / entry.written
    try:
        data, times = source.read_bytes(), source.stat()
    except OSError as error:
        raise OutputError(f"{printable(str(source))} can't be read any more: {error.strerror}; run again") from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise OutputError(f"{printable(str(source))} changed while it was being cleaned; run again")
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.write_bytes(data)
    os.utime(destination, ns=(times.st_atime_ns, times.st_mtime_ns))
