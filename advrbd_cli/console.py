"""All that a person sees, on stderr: progress, notes, errors. stdout belongs to reports that were asked for there."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.segment import Segments
from rich.table import Column, Table
from rich.text import Text

from advrbd import events
from advrbd.errors import OutputError
from advrbd.writing import escaped, write_whole


@dataclass
class State:
    """How much the user wants to see."""

    quiet: bool = False
    verbose: bool = False


state = State()


class Stderr:
    """What ``sys.stderr`` is at the time, until it can't be written to: from then on, what it is told is lost.

    Nobody's run shall fail, and no exit code change, since nobody reads about it any more.
    """

    def write(self, text: str) -> None:
        self._try("write", text)

    def flush(self) -> None:
        self._try("flush")

    def isatty(self) -> bool:
        return bool(self._stream and self._stream.isatty())

    @property
    def _stream(self) -> TextIO | None:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # a live bar puts a stand-in there, for prints

    def _try(self, name: str, *arguments: str) -> None:
        if self._stream is not None:
            try:
                getattr(self._stream, name)(*arguments)
            except OSError:
                _lead_nowhere(self._stream)


stderr = Console(file=cast("TextIO", Stderr()), highlight=False, soft_wrap=True)

SECONDS_BETWEEN_LINES = 10
NARROWEST = 40  # columns of a table; where there are fewer the terminal breaks its lines, and nothing is cut off
FIGURES, BAR = 18, 8  # columns: of the share done, the time left and the gaps; of a bar that still shows something


def error(message: str) -> None:
    stderr.print(Text.assemble(("error: ", "bold red"), escaped(message)))


def caution(message: str) -> None:
    if not state.quiet:
        stderr.print(Text.assemble(("warning: ", "yellow"), escaped(message)))


def say(message: str) -> None:
    if not state.quiet:
        stderr.print(Text(escaped(message)))


def show(table: Table) -> None:
    if not state.quiet:
        options = stderr.options.update(width=max(NARROWEST, stderr.width))
        stderr.print(Segments(stderr.render(table, options)), end="")


class Narrator:
    """Turns the events of a run into a live bar on a terminal, or into plain lines where there is none.

    A context: the bar is gone when it ends. Call it with an event.
    """

    def __init__(self, progress: bool | None = None) -> None:
        wanted = progress is not False and not state.quiet
        # FORCE_COLOR makes Rich take a log for a terminal; whoever wants colours there wants no bar
        self._live = wanted and stderr.is_interactive and stderr.file.isatty()
        self._lines = wanted and not self._live
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=stderr,
            transient=True,
            disable=not self._live,
        )
        self._stage, self._task, self._started, self._last, self._heard = "", TaskID(0), 0.0, 0.0, time.monotonic()

    def __enter__(self) -> "Narrator":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.Note(message):
                say(message)
            case events.Caution(message):
                caution(message)
            case events.Progress():
                self._tell(event)

    def _tell(self, event: events.Progress) -> None:
        now = time.monotonic()
        stage, detail = fitting(event.stage, event.detail, stderr.width)
        if event.stage != self._stage:
            # a stage tells of itself for the first time when some of it is done; it began when the one before ended
            self._stage, self._started, self._last = event.stage, self._heard, now
            if self._live:
                for task in self._bar.task_ids:
                    self._bar.remove_task(task)
                self._task = self._bar.add_task(stage, total=event.total, detail=detail)
        if self._live:
            self._bar.update(self._task, description=stage, completed=event.done, total=event.total, detail=detail)
        elif self._lines and (event.done >= event.total or now - self._last >= SECONDS_BETWEEN_LINES):
            self._last = now
            spent = now - self._started
            left = spent * (event.total - event.done) / max(1, event.done)
            about = f" ({event.detail})" if event.detail else ""
            remaining = f", about {left:.0f} s left" if event.done < event.total else f", {spent:.0f} s"
            say(f"{event.stage}: {event.done}/{event.total} {event.unit}{about}{remaining}")
        self._heard = now


def fitting(stage: str, detail: str, width: int) -> tuple[str, str]:
    """What of both has room in a line of ``width`` columns beside the figures: first the detail goes, then the bar."""
    stage, detail = escaped(stage), escaped(detail)
    shown = Text(stage)
    shown.truncate(max(1, width - FIGURES), overflow="ellipsis")
    return shown.plain, detail if cell_len(stage) + cell_len(detail) <= width - FIGURES - BAR else ""


def check_stdout() -> None:
    """Refuse a report on stdout where that is closed."""
    if sys.stdout is None:
        raise OutputError("cannot write to stdout: it is closed")


def to_stdout(data: bytes) -> None:
    """A report that was asked for on stdout, and nothing else ever. Raises ``OutputError`` where it can't be written,
    also where its reader went away."""
    check_stdout()
    try:
        sys.stdout.buffer.write(data)
    except OSError as error:
        raise _unwritten(error) from error
    flush_stdout()


def write_report(output: str | Path, data: bytes) -> None:
    """A report that was asked for: on stdout where ``output`` is ``-``, else whole in that file or not at all."""
    if output == "-":
        to_stdout(data)
    else:
        write_whole(Path(output), data)


def flush_stdout() -> None:
    """Write what waits in stdout now, since Python would make an exit code of its own of what goes wrong later."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError as error:
            raise _unwritten(error) from error


def occupy_closed_streams() -> None:
    """Give the numbers of closed standard streams to the null device. Else the next files to be opened would get them,
    and what any library prints would go into those files."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(opened)


def _unwritten(error: OSError) -> OutputError:
    _lead_nowhere(sys.stdout)
    return OutputError(f"cannot write to stdout: {error.strerror}")


def _lead_nowhere(stream: TextIO) -> None:
    """Let what waits in ``stream`` go to the null device, or Python would try to write it again at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
