"""Suspects that somebody looked at and accepted: those of an earlier report, or of an ignore file.

What counts are the SHA-256 and the class: an accepted file may be renamed within its class. It is a suspect
again as soon as one of its bytes changes, and so is a copy of it in another class, where its label is another.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from advrbd.errors import SettingsError
from advrbd.reading import read_regular
from advrbd.reports.report import Report
from advrbd.reports.tables import read_suspects
from advrbd.writing import escaped, printable

IGNORE_FILE = ".advrbdignore"
# as sha256sum writes it: a backslash marks a name that holds escapes, an asterisk a file that was read as binary
LINE = re.compile(r"\\?([0-9a-fA-F]{64})(?: [ *]|\s+)(.*)")
PATH = re.compile(r"(?:\./)?(?!\.\.?/)([^/]+)/.+")  # the first component is the class


def read_baseline(path: str | os.PathLike) -> dict[tuple[str, str], str]:
    """The SHA-256 and the class of the suspects of an earlier report, to the report's name.

    The class is the label in the row, wherever the file lies. Raises ``ReportError`` when this is no report of advrbd.
    """
    return dict.fromkeys(read_suspects(path).values(), printable(Path(path).name))


def read_ignore_file(path: str | os.PathLike) -> dict[tuple[str, str], str]:
    """The SHA-256 and the class of the lines of an ignore file, as the HTML page saves one, to the file's name.

    A line is a SHA-256 in hex, white space, and the file's path in the scanned folder, with its label and a slash in
    front where a table gives that: the first component is the class, the rest is for people. Empty lines and lines that
    start with ``#`` are skipped. Raises ``SettingsError`` for any other line, and when the file can't be read.
    """
    try:
        lines = read_regular(path).decode("utf-8-sig", "surrogateescape").split("\n")
    except OSError as error:
        raise SettingsError(f"cannot read the ignore file {path}: {error.strerror}") from error
    accepted = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        label = _class_of(match[2]) if match else None
        if match is None or label is None:
            form = "a SHA-256 (64 hexadecimal digits) and a path in the scanned folder, the class first"
            raise SettingsError(f"{path}, line {number}: should be {form}")
        accepted[match[1].lower(), label] = printable(Path(path).name)
    return accepted


def accept(report: Report, accepted: Mapping[tuple[str, str], str]) -> Report:
    """The report with those of its suspects accepted whose SHA-256 and class, as reports write it, are in ``accepted``.

    What they are mapped to says who accepts them.
    """
    files = (
        replace(file, accepted_by=accepted.get((file.sha256, printable(file.label)))) if file.suspect else file
        for file in report.files
    )
    return replace(report, files=tuple(files))


def _class_of(path: str) -> str | None:
    """The class of a file by its path in the scanned folder, with escapes as in reports; None if it names none."""
    match = PATH.fullmatch(path)
    return match and escaped(match[1])
