"""The floors of the house: imports run downward only, and what is needed at once doesn't bring torch along.

The modules are read, not imported, so that an import inside a function counts as well.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import advrbd

ROOT = Path(advrbd.__file__).parents[1]
FLOORS = (
    ("data", "memory", "writing", "reading", "errors", "events", "config", "processor", "text", "version"),
    ("reports", "output", "manifest", "verification", "workdir", "attacks", "model"),
    ("method", "baselines", "plan", "preparation", "helper"),
    ("pipeline",),
    ("benchmark",),
    ("advrbd_cli",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
SHARED_STEPS = {"advrbd.method.partition", "advrbd.method.perturbation"}
"""The steps of the method that baselines may take, too: scores of images, no verdicts."""
WITHOUT_TORCH = ("advrbd", "advrbd.data.folder", "advrbd.output", "advrbd.verification", "advrbd_cli.app")
TORCH = {"torch", "torchvision", "timm", "safetensors.torch"}
POSIX_ONLY = {"resource", "fcntl", "grp", "pwd", "termios"}  # what Windows lacks


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(path): ast.parse(path.read_text(encoding="utf-8"))
    for package in ("advrbd", "advrbd_cli")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """The modules that the import statements among ``nodes`` name; of our own, those that the names come from."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            yield from inner or {node.module}


def at_once(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported: neither what is in functions nor what is for type checkers alone."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, (ast.FunctionDef, ast.Lambda)):
            continue
        if isinstance(inner, ast.If) and ast.unparse(inner.test) == "TYPE_CHECKING":
            continue
        yield inner
        yield from at_once(inner)


def room(name: str) -> str:
    """The room of a module: a package or a module right under advrbd, or the program as a whole."""
    package, *inner = name.split(".")
    return inner[0] if package == "advrbd" else package


EDGES = [
    (name, target)
    for name, tree in MODULES.items()
    for target in sorted(set(imported(ast.walk(tree))))
    if name != "advrbd"  # the door to all rooms
]
OWN = [(name, target) for name, target in EDGES if target in MODULES and target != "advrbd"]


def test_every_room_has_a_floor():
    assert {room(name) for name in MODULES if name != "advrbd"} == FLOOR.keys()
    assert len(OWN) > 200


def test_the_map_shows_every_room_on_its_floor():
    text = (ROOT / "examples" / "contributing.md").read_text(encoding="utf-8")
    shown = [
        (room, int(number) - 1)
        for number, rooms in re.findall(r"^\| (\d) \| (.+?) \|", text, re.MULTILINE)
        for room in re.findall(r"`(?:advrbd/)?(\w+)(?:/|\.py)`", rooms)
    ]
    assert len(shown) == len(FLOOR)
    assert dict(shown) == FLOOR


def test_nothing_imports_upward():
    assert not [edge for edge in OWN if FLOOR[room(edge[1])] > FLOOR[room(edge[0])]]


def test_no_two_modules_need_each_other():
    needs = {name: {target for source, target in OWN if source == name} for name in MODULES}
    TopologicalSorter(needs).prepare()


def test_method_and_baselines_share_two_steps_and_nothing_else():
    pairs = [(name, target) for name, target in OWN if {room(name), room(target)} == {"method", "baselines"}]
    assert {target for _, target in pairs} <= SHARED_STEPS


def test_the_library_knows_no_terminal():
    terminal = [edge for edge in EDGES if edge[1].split(".")[0] in ("typer", "click", "rich", "advrbd_cli")]
    assert terminal
    assert {name.split(".")[0] for name, _ in terminal} == {"advrbd_cli"}


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_is_needed_at_once_comes_without_torch(module):
    reached, pending = set(), [module]
    while pending:
        name = pending.pop()
        if name in reached:
            continue
        reached.add(name)
        if name in MODULES:
            pending += imported(at_once(MODULES[name]))
            pending += filter(None, [name.rpartition(".")[0]])  # a package is imported before what is in it
    assert not {name for name in reached if name in TORCH or name.split(".")[0] in TORCH}


def test_nothing_that_windows_lacks_is_needed_at_once():
    assert not [(name, target) for name, tree in MODULES.items() for target in POSIX_ONLY & {*imported(at_once(tree))}]
