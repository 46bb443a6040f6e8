"""The options that several commands share, spelled once."""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from advrbd.config import MAX_SEED, Config, DecodingSettings, RelearningSettings
from advrbd.errors import AdvrbdError, OutputError
from advrbd.writing import check_target_file
from advrbd_cli import console


class Format(StrEnum):
    csv = "csv"
    json = "json"
    jsonl = "jsonl"
    table = "table"


class Action(StrEnum):
    relabel = "relabel"
    drop = "drop"
    quarantine = "quarantine"


class LinkMode(StrEnum):
    copy = "copy"
    hardlink = "hardlink"
    symlink = "symlink"


Kind = TypeVar("Kind", bound=StrEnum)
Folder = Annotated[Path, typer.Argument(help="Image folder: one sub-folder of images per class.", show_default=False)]
Data = Annotated[
    Path,
    typer.Argument(
        help="Image folder (one sub-folder of images per class), a zip or tar of one, or a CSV or JSON-lines file of "
        "paths and labels.",
        show_default=False,
    ),
]
Model = Annotated[
    str, typer.Option(help="Nearly any timm classification model, or auto.", rich_help_panel="Model", metavar="NAME")
]
DeviceName = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel="Model")]
ImageSize = Annotated[
    int | None,
    typer.Option(help="Side in pixels to train at. (default: from the images)", min=8, rich_help_panel="Model"),
]
MaxPixels = Annotated[
    int,
    typer.Option(
        help="Decode no image with more pixels than this: its status is too-large.", min=1, rich_help_panel="Model"
    ),
]
MAX_PIXELS, CONFIDENCE_FLOOR = DecodingSettings.max_pixels, RelearningSettings.confidence_floor
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="Start from timm's weights (downloads them).", rich_help_panel="Model")
]
Flip = Annotated[
    bool,
    typer.Option(
        "--flip/--no-flip",
        help="Whether a mirrored image means the same; --no-flip for digits, text, all that has a left and a right.",
        rich_help_panel="Model",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0, max=MAX_SEED, rich_help_panel="Model")]
PoisonRate = Annotated[float, typer.Option(help="Share of all images to poison.", min=0, max=1)]
Split = Annotated[
    str | None, typer.Option(help="Scan this sub-folder (train, val, ...) of DATA.", metavar="NAME", show_default=False)
]
Root = Annotated[
    Path | None,
    typer.Option(
        help="Folder that the paths in a CSV or JSON-lines DATA start from (default: the one that it lies in).",
        metavar="DIR",
        show_default=False,
    ),
]
WorkDir = Annotated[
    Path | None,
    typer.Option(help="Folder to keep what was trained, to go on from.", rich_help_panel="Run", show_default=False),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the interrupted run in --work-dir.", rich_help_panel="Run")
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        help="Memory for what grows with the number of images: 4G, 500M. (default: half of what is free)",
        metavar="SIZE",
        show_default=False,
        rich_help_panel="Run",
    ),
]
ReportOutput = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        help="Report to write; - is stdout (default: none).",
        show_default=False,
        rich_help_panel="Output",
    ),
]
FORM = typer.Option(
    "--format", "-f", help="How to write it (default: from its name, else csv).", rich_help_panel="Output"
)
"""What ``--format`` is, whose choices each command has its own of."""
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.", rich_help_panel="Output")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="More on stderr.", rich_help_panel="Output")]
ShowProgress = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress", help="(default: live on a terminal, lines elsewhere)", rich_help_panel="Output"
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Options from this TOML file. Stronger are ADVRBD_<OPTION> variables, weaker is pyproject.toml.",
        metavar="FILE",
        show_default=False,
        rich_help_panel="Settings",
    ),
]
NoConfig = Annotated[
    bool,
    typer.Option(
        "--no-config",
        help="Read neither pyproject.toml nor .advrbdignore of the working directory.",
        rich_help_panel="Settings",
    ),
]
Baseline = Annotated[
    Path | None,
    typer.Option(
        help="Accept the suspects of this earlier report, as long as their bytes and their class are the same.",
        metavar="REPORT",
        show_default=False,
        rich_help_panel="Accepted suspects",
    ),
]
IgnoreFile = Annotated[
    Path | None,
    typer.Option(
        help="Accept the files of this list: SHA-256 and path a line. (default: the working directory's .advrbdignore)",
        metavar="FILE",
        show_default=False,
        rich_help_panel="Accepted suspects",
    ),
]


def config_of(
    model: str,
    device: str,
    image_size: int | None,
    max_pixels: int,
    pretrained: bool,
    flip: bool,
    seed: int,
    confidence_floor: float = CONFIDENCE_FLOOR,
) -> Config:
    """The settings of a run, of the options of these names in the order in which commands have them."""
    return Config(
        model=model,
        device=device,
        seed=seed,
        image_size=image_size,
        pretrained=pretrained,
        flip=flip,
        decoding=DecodingSettings(max_pixels),
        relearning=RelearningSettings(confidence_floor),
    )


def parse_fail_on(text: str) -> tuple[float, bool]:
    """``N`` or ``P%`` as a number and whether it is a share in percent."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    if not match or float(match[1]) <= 0 or (match[2] and float(match[1]) > 100) or (not match[2] and "." in match[1]):
        raise AdvrbdError(f"--fail-on takes a number of files (5) or a share of them (0.5%), not {text!r}")
    return float(match[1]), bool(match[2])


def parse_size(text: str | None) -> int | None:
    """``4G``, ``500M``, ``64KiB`` or a number of bytes, in bytes; units are powers of 1024. None stays."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?|B)?", text.strip(), re.IGNORECASE | re.ASCII)
    if not match:
        raise AdvrbdError(f"--memory-budget takes a size such as 4G or 500M, not {text!r}")
    return int(float(match[1]) * 1024 ** (" KMGT".index((match[2] or " ").upper())))


def form_of(kind: type[Kind], name: str | Path | None) -> Kind:
    """The form that the ``name`` of a report asks for; CSV where it asks for none of that ``kind``, or has no name."""
    suffix = Path(name or "").suffix.lower().lstrip(".")
    return kind(suffix) if suffix in set(kind) else kind("csv")


def check_report(output: str | None, form: StrEnum | None, source: Path, what: str = "the scanned folder") -> None:
    """Refuse a report that can't be written before hours of work, not after; ``what`` says what ``source`` is."""
    if output is None and form is not None:
        raise OutputError("--format says how to write a report, but none was asked for; add --output FILE, or -o -")
    if output == "-":
        console.check_stdout()
    elif output is not None and source.exists():
        check_target_file(Path(output), source, "--output", what)


def check_inputs_kept(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | str | None]) -> None:
    """Refuse an output that would take the place of a file that the run reads: a report its own baseline, say.

    Both are paths by the option that names them; None and ``-`` are no files.
    """
    for option, output in outputs.items():
        for source, path in inputs.items():
            if output is not None and path not in (None, "-") and output.resolve() == Path(path).resolve():
                raise OutputError(
                    f"{option} would overwrite {path}, which this run reads ({source}); give it another name"
                )


def files_of_settings(config_file: Path | None, no_config: bool) -> dict[str, Path | None]:
    """``--config``, and what sets options or accepts suspects without being named; nothing with ``--no-config``."""
    unnamed = {name: Path(name) for name in ("pyproject.toml", ".advrbdignore") if Path(name).exists()}
    return {} if no_config else {"--config": config_file, **unnamed}


def check_resume(work_dir: Path | None, resume: bool) -> None:
    """There is nothing to go on from without a work directory."""
    if resume and work_dir is None:
        raise AdvrbdError("--resume needs the --work-dir of the run that was interrupted")
