"""The cleaned ImageFolder: what becomes of each file, and the files themselves. The manifest accounts for all.

Nothing but class folders and ``advrbd-manifest.json`` lies in the output, since torchvision takes every folder there
for a class; quarantined files go to a folder of their own. Files are copied byte for byte or linked to, and only if
they are still the bytes that were scanned.
"""

import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from advrbd.data.files import opened
from advrbd.data.folder import OK, VANISHED, FolderIndex, Read
from advrbd.errors import OutputError
from advrbd.manifest import (
    COPY,
    DROPPED,
    EXCLUDED,
    KEPT,
    LINK_MODES,
    MANIFEST,
    QUARANTINED,
    RELABELLED,
    SYMLINK,
    Decision,
    emptied_classes,
    made_manifest,
)
from advrbd.reports.report import FileResult, Report
from advrbd.reports.tables import COLUMNS, row
from advrbd.text import csv_bytes, json_bytes
from advrbd.writing import Names, NewFolder, in_class, printable


def check_link_mode(link_mode: str) -> None:
    """Raise ``ValueError`` for what is no link mode."""
    if link_mode not in LINK_MODES:
        raise ValueError(f"link_mode must be one of {', '.join(LINK_MODES)}, not {link_mode!r}")


def decide(report: Report, action: str, confidence_floor: float) -> tuple[Decision, ...]:
    """Decide on every file of ``report``: keep it, or do with a suspect what ``action`` says.

    ``relabel`` moves a suspect to its suggested class when the confidence reaches ``confidence_floor`` and the class
    is another one, and drops it otherwise: a guess isn't worth the poison. ``drop`` and ``quarantine`` guess nothing.
    """
    homes = _homes(report.files)
    names = Names(homes[file.path] for file in report.files if file.status == OK and not file.suspect)
    decisions = []
    for file in report.files:
        label, written = file.label, None
        if file.status != OK:
            done, new_label = EXCLUDED, None
        elif not file.suspect:
            done, new_label, written = KEPT, label, homes[file.path]
        elif action == "quarantine":
            done, new_label, written = QUARANTINED, None, homes[file.path]
        elif (
            action == "relabel"
            and file.suggested_label not in (None, label)
            and (file.suggested_confidence or 0) >= confidence_floor
        ):
            done, new_label = RELABELLED, file.suggested_label
            written = names.claim(in_class(homes[file.path], new_label), label)
        else:
            done, new_label = DROPPED, None
        decisions.append(Decision(file.path, done, label, new_label, written, file.sha256))
    return tuple(decisions)


def _homes(files: Iterable[FileResult]) -> dict[str, str]:
    """Where each readable file lies in an image folder: where it is, or below its class where a table labels it."""
    readable = [file for file in files if file.status == OK]
    homes = {file.path: file.path for file in readable if file.path.startswith(f"{file.label}/")}
    names = Names(homes)
    for file in readable:
        if file.path not in homes:
            homes[file.path] = names.claim(f"{file.label}/{file.path}", file.label)
    return homes


@contextmanager
def written_folder(
    index: FolderIndex,
    decisions: tuple[Decision, ...],
    out: Path,
    quarantine: Path,
    settings: dict,
    link_mode: str = COPY,
) -> Iterator[dict]:
    """Write the folder ``out`` (and ``quarantine``, if any file goes there); the context's value is the manifest.

    ``link_mode``: ``copy``, ``hardlink`` (a file that can't be linked is copied; ``link_cautions`` tells) or
    ``symlink``, to the absolute path in the input. Links save room and give up safety: whoever can still write to the
    input can change the output, and symlinks last only as long as the input does.

    Both folders are filled under temporary names and renamed at the end, the quarantine first, and are in place while
    the context lasts: what belongs to them is written in it. Raises ``OutputError`` when a file is no longer what was
    scanned, or a target can't be written; neither target exists then, nor where the context is left with an error.
    """
    manifest = made_manifest(index, decisions, settings | _linking(index.root, link_mode))
    copied: Counter[str] = Counter()
    evidence, kept = NewFolder(quarantine), NewFolder(out)
    with ExitStack() as undone:
        undone.push(evidence.undo)
        undone.push(kept.undo)
        with ExitStack() as filled:  # left in reverse order
            place = filled.enter_context(kept)
            if any(entry.action == QUARANTINED for entry in decisions):
                aside = filled.enter_context(evidence)
            read = filled.enter_context(opened(index.place))
            for entry in decisions:
                if entry.written is None:
                    continue
                if entry.action == QUARANTINED:  # evidence: it has to outlive what the attacker does to the input
                    _place(index, read, entry, aside / entry.written, COPY)
                elif refusal := _place(index, read, entry, place / entry.written, link_mode):
                    copied[refusal] += 1
            manifest["copied_instead"] = dict(sorted(copied.items()))
            (place / MANIFEST).write_bytes(json_bytes(manifest))
        yield manifest


def cautions_of(index: FolderIndex, report: Report, decisions: tuple[Decision, ...], manifest: dict) -> tuple[str, ...]:
    """What to know of the folder as it was written: suspects that were kept, classes that are gone, links not made."""
    accepted = report.accepted_by
    why = f"since they are accepted ({', '.join(accepted)})"
    kept = (f"{accepted.total()} suspects were kept, {why}",) if accepted else ()
    losses = tuple(
        f"class {name!r} has no file left and is missing from the output; the class indices after it shift"
        for name in emptied_classes(index, decisions)
    )
    return kept + losses + link_cautions(manifest)


def link_cautions(manifest: dict) -> tuple[str, ...]:
    """How many files were copied where hard links were asked for, and why; nothing if all went as asked."""
    copied = manifest["copied_instead"]
    if not copied:
        return ()
    why = ", ".join(copied)
    return (f"{sum(copied.values())} files were copied, since they could not be hard-linked: {why}",)


def decisions_csv(report: Report, decisions: tuple[Decision, ...]) -> bytes:
    """The CSV report of a clean: the rows of ``scan``'s for suspects and unread files, and what was done with each."""
    made, rows = {entry.source: entry for entry in decisions}, []
    for file in report.files:
        if file.suspect or file.status != OK:
            done = made[file.path]
            written = None if done.written is None else printable(f"./{done.written}")
            rows.append(row(file) | {"action": done.action, "written": written})
    return csv_bytes((*COLUMNS, "action", "written"), rows)


def _linking(root: Path, link_mode: str) -> dict:
    """The link mode for the manifest's settings; where links lead to belongs to it, so that they can be verified."""
    check_link_mode(link_mode)
    return {"link_mode": link_mode} | ({"source": printable(os.path.realpath(root))} if link_mode == SYMLINK else {})


def _place(index: FolderIndex, read: Read, entry: Decision, destination: Path, link_mode: str) -> str:
    """Write one file as ``destination``, and return why it had to be copied instead of linked, if it had to."""
    source = index.root / entry.source
    real = Path(os.path.realpath(source))  # a link to a link would have two places to be changed in
    data, status, sha256 = read(entry.source if index.store else str(real))
    if status == VANISHED:
        raise OutputError(f"{printable(str(source))} can't be read any more; run again")
    if data is None or status != OK or sha256 != entry.sha256:
        raise OutputError(f"{printable(str(source))} changed while it was being cleaned; run again")
    times = None if index.store else real.lstat()
    destination.parent.mkdir(parents=True, exist_ok=True)
    refusal = "" if link_mode == COPY else _link(real, destination, link_mode)
    if link_mode == COPY or refusal:
        with destination.open("xb") as file:  # x: where a file system takes two names for one, nothing is overwritten
            file.write(data)
        if times is not None:
            os.utime(destination, ns=(times.st_atime_ns, times.st_mtime_ns))
    return refusal


def _link(real: Path, destination: Path, link_mode: str) -> str:
    """Link ``destination`` to the file ``real``; why it was refused, where a copy is as good."""
    try:
        if link_mode == SYMLINK:
            destination.symlink_to(real)
        else:
            destination.hardlink_to(real)
    except FileExistsError:
        raise
    except OSError as error:
        if link_mode == SYMLINK:
            shown = printable(str(real))
            raise OutputError(f"cannot link to {shown}: {error.strerror}; use --link-mode copy") from error
        return "the output is on another file system" if error.errno == errno.EXDEV else str(error.strerror)
    return ""
