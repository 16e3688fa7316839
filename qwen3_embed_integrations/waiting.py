"""Who waits for a piece of work; once nobody does, what of it was not begun yet is dropped."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from contextvars import ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

Result = TypeVar("Result")

# How long a pause lasts at most after its caller left: nothing tells when an event loop is closed.
_LOOK_SECONDS = 0.1


class Caller:
    """Waits for work that other threads do for it, until it leaves: it was cancelled, or something else failed.

    One that is made within work for another caller leaves with that one too.

    Args:
        loop: the event loop in which it waits; it has left when that is closed.
    """

    def __init__(self, loop: AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._outer = _caller.get()
        self._left = False

    @property
    def has_left(self) -> bool:
        """Whether nobody waits any more."""
        if self._left or (self._loop is not None and self._loop.is_closed()):
            return True
        return self._outer is not None and self._outer.has_left

    def leave(self) -> None:
        """Wait no longer."""
        self._left = True

    def bind(self, work: Callable[..., Result]) -> Callable[..., Result]:
        """Make work this caller's in whatever thread it runs, with the context variables of the present one.

        Args:
            work: any function.

        Returns:
            The same function, for one thread: bind it anew for another.
        """
        context = copy_context()
        context.run(_caller.set, self)
        return partial(context.run, work)


_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


def present_caller() -> Caller:
    """Return who waits for what this thread does; one that never leaves where nobody can."""
    return _caller.get() or Caller()


def stop_if_left() -> None:
    """End work that nobody waits for any more; to be called before each part of it.

    Raises:
        CancelledError: the caller has left.
    """
    if present_caller().has_left:
        raise CancelledError


def pause(seconds: float) -> None:
    """Sleep, as long as somebody waits.

    Args:
        seconds: how long.

    Raises:
        CancelledError: the caller has left.
    """
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        stop_if_left()
        time.sleep(min(left, _LOOK_SECONDS))
    stop_if_left()
