"""The report as one page that needs no network: pictures, styles and script lie in it.

Every text from the dataset is made printable and escaped. Should something slip through after all, the page's policy
lets no script run but the one whose hash it names, and nothing be fetched from anywhere. The same report and folder
give the same bytes.
"""

import base64
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from advrbd.config import DecodingSettings
from advrbd.data.folder import OK, Store
from advrbd.reports import images, wording
from advrbd.reports.images import Comparison, Picture
from advrbd.reports.report import ClassVerdict, FileResult, Report
from advrbd.writing import escaped, printable

HOME = Path(__file__).parent
MOST_PICTURES = 1_000
MOST_ROWS = 20_000  # of suspects without a picture; the other reports have them all
MOST_UNREAD = 1_000
MOST_SECTIONS = 25
BINS = 20
BAR_WIDTH, BAR_HEIGHT = 16, 100  # of the histogram, in units of its viewBox


@dataclass(frozen=True)
class Card:
    """One suspect; ``number`` is that of its class. ``changed``: it has no picture since its bytes aren't the same."""

    file: FileResult
    number: int
    picture: Picture | None
    changed: bool


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram: ``count`` files with a score over ``low`` and up to ``high``."""

    low: float
    high: float
    count: int
    x: int
    height: float


@dataclass(frozen=True)
class Section:
    """What the page shows of one class: ``apart`` files are compared with its others, None if they can't be."""

    verdict: ClassVerdict
    share: float
    figures: list[wording.Figure]
    apart: int
    comparison: Comparison | None
    bars: list[Bar]


def render_html(
    report: Report,
    root: Path,
    max_pixels: int = DecodingSettings.max_pixels,
    place: Path | Store | None = None,
    options: Sequence[str] = (),
) -> bytes:
    """The ``report`` on the input ``root`` as one HTML page in UTF-8, with the pictures read again from ``place``.

    By default that is the folder ``root``. ``options`` are what else it takes to name the input on a command line.
    Files that are no longer what was scanned are shown without a picture, and so are those of more than ``max_pixels``,
    the limit that the folder was scanned with. Nothing is written.
    """
    ranked = sorted(report.suspects, key=lambda file: (-(file.score or 0), file.path))
    place = place or root
    sections = list(_sections(report, place, max_pixels))
    script = (HOME / "report.js").read_text(encoding="utf-8")
    page = dict(
        report=report,
        headline=wording.headline(report, root, options),
        counted=wording.counted,
        meanings=wording.VERDICTS,
        statuses=wording.STATUSES,
        sections=sections,
        named=sum(entry.is_named for entry in report.classes),
        accused=[(number, entry.label) for number, entry in enumerate(report.classes) if entry.suspects],
        cards=_cards(ranked[: MOST_PICTURES + MOST_ROWS], report, place, max_pixels),
        most_pictures=MOST_PICTURES,
        unread=report.unread[:MOST_UNREAD],
        facts=list(_facts(report.run)),
        settings=list(_settings(report.run.get("config"))),
        style=Markup((HOME / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    template = _environment().get_template("report.html.j2")
    size = len(template.render(page, megabytes=0.0).encode())  # the page states its own size
    return template.render(page, megabytes=size / 1e6).encode()


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HOME), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["name"] = lambda text: Markup("<bdi>{}</bdi>").format(printable(text))
    environment.filters["plain"] = lambda text: escaped(str(text))
    environment.filters["option"] = printable
    environment.filters["picture"] = images.picture
    return environment


def _cards(ranked: Sequence[FileResult], report: Report, place: Path | Store, max_pixels: int) -> list[Card]:
    """The suspects as the page lists them; the first ones, which have the highest scores, with a picture."""
    numbers = {entry.label: number for number, entry in enumerate(report.classes)}
    pictures = images.thumbnails(ranked[:MOST_PICTURES], place, max_pixels)
    pictured = [
        Card(file, numbers.get(file.label, -1), picture, picture is None)
        for file, picture in zip(ranked, pictures, strict=False)
    ]
    return pictured + [Card(file, numbers.get(file.label, -1), None, False) for file in ranked[MOST_PICTURES:]]


def _sections(report: Report, place: Path | Store, max_pixels: int) -> Iterator[Section]:
    """The classes where something was found, those with the most suspects first."""
    by_class = defaultdict(list)
    for file in report.files:
        if file.status == OK:
            by_class[file.label].append(file)
    named = sorted((entry for entry in report.classes if entry.is_named), key=lambda entry: -entry.suspects)
    for entry in named[:MOST_SECTIONS]:
        files = by_class[entry.label]
        apart = _apart(entry, files)
        others = [file for file in files if file not in apart]
        yield Section(
            entry,
            entry.suspects / max(1, entry.files),
            wording.figures(entry.evidence),
            len(apart),
            images.compare(list(apart), others, place, max_pixels),
            histogram([file.score for file in files if file.score is not None]),
        )


def _apart(entry: ClassVerdict, files: Sequence[FileResult]) -> dict[FileResult, None]:
    """The suspects of a class or, where it has none in the whole folder, the files that carry what makes it suspicious.

    Their score is the class's conviction times P(the file carries it).
    """
    if entry.suspects:
        return dict.fromkeys(file for file in files if file.suspect)
    even_odds = entry.evidence.get("conviction", math.inf) / 2
    return dict.fromkeys(file for file in files if (file.score or 0) > even_odds)


def histogram(scores: Sequence[float]) -> list[Bar]:
    """Twenty bars over 0..1 whose heights are logarithmic in the counts, so that five files show beside 5,000.

    A score of exactly 0.5, which makes no suspect, is counted in the bar that ends there.
    """
    counts = [0] * BINS
    for score in scores:
        counts[min(max(math.ceil(score * BINS) - 1, 0), BINS - 1)] += 1
    top = math.log1p(max(counts))
    heights = [BAR_HEIGHT * math.log1p(count) / top if count else 0.0 for count in counts]
    return [
        Bar(number / BINS, (number + 1) / BINS, count, number * BAR_WIDTH, round(height, 1))
        for number, (count, height) in enumerate(zip(counts, heights, strict=True))
    ]


def _facts(run: dict) -> Iterator[tuple[str, str]]:
    """How the run went, as far as its block says so."""
    model = run.get("model")
    if isinstance(model, dict):
        model = f"{model.get('name', '?')} at {model.get('image_size', '?')} px"
    control: dict[object, str] = {True: "found, as it should be", False: "not found"}
    seconds = run.get("seconds")
    facts = {
        "Looks": run.get("looks"),
        "Control planted to test the scan itself": control.get(run.get("control_found")),
        "Time": f"{seconds:,.0f} seconds" if isinstance(seconds, int | float) else seconds,
        "Device": run.get("device"),
        "Model": model,
        "Versions": ", ".join(f"{key} {run[key]}" for key in ("advrbd", "torch", "timm", "python") if key in run),
    }
    yield from ((name, str(value)) for name, value in facts.items() if value not in (None, ""))


def _settings(config: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names with their values."""
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
