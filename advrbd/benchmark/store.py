"""What an experiment leaves: one JSON file per unit, written whole or not at all, and read again whatever wrote it."""

import math
from pathlib import Path
from typing import Any

from advrbd.errors import BenchmarkError
from advrbd.reading import parse_json
from advrbd.text import json_bytes
from advrbd.writing import write_whole

SCHEMA = "advrbd.experiment/1"


def path_of(name: str, work: Path) -> Path:
    """Where the unit ``name`` has its JSON."""
    return work / f"{name}.json"


def write_unit(result: dict, work: Path) -> None:
    """Write ``result`` to its place in ``work``, whole or not at all."""
    whole = _without_nan({"schema": SCHEMA} | result)
    write_whole(path_of(result["name"], work), json_bytes(whole))


def add_to_unit(known: dict, more: dict) -> dict:
    """``known`` with ``more`` in it: models, defences and seconds are added to those that are there."""
    return (
        known
        | more
        | {name: known.get(name, {}) | more[name] for name in ("models", "defences", "seconds") & more.keys()}
    )


def read_unit(path: Path) -> dict | None:
    """The unit whose JSON is at ``path``; None where there is none. Raises ``BenchmarkError`` where it is broken."""
    try:
        unit = parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BenchmarkError(f"cannot read {path}: {error.strerror}") from error
    except ValueError:
        raise BenchmarkError(f"{path} is no JSON; remove it") from None
    return unit if isinstance(unit, dict) and unit.get("schema") == SCHEMA else None


def read_units(work: Path) -> list[dict]:
    """All units that have a JSON in ``work``, in the order of their names."""
    return [unit for path in sorted(work.glob("*.json")) if (unit := read_unit(path))]


def _without_nan(value: Any) -> Any:
    """A rate of nothing is NaN, which JSON lacks: it becomes null."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {key: _without_nan(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_without_nan(inner) for inner in value]
    return value
