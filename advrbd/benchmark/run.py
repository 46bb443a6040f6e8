"""The experiment: unit by unit and step by step, each step in a process of its own, resumable.

A unit draws images of each class by its seed, plants its attack in a copy, and goes through the steps that are asked
for: the undefended model shows whether the backdoor took, the scan what is found, the defences what they are worth on
at most 2,000 test images, the same ones every time. A process of its own for each step makes its peak memory its own;
only the first defence after an interruption trains the undefended model again, and has that in its peak.

Each step adds to the unit's JSON, whole or not at all, so the same command again runs what is still missing, and a step
that was killed starts anew. Cleaning goes on from the report of an earlier scan. Commands side by side need units of
their own.
"""

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from advrbd.benchmark.case import lay_out, open_case
from advrbd.benchmark.defences import DEFENCES, circumstances
from advrbd.benchmark.matrix import Unit
from advrbd.benchmark.store import add_to_unit, path_of, read_unit, write_unit
from advrbd.errors import AdvrbdError, BenchmarkError, OutputError
from advrbd.events import Caution, Event, Note, Notify, Progress, ignore
from advrbd.model.device import repeatable

REFUSED = 2  # how a step's process ends that says why it could not be done
Plan = Mapping[Unit, tuple[str, ...]]
"""The units in the order in which they are run, and the steps that each is to be put through."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to: the names of the steps that ``failed`` with the reason of each, and how many units are
    ``left`` to run."""

    failed: tuple[str, ...]
    left: int


def run(plan: Plan, work: Path, minutes: float = float("inf"), notify: Notify = ignore) -> Outcome:
    """Run what is missing of ``plan`` and leave it in ``work``; starts no unit after so many ``minutes``.

    A step that fails stops no other that doesn't build on it. Raises ``OutputError`` for a ``work`` inside of the data,
    ``BenchmarkError`` where results of other settings, versions or kinds of machine would be added to.
    """
    started = time.monotonic()
    for data in {unit.data for unit in plan}:
        if work.resolve().is_relative_to(data.resolve()):
            raise OutputError(f"{work} lies inside {data}, which is never written to; work elsewhere with --work")
    work.mkdir(parents=True, exist_ok=True)
    _check_what_is_old(plan, work, notify)
    failed: list[str] = []
    for number, (unit, names) in enumerate(plan.items(), 1):
        if not missing(unit, names, work):
            continue
        if time.monotonic() - started >= 60 * minutes:
            break
        notify(Note(f"{number} of {len(plan)}: {unit.name}"))
        failed += run_unit(unit, names, work, notify)
    return Outcome(tuple(failed), sum(bool(missing(unit, names, work)) for unit, names in plan.items()))


def missing(unit: Unit, names: tuple[str, ...], work: Path) -> tuple[str, ...]:
    """Which of the steps ``names`` the unit's JSON lacks. To be cleaned without its report, it is scanned again."""
    known = read_unit(path_of(unit.name, work)) or {}
    lacking = tuple(name for name in names if not DEFENCES[name].has(known))
    if "advrbd" in lacking and "scan" not in lacking and not report_of(unit, work).is_file():
        lacking = tuple(name for name in names if name in (*lacking, "scan"))
    return lacking


def report_of(unit: Unit, work: Path) -> Path:
    """Where the scan of the unit has its report."""
    return work / "reports" / f"{unit.name}.json"


def run_unit(unit: Unit, names: tuple[str, ...], work: Path, notify: Notify = ignore) -> list[str]:
    """Run the steps that the unit lacks, and return those that failed and why; its images are gone afterwards.

    What a killed one left is removed first.
    """
    directory, failed = work / unit.name, dict[str, str]()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    try:
        lay_out(unit, directory)
        for name in missing(unit, names, work):
            started = time.monotonic()
            lacking = next((needed for needed in DEFENCES[name].after if needed in failed), None)
            if reason := f"{lacking} failed" if lacking else start(unit, work, name, notify):
                failed[name] = reason
                notify(Caution(f"failed: {unit.name}, {name}: {reason}"))
            else:
                notify(Note(f"  {name}: {time.monotonic() - started:.0f} s"))
    except AdvrbdError as error:
        failed["plant"] = str(error)
        notify(Caution(f"failed: {unit.name}, plant: {error}"))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return [f"{unit.name}, {name}: {reason}" for name, reason in failed.items()]


def start(unit: Unit, work: Path, name: str, notify: Notify = ignore) -> str:
    """Run one step of the unit in a process of its own, whose progress is told; why it failed, or nothing."""
    reason, context = "", multiprocessing.get_context("spawn")
    heard, told = context.Pipe(duplex=False)
    child = context.Process(target=work_on, args=(unit, work, name, told.send), daemon=True)
    child.start()
    told.close()  # the child's copy is the only one now, so its end is the end of what is heard
    try:
        for event in _received(heard):
            if isinstance(event, Progress):  # its notes say the same in every step
                notify(replace(event, stage=f"{name}, {event.stage}"))
            elif isinstance(event, Caution):
                reason = event.message
        child.join()
    finally:  # where this process is told to end; one that is over already doesn't mind
        child.kill()
        child.join()
    if child.exitcode == REFUSED and reason:
        return reason
    return f"its process ended with exit code {child.exitcode}" if child.exitcode else ""


def work_on(unit: Unit, work: Path, name: str, notify: Notify = ignore) -> None:
    """Run one step and add what it gives to the unit's JSON. Where that can't be done, the reason is the last event."""
    if (parent := multiprocessing.parent_process()) is not None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent says that it was interrupted
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        known = read_unit(path_of(unit.name, work)) or {}
        case = open_case(unit, work / unit.name, report_of(unit, work), known, notify)
        with repeatable(case.device):
            made = DEFENCES[name].run(case)
        write_unit(add_to_unit(known, made), work)
    except AdvrbdError as error:
        notify(Caution(str(error)))
        raise SystemExit(REFUSED) from error


def results(plan: Plan, work: Path) -> Iterator[tuple[Unit, dict]]:
    """The units that have a JSON, and what it holds."""
    for unit in plan:
        if known := read_unit(path_of(unit.name, work)):
            yield unit, known


def _check_what_is_old(plan: Plan, work: Path, notify: Notify) -> None:
    """Whole results stay when defaults, versions or the machine change, but nobody should take them for today's
    unawares; to those that lack something nothing is added, since one unit would be a mixture then."""
    old = [
        unit
        for unit, known in results(plan, work)
        if any(known.get(name) != value for name, value in circumstances(unit.config).items())
    ]
    if not old:
        return
    what = f"{len(old)} results are of other settings, other versions or another kind of machine"
    if lacking := [str(path_of(unit.name, work)) for unit in old if missing(unit, plan[unit], work)]:
        raise BenchmarkError(f"{what}; remove those to be added to, or use another --work: {', '.join(lacking)}")
    notify(Caution(f"{what}; to run these again, remove {', '.join(str(path_of(unit.name, work)) for unit in old)}"))


def _received(connection: Connection) -> Iterator[Event]:
    """What comes until the other side is closed."""
    with connection:
        while True:
            try:
                event = connection.recv()
            except (EOFError, OSError):
                return
            yield event


def _end_with(parent: BaseProcess) -> None:
    """A step whose parent was killed would go on, and get in the way of the next start."""
    parent.join()
    os._exit(1)
