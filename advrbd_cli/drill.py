"""``advrbd drill``: does the scanner find known attacks in this very folder?"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from advrbd_cli import console, exits, options, scan

if TYPE_CHECKING:
    from advrbd.benchmark.drill import Drilled

EXAMPLES = (
    "Exit codes: 0 every attack that took was found, 1 one wasn't (or label noise raised an alarm), "
    "2 no attack took, or anything else went wrong. Example: advrbd drill ./data --attacks badnets,blend,wanet"
)
COLOURS = {"found": "green", "left alone": "green", "did not take": "dim"}  # the rest is bad news
ALL = "all"


class Format(StrEnum):
    csv = "csv"
    json = "json"
    table = "table"


def drill(
    data: options.Folder,
    attacks: Annotated[
        str,
        typer.Option(
            help="Names as `advrbd poison` has them, with commas between; all: 13, without graded, decoy, contested.",
            metavar="NAMES",
        ),
    ] = "badnets,blend",
    poison_rate: options.PoisonRate = 0.05,
    target_label: Annotated[
        str | None,
        typer.Option(
            help="Class that the backdoor leads to (default: the one with the most images).",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    work_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where one copy of DATA lies at a time, and is deleted (default: the system's temporary folder).",
            show_default=False,
        ),
    ] = None,
    output: options.ReportOutput = None,
    form: Annotated[Format | None, options.FORM] = None,
    split: options.Split = None,
    model: options.Model = "auto",
    device: options.DeviceName = "auto",
    image_size: options.ImageSize = None,
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    pretrained: options.Pretrained = False,
    flip: options.Flip = True,
    seed: options.Seed = 0,
    config_file: options.ConfigFile = None,
    no_config: options.NoConfig = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    progress: options.ShowProgress = None,
) -> None:
    """Plant known attacks in copies of an image folder and tell which of them a scan finds there.

    DATA is only read. Scan it first: suspects that it has already count as false alarms here. An attack that a model
    trained on the copy doesn't obey (success rate under .5) did not take and is no test.
    """
    console.state.quiet, console.state.verbose = quiet, verbose
    options.check_report(output, form, data)
    target = None if output in (None, "-") else Path(output)
    options.check_inputs_kept({"--output": target}, options.files_of_settings(config_file, no_config))

    from advrbd.data.sources import check_there

    check_there(data)

    from advrbd.benchmark.drill import drill as run_drill
    from advrbd.benchmark.drill_report import meaning, passed

    config = options.config_of(model, device, image_size, max_pixels, pretrained, flip, seed)
    drilled: list[Drilled] = []
    try:
        with console.Narrator(progress) as narrator:
            for entry in run_drill(
                data,
                _names(attacks),
                config,
                poison_rate=poison_rate,
                target_label=target_label,
                split=split,
                work=work_dir,
                notify=narrator,
            ):
                drilled.append(entry)
                console.say(_line(entry))
    finally:  # what took hours isn't lost where a later attack fails or is interrupted
        if drilled:
            _write(output, form, drilled)
    console.say(meaning(drilled))
    verdict = passed(drilled)
    if verdict is None:
        console.error(
            "no attack took, so nothing was tested: a model trained on the copy doesn't learn the backdoor; "
            "raise --poison-rate or choose another --model"
        )
        raise typer.Exit(exits.FAILED)
    if not verdict:
        raise typer.Exit(exits.NOT_FOUND)


def _write(output: str | None, form: Format | None, drilled: "list[Drilled]") -> None:
    """The report, where one was asked for, and the table."""
    from advrbd.benchmark.drill_report import render

    if output is not None:
        console.write_report(output, render(drilled, form or options.form_of(Format, output)))
    _show(drilled)


def _line(entry: "Drilled") -> str:
    """One attack as one line."""
    held = entry.detection
    if entry.is_backdoor:
        figures = f"attack success rate {entry.attack_success_rate:.1%}, {held.found} of {held.poisoned} files found"
    else:
        figures = f"{held.mislabelled_flagged} of {held.mislabelled} mislabelled files suspected"
    alarms = f"{held.false_alarms} false alarms in {held.clean} clean files"
    return f"{entry.attack}: {entry.outcome} ({figures}, {alarms}; verdict: {entry.verdict})"


def _show(drilled: "list[Drilled]") -> None:
    """All attacks as a table: ``took`` is the attack success rate, ``found`` the true positive rate."""
    table = Table("attack", "took", "found", "false alarms", "AUROC", "verdict", "outcome")
    for entry in drilled:
        held = entry.detection
        table.add_row(
            entry.attack,
            f"{entry.attack_success_rate:.1%}" if entry.is_backdoor else "-",
            f"{held.true_positive_rate:.1%}" if held.poisoned else "-",
            f"{held.false_alarms} of {held.clean}",
            f"{held.auroc:.3f}" if held.poisoned else "-",
            Text(entry.verdict, style=scan.COLOURS.get(entry.verdict, "")),
            Text(entry.outcome, style=COLOURS.get(entry.outcome, "bold red")),
        )
    console.show(table)


def _names(text: str) -> list[str]:
    """The attacks that were asked for, each once, in that order."""
    from advrbd.attacks import PAPER, WIDER

    everything = [attack.name for attack in PAPER + WIDER]
    asked = (name.strip() for name in text.split(","))
    return list(dict.fromkeys(name for entry in asked for name in (everything if entry == ALL else [entry])))
