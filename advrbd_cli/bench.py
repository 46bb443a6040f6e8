"""``advrbd bench``: the paper's experiments, its tables and its figures, on any data."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advrbd_cli import console, exits, options

if TYPE_CHECKING:
    from advrbd.benchmark.matrix import Matrix

EXAMPLES = (
    "Attacks: none (the unpoisoned folder), those of `advrbd poison`, or paper, wider, aware, all. Defences: none, "
    "scan, advrbd, random-filter, perfect-filter, fine-tuning, fine-pruning, cutmix, clp, d-br, scan-ft, abl, "
    "advrbd-paper (its raw algorithms), activation-clustering, spectral-signatures, cleanlab (these three with the "
    "extra bench), or all. "
    "Example: advrbd bench run --preset smoke --work runs && advrbd bench tables runs"
)
app = typer.Typer(
    help="Measure advrbd against known attacks and other defences, and render the paper's tables and figures.",
    no_args_is_help=False,
)


class Preset(StrEnum):
    smoke = "smoke"
    small = "small"
    paper = "paper"


class DataSet(StrEnum):
    cifar10 = "cifar10"
    cifar100 = "cifar100"
    imagenette = "imagenette"


class FigureFormat(StrEnum):
    png = "png"
    svg = "svg"


Names = Annotated[str | None, typer.Option(help="With commas between them.", metavar="NAMES", show_default=False)]
Work = Annotated[Path, typer.Argument(help="Folder with results of `advrbd bench run`.", show_default=False)]


@app.command("run", epilog=EXAMPLES)
def run(
    work: Annotated[Path, typer.Option(help="Folder for the results; the same one goes on.", show_default=False)],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="With train/ and test/ in ImageFolder layout; may be repeated.", show_default=False),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(
            help="smoke: minutes, on digits; small: on a CPU, about an hour on two cores with bfloat16; "
            "paper: full size, for a GPU. What is given besides replaces what it says.",
            show_default=False,
        ),
    ] = None,
    attacks: Names = None,
    defences: Names = None,
    rates: Annotated[
        str | None, typer.Option(help="Shares of all images to poison (default: 0.05).", show_default=False)
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="Any of timm, or auto (default: auto).", show_default=False)
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="(default: 11,12,13)", show_default=False)] = None,
    per_class: Annotated[
        int | None,
        typer.Option(min=1, help="Training images drawn of each class (default: 1000).", show_default=False),
    ] = None,
    target: Annotated[
        int | None, typer.Option(min=0, help="Number of the target class, from 0 (default: 1).", show_default=False)
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(min=0, help="Share of their papers' epochs that baselines get (default: 1).", show_default=False),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps (default: auto).", show_default=False)
    ] = None,
    clean: Annotated[bool, typer.Option("--clean", help="Clean, too, beside two filters.")] = False,
    figures: Annotated[bool, typer.Option("--figures", help="Store the data of figures, too.")] = False,
    override: Annotated[
        list[str] | None,
        typer.Option(help="A setting to change; may be repeated.", metavar="STAGE.FIELD=VALUE", show_default=False),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Start no unit after so many.", show_default=False)
    ] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Plant attacks in draws of the data, scan them and defend against them; a result each in WORK.

    The same command again runs what is missing. Data sets are only read.
    """
    console.state.quiet, console.state.verbose = quiet, verbose

    from advrbd.benchmark.datasets import digits_data
    from advrbd.benchmark.matrix import Matrix
    from advrbd.benchmark.presets import PRESETS, plan
    from advrbd.benchmark.run import run as run_plan
    from advrbd.benchmark.settings import parse_overrides
    from advrbd.errors import BenchmarkError

    changes: dict[str, Any] = {
        "attacks": _split(attacks),
        "defences": _split(defences),
        "rates": _split(rates, float, "--rates takes numbers"),
        "models": _split(models),
        "seeds": _split(seeds, int, "--seeds takes whole numbers"),
        "per_class": per_class,
        "target": target,
        "budget": budget,
        "device": device,
        "overrides": parse_overrides(override) if override else None,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    matrices = PRESETS[preset.value] if preset else (Matrix(),)
    if (clean or figures) and changes.get("defences") != ():  # which the plan refuses
        matrices = _with_more(matrices, changes.pop("defences", None), clean, figures)
    if not data and preset != Preset.smoke:
        raise BenchmarkError("name a data set with --data, or try --preset smoke, which brings one along")
    planned = plan(matrices, data or [digits_data(work / "data")], changes)
    _say_what_is_skipped(matrices, data or [])
    with console.Narrator() as narrator:
        outcome = run_plan(planned, work, float("inf") if minutes is None else minutes, narrator)
    if outcome.left:
        console.say(f"{outcome.left} of {len(planned)} units are left; the same command again runs them")
    console.say(f"next: advrbd bench tables {work}")
    if outcome.failed:
        console.error(f"{len(outcome.failed)} steps failed, the first of them: {outcome.failed[0]}")
        raise typer.Exit(exits.FAILED)


@app.command("tables")
def tables(
    work: Work,
    output: Annotated[str, typer.Option("--output", "-o", help="File to write; - is stdout.")] = "-",
    units: Annotated[bool, typer.Option("--units", help="Every unit in a row instead of the paper's tables.")] = False,
) -> None:
    """Render the paper's Tables II to VII as far as there are results, its own figures beside ours, as Markdown."""
    from advrbd.benchmark.paper_tables import paper_tables
    from advrbd.benchmark.store import read_units
    from advrbd.benchmark.tables import unit_tables
    from advrbd.writing import check_target

    if output != "-":
        check_target(Path(output), "--output")
    found = read_units(_existing(work))
    rendered = (unit_tables(found) if units or not found else paper_tables(found)) + "\n"
    console.write_report(output, rendered.encode())


@app.command("figures")
def figures(
    work: Work,
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("figures"),
    form: Annotated[FigureFormat, typer.Option("--format", "-f", help="How to write them.")] = FigureFormat.png,
) -> None:
    """Draw the paper's Figures 4 to 7 from results of `bench run --figures` and of several partition rates."""
    from advrbd.benchmark.figures import draw
    from advrbd.benchmark.store import read_units

    for path in draw(read_units(_existing(work)), out, form.value):
        console.say(str(path))


@app.command("download")
def download(
    name: Annotated[DataSet, typer.Argument(help="Through torchvision, from its makers.", show_default=False)],
    place: Annotated[Path, typer.Argument(help="Folder in which to make NAME/.", show_default=False)],
) -> None:
    """Download a data set of the paper and write it as train/ and test/ with a folder per class."""
    from advrbd.benchmark.datasets import download as fetch

    console.say(f"data set: {fetch(name.value, place)}")


def _split(text: str | None, kind: type = str, what: str = "") -> tuple | None:
    """``a,b`` as a tuple of what ``kind`` makes of each; None stays."""
    from advrbd.errors import BenchmarkError

    try:
        return None if text is None else tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise BenchmarkError(f"{what} with commas between them, not {text!r}") from None


def _with_more(
    matrices: "tuple[Matrix, ...]", defences: tuple[str, ...] | None, clean: bool, figures: bool
) -> "tuple[Matrix, ...]":
    from dataclasses import replace

    more = (("cleaning",) if clean else ()) + (("figures",) if figures else ())
    return tuple(replace(matrix, defences=(defences or matrix.defences) + more) for matrix in matrices)


def _say_what_is_skipped(matrices: "tuple[Matrix, ...]", data: list[Path]) -> None:
    wanted = dict.fromkeys(name for matrix in matrices for name in matrix.datasets or ())
    from advrbd.benchmark.matrix import is_called

    there = {folder.resolve().name for folder in data}
    if lacking := [name for name in wanted if not any(is_called(folder, name) for folder in there)]:
        console.caution(f"left out for want of their data: {', '.join(lacking)}")


def _existing(work: Path) -> Path:
    from advrbd.errors import BenchmarkError

    if not work.is_dir():
        raise BenchmarkError(f"no such folder: {work}; it is made by advrbd bench run --work {work}")
    return work
