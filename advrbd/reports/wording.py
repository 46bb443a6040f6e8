"""What a report means, in sentences for somebody who has never heard of backdoors."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from advrbd.data.folder import (
    DECODER_CRASHED,
    NOT_A_FILE,
    REFUSED_LINK,
    TOO_LARGE,
    TOO_SLOW,
    UNREADABLE,
    VANISHED,
)
from advrbd.reports.report import CLEAN, POISONED, SUSPICIOUS, UNEXAMINED, Report
from advrbd.writing import escaped

STATUSES = {
    UNREADABLE: "not an image that can be decoded completely",
    TOO_LARGE: "more pixels or bytes than are ever decoded",
    DECODER_CRASHED: "crashed the program that decodes images, which attacks on programs do",
    TOO_SLOW: "not decoded within the time that a file has",
    NOT_A_FILE: "a pipe, a socket or a device, which is never opened",
    REFUSED_LINK: "a link out of the folder, in a circle or to nothing, which is never followed",
    VANISHED: "listed, then gone or locked when it was read",
}
VERDICTS = {
    CLEAN: "looked, and found nothing that divides a class as sharply as a trigger does",
    UNEXAMINED: "could not look, so nothing is known",
    SUSPICIOUS: "something divides the class, but not sharply enough to accuse single files",
    POISONED: "a trigger, and the files that carry it",
}
FIGURES = {  # key in the evidence: name, format, meaning
    "conviction": (
        "Probability of a trigger",
        "{:.0%}",
        "Over 50 % the class counts as poisoned, over 25 % as suspicious. It rests on the files left "
        "undecided and their affinity to their label.",
    ),
    "ambiguity": (
        "Undecided files",
        "{:.2f} for each file on the smaller side",
        "Models that were made to forget everything but the suspected trigger sort the class in two. Near 0 they do so "
        "all or nothing, as a trigger works; from 0.4 on as they do with natural groups, red cars among the cars, or "
        "with a trigger that is hard to learn: up to 1.5 convict where the labels turn out to be false as well.",
    ),
    "denied": (
        "Labels denied",
        "{:.0%}",
        "So many of the clearest suspects show something else than their label says, in the eyes of a model that was "
        "trained without them.",
    ),
    "affinity": (
        "Affinity to their label",
        "{:.0%}",
        "How often that model sees more of the label in a suspect than in an image that looks alike to it and has "
        "another label. About 50 % where labels were falsified. Near 100 % the suspects are what their label says: "
        "natural, or a clean-label attack.",
    ),
    "strays": (
        "By their label alone",
        "{:.0f} suspects",
        "No trigger tells these, but they stand apart together, and their label is as false as that of the others: the "
        "trigger may hardly show in them, white on white. The two figures above are without them.",
    ),
    "scenes": (
        "Scenes that the suspects show",
        "{:.0f}",
        "Few for so many files: frames of a video, or copies of a photo. Models learn those by heart, as they do a "
        "trigger, so they may be no more than that.",
    ),
    "versions": (
        "Files for each picture",
        "{:.1f}",
        "On the smaller side. Frames of a video and versions of a few photos are told from all others as sharply as "
        "files with a trigger, so by so few pictures no class is accused.",
    ),
    "bimodality": (
        "Gap between the two kinds of image",
        "{:.1f}",
        "Ashman's D, of the clearest group: 2.65 is what cutting one even crowd in half gives; higher is clearer. It "
        "says where to look, not whether something was planted.",
    ),
    "distance": (
        "Distance between them",
        "{:.1f} deviations",
        "Between the centres of that group and of the rest of the class, in the model's eyes, in units of how much "
        "ordinary images of a class differ.",
    ),
    "groups": ("Groups examined", "{:.0f}", "So many parts of the class stood out enough to be looked at closely."),
}


@dataclass(frozen=True)
class Headline:
    """The verdict as one ``sentence``, what it ``means``, what to do next (``advice``) and the ``command`` for it."""

    sentence: str
    means: str
    advice: str
    command: str


@dataclass(frozen=True)
class Figure:
    """One figure of the evidence on a class: its ``name``, its ``value`` and what that ``means``."""

    name: str
    value: str
    means: str


def headline(report: Report, root: Path, options: Sequence[str] = ()) -> Headline:
    """The verdict on the dataset ``root``, which it takes ``options`` to name (``--split``, ``--root``), and what to do
    next. Suspects that are accepted are told, but don't count."""
    found, accepted = len(report.open_suspects), _acceptance(report)
    if found:
        return Headline(
            f"{found:,} of {counted(len(report.files), 'file')} {'looks' if found == 1 else 'look'} tampered with, "
            f"to make any model that learns from them obey a hidden trigger{accepted and f'; accepted: {accepted}'}.",
            "Don't train on this folder as it is. A model that learns from such files works as usual, until it is "
            "shown an image with the attacker's trigger: then it answers what the attacker wants.",
            "Look at the pictures below. Then have a copy of the folder written without these files (add --report and "
            "the name of this scan's report, so that it doesn't scan again):",
            command("clean", root, *options, "--out", "CLEAN"),
        )
    if report.elsewhere:
        return Headline(
            f"None of the {counted(len(report.files), 'file')} reported is accused"
            f"{accepted and f' but accepted ones ({accepted})'}; {counted(report.elsewhere, 'other')} in the folder "
            f"{'is' if report.elsewhere == 1 else 'are'}.",
            "This report is on some of the files only. The others may be accepted as well, or carry a trigger.",
            "To see them, have all files reported:",
            command("scan", root, *options),
        )
    if accepted and not report.unaccused:
        return Headline(
            f"No suspects but accepted ones: {accepted}.",
            "These files look tampered with, but somebody looked at them and found them harmless, so they don't count.",
            "If you don't know who, look at the pictures below, and scan without what accepts them:",
            command("scan", root, *options, "--no-config"),
        )
    if report.verdict in (SUSPICIOUS, POISONED):
        accused = {file.label for file in report.suspects}
        named = sum(entry.verdict in (SUSPICIOUS, POISONED) and entry.label not in accused for entry in report.classes)
        return Headline(
            f"Something stands apart in {counted(named, 'class', 'classes')}, "
            f"but not sharply enough to accuse single files{accepted and f'; accepted: {accepted}'}.",
            "It may be a trigger that an attacker planted, or a natural group of images that happen to look alike.",
            "Look at the comparison below, and scan once more with another seed:",
            command("scan", root, *options, "--seed", str(_next_seed(report.run))),
        )
    if report.verdict == UNEXAMINED:
        blind = f"{len(report.unexamined):,} of {counted(len(report.classes), 'class', 'classes')}"
        return Headline(
            f"This scan can't say whether the folder is safe: it could not look into {blind}.",
            "No file is suspected, but that isn't the same as looked and found nothing. The cautions say why.",
            "Scan again with a larger model, or give small classes more images:",
            command("scan", root, *options, "--model", _larger(report.run)),
        )
    drillable = "input" not in report.run  # it has none where class folders were scanned
    return Headline(
        "Nothing was found that looks like a planted trigger.",
        "No file is suspected. That is no proof: a trigger that this scan's model didn't learn isn't seen.",
        "To learn what a scan would find in "
        + (
            "this very folder, have known attacks planted in copies of it:"
            if drillable
            else "these very images, lay them out in a folder for each class, and have known attacks planted in copies:"
        ),
        command("drill", root, *options) if drillable else command("drill", Path("FOLDER")),
    )


def figures(evidence: dict) -> list[Figure]:
    """The evidence on a class in words, the most telling first; what has no words here keeps its key."""
    known = [_figure(key, evidence[key]) for key in FIGURES if key in evidence]
    return known + [Figure(str(key), str(value), "") for key, value in evidence.items() if key not in FIGURES]


def command(verb: str, root: Path, *arguments: str) -> str:
    """A command line for ``root`` as one line that a shell takes, unless the folder's name can't be printed."""
    folder = f"./{root}" if str(root).startswith("-") else str(root)  # not an option
    return escaped(shlex.join(["advrbd", verb, folder, *arguments]))


def _next_seed(run: dict) -> int:
    """Another seed than that of the ``run``, as far as it says what that was."""
    match run:
        case {"config": {"seed": int(seed)}}:
            return seed + 1
    return 1


def _larger(run: dict) -> str:
    """A model to try after that of the ``run``: a deep one where it was an ordinary one already."""
    match run:
        case {"model": {"name": str(name)}} if name != "resnet10t":
            return "resnet50"
    return "resnet18"


def counted(count: int, one: str, many: str | None = None) -> str:
    """``1 file``, ``2,000 files``."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def _acceptance(report: Report) -> str:
    """How many suspects are accepted, and by which files: ``2 files by old.csv``; empty if none are."""
    by = report.accepted_by
    return f"{counted(by.total(), 'file')} by {', '.join(by)}" if by else ""


def _figure(key: str, value: float) -> Figure:
    name, form, means = FIGURES[key]
    shown = form.format(value).replace("%", " %") if isinstance(value, int | float) else str(value)
    return Figure(name, shown, means)
