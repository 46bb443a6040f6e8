"""Labels from a file rather than from class folders: a CSV or JSON-lines file that names images and their labels.

Such a file comes with the dataset, so it is the attacker's. It says one thing only or is refused: a path twice, one
that leads out of the folder, or a label that can't be the name of a class folder.
"""

import csv
import io
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from advrbd.data.folder import EXTENSIONS, REFUSED_LINK, FolderIndex, ImageFile, file_status
from advrbd.errors import DatasetError
from advrbd.reading import inner_path, parse_json, read_at_most
from advrbd.writing import printable

SUFFIXES = (".csv", ".jsonl")
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of Hugging Face's imagefolder
PATH_COLUMNS = ("path", "file_name", "filename", "image")
LABEL_COLUMNS = ("label", "class")
MAX_TABLE_BYTES = 2 * 2**30  # several million rows

Row = dict[str, object]


def index(
    table: Path,
    root: Path,
    layout: str,
    path_columns: tuple[str, ...] = PATH_COLUMNS,
    label_columns: tuple[str, ...] = LABEL_COLUMNS,
    start: str = "",
) -> FolderIndex | None:
    """The images under ``root`` that ``table`` names after ``start``; None unless it has a column for each of the two.

    Classes are in the order of their names. An image that isn't there has the status ``vanished``. Raises
    ``DatasetError`` when the table can't be read or believed, or names fewer than two classes.
    """
    named = _read(table, path_columns, label_columns)
    if named is None:
        return None
    labels = {path.removeprefix(start): label for path, label in named.items() if path.startswith(start)}
    classes = tuple(sorted(set(labels.values())))
    if len(classes) < 2:
        raise DatasetError(f"{table} names {len(classes)} classes; at least two are needed to train a classifier")
    position = {name: label for label, name in enumerate(classes)}
    real_root = root.resolve()

    @cache
    def leads_out(folder: str) -> bool:
        return not Path(os.path.realpath(root / folder)).is_relative_to(real_root)

    files = []
    for path, label in sorted(labels.items(), key=lambda item: (item[1], *item[0].rpartition("/")[::2])):
        out = leads_out(path.rpartition("/")[0])
        status, length = (REFUSED_LINK, 0) if out else file_status(f"{root}/{path}", real_root)
        files.append(ImageFile(path, position[label], status, length=length))
    return FolderIndex(root, classes, tuple(files), (), layout)


def _read(table: Path, path_columns: tuple[str, ...], label_columns: tuple[str, ...]) -> dict[str, str] | None:
    """Labels by path, or None where a column is missing."""
    try:
        data = read_at_most(table, MAX_TABLE_BYTES, DatasetError)
        text = data.decode("utf-8-sig")  # spreadsheets save CSV with a mark in front
        header, rows = (_csv if table.name.lower().endswith(".csv") else _json_lines)(text)
        path_column, label_column = _column(header, path_columns), _column(header, label_columns)
        if path_column is None or label_column is None:
            return None
        return _labels(rows, path_column, label_column)
    except OSError as error:
        raise DatasetError(f"cannot read {table}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise DatasetError(f"{table}: {error}") from error


def _csv(text: str) -> tuple[list[str], Iterator[tuple[int, Row]]]:
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = next(lines, [])
    if len(set(header)) < len(header):
        raise ValueError("two columns have one name")

    def rows() -> Iterator[tuple[int, Row]]:
        for cells in lines:
            if cells and len(cells) != len(header):
                raise ValueError(f"line {lines.line_num} has {len(cells)} cells, the header {len(header)}")
            if cells:
                yield lines.line_num, dict(zip(header, cells, strict=True))

    return header, rows()


def _json_lines(text: str) -> tuple[list[str], Iterator[tuple[int, Row]]]:
    """The columns are the keys of the first line."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]

    def rows() -> Iterator[tuple[int, Row]]:
        for number, line in lines:
            row = parse_json(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no JSON object")
            yield number, row

    return list(next(rows(), (0, {}))[1]), rows()


def _column(header: list[str], names: Iterable[str]) -> str | None:
    """Which column of ``header`` has one of ``names``; a ``ValueError`` where two do, or rows hold several images."""
    for name in header:
        if name.endswith(("_file_name", "_file_names")) or name == "file_names":
            raise ValueError(f"the column {printable(name)[:100]} says that a row has several images, which isn't read")
    found = [name for name in names if name in header]
    if len(found) > 1:
        raise ValueError(f"the columns {' and '.join(found)} mean the same; leave one of them out")
    return found[0] if found else None


def _labels(rows: Iterator[tuple[int, Row]], path_column: str, label_column: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    for number, row in rows:
        try:
            path, label = _image(row.get(path_column)), _class(row.get(label_column))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if path in labels:
            raise ValueError(f"line {number} names {printable(path)[:100]} again")
        labels[path] = label
    return labels


def _image(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("the path is no text")
    shown = printable(value)[:100]
    try:
        path = inner_path(value)
    except ValueError as error:
        raise ValueError(f"the path {shown!r} {error}") from error
    if not path.lower().endswith(EXTENSIONS):
        raise ValueError(f"{shown!r} has none of the extensions of an ImageFolder ({', '.join(EXTENSIONS)})")
    return path


def _class(value: object) -> str:
    """A label as the name of a class folder, which it becomes in a cleaned folder."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("the label is neither text nor a whole number")
    name, shown = str(value), printable(str(value))[:100]
    try:
        if "/" in name or inner_path(name) != name:
            raise ValueError("leads to another folder")
    except ValueError as error:
        raise ValueError(f"the label {shown!r} can't be the name of a class folder: it {error}") from error
    return name
