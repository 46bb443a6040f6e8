"""Rows as CSV and as aligned text, and JSON: the bytes of everything that is written for people and programs."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from advrbd.writing import escaped

FORMULA = re.compile(r"'*[=+\-@\t\r]")  # what a spreadsheet runs, and what looks like one that was kept from it
Rows = Iterable[Mapping[str, Any]]


def json_bytes(whole: dict) -> bytes:
    """``whole`` as indented JSON, in which every number is finite."""
    return (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode()


def csv_bytes(columns: Sequence[str], rows: Rows) -> bytes:
    """The ``columns`` of ``rows`` as CSV under a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([csv_cell(entry[column]) for column in columns] for entry in rows)
    return text.getvalue().encode()


def table_bytes(columns: Sequence[str], rows: Rows) -> bytes:
    """The ``columns`` of ``rows`` under each other, with two spaces between them, as harmless lines."""
    shown = [columns, *([escaped(csv_cell(entry[column])) for column in columns] for entry in rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in shown)
    return ("\n".join(lines) + "\n").encode()


def csv_cell(value: object) -> str:
    """A value as CSV text: fixed four decimals, true/false, nothing for None.

    Class names come from the folder too: one that a spreadsheet would take for a formula gets a leading apostrophe, and
    so does one that looks as if it had got it: no two names are alike (``of_cell``).
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4f}"
    text = str(value)
    return f"'{text}" if FORMULA.match(text) else text


def of_cell(text: str) -> str:
    """The text that ``csv_cell`` made a cell of."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text
