"""Time, in the three forms the queue needs.

- *Wall-clock time* is for people and for the journal: the times in a `TaskResult`. It may jump. It
  is a float, seconds since 1970 in UTC; a `TaskResult` converts it to a datetime when the attribute
  is read.
- *Monotonic time* is for durations: delays, deadlines, ages. It never goes back.
- *Timers* call a function later, on the event loop's thread.

Nothing else in the folder asks the operating system for the time. A test passes a clock of its own
and moves it by hand: an hour of backoff takes no time, and every run of the test is the same.

Timers run in an empty context. Otherwise a callback that was scheduled by a request would run with
that request's contextvars, and keep them alive until it is due.
"""

import asyncio
import contextvars
import math
import reprlib
import time
from collections.abc import Callable
from typing import Any, Protocol


class Timer(Protocol):
    """A scheduled call, as returned by `Clock.call_later`."""

    def cancel(self) -> None:
        """Cancel the call. Has no effect after the call."""


class Clock(Protocol):
    """The source of time of one pool."""

    def time(self) -> float:
        """Return the wall-clock time in seconds since 1970, UTC."""

    def monotonic(self) -> float:
        """Return the seconds since a fixed moment. The value never decreases."""

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call ``callback(*args)`` on the event loop's thread, ``seconds`` from now."""


class SystemClock:
    """The operating system's clocks, and the timers of the running event loop."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback, *args, context=contextvars.Context())


def seconds(option: str, value: Any, *, positive: bool = False) -> float:
    """Return the value of an option as a float of seconds. Raises a ValueError that names the
    option.

    An int, a Decimal or a Fraction is converted here, so that a bad value fails in the caller. A
    timer with a Decimal, or with an int too large for a float, would fail inside a worker.
    """
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (number > 0 if positive else number >= 0):
        least = "above zero" if positive else "zero or more"
        raise ValueError(f"{option} is a number of seconds, {least}, not {reprlib.repr(value)}")
    return number


def count(option: str, value: Any, *, least: int = 1) -> int:
    """Return the value of an option that is a number of things. Raises ValueError unless it is an
    int of at least ``least``.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{option} is a whole number, {least} or more, not {reprlib.repr(value)}")
    return value
