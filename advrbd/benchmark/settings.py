"""Single settings of a run changed by name, so that an ablation moves one thing alone."""

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from advrbd.config import Config
from advrbd.errors import BenchmarkError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")
Value = bool | int | float | str | tuple[int, ...]
ELSEWHERE = {"model": "--models", "device": "--device", "seed": "--seeds"}


def parse_overrides(texts: list[str]) -> tuple[tuple[str, Value], ...]:
    """``STAGE.FIELD=VALUE`` texts as names and typed values, sorted by name. Raises ``BenchmarkError``."""
    found: dict[str, Value] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise BenchmarkError(f"an override is written STAGE.FIELD=VALUE, not {text!r}")
        if name in found:
            raise BenchmarkError(f"{name} is overridden twice")
        found[name] = _parse(_kind(name), name, value)
    return tuple(sorted(found.items()))


def apply_overrides(settings: Settings, overrides: tuple[tuple[str, Value], ...]) -> Settings:
    """A copy of the dataclass ``settings`` with the named fields changed, however deep they lie.

    Those of a stage are changed at once, since one may make sense with another alone. Raises ``ValueError``.
    """
    changed: dict[str, Any] = {}
    stages: dict[str, tuple[tuple[str, Value], ...]] = {}
    for name, value in overrides:
        first, _, rest = name.partition(".")
        if rest:
            stages[first] = (*stages.get(first, ()), (rest, value))
        else:
            changed[first] = value
    inner = {first: apply_overrides(getattr(settings, first), some) for first, some in stages.items()}
    return replace(settings, **changed, **inner)


def shown(value: Value) -> str:
    """A value as it is written in an override."""
    if isinstance(value, (tuple, list)):  # JSON knows lists only
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _kind(name: str) -> type:
    """The type of the field ``name`` of ``Config``."""
    if name in ELSEWHERE:
        raise BenchmarkError(f"{name} is set by {ELSEWHERE[name]}, not by an override")
    at: type = Config
    where = "Config"
    for part in name.split("."):
        names = [entry.name for entry in fields(at)] if is_dataclass(at) else []
        if part not in names:
            has = f"has {', '.join(names)}" if names else "is no stage"
            raise BenchmarkError(f"no setting is called {name!r}; {where} {has}")
        at, where = get_type_hints(at)[part], part
    if is_dataclass(at):
        raise BenchmarkError(
            f"{name} is a whole stage; name one of its fields: {', '.join(e.name for e in fields(at))}"
        )
    if get_origin(at) is tuple:
        return tuple
    return next(kind for kind in get_args(at) or (at,) if kind is not NoneType)  # ``int | None`` is an int


def _parse(kind: type, name: str, text: str) -> Value:
    readers: dict[type, Callable[[str], Value]] = {
        bool: _truth,
        int: int,
        float: _finite,
        str: str,
        tuple: _numbers,
    }
    read = readers.get(kind)
    if read is None:
        raise BenchmarkError(f"{name} can't be set by an override")
    try:
        return read(text)
    except (KeyError, ValueError):
        expected = {bool: "true or false", int: "a whole number", float: "a number", tuple: "whole numbers"}[kind]
        raise BenchmarkError(f"{name} takes {expected}, not {text!r}") from None


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError
    return number
