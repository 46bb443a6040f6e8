"""The report of a drill as CSV, JSON and plain text, and what it means in a sentence."""

import math
from collections.abc import Sequence, Set
from dataclasses import asdict

from advrbd.benchmark.drill import DID_NOT_TAKE, FALSE_ALARM, FOUND, Drilled
from advrbd.text import csv_bytes, json_bytes, table_bytes
from advrbd.writing import printable

SCHEMA = "advrbd.drill/1"
COLUMNS = (
    "attack",
    "outcome",
    "verdict",
    "target_label",
    "poison_rate",
    "planted",
    "attack_success_rate",
    "true_positive_rate",
    "false_positive_rate",
    "auroc",
    "poisoned",
    "found",
    "clean",
    "false_alarms",
    "covers",
    "covers_flagged",
    "mislabelled",
    "mislabelled_flagged",
)
SHARED = frozenset({"advrbd", "torch", "timm", "python", "device", "model", "config"})
"""What the ``run`` blocks of all scans of a drill have in common; the rest (seconds, ...) is each scan's own."""


def render(drilled: Sequence[Drilled], form: str) -> bytes:
    """The report as ``csv``, ``json`` or ``table``, a row per attack. JSON has the scans' cautions and settings too."""
    rows = [row(entry) for entry in drilled]
    match form:
        case "csv":
            return csv_bytes(COLUMNS, rows)
        case "json":
            attacks = [
                one | {"cautions": entry.cautions, "run": _without(entry.run, SHARED)}
                for one, entry in zip(rows, drilled, strict=True)
            ]
            run = drilled[0].run if drilled else {}
            whole = {
                "schema": SCHEMA,
                "meaning": meaning(drilled),
                "attacks": attacks,
                "run": _without(run, set(run) - SHARED),
            }
            return json_bytes(whole)
        case "table":
            return table_bytes(COLUMNS, rows)
    raise ValueError(f"unknown format {form!r}")


def row(entry: Drilled) -> dict:
    """One attack as a row with the keys of ``COLUMNS``; rates are in 0..1 and None where there is nothing to rate."""
    held = entry.detection
    counts = {name: value for name, value in asdict(held).items() if name != "auroc"}
    return {
        "attack": entry.attack,
        "outcome": entry.outcome,
        "verdict": entry.verdict,
        "target_label": printable(entry.target_label),
        "poison_rate": entry.poison_rate,
        "planted": entry.planted,
        "attack_success_rate": _rounded(entry.attack_success_rate),
        "true_positive_rate": _rounded(held.true_positive_rate),
        "false_positive_rate": _rounded(held.false_positive_rate),
        "auroc": _rounded(held.auroc),
        **counts,
    }


def meaning(drilled: Sequence[Drilled]) -> str:
    """What the drill says of the scanner on this folder, in one sentence."""
    backdoors = [entry for entry in drilled if entry.is_backdoor]
    took = [entry for entry in backdoors if entry.took]
    found = [entry for entry in took if entry.outcome == FOUND]
    not_found = [f"{entry.attack} ({entry.outcome})" for entry in took if entry.outcome != FOUND]
    no_test = [entry.attack for entry in backdoors if entry.outcome == DID_NOT_TAKE]
    parts = []
    if took:
        parts.append(f"{len(found)} of {len(took)} attacks that took {'was' if len(found) == 1 else 'were'} found")
        if not_found:
            parts[0] += f", not {', '.join(not_found)}: a clean verdict on this folder doesn't rule such attacks out"
        else:
            seen = ", ".join(f"{entry.attack} in {100 * _planted_share(entry):.2g} %" for entry in found)
            parts[0] += f": a scan of this folder sees {seen} of its files"
    if no_test:
        parts.append(
            f"{', '.join(no_test)} did not take, so nothing is known of {'it' if len(no_test) == 1 else 'them'}"
        )
    for entry in drilled:
        if not entry.is_backdoor:
            raised = "a false alarm" if entry.outcome == FALSE_ALARM else "no alarm"
            parts.append(f"{entry.attack}, which is no backdoor, raised {raised}")
    return "; ".join(parts)


def passed(drilled: Sequence[Drilled]) -> bool | None:
    """Whether every attack that took was found and what is no backdoor left alone; None if no attack took."""
    if any(entry.is_backdoor for entry in drilled) and not any(entry.took for entry in drilled):
        return None
    return all(entry.outcome != FALSE_ALARM and (not entry.took or entry.outcome == FOUND) for entry in drilled)


def _planted_share(entry: Drilled) -> float:
    """The share of the folder's files that were planted, which is less than was asked for where sources are few."""
    held = entry.detection
    return entry.planted / (held.poisoned + held.clean + held.covers + held.mislabelled)


def _without(run: dict, left_out: Set[str]) -> dict:
    return {key: value for key, value in run.items() if key not in left_out}


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 4)
