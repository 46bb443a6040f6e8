"""Which part of a command this process has, where torchrun started several: the first runs it, the others help."""

import signal
from collections.abc import Callable, Mapping

from advrbd.errors import PeerLostError
from advrbd_cli import exits

SHARED = (["scan"], ["clean"])
ALONE = (["poison"], ["drill"], ["bench"], ["demo"])

Program = Callable[..., int | None]


def part_of(app: Program, command: list[str], environment: Mapping[str, str]) -> Program:
    """What this process has to do of ``command``; ``environment`` says which of how many it is, as torchrun does.

    What is long and can't be shared, the first process does alone, and the others of torchrun have nothing to do. All
    else each does for itself: a ``verify`` that did nothing would let the training after it start.
    """
    count, rank = (environment.get(name, "") for name in ("WORLD_SIZE", "RANK"))
    if not (count.isdecimal() and rank.isdecimal() and int(count) > 1):
        return app
    if command in SHARED:
        return _leading(app) if int(rank) == 0 else _help
    if command in ALONE and int(rank) > 0 and "TORCHELASTIC_RUN_ID" in environment:
        return lambda **_: exits.CLEAN
    return app


def _leading(app: Program) -> Program:
    def lead(**keywords: object) -> int | None:
        from advrbd.model.peers import joined

        with joined():
            return app(**keywords)

    return lead


def _help(**_: object) -> int:
    """Help; what ends the first process, it says itself."""
    for number in exits.ENDINGS:  # here's nothing to tidy up, and Python hears no signal while it waits for others
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)

    from advrbd.helper import help_the_leader

    try:
        help_the_leader()
    except PeerLostError:
        return exits.FAILED
    return exits.CLEAN
