"""What an option is when the command line doesn't say: settings from the environment and from files.

Command line > ``ADVRBD_*`` > ``--config FILE`` > ``[tool.advrbd]`` of the working directory's pyproject.toml > default.
The order is Click's own (``envvar`` before ``default_map``). Refused is what it would let pass: names that nobody
knows, values of another type, and files in the scanned folder, whose author must not say how it is scanned.
"""

import os
import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.exceptions import TyperException

from advrbd.errors import SettingsError
from advrbd.reading import read_regular
from advrbd_cli import console

PYPROJECT = Path("pyproject.toml")
PREFIX = "ADVRBD_"
COMMAND_LINE_ONLY = ("config", "no-config", "root", "help")  # what says where the attacker's files are, no file says
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class Configured(TyperCommand):
    """A command whose options can be set in files and in the environment, too.

    It has options ``--config`` and ``--no-config``, and may have the argument ``data``, the folder of the attacker.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.options = {_key(option): option for option in self.params if isinstance(option, TyperOption)}
        for key, option in self.options.items():
            option.show_envvar = False  # a rule, told once, rather than a line for each option
            option.envvar = None if key == "no-config" else _variable(key)

    def settable(self) -> dict[str, TyperOption]:
        """The options that a file can set, by their long names without dashes."""
        return {key: option for key, option in self.options.items() if key not in COMMAND_LINE_ONLY}

    # Typer hands over its own Context; the class that it inherits from is private
    def parse_args(self, context: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        given = self.make_parser(context).parse_args(list(args))[0]
        if context.resilient_parsing or given.get("help"):
            return super().parse_args(context, args)
        group = context.parent and context.parent.command
        siblings = group.commands if isinstance(group, TyperGroup) else {self.name or "": self}
        commands = {name: entry for name, entry in siblings.items() if isinstance(entry, Configured)}
        self._check_environment(context, given, commands)
        places, cautions = self._files(context, given)
        values, origins = {}, {}
        for place, table in places:
            for key, value in self._chosen(context, place, table, commands).items():
                name = self.options[key].name
                values[name], origins[name] = value, place
        context.default_map = values
        left = super().parse_args(context, args)
        self._tell(context, origins, cautions)
        return left

    def _files(self, context: typer.Context, given: dict) -> tuple[list[tuple[str, dict]], list[str]]:
        """The tables that count with the names of their files, the strongest last, and what wasn't read and why."""
        named, _ = self.options["config"].consume_value(context, given)
        if given.get("no_config"):
            if given.get(self.options["config"].name):
                raise SettingsError("--config and --no-config contradict each other; give one of them")
            return [], []
        places, cautions, theirs = [], [], _territory(given)
        if PYPROJECT.is_file():
            if lies_in(PYPROJECT, theirs):
                cautions.append(f"{PYPROJECT} lies in the scanned folder, so it isn't read; --config takes another")
            else:
                places.append((str(PYPROJECT), read_settings(PYPROJECT)))
        if named:
            check_outside(Path(named), theirs, "--config")
            places.append((str(named), read_settings(Path(named))))
        return places, cautions

    def _check_environment(self, context: typer.Context, given: dict, commands: "dict[str, Configured]") -> None:
        """Refuse variables that no command knows, and values that this one's options can't take."""
        known = {_variable(key) for command in commands.values() for key in (*command.settable(), "config")}
        for variable in sorted(os.environ):
            if variable.startswith(PREFIX) and variable not in known:
                raise SettingsError(f"the environment has {variable}, which is no setting; {_nearest(variable, known)}")
        for key, option in self.settable().items():
            if given.get(option.name) is None and (value := os.environ.get(_variable(key))):
                _check_value(context, option, value, _variable(key))

    def _chosen(
        self, context: typer.Context, place: str, table: dict, commands: "dict[str, Configured]"
    ) -> dict[str, object]:
        """What ``table`` sets for this command: the keys at its top, then those of the command's own table."""
        known = {key for command in commands.values() for key in command.settable()}
        own: dict[str, object] = {}
        for key, value in table.items():
            if key in commands and isinstance(value, dict):
                if unknown := next((inner for inner in value if inner not in commands[key].settable()), None):
                    raise _unknown(place, f"{key}.{unknown}", unknown, commands[key].settable())
                own = value if commands[key] is self else own
            elif key not in known:
                raise _unknown(place, key, key, known | commands.keys())
        chosen = {key: value for key, value in table.items() if key in self.settable()} | own
        return {key: _taken(context, self.options[key], value, f"{place}: {key}") for key, value in chosen.items()}

    def _tell(self, context: typer.Context, origins: dict[str, str], cautions: list[str]) -> None:
        """Which settings didn't come from the command line, and where they did; with ``-v`` their values, too.

        Only the command line's own ``-q`` silences that: no file that sets something hides that it did.
        """
        quiet, source = context.params["quiet"], context.get_parameter_source("quiet")
        console.state.quiet = quiet and getattr(source, "name", "") == "COMMANDLINE"
        console.state.verbose = context.params["verbose"]
        for message in cautions:
            console.caution(message)
        told: dict[str, list[str]] = {}
        for key, option in self.settable().items():
            kind = getattr(context.get_parameter_source(option.name), "name", "")
            if kind in ("ENVIRONMENT", "DEFAULT_MAP"):
                origin = "the environment" if kind == "ENVIRONMENT" else origins[option.name]
                shown = f"{key} = {context.params[option.name]}" if console.state.verbose else key
                told.setdefault(origin, []).append(shown)
        for origin, settings in told.items():
            console.say(f"settings from {origin}: {', '.join(settings)}")
        console.state.quiet = quiet


def read_settings(path: Path) -> dict:
    """The settings in a TOML file: all of it, or ``[tool.advrbd]`` of a pyproject.toml (empty if it has none).

    Raises ``SettingsError`` when the file can't be read, is no TOML, or the table is none.
    """
    try:
        whole = tomllib.loads(read_regular(path).decode("utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the settings in {path}: {error.strerror}") from error
    except RecursionError as error:
        raise SettingsError(f"{path} is no TOML that can be read: nested too deeply") from error
    except ValueError as error:  # of bytes, of TOML, and of a number with too many digits
        raise SettingsError(f"{path} is no TOML: {error}") from error
    if path.name != PYPROJECT.name:
        return whole
    tool = whole.get("tool", {})
    table = tool.get("advrbd", {}) if isinstance(tool, dict) else {}
    if not isinstance(table, dict):
        raise SettingsError(f"{path}: tool.advrbd is no table; write [tool.advrbd] and a line for each setting")
    return table


def lies_in(path: Path, data: str | os.PathLike | None) -> bool:
    """Whether ``path``, or what it links to, lies in the scanned folder ``data``: all there is the attacker's."""
    if data is None:
        return False
    real = Path(os.path.realpath(data))
    return any(Path(place).is_relative_to(real) for place in (os.path.realpath(path), _real_parent(path)))


def check_outside(path: Path, data: str | os.PathLike | None, option: str) -> None:
    """Raise ``SettingsError`` when a file that says how to scan lies in what is scanned."""
    if lies_in(path, data):
        raise SettingsError(
            f"{option} {path} lies in the scanned folder, whose author must not say how it is scanned; "
            "read it, and copy it elsewhere if you agree"
        )


def _territory(given: dict) -> Path | None:
    """What belongs to the dataset that the command line names."""
    from advrbd.data.sources import territory

    return None if given.get("data") is None else territory(Path(given["data"]), given.get("root"))


def _real_parent(path: Path) -> str:
    return os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118 - the link itself, not its target


def _key(option: TyperOption) -> str:
    return next(name for name in option.opts if name.startswith("--")).removeprefix("--")


def _variable(key: str) -> str:
    return PREFIX + key.upper().replace("-", "_")


def _taken(context: typer.Context, option: TyperOption, value: object, place: str) -> object:
    """A TOML value as the command line would give it."""
    wanted = bool if option.is_flag else option.type_descriptor.annotation
    wanted = wanted if wanted in KINDS else str
    allowed = {bool: bool, int: int, float: int | float, str: str | int | float}[wanted]  # fail-on = 5
    try:
        shown = repr(value)
    except ValueError as error:  # TOML's hexadecimal numbers may have more digits than Python writes
        raise SettingsError(f"{place}: {error}") from error
    if not isinstance(value, allowed) or (isinstance(value, bool) and wanted is not bool):
        raise SettingsError(f"{place} should be {KINDS[wanted]}, not {shown}")
    taken = value if isinstance(value, bool) else str(value)
    _check_value(context, option, taken, place)
    return taken


def _check_value(context: typer.Context, option: TyperOption, value: object, place: str) -> None:
    """Let the option itself judge the value, and name the place where it stands."""
    try:
        option.process_value(context, value)
    except TyperException as error:
        raise SettingsError(f"{place}: {error.message}, got {value!r}") from error


def _unknown(place: str, shown: str, key: str, known: Iterable[str]) -> SettingsError:
    return SettingsError(f"{place}: unknown setting {shown}; {_nearest(key, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name.replace("_", "-") if name.islower() else name, sorted(known), n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
