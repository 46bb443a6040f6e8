"""Which files of a folder may be trained on, by a JSON report on all of them, and as what. Needs no advrbd.

advrbd scan ./data --all-files -o report.json
"""

import hashlib
import json
from pathlib import Path


def trusted_files(
    root: Path, report: Path, relabel: bool = False, confidence: float = 0.75
) -> tuple[list[tuple[Path, str]], list[str]]:
    """The files and their classes, and all class names in the order of their indices. Nothing is copied.

    It goes by files alone: look at the report's verdict first, since of a class that is suspicious, unexamined, or
    poisoned without a suspect, all files pass.

    Left out are files that couldn't be read, names that hold escapes, and suspects, but for accepted ones. With
    ``relabel`` suspects stay whose suggested label is another one and has at least that ``confidence``. Only what was
    scanned counts: a file that is new isn't in the report, and one that changed raises ``ValueError``.
    """
    whole = json.loads(report.read_text(encoding="utf-8"))
    if whole["schema"] != "advrbd.report/1":
        raise ValueError(f"{report} is no JSON report of advrbd")
    if len(whole["files"]) < sum(entry["files"] for entry in whole["classes"]):
        raise ValueError(f"{report} isn't about every file; scan with --all-files")
    accepted = {entry["path"] for entry in whole["accepted"]}
    files = []
    for row in whole["files"]:
        if row["status"] != "ok" or "\\" in row["path"]:
            continue
        label = row["label"]
        if row["suspect"] and row["path"] not in accepted:
            guess, sure = row["suggested_label"], (row["suggested_confidence"] or 0) >= confidence
            if not (relabel and sure and guess not in (None, label)):
                continue
            label = guess
        path = root / row["path"]
        if hashlib.sha256(path.read_bytes()).hexdigest() != row["sha256"]:
            raise ValueError(f"{path} changed since the scan; scan again")
        files.append((path, label))
    return files, [entry["label"] for entry in whole["classes"]]
