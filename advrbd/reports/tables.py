"""Reports as CSV, JSON, JSON lines and plain text; the first three can be read back.

Rows are sorted by path and hold neither times nor absolute paths: the same input, seed and device give the same bytes.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from advrbd.data.folder import OK, FolderIndex
from advrbd.errors import ReportError
from advrbd.reading import SHA256, parse_json, read_at_most
from advrbd.reports.report import VERDICTS, FileResult, Report
from advrbd.text import csv_bytes, json_bytes, of_cell, table_bytes
from advrbd.writing import escaped, printable

SCHEMA = "advrbd.report/1"
COLUMNS = ("path", "label", "suspect", "score", "suggested_label", "suggested_confidence", "status", "sha256")
FLAGS = {"true": True, "false": False}  # in any case: spreadsheets write TRUE
FORMATS = ("csv", "json", "jsonl", "table")
MAX_REPORT_BYTES = 2 * 2**30  # several million files


def render(report: Report, form: str, all_files: bool = False) -> bytes:
    """The report in one of ``FORMATS``: its suspects and unread files, or with ``all_files`` every file."""
    rows = [row(file) for file in report.files if all_files or file.suspect or file.status != OK]
    match form:
        case "csv":
            return csv_bytes(COLUMNS, rows)
        case "jsonl":
            return "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in rows).encode()
        case "json":
            whole = {
                "schema": SCHEMA,
                "verdict": report.verdict,
                "cautions": report.cautions,
                "classes": [asdict(entry) | {"label": printable(entry.label)} for entry in report.classes],
                "files_sha256": report.whole_sha256 or fingerprint(report.files),
                "restricted": report.whole_sha256 is not None,
                "files": rows,
                "accepted": [
                    {"path": printable(f"./{file.path}"), "sha256": file.sha256, "by": file.accepted_by}
                    for file in report.suspects
                    if file.accepted_by is not None
                ],
                "run": report.run,
            }
            return json_bytes(whole)
        case "table":
            return table_bytes(COLUMNS[:-1], rows)
    raise ValueError(f"unknown format {form!r}")


def row(file: FileResult) -> dict:
    """One file as a row with the keys of ``COLUMNS``. Paths start with ``./``, so that no spreadsheet runs them."""
    return {
        "path": printable(f"./{file.path}"),
        "label": printable(file.label),
        "suspect": file.suspect,
        "score": None if file.score is None else round(file.score, 4),
        "suggested_label": None if file.suggested_label is None else printable(file.suggested_label),
        "suggested_confidence": None if file.suggested_confidence is None else round(file.suggested_confidence, 4),
        "status": file.status,
        "sha256": file.sha256,
    }


@dataclass(frozen=True)
class Earlier:
    """What an earlier report says: its ``suspects``, from path as printed, without ``./``, to SHA-256 in hex and label
    as printed, and the paths of files that were ``unread``.

    ``files_sha256`` is the ``fingerprint`` of all files of that scan; None where the report names suspects only.
    ``verdicts`` are by class name as printed; None where the report has none, which only one in JSON has.
    ``exhausted``: the last look allowed still found suspects, or left groups unexamined; ``control_found``: unless it
    says that the scan lost what it planted to test itself. ``restricted``: it says that there may be suspects that it
    doesn't name, since ``--files-from`` didn't.
    """

    suspects: dict[str, tuple[str, str]]
    files_sha256: str | None = None
    unread: frozenset[str] = frozenset()
    verdicts: dict[str, str] | None = None
    exhausted: bool = False
    control_found: bool = True
    restricted: bool = False


def fingerprint(files: Iterable[FileResult]) -> str:
    """The SHA-256, in hex, over the names, the labels and the contents of all ``files``, of those that weren't read,
    too."""
    return _fingerprint((printable(file.path), printable(file.label), file.sha256) for file in files)


def fingerprint_of(index: FolderIndex) -> str:
    """The same of a folder that was read."""
    return _fingerprint((printable(file.path), printable(index.class_name(file)), file.sha256) for file in index.files)


def _fingerprint(rows: Iterable[tuple[str, str, str]]) -> str:
    """Over a line for each path, label and hash, as sha256sum writes them. The label is in the line only where the path
    doesn't begin with it; neither can hold a tab."""
    lines = sorted(
        f"{sha256}  ./{path}\n" if path.startswith(f"{label}/") else f"{sha256}  ./{path}\t{label}\n"
        for path, label, sha256 in rows
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_suspects(path: str | os.PathLike) -> dict[str, tuple[str, str]]:
    """The suspects that a report names, as ``read_report`` gives them, but of a restricted one, too."""
    return _read(path).suspects


def read_report(report: str | os.PathLike | Report) -> Earlier:
    """What a CSV, JSON or JSON-lines report says, which may be anybody's work: paths in it are names, never opened.
    A ``Report`` that was never written says what it would as JSON.

    Raises ``ReportError`` when the file is no report of advrbd, or says that it is one on some of the files only: who
    cleans by it would keep the suspects among the others.
    """
    earlier, name = (_as_json(report), "this") if isinstance(report, Report) else (_read(report), report)
    if earlier.restricted:
        raise ReportError(
            f"{name} is a report on some of the files only (--files-from), so it doesn't name "
            "every suspect; scan without --files-from"
        )
    return earlier


def _as_json(report: Report) -> Earlier:
    rows, whole = _contents_of(render(report, "json").decode(), empty=False)
    return _with_verdicts(_as_earlier(rows, whole["files_sha256"]), whole)


def _read(path: str | os.PathLike) -> Earlier:
    no_report = f"{path} is no report of `advrbd scan` (CSV, JSON or JSON lines)"
    try:
        data = read_at_most(path, MAX_REPORT_BYTES, ReportError)
        text = data.decode("utf-8-sig")  # spreadsheets save CSV with a mark in front
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", error)
        raise ReportError(f"cannot read the report {path}: {reason}") from error
    try:
        rows, whole = _contents_of(text, empty=Path(path).suffix.lower() == ".jsonl")
        return _with_verdicts(_as_earlier(rows, whole.get("files_sha256")), whole)
    except (KeyError, TypeError, AttributeError) as error:
        raise ReportError(no_report) from error
    except (ValueError, csv.Error) as error:
        raise ReportError(f"{no_report}: {error}") from error


def _as_earlier(rows: list[dict], stated: str | None) -> Earlier:
    """The rows of a report, checked, and the fingerprint that it states, or that its rows have if they name all."""
    files, suspects, unread, names_all = {}, {}, set(), False
    for entry in rows:
        path, label, sha256 = entry["path"], entry["label"], entry["sha256"]
        name, suspect = path.removeprefix("./"), FLAGS[str(entry["suspect"]).lower()]
        if not isinstance(label, str):
            raise ValueError(f"{escaped(path)[:100]} has no label")
        if name in files:
            raise ValueError(f"{escaped(path)[:100]} is named twice")
        files[name] = label, sha256
        if entry["status"] != OK:
            unread.add(name)
        names_all |= not suspect and entry["status"] == OK  # without --all-files such a file has no row
        if suspect and entry["status"] == OK:
            if not SHA256.fullmatch(sha256):
                raise ValueError(f"{escaped(path)[:100]} has no SHA-256")
            suspects[name] = sha256, label
    if stated is None and names_all:
        stated = _fingerprint((name, label, sha256) for name, (label, sha256) in files.items())
    return Earlier(suspects, stated, frozenset(unread))


def _with_verdicts(earlier: Earlier, whole: dict) -> Earlier:
    """With what a report in JSON says beside its rows; ``whole`` is empty for the other formats."""
    if not whole:
        return earlier
    verdicts = {entry["label"]: entry["verdict"] for entry in whole["classes"]}
    if not set(verdicts.values()) <= set(VERDICTS):
        raise ValueError("a verdict that there is none of")
    said = {name: whole["run"].get(name, getattr(earlier, name)) for name in ("exhausted", "control_found")}
    said["restricted"] = whole.get("restricted", False)
    if not all(isinstance(value, bool) for value in said.values()):
        raise ValueError(f"{', '.join(said)} should be true or false")
    return replace(earlier, verdicts=verdicts, **said)


def _contents_of(text: str, empty: bool) -> tuple[list[dict], dict]:
    """The rows of a report in any format, and all of one in JSON, else nothing.

    ``empty``: whether one without a header may have no rows.
    """
    if not text and empty:
        return [], {}
    if not text.startswith("{"):
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if tuple(reader.fieldnames or ())[: len(COLUMNS)] != COLUMNS:
            raise ValueError("other columns")
        rows = list(reader)
        if any(None in entry or None in entry.values() for entry in rows):
            raise ValueError("a row with other columns than the header")
        return [entry | {"label": of_cell(entry["label"])} for entry in rows], {}
    first, _, rest = text.partition("\n")
    if first.rstrip().endswith("}") and "schema" not in parse_json(first, finite=True):
        return [parse_json(line, finite=True) for line in (first, *rest.splitlines())], {}
    whole = parse_json(text, finite=True)
    if whole["schema"] != SCHEMA:
        raise ValueError("another schema")
    stated = whole.get("files_sha256")
    if stated is not None and not SHA256.fullmatch(stated):
        raise ValueError("its files_sha256 is none")
    return whole["files"], whole
