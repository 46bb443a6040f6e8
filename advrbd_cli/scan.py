"""``advrbd scan``: which files look poisoned?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from advrbd_cli import accepted, console, exits, options, plan

if TYPE_CHECKING:
    from advrbd.reports.report import Report

EXAMPLES = "Example: advrbd scan ./data -o report.json && train.sh ./data"
DEFAULTS = {"--model": "auto", "--device": "auto", "--max-pixels": options.MAX_PIXELS}  # that no command repeats
COLOURS = {"clean": "green", "unexamined": "yellow", "suspicious": "yellow", "poisoned": "bold red"}


def scan(
    data: options.Data,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="Report to write; - is stdout. (default: advrbd-report.csv)",
            rich_help_panel="Output",
        ),
    ] = None,
    form: Annotated[options.Format | None, options.FORM] = None,
    all_files: Annotated[
        bool, typer.Option("--all-files", help="A row for every file, not only for suspects.", rich_help_panel="Output")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Page with pictures of the suspects to write, for any browser, offline (default: none).",
            metavar="FILE",
            show_default=False,
            rich_help_panel="Output",
        ),
    ] = None,
    fail_on: Annotated[
        str, typer.Option(help="Exit 1 from this many suspects on.", metavar="N|P%", rich_help_panel="Verdict")
    ] = "1",
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Exit 0 even if there are suspects.", rich_help_panel="Verdict")
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit 2 if any file couldn't be read or any class couldn't be examined.",
            rich_help_panel="Verdict",
        ),
    ] = False,
    baseline: options.Baseline = None,
    ignore_file: options.IgnoreFile = None,
    files_from: Annotated[
        str | None,
        typer.Option(
            help="Report only the files that this list names, one a line; - is stdin. The whole folder is scanned.",
            metavar="FILE",
            show_default=False,
            rich_help_panel="Verdict",
        ),
    ] = None,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="Its names end in zero bytes, not lines.", rich_help_panel="Verdict")
    ] = False,
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
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only say what the scan would take: files, memory, time; with --format json on stdout.",
            rich_help_panel="Run",
        ),
    ] = False,
    config_file: options.ConfigFile = None,
    no_config: options.NoConfig = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    progress: options.ShowProgress = None,
) -> None:
    """Scan an image folder for backdoor-poisoned files; exit 1 if there are any.

    Needs no clean images and no knowledge of the attack. DATA is only read.
    """
    console.state.quiet, console.state.verbose = quiet, verbose
    options.check_resume(work_dir, resume)

    from advrbd.data.sources import check_there, place, territory

    threshold, budget = options.parse_fail_on(fail_on), options.parse_size(memory_budget)
    target = None if output == "-" else Path(output or f"advrbd-report.{'txt' if form == 'table' else form or 'csv'}")
    _check_before_work(target, form, html, territory(data, root))
    named = {"DATA": data, "--baseline": baseline, "--ignore-file": ignore_file, "--files-from": files_from}
    read = named | options.files_of_settings(config_file, no_config)
    options.check_inputs_kept({"--output": target, "--html": html}, read)
    known = accepted.gather(territory(data, root), baseline, ignore_file, no_config)
    chosen = accepted.chosen_files(data, split, root, files_from, null)
    check_there(data, root)

    from advrbd.pipeline import scan as run_scan
    from advrbd.reports.accepted import accept
    from advrbd.reports.subset import restrict
    from advrbd.reports.tables import render
    from advrbd.writing import write_whole

    config = options.config_of(model, device, image_size, max_pixels, pretrained, flip, seed)
    given: dict[str, Any] = {"split": split, "root": root, "work_dir": work_dir, "memory_budget": budget}
    if dry_run:
        from advrbd.pipeline import plan_scan

        plan.show(plan_scan(data, config, **given, notify=console.Narrator(False)), form)
        return
    with console.Narrator(progress) as narrator:
        report = run_scan(data, config, **given, resume=resume, notify=narrator)
    report = accept(report if chosen is None else restrict(report, chosen), known)
    written_as = form or options.form_of(options.Format, target)
    rendered = render(report, written_as, all_files)
    if target is not None:
        write_whole(target, rendered)
    # what the commands of the page repeat, and with the rest the one of the line ``next:``
    of_input = {"--split": split, "--root": root, "--max-pixels": max_pixels, "--no-flip": not flip}
    try:
        if html is not None:
            from advrbd.reports.html import render_html

            write_whole(html, render_html(report, data, max_pixels, place(data, split, root), _arguments(of_input)))
    finally:  # a page that can't be written takes no report away
        if target is None:
            console.to_stdout(rendered)
    summarise(report, target, html)
    if report.open_suspects:
        readable = target if chosen is None and written_as != options.Format.table else None
        of_suspects = {"--report": readable, **of_input, "--baseline": baseline, "--ignore-file": ignore_file}
        of_model = {"--model": model, "--image-size": image_size, "--seed": seed, "--device": device}
        of_run = {"--pretrained": pretrained, "--config": config_file, "--no-config": no_config}
        console.say(f"next: {_next_command(data, of_suspects | of_model | of_run)}")
    if code := _exit_code(report, threshold, exit_zero, strict):
        raise typer.Exit(code)


def summarise(report: "Report", target: Path | None, page: Path | None = None) -> None:
    """What was found, by class, and where the report and the page are."""
    figures = (Column(name, no_wrap=True) for name in ("files", "suspects", "verdict"))
    table = Table(Column("class", overflow="fold"), *figures)
    shown = [entry for entry in report.classes if entry.is_named]
    for entry in shown:
        verdict = Text(entry.verdict, style=COLOURS[entry.verdict])
        table.add_row(Text(console.escaped(entry.label)), str(entry.files), str(entry.suspects), verdict)
    if shown:
        console.show(table)
    count, unread = len(report.suspects), len(report.unread)
    console.say(
        f"{len(report.files)} files in {len(report.classes)} classes: "
        + (f"{count} suspected of being poisoned" if count else "no suspects")
        + _acceptance(report)
        + (f"; {report.elsewhere} among the files left out" if report.elsewhere else "")
        + (f"; {unread} could not be read (see their status in the report)" if unread else "")
    )
    blind = f" ({len(report.unexamined)} of {len(report.classes)} classes unexamined)" if report.unexamined else ""
    written = "".join(f"; {name}: {path}" for name, path in (("report", target), ("page", page)) if path)
    console.say(f"verdict: {report.verdict}{blind}{written}")


def _acceptance(report: "Report") -> str:
    """How many of the suspects were accepted, and by which file."""
    by = report.accepted_by
    return f", {by.total()} of them accepted ({', '.join(by)})" if by else ""


def _next_command(data: Path, given: dict[str, Any]) -> str:
    """The command that cleans by this scan, with what it was ``given``."""
    from advrbd.reports.wording import command

    return command("clean", data, *_arguments(given), "--out", "CLEAN")


def _arguments(given: dict[str, Any]) -> list[str]:
    """The options that were given other values than their defaults, as arguments again; a flag is its name alone."""
    told = {name: value for name, value in given.items() if value and value != DEFAULTS.get(name)}
    return [text for name, value in told.items() for text in ((name,) if value is True else (name, str(value)))]


def _exit_code(report: "Report", threshold: tuple[float, bool], exit_zero: bool, strict: bool) -> int:
    """What the process ends with; ``threshold`` as ``parse_fail_on`` gives it. Says why where --strict decides."""
    if strict and (report.unread or report.unexamined):
        counts = f"{len(report.unread)} files couldn't be read, {len(report.unexamined)} classes couldn't be examined"
        console.error(f"{counts} (--strict); the warnings and the report's status column say why")
        return exits.FAILED
    count, (enough, is_share) = len(report.open_suspects), threshold
    found = count * 100 / max(1, len(report.files)) if is_share else count
    guilty = report.unaccused or (count and found >= enough)
    return exits.SUSPECTS if guilty and not exit_zero else exits.CLEAN


def _check_before_work(target: Path | None, wanted: options.Format | None, page: Path | None, territory: Path) -> None:
    """Refuse what can't be written before an hour of training, not after."""
    from advrbd.errors import OutputError
    from advrbd.writing import check_target_file

    if target is None:
        console.check_stdout()
    if page == Path("-"):
        raise OutputError("--html takes the name of a file; on stdout there is only the report of --output")
    if page is not None and target is not None and page.resolve() == target.resolve():
        raise OutputError(f"--html and --output both name {page}; give one of them another name")
    if target is not None and target.suffix.lower() in (".html", ".htm") and wanted is None:
        raise OutputError(f"{target} would not be a page: --output writes the report; a page is written by --html")
    for path, option in ((target, "--output"), (page, "--html")):
        if path is not None and territory.exists():
            check_target_file(path, territory, option)
