"""What a running scan tells the outside: events to a listener, which is a no-op unless one is given.

The library neither prints nor logs; a program that wants progress passes ``notify=callable``.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` units of work in ``stage``; ``detail`` holds a few figures to show beside it."""

    stage: str
    done: int
    total: int
    unit: str = "images"
    detail: str = ""


@dataclass(frozen=True)
class Note:
    """Something worth knowing: a choice made automatically, and why."""

    message: str


@dataclass(frozen=True)
class Caution:
    """Something that limits how far the result can be trusted, or that was not done as expected."""

    message: str


Event = Progress | Note | Caution
Notify = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The default listener: does nothing."""
