"""Every unit of an experiment as a row, and every setting over its seeds, as Markdown; made of the JSON alone."""

import json
from collections import Counter
from collections.abc import Callable
from statistics import fmean

NOTHING = "-"
MODELS = {
    "undefended": "undefended",
    "random_filter": "random filter",
    "perfect_filter": "perfect filter",
    "not_relabelled": "clean model, not relabelled",
    "clean_model": "clean model",
    "trained_on_cleaned": "trained on cleaned",
}
COUNTS = ("covers", "covers_flagged", "mislabelled", "mislabelled_flagged")


def unit_tables(units: list[dict]) -> str:
    """A row per unit, then a row per setting over its seeds, as Markdown."""
    if not units:
        return "no unit has run yet"
    groups = grouped(sorted(units, key=lambda unit: unit["seed"]), _setting)
    each = [_about(unit) | {"seed": str(unit["seed"])} | _measured(unit) for group in groups for unit in group]
    rows, means = markdown(each), markdown([_about(group[0]) | _over_seeds(group) for group in groups])
    return f"{rows}\n\nOver the seeds, mean (worst); of the models, mean accuracy / attack success rate:\n\n{means}"


def grouped(units: list[dict], key: Callable[[dict], tuple]) -> list[list[dict]]:
    """The units that have the same ``key`` together, by the order of the keys."""
    groups: dict[tuple, list[dict]] = {}
    for unit in units:
        groups.setdefault(key(unit), []).append(unit)
    return [groups[name] for name in sorted(groups)]


def _setting(unit: dict) -> tuple:
    """What two units share that differ in their seed alone."""
    data = unit["dataset"], unit["per_class"], unit["target"], model_of(unit), _overrides(unit), unit.get("budget", 1.0)
    return (*data, unit["attack"] != "none", unit["attack"], unit["rate"])


def model_of(unit: dict) -> str:
    """The model that ran; ``auto`` is another one on another device."""
    name = unit["network"]["name"]
    return name if unit["model"] == name else f"{name} ({unit['model']})"


def _overrides(unit: dict) -> str:
    return " ".join(f"{name}={json.dumps(value)}" for name, value in unit["overrides"].items()) or NOTHING


def _about(unit: dict) -> dict[str, str]:
    return {
        "data": unit["dataset"],
        "a class": str(unit["per_class"]),
        "target": str(unit["target"]),
        "model": model_of(unit),
        "overrides": _overrides(unit),
        "attack": unit["attack"],
        "rate": f"{unit['rate']:g}" if unit["rate"] else NOTHING,
    }


def _measured(unit: dict) -> dict[str, str]:
    cleaning, seconds = unit.get("cleaning", {}), unit.get("seconds", {})
    right = f"{cleaning['relabelled']} ({cleaning['relabelled_right']})" if "relabelled" in cleaning else NOTHING
    right += f", trust {cleaning['trust']}" if "trust" in cleaning else ""
    verdict, flagged, spent = NOTHING, NOTHING, {"scan s": NOTHING, "scan MB": NOTHING}
    if "detection" in unit:
        verdict, flagged = unit["verdict"], str(unit["detection"]["flagged"])
        spent = {"scan s": f"{seconds['scan']:.0f}", "scan MB": str(unit["scan_peak_mb"])}
    row = {"verdict": verdict} | _rates([unit], None, None) | {"flagged": flagged}
    row |= {title: _model_cell([unit], name) for name, title in MODELS.items()}
    return row | {"relabelled (right)": right} | spent


def _over_seeds(group: list[dict]) -> dict[str, str]:
    verdicts = Counter(unit["verdict"] for unit in group if "verdict" in unit)
    row = {
        "n": str(len(group)),
        "verdicts": ", ".join(f"{verdict} {count}" for verdict, count in verdicts.most_common()) or NOTHING,
    }
    return row | _rates(group, min, max) | {title: _model_cell(group, name) for name, title in MODELS.items()}


def _rates(group: list[dict], lowest: Callable | None, highest: Callable | None) -> dict[str, str]:
    """What the scans of the units found; with functions that find the worst, that of TPR and FPR as well; n where not
    all units have one."""
    found = [unit["detection"] for unit in group if "detection" in unit]
    filters = [unit["filters"]["random"] for unit in group if "filters" in unit]
    sums = {name: sum(one[name] for one in found) for name in COUNTS}
    fewer = _fewer(len(found), group)
    return {
        "TPR": _mean([one["tpr"] for one in found], group, lowest),
        "FPR": _mean([one["fpr"] for one in found], group, highest),
        "AUROC": _mean([one["auroc"] for one in found], group),
        "random filter's TPR": _mean([one["tpr"] for one in filters], group),
        "covers flagged": _of(sums["covers_flagged"], sums["covers"], fewer),
        "mislabelled flagged": _of(sums["mislabelled_flagged"], sums["mislabelled"], fewer),
    }


def _model_cell(group: list[dict], name: str) -> str:
    """Accuracy / attack success rate of one of ``MODELS``, the mean of the units that have it; n if not all do."""
    models = [unit["models"][name] for unit in group if unit.get("models", {}).get(name)]
    if not models:
        return NOTHING
    rates = ([model[rate] for model in models if model[rate] is not None] for rate in ("acc", "asr"))
    return "/".join(f"{fmean(values):.3f}" if values else NOTHING for values in rates) + _fewer(len(models), group)


def _fewer(count: int, group: list[dict]) -> str:
    return f" (n = {count})" if count < len(group) else ""


def _mean(values: list[float | None], group: list[dict], worst: Callable | None = None) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    return f"{fmean(known):.4f}" + (f" ({worst(known):.4f})" if worst else "") + _fewer(len(known), group)


def _of(count: int, total: int, fewer: str) -> str:
    return f"{count} of {total}{fewer}" if total else NOTHING


def markdown(rows: list[dict[str, str]]) -> str:
    """The rows with the columns that say something in at least one of them."""
    titles = [title for title in rows[0] if any(row[title] != NOTHING for row in rows)]
    lines = [titles, ["---"] * len(titles)] + [[row[title] for title in titles] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
