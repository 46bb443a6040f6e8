"""``advrbd clean``: a folder without the poison, and a clean model."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advrbd_cli import accepted, console, exits, options

if TYPE_CHECKING:
    from advrbd.pipeline import Cleaned

EXAMPLES = "Example: advrbd scan ./data -o report.json; advrbd clean ./data --report report.json --out ./clean"


def clean(
    data: options.Data,
    out: Annotated[Path, typer.Option(help="New folder for the cleaned dataset.", show_default=False)],
    report: Annotated[
        Path | None,
        typer.Option(
            help="Take the suspects from this report of `advrbd scan` instead of scanning.", show_default=False
        ),
    ] = None,
    action: Annotated[
        options.Action, typer.Option(help="What to do with the suspects.", rich_help_panel="Suspects")
    ] = options.Action.relabel,
    confidence_floor: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Drop a suspect whose new label is less sure than this.", rich_help_panel="Suspects"
        ),
    ] = options.CONFIDENCE_FLOOR,
    quarantine: Annotated[
        Path | None,
        typer.Option(help="Folder for --action quarantine. (default: OUT-quarantine)", rich_help_panel="Suspects"),
    ] = None,
    baseline: options.Baseline = None,
    ignore_file: options.IgnoreFile = None,
    rescan: Annotated[
        bool, typer.Option("--rescan", help="Scan the result once more before writing it.", rich_help_panel="Trust")
    ] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Write nothing that can't be fully trusted; exit 2.", rich_help_panel="Trust"),
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="CSV report of what was done.", rich_help_panel="Output")
    ] = Path("advrbd-clean-report.csv"),
    save_model: Annotated[
        Path | None,
        typer.Option(help="File for the clean model. (default: OUT.safetensors)", rich_help_panel="Output"),
    ] = None,
    link_mode: Annotated[
        options.LinkMode,
        typer.Option(
            help="Links save room, but whoever can write to DATA can change what they lead to, after cleaning, too.",
            rich_help_panel="Output",
        ),
    ] = options.LinkMode.copy,
    split: options.Split = None,
    root: options.Root = None,
    model: options.Model = "auto",
    device: options.DeviceName = "auto",
    image_size: options.ImageSize = None,
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    pretrained: options.Pretrained = False,
    flip: options.Flip = True,
    seed: options.Seed = 0,
    work_dir: options.WorkDir = None,
    resume: options.Resume = False,
    memory_budget: options.MemoryBudget = None,
    config_file: options.ConfigFile = None,
    no_config: options.NoConfig = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    progress: options.ShowProgress = None,
) -> None:
    """Write a cleaned copy of an image folder, and a model trained on it.

    Suspects are relabelled by a model that never learned their labels, and dropped where it isn't sure. How far the
    result can be trusted is said, and why. Every file is accounted for in OUT/advrbd-manifest.json. DATA is only read.
    """
    console.state.quiet, console.state.verbose = quiet, verbose
    options.check_resume(work_dir, resume)
    budget = options.parse_size(memory_budget)
    model_file = save_model or Path(f"{out.resolve()}.safetensors")

    from advrbd.data.sources import check_there, territory

    _check_before_work(territory(data, root), out, output, model_file)
    named = {"DATA": data, "--report": report, "--baseline": baseline, "--ignore-file": ignore_file}
    read = named | options.files_of_settings(config_file, no_config)
    options.check_inputs_kept({"--output": output, "--save-model": model_file}, read)
    known = accepted.gather(territory(data, root), baseline, ignore_file, no_config)
    check_there(data, root)

    from advrbd.pipeline import clean as run_clean

    config = options.config_of(model, device, image_size, max_pixels, pretrained, flip, seed, confidence_floor)
    with console.Narrator(progress) as narrator:
        cleaned = run_clean(
            data,
            out,
            config,
            report=report,
            accepted=known,
            action=action.value,
            quarantine=quarantine,
            rescan=rescan,
            strict=strict,
            link_mode=link_mode.value,
            split=split,
            root=root,
            work_dir=work_dir,
            resume=resume,
            memory_budget=budget,
            notify=narrator,
            finish=partial(_write_beside, output, model_file),
        )
    summarise(cleaned, out, output, model_file)
    if cleaned.check.trust == "none":
        raise typer.Exit(exits.SUSPECTS)


def _write_beside(output: Path, model: Path, cleaned: "Cleaned") -> None:
    """The report and the model, both or none."""
    from advrbd.model.saved import model_bytes
    from advrbd.output import decisions_csv
    from advrbd.writing import write_together

    _check_new(model)  # it may have come about during the training
    weights = model_bytes(model.name, cleaned.network, cleaned.classes)
    write_together({model: weights, output: decisions_csv(cleaned.report, cleaned.decisions)})


def summarise(cleaned: "Cleaned", out: Path, output: Path, model: Path) -> None:
    """What became of the files, how far that can be trusted, and where everything is."""
    counts = Counter(entry.action for entry in cleaned.decisions)
    for message in (*cleaned.cautions, *cleaned.check.reasons):
        console.caution(message)
    console.say(", ".join(f"{count} {action}" for action, count in sorted(counts.items())))
    again = f"; another scan of it: {cleaned.check.rescan}" if cleaned.check.rescan else ""
    console.say(f"trust in the result: {cleaned.check.trust}{again}")
    console.say(f"dataset: {out}; model: {model}; report: {output}")
    console.say("the model loads with timm alone: see examples/clean.md, or 'usage' in the file's header")
    if cleaned.check.trust != "none":
        console.say(f"next: train on {out}")


def _check_before_work(territory: Path, out: Path, output: Path, model: Path) -> None:
    """Refuse what can't be written before an hour of training, not after."""
    from advrbd.errors import OutputError
    from advrbd.writing import check_apart, check_target_file

    if territory.exists():
        check_apart(out, territory)
    if output.suffix.lower() in (".json", ".jsonl", ".html", ".htm"):
        raise OutputError(f"the report of clean is CSV; give {output} another ending (`advrbd scan` writes the others)")
    for target, option in ((output, "--output"), (model, "--save-model")):
        if territory.exists():
            check_target_file(target, territory, option)
        if target.resolve().is_relative_to(out.resolve()):
            raise OutputError(f"{target} lies inside {out}, which may hold only class folders; put it elsewhere")
    if model.resolve() == output.resolve():
        raise OutputError(f"{output} can't be both the report and the model; name another file with --save-model")
    _check_new(model)


def _check_new(model: Path) -> None:
    from advrbd.errors import OutputError

    if model.exists():
        raise OutputError(f"{model} exists already; name another file with --save-model")
