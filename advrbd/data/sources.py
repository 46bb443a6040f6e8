"""How a dataset may be handed over, and whose word its labels are. What the user names decides, nothing is guessed.

A folder                     class folders, or the ``label`` in its metadata.csv or metadata.jsonl, if there is one
A .zip, .tar, .tar.gz, .tgz  class folders, read in place
A .csv, .jsonl               the label in the row of each image
"""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

from advrbd.data import folder, labels
from advrbd.data.archives import TAR_SUFFIXES, ZIP_SUFFIXES
from advrbd.data.folder import EXTENSIONS, SPLIT_NAMES, FolderIndex, Store
from advrbd.data.packed import APPLE, PackedFolder
from advrbd.errors import DatasetError
from advrbd.writing import printable

FOLDER = FolderIndex.layout
METADATA = "metadata"
TABLE = "table"
ZIP = "zip"
TAR = "tar"
SHOWN = 4  # endings of ignored files


def index(path: str | os.PathLike, split: str | None = None, root: str | os.PathLike | None = None) -> FolderIndex:
    """List the images of a dataset with their labels, without opening any of them.

    ``split`` is a folder in the folder or archive ``path``, ``root`` the folder that the paths in a table start from
    (default: the one that it lies in). Raises ``DatasetError`` when there is no such dataset, or it is ambiguous.
    """
    path = Path(path)
    layout = layout_of(path)
    if root is not None and layout != TABLE:
        raise DatasetError(f"--root is for a CSV or JSON-lines file of paths and labels, and {path} is none")
    if split is not None and layout == TABLE:
        raise DatasetError(f"--split is for folders and archives; {path} names its images itself")
    match layout:
        case "table":
            check_there(path, root)
            found = labels.index(path, territory(path, root), TABLE)
            if found is None:
                names = " or ".join(labels.PATH_COLUMNS), " or ".join(labels.LABEL_COLUMNS)
                raise DatasetError(f"{path} needs a column {names[0]} and a column {names[1]}, named in its first line")
            return found
        case "zip" | "tar":
            return PackedFolder(path, split).index(layout)
    return _labelled_by_metadata(path, split) or folder.index(path, split)


def index_class_folders(path: str | os.PathLike, split: str | None = None) -> FolderIndex:
    """As ``index``, for what needs class folders on disk. Raises ``DatasetError`` for any other layout, too."""
    found = index(path, split)
    if found.layout != FOLDER:
        raise DatasetError(f"{path} is {_read_as(found)}; this needs a folder with one sub-folder of images per class")
    return found


def place(path: Path, split: str | None = None, root: str | os.PathLike | None = None) -> Path | Store:
    """What ``files.opened`` reads the files of a dataset from; nothing is looked at but what ``path`` is."""
    match layout_of(path):
        case "table":
            return territory(path, root)
        case "zip" | "tar":
            return PackedFolder(path, split)
    return path / split if split else path


def territory(path: Path, root: str | os.PathLike | None = None) -> Path:
    """What belongs to the dataset, so that nothing is written there or believed: all in the folder of a table, too."""
    if layout_of(path) != TABLE:
        return path
    return path.parent if root is None else Path(root)


def layout_of(path: Path) -> str:
    """How ``path`` is read, by its name and whether it is a folder; one that metadata labels counts as a folder."""
    name = path.name.lower()
    if not path.is_dir():
        for layout, suffixes in ((TABLE, labels.SUFFIXES), (ZIP, ZIP_SUFFIXES), (TAR, TAR_SUFFIXES)):
            if name.endswith(suffixes):
                return layout
    return FOLDER


def check_there(path: Path, root: str | os.PathLike | None = None) -> None:
    """Raise ``DatasetError`` as ``index`` does where ``path`` is neither a folder nor a file of any layout, or ``root``
    no folder: a slip that can be told before torch is imported, which takes seconds."""
    if layout_of(path) == FOLDER:
        folder.check_is_folder(path)
    if root is not None and Path(root).exists() and not Path(root).is_dir():
        raise DatasetError(f"--root {root} is no folder; give the one that the paths in {path} start from")
    if root is not None:
        folder.check_is_folder(Path(root))


def told(found: FolderIndex) -> str | None:
    """How the input was read, in a line; None for the class folders of a folder, which go without saying."""
    if found.layout == FOLDER:
        return None
    unnamed = sum(path.lower().endswith(EXTENSIONS) for path in found.ignored) if found.layout == METADATA else 0
    rest = f"; {unnamed} images have no row there and are ignored" if unnamed else ""
    return f"read as: {_read_as(found)}, {len(found.classes)} classes{rest}"


def told_ignored(found: FolderIndex) -> str | None:
    """How many files are ignored, as torchvision's ImageFolder ignores them, and how their names end, in a line; None
    where there are none."""
    named = [path for path in found.ignored if not path.startswith(APPLE)]
    if found.layout == METADATA:  # images without a row are told by ``told``
        named = [path for path in named if not path.lower().endswith(EXTENSIONS) and path not in labels.METADATA_NAMES]
    if not named:
        return None
    endings = Counter(PurePosixPath(path).suffix.lower() or "no ending" for path in named).most_common()
    shown = ", ".join(f"{printable(ending)[:20]} {count}" for ending, count in endings[:SHOWN])
    more = ", ..." if len(endings) > SHOWN else ""
    what = "1 file is" if len(named) == 1 else f"{len(named)} files are"
    why = "no image's name, or outside of the class folders"
    return f"{what} ignored: {shown}{more} ({why})"


def _read_as(found: FolderIndex) -> str:
    return {
        METADATA: "a folder with the labels of its metadata file",
        TABLE: f"paths and labels of images in {found.root}",
        ZIP: "zip of an ImageFolder",
        TAR: "tar of an ImageFolder",
    }[found.layout]


def _labelled_by_metadata(path: Path, split: str | None) -> FolderIndex | None:
    """The index of a folder whose metadata file holds labels, in Hugging Face's way; None if there is no such file.

    The file lies in the folder of the split, or above all splits and names their folders.
    """
    if not path.is_dir():
        return None
    root = folder.split_folder(path, split)
    for above, start in ((root, ""), (path, f"{split}/")) if split else ((root, ""),):
        names = [name for name in labels.METADATA_NAMES if os.path.lexists(above / name)]
        if len(names) > 1 or labels.METADATA_NAMES[-1] in names:
            raise DatasetError(f"{above} holds {' and '.join(names)}; one metadata file is read, in CSV or JSON lines")
        if names and not Path(os.path.realpath(above / names[0])).is_relative_to(os.path.realpath(path)):
            raise DatasetError(f"{above / names[0]} is a link out of {path}, which isn't followed; remove it")
        found = names and labels.index(above / names[0], root, METADATA, ("file_name",), ("label",), start)
        if found:
            tops = {file.path.split("/")[0] if "/" in file.path else "" for file in found.files}
            if split is None and {name.lower() for name in tops} <= SPLIT_NAMES:
                splits = ", ".join(sorted(tops))
                raise DatasetError(f"{path} holds splits ({splits}); scan one of them with --split {min(tops)}")
            return replace(found, ignored=_unnamed(root, {file.path for file in found.files}))
    return None


def _unnamed(root: Path, named: set[str]) -> tuple[str, ...]:
    """The files under ``root`` that no row names, sorted; what links lead to is left to the rows."""
    found = []
    for above, _, names in os.walk(root):
        inner = os.path.relpath(above, root).replace(os.sep, "/")
        found += [name if inner == "." else f"{inner}/{name}" for name in names]
    return tuple(sorted(path for path in found if path not in named))
