"""What ``scan`` and ``clean`` are told to accept, and which files ``scan`` is to report."""

import os
import sys
from pathlib import Path

from advrbd_cli import console
from advrbd_cli.settings import check_outside, lies_in


def gather(data: Path, baseline: Path | None, ignore_file: Path | None, no_config: bool) -> dict[tuple[str, str], str]:
    """The SHA-256 and the class of the files that are accepted, to the name of the file that says so.

    Nothing that lies in ``data`` is believed: it would let the attacker accept their own files.
    """
    from advrbd.reports.accepted import IGNORE_FILE, read_baseline, read_ignore_file

    accepted: dict[tuple[str, str], str] = {}
    if baseline is not None:
        check_outside(baseline, data, "--baseline")
        accepted |= read_baseline(baseline)
    own, theirs = Path(IGNORE_FILE), os.path.lexists(data / IGNORE_FILE)
    if ignore_file is not None:
        check_outside(ignore_file, data, "--ignore-file")
        accepted |= read_ignore_file(ignore_file)
    elif not no_config and own.is_file():
        theirs = theirs or lies_in(own, data)
        accepted |= {} if lies_in(own, data) else read_ignore_file(own)
    if theirs:
        console.caution(
            f"the scanned folder holds an {IGNORE_FILE}; it isn't read, since anybody may have put it there"
        )
    return accepted


def chosen_files(
    data: Path, split: str | None, root: Path | None, files_from: str | None, null: bool
) -> frozenset[str] | None:
    """The files that ``--files-from`` names, as paths relative to the folder; None if all are to be reported."""
    from advrbd.errors import SettingsError

    if files_from is None:
        if null:
            raise SettingsError("--null says how the names in --files-from are divided, but there is no --files-from")
        return None
    from advrbd.data.sources import index
    from advrbd.reading import NotAFileError, read_regular
    from advrbd.reports.subset import choose, split_names

    if files_from == "-" and sys.stdin is None:
        raise SettingsError("cannot read --files-from -: stdin is closed")
    try:
        names = sys.stdin.buffer.read() if files_from == "-" else read_regular(files_from)
    except NotAFileError as error:
        raise SettingsError(f"cannot read --files-from {files_from}: {error.strerror}; - is stdin") from error
    except OSError as error:
        raise SettingsError(f"cannot read --files-from {files_from}: {error.strerror}") from error
    listed = index(data, split, root)
    return choose(split_names(names, null), (file.path for file in listed.files), listed.root)
