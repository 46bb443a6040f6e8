"""The tables of the AdvrBD paper (arXiv:2405.12719, II to VII) from our units, with its own figures beside ours.

A table is rows x columns; both are parts of what a cell is about: attack, rate, model and defence. The paper's figures
are in ``published.csv``; what it doesn't give stays empty.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from statistics import fmean

from advrbd.baselines import BASELINES, CLEAN_IMAGES
from advrbd.benchmark.matrix import EIGHT, is_called
from advrbd.benchmark.tables import NOTHING, grouped, markdown, model_of

SUCCESS = 0.05
"""A defence is successful under this attack success rate; the paper names such a limit too, its figure is lost."""
DATASETS = ("imagenette", "cifar10", "cifar100", "tiny-imagenet")
OURS = {"not-relabelled": "not_relabelled", "advrbd": "clean_model"}
FILTERS = {"none": "undefended", "random-filter": "random_filter", "perfect-filter": "perfect_filter"}
NEEDY = ", ".join(name for name, kind in BASELINES.items() if kind.needs == CLEAN_IMAGES)
NOTES = f"""Cells are accuracy / attack success rate in percent, ours first, the paper's (arXiv:2405.12719) in brackets.
Its figures are for full-size data sets and ResNet-18; for the models of Table VI it doesn't say whether files were
relabelled. Means are over n seeds at most, in a row over those that every column has. Defences that need clean images
({NEEDY}) get test images that nothing is measured on, as many as 5 % of the
training images where there are so many, which a user need not have;
those that take the share of poisoned images are told the true one. `advrbd` is its clean model after relabelling,
`not-relabelled` the same before it. With a budget below 1 the models of `none`, `advrbd`, the filters and those trained
after a detector get 32 epochs, not the up to 80 that folders of fewer than 16,000 images get. SIG and TaCT poison four
fifths of their one source class at most. The baselines' seconds are without the undefended model that some start from.
The average of Table VI is over the attacks and the unpoisoned folder, which has no attack success rate."""


@dataclass(frozen=True)
class Table:
    """One table of the paper: its ``rows`` and ``columns``, and which key of a column is its title."""

    number: str
    title: str
    rows: tuple[dict, ...]
    columns: tuple[dict, ...]
    named_by: str = "defence"


def _attacks(names: Iterable[str], **more: object) -> tuple[dict, ...]:
    return tuple({"attack": name, **more} for name in names)


def _columns(key: str, values: Iterable, **more: object) -> tuple[dict, ...]:
    return tuple({key: value, **more} for value in values)


COMPARED = ("none", *BASELINES, "not-relabelled", "advrbd", "random-filter", "perfect-filter")
NO_SIG = tuple(name for name in EIGHT if name != "sig")
CLEAN = {"attack": "none", "rate": 0.0}
TABLES = (
    Table("II", "defences and attacks", _attacks(EIGHT[:5], rate=0.05), _columns("defence", COMPARED)),
    Table("III", "defences and adaptive attacks", _attacks(EIGHT[5:], rate=0.05), _columns("defence", COMPARED)),
    Table("IV", "relabelling and relearning", _attacks(EIGHT, rate=0.05), _columns("defence", OURS)),
    Table(
        "V",
        "poison rates, not relabelled",
        ({"attack": "none"}, *_attacks(NO_SIG)),
        _columns("rate", (0.0, 0.1, 0.15, 0.2), defence="not-relabelled"),
        "rate",
    ),
    Table(
        "VI",
        "other models, relabelled",
        (CLEAN, *_attacks(EIGHT, rate=0.05)),
        _columns("model", ("resnet34", "mobilenetv2_100"), defence="advrbd"),
        "model",
    ),
    Table("VII", "poisoned and clean", (CLEAN, *_attacks(EIGHT, rate=0.05)), _columns("defence", ("none", *OURS))),
)


def paper_tables(units: Sequence[dict]) -> str:
    """All tables that the ``units`` have something for, by data set, size and model, as Markdown; notes first."""
    parts, units = [NOTES], [unit for unit in units if not unit["overrides"]]
    of_models = [table for table in TABLES if table.named_by == "model"]
    for group in grouped(units, _setup):
        parts += [f"### {_heading(group)}", *(_rendered(table, group) for table in TABLES if table not in of_models)]
        parts += [_contest(group), _costs(group)]
    for group in grouped(units, lambda unit: _setup(unit)[1:]):
        parts += [_rendered(table, group, f"### {_sizes(group)}\n\n") for table in of_models]
    return "\n\n".join(part for part in parts if part)


def outcome(unit: dict, defence: str) -> dict | None:
    """What the JSON of a unit says of a ``defence``: ``acc``, ``asr`` and more; None where there is no such model."""
    name = (FILTERS | OURS).get(defence)
    found = unit.get("models", {}).get(name) if name else unit.get("defences", {}).get(defence)
    return found if found and "error" not in found else None


def published() -> dict[tuple[str, ...], tuple[float, float]]:
    """The paper's accuracy and attack success rate in 0..1, by table, data set, model, attack, rate and defence."""
    text = files("advrbd.benchmark").joinpath("published.csv").read_text("utf-8")
    _, *rows = csv.reader(io.StringIO(text))
    return {tuple(row[:6]): (float(row[6]) / 100, float(row[7]) / 100) for row in rows}


def _rendered(table: Table, units: list[dict], where: str = "") -> str:
    """The table as far as there are ``units`` for it, with the mean of its attacks; empty where there are none."""
    extra = sorted({name for unit in units for name in unit.get("defences", {})} - {*COMPARED})
    columns = table.columns + (_columns("defence", extra) if table.number in ("II", "III") else ())
    known, name = published(), _paper_name(units[0]["dataset"])
    model = "resnet18" if units[0]["model"] == "auto" else units[0]["model"]
    lines, given, units = [], units, _comparable(units, table.rows, columns)
    for row in table.rows:
        line = {"attack": row["attack"]}
        for column in columns:
            cell = row | column
            line[str(column[table.named_by])] = _cell(_ours(units, cell), known.get(_key(table, name, model, cell)))
        lines.append(line)
    # the paper's average in Table VI is over nine rows, as its figures show, in the others over the attacks
    attacks = [row for row in table.rows if row["attack"] != "none" or table.named_by == "model"]
    there = [row for row in attacks if _any(units, row, columns)]
    line = {"attack": f"average of {len(there)}"}
    for column in columns:  # means are of the same attacks in every column, or not given
        pairs = [pair for row in there if (pair := _ours(units, row | column))]
        ours = _mean_pair(pairs) if len(pairs) == len(there) else None
        theirs = known.get(_key(table, name, model, {"attack": "average"} | column))
        line[str(column[table.named_by])] = _cell(ours, theirs if len(there) == len(attacks) else None)
    lines += [line] if there else []
    if not any(_any(given, row, columns) for row in table.rows):
        return ""
    seeds = len({unit["seed"] for unit in units})
    lost = [row for row in table.rows if _any(given, row, columns) and not _any(units, row, columns)]
    names = ", ".join("the unpoisoned folder" if row["attack"] == "none" else row["attack"] for row in lost)
    left_out = f"\n\nLeft out, since no seed has all of their columns: {names}." if lost else ""
    return f"{where}Table {table.number}, {table.title}, n = {seeds}:\n\n{markdown(lines)}{left_out}"


def _any(units: list[dict], row: dict, columns: Iterable[dict]) -> bool:
    """Whether one of the ``units`` has an outcome in one of the ``columns`` of a ``row``."""
    return any(_belongs(unit, row | column) for unit in units for column in columns)


def _comparable(units: list[dict], rows: Iterable[dict], columns: Iterable[dict]) -> list[dict]:
    """The ``units`` whose cells are compared with each other: a column isn't a mean over seeds that another one lacks.

    A unit counts for a row where its seed has an outcome in every column that has any in this row.
    """
    kept = []
    for row in rows:
        cells = [row | column for column in columns]
        seeds = [{unit["seed"] for unit in units if _belongs(unit, cell)} for cell in cells]
        filled = [of_cell for of_cell in seeds if of_cell]
        common = set.intersection(*filled) if filled else set()
        kept += [unit for unit in units if unit["seed"] in common and any(_belongs(unit, cell) for cell in cells)]
    return kept


def _belongs(unit: dict, cell: dict) -> bool:
    """Whether the ``unit`` has an outcome for the ``cell``."""
    keys = [key for key in ("attack", "rate", "model") if key in cell]
    return all(unit[key] == cell[key] for key in keys) and outcome(unit, cell["defence"]) is not None


def _key(table: Table, dataset: str, model: str, cell: dict) -> tuple[str, ...]:
    """The key in ``published`` of a cell."""
    rate = f"{cell.get('rate', 0.05):g}"
    return table.number, dataset, cell.get("model", model), cell["attack"], rate, cell["defence"]


def _ours(units: list[dict], cell: dict) -> tuple[float, float | None] | None:
    """Accuracy and attack success rate of a cell, the mean over the seeds."""
    found = [outcome(unit, cell["defence"]) for unit in units if _belongs(unit, cell)]
    return _mean_pair([(one["acc"], one["asr"]) for one in found if one])


def _mean_pair(pairs: list[tuple[float, float | None]]) -> tuple[float, float | None] | None:
    if not pairs:
        return None
    success = [asr for _, asr in pairs if asr is not None]
    return fmean(acc for acc, _ in pairs), fmean(success) if success else None


def _cell(ours: tuple[float, float | None] | None, theirs: tuple[float, float] | None) -> str:
    paper = f" ({100 * theirs[0]:.2f} / {100 * theirs[1]:.2f})" if theirs else ""
    return NOTHING + paper if ours is None else _shown(ours) + paper


def _shown(pair: tuple[float, float | None]) -> str:
    success = NOTHING if pair[1] is None else f"{100 * pair[1]:.1f}"
    return f"{100 * pair[0]:.1f} / {success}"


def _contest(units: list[dict]) -> str:
    """Per attack, whether advrbd has the highest accuracy among defences that are successful; who beats it is named."""
    rivals = sorted({name for unit in units for name in unit.get("defences", {})})
    cells = [{"attack": attack, "rate": 0.05} for attack in EIGHT]
    units = _comparable(units, cells, [{"defence": name} for name in ("advrbd", *rivals)])
    lost, fought = [], 0
    for cell in cells:
        mine = _ours(units, cell | {"defence": "advrbd"})
        others = {name: pair for name in rivals if (pair := _ours(units, cell | {"defence": name}))}
        if mine is None or not others:
            continue
        fought += 1
        better = [
            f"{name} ({_shown(pair)})"
            for name, pair in others.items()
            if _succeeds(pair) and (not _succeeds(mine) or pair[0] > mine[0])
        ]
        if better or not _succeeds(mine):
            lost.append(f"{cell['attack']} ({_shown(mine)}): {', '.join(better) or 'no defence is'}")
    if not fought:
        return ""
    limit = f"attack success rate under {SUCCESS:.0%} and the highest accuracy"
    if not lost:
        return f"advrbd has an {limit} of all defences, in {fought} of {fought} attacks."
    return f"Attacks in which advrbd doesn't have an {limit}, and who has, {len(lost)} of {fought}: {'; '.join(lost)}."


def _succeeds(pair: tuple[float, float | None]) -> bool:
    return pair[1] is not None and pair[1] < SUCCESS


def _costs(units: list[dict]) -> str:
    """What each defence detects and costs, means over the same units; what could not run, and why."""
    rows, units = [], [unit for unit in units if unit["attack"] in EIGHT and unit["rate"] == 0.05]
    names = dict.fromkeys(name for unit in units for name in unit.get("defences", {}))
    able = [name for name in ("scan", "advrbd", *names) if any(_measured(unit, name) for unit in units)]
    whole = [unit for unit in units if all(_measured(unit, name) for name in able)]
    for name in able if whole else ():
        found = [entry for unit in whole if (entry := _measured(unit, name))]
        rows.append({"defence": name, "units": str(len(found))} | {key: _mean(found, key) for key in MEASURED})
    errors = {
        (n, entry["error"]) for unit in units for n, entry in unit.get("defences", {}).items() if "error" in entry
    }
    failed = "".join(f"\n\nCould not run: {name}: {reason}" for name, reason in sorted(errors))
    title = "Detection and cost, means over the attacks that all of these have:"
    return (f"{title}\n\n{markdown(rows)}" if rows else "") + failed


MEASURED = {"tpr": ".3f", "fpr": ".4f", "auroc": ".3f", "seconds": ".0f", "peak_mb": ".0f"}


def _measured(unit: dict, name: str) -> dict | None:
    """What is known of a defence's rates and costs; those of advrbd are the scan's, with cleaning in the costs."""
    if name not in ("scan", "advrbd"):
        return outcome(unit, name)
    cleaning = outcome(unit, "advrbd") if name == "advrbd" else {}
    if "detection" not in unit or cleaning is None:
        return None
    return unit["detection"] | {
        "seconds": unit["seconds"]["scan"] + cleaning.get("seconds", 0),
        "peak_mb": max(unit["scan_peak_mb"], cleaning.get("peak_mb", 0)),
    }


def _mean(found: list[dict], key: str) -> str:
    values = [one[key] for one in found if one.get(key) is not None]
    return f"{fmean(values):{MEASURED[key]}}" if values else NOTHING


def _setup(unit: dict) -> tuple:
    """What the units of one set of tables share; the model first, since Table VI is about several."""
    return model_of(unit), unit["dataset"], unit["per_class"], unit["target"], unit.get("budget", 1.0)


def _heading(units: list[dict]) -> str:
    seeds = len({unit["seed"] for unit in units})
    machines = "; ".join(sorted({unit["machine"] for unit in units if "machine" in unit}))
    return f"{_sizes(units)}, {model_of(units[0])}, {seeds} seeds" + (f" ({machines})" if machines else "")


def _sizes(units: list[dict]) -> str:
    first = units[0]
    budget = first.get("budget", 1.0)
    length = f", baselines at {budget:g} of their papers' epochs" if budget != 1 else ""
    return f"{first['dataset']}, {first['per_class']} images a class, target {first['target']}{length}"


def _paper_name(dataset: str) -> str:
    """What ``published`` calls the data set."""
    return next((name for name in DATASETS if is_called(dataset, name)), dataset)
