"""``advrbd scan --dry-run``: the plan of a scan, in words or as JSON."""

from typing import TYPE_CHECKING

from advrbd.text import json_bytes
from advrbd_cli import console, options

if TYPE_CHECKING:
    from advrbd.plan import Plan


def show(plan: "Plan", form: options.Format | None) -> None:
    """The plan as lines on stderr, or as a JSON object on stdout where that was asked for."""
    if form == options.Format.json:
        console.to_stdout(json_bytes(plan.as_dict()))
    else:
        for line in _lines(plan):
            console.say(line)


def _lines(plan: "Plan") -> list[str]:
    from advrbd.data.folder import lost_in_words
    from advrbd.memory import in_words

    place = "in memory" if plan.pixels_place == "memory" else f"in a temporary file in {plan.pixels_place}"
    passes = ", ".join(f"{count:g} of {purpose}" for purpose, count in plan.passes.items())
    shown = f"up to {plan.groups} groups with about {plan.group_images} images of training each"
    look, more = _duration(plan.first_look_seconds), _duration(plan.other_look_seconds)
    budget, peak = in_words(plan.memory_budget), in_words(plan.peak_memory)
    cleaning = _duration(plan.clean_seconds)
    return [
        f"files: {plan.files} in {plan.classes} classes, {in_words(plan.file_bytes)}; "
        f"{lost_in_words(plan.statuses) or 'none known to be unusable'}",
        f"one look: passes over the data: {passes}; {shown}",
        f"pixels: {in_words(plan.pixels)} {place}",
        f"memory: about {peak} at the peak; {in_words(plan.tables)} of it for rows and features (budget: {budget})",
        f"time: decoding about {_duration(plan.decoding_seconds)}, the first look about {look} "
        f"(at {plan.images_per_second:.0f} images/s of training)",
        f"a look that finds something may be followed by another, about {more} or more; at most {plan.looks} in all",
        f"cleaning takes about {cleaning} more, for a model that is trained to convergence",
        "nothing was scanned, and nothing was written (--dry-run)",
    ]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
