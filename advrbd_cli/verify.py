"""``advrbd verify``: is a cleaned folder still as it was written?"""

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advrbd_cli import console, exits, options

if TYPE_CHECKING:
    from advrbd.verification import Verification

EXAMPLES = (
    "Exit codes: 0 everything is as it was written, 1 something isn't, 2 could not tell: no manifest, a broken one, "
    "an unreadable folder. Example: advrbd verify ./clean && train.sh ./clean"
)
SHOWN = 20
MEANINGS = {
    "missing": "missing",
    "changed": "changed",
    "unknown": "not in the manifest",
    "link": "a link that wasn't written",
    "class": "class folder missing or extra, so class indices differ",
}


class Format(StrEnum):
    csv = "csv"
    json = "json"


def verify(
    clean: Annotated[Path, typer.Argument(help="Folder that `advrbd clean` wrote.", show_default=False)],
    output: options.ReportOutput = None,
    form: Annotated[Format | None, options.FORM] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    progress: options.ShowProgress = None,
) -> None:
    """Compare a cleaned folder with its manifest: every file is hashed again. Exit 1 if anything differs.

    CLEAN is only read. Who changes a file can change the manifest, too: compare its SHA-256 with one that you kept.
    """
    console.state.quiet, console.state.verbose = quiet, verbose
    options.check_report(output, form, clean, "the cleaned folder")

    from advrbd.verification import render
    from advrbd.verification import verify as run_verify

    with console.Narrator(progress) as narrator:
        verification = run_verify(clean, narrator)
    if output is not None:
        console.write_report(output, render(verification, form or options.form_of(Format, output)))
    summarise(verification)
    if verification.differences:
        raise typer.Exit(exits.DIFFERENT)


def summarise(verification: "Verification") -> None:
    """A line per difference, the first of them at least, and the sum."""
    from advrbd.writing import printable

    differences = verification.differences
    for kind, path in differences[:SHOWN]:
        console.say(f"{MEANINGS[kind]}: {printable(path)}")
    if len(differences) > SHOWN:
        console.say(f"... and {len(differences) - SHOWN} more")
    counts = Counter(MEANINGS[kind] for kind, _ in differences)
    outcome = ", ".join(f"{count} {meaning}" for meaning, count in counts.items()) or "all as written"
    console.say(f"{verification.files} files in the manifest: {outcome}")
    console.say(f"manifest sha256: {verification.manifest_sha256}")
