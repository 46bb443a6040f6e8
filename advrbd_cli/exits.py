"""Exit codes. 1 means a finding and nothing else, so Python's own 1 for a crash has to be taken away from it."""

import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from typer.exceptions import TyperException

from advrbd.errors import AdvrbdError, is_out_of_memory
from advrbd_cli import console

CLEAN = 0
SUSPECTS = 1
NOT_FOUND = 1  # a drill: an attack that took was not found
DIFFERENT = 1  # verify: not everything is as it was written
FAILED = 2
SIGNALLED = 128  # and the number of the signal, as shells count: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP

ENDINGS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Signalled(BaseException):
    """The process was told to end. No ``Exception``, so that nothing on the way out takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


def guard(program: Callable[..., int | None]) -> None:
    """Run ``program`` and exit; whatever goes wrong in it is one line on stderr and a code that isn't 1.

    A signal that ends processes ends it as an exception does, so that what it had begun to write is removed.
    """
    console.occupy_closed_streams()
    with _heard_once():
        try:
            code = _outcome(program)
        except Signalled as ending:
            console.error(f"interrupted ({ending.signal.name})")
            code = SIGNALLED + ending.signal
    sys.exit(code)


def _outcome(program: Callable[..., int | None]) -> int:
    """The exit code of ``program``, after its line on stderr where something went wrong."""
    try:
        code = program(standalone_mode=False) or CLEAN
        console.flush_stdout()
        return code
    except SystemExit as ending:  # Typer's and Rich's own, who say 1 where the reader of stdout went away
        return FAILED if ending.code else CLEAN
    except TyperException as error:
        console.error(f"{error.format_message()} (--help shows what there is)")
    except AdvrbdError as error:
        console.error(str(error))
    except (MemoryError, OSError) as error:
        console.error(f"{type(error).__name__}: {error}")
    except Exception as error:
        if is_out_of_memory(error):
            console.error("no memory was left; try a smaller --image-size or --model, or on a GPU --device cpu")
            return FAILED
        if console.state.verbose:
            traceback.print_exc(file=console.stderr.file)
        console.error(f"internal error, please report it: {type(error).__name__}: {error} (-v shows where)")
    return FAILED


@contextmanager
def _heard_once() -> Iterator[None]:
    """``Signalled`` for the first of these signals; those after it don't disturb the tidying up.

    Two at a time are usual: a terminal that closes and its shell each send one, and so does ``timeout``. One that the
    parent has switched off (``nohup``, a job in the background) stays so.
    """
    before = {number: signal.getsignal(number) for number in ENDINGS}
    heard = [number for number, handler in before.items() if handler in (signal.SIG_DFL, signal.default_int_handler)]

    def end(number: int, _frame: object) -> None:
        for other in heard:
            signal.signal(other, signal.SIG_IGN)
        raise Signalled(number)

    try:
        for number in heard:
            signal.signal(number, end)
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
