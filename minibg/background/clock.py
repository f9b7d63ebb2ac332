"""Time, in the three forms the queue needs it.

*Wall-clock time* is for people: the stamps in a `TaskResult`. It may jump. *Monotonic time* is for durations: delays,
deadlines, ages. It never goes back. *Timers* call something later, on the loop's thread.

Nothing else in the folder asks the operating system for the time, so a test passes in a clock of its own and moves it
by hand: an hour of backoff takes no time, and comes out the same on every run. `Clock` is the protocol, `SystemClock`
what everyone gets who passes nothing.

Timers run in an empty context. A callback scheduled from inside a request would otherwise run in that request's
contextvars, and keep them alive until it is due.
"""

import asyncio
import contextvars
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol


class Timer(Protocol):
    """What `Clock.call_later` gives back."""

    def cancel(self) -> None:
        """Do not call. Without effect when the call has been made."""


class Clock(Protocol):
    """Where the queue's time comes from."""

    def now(self) -> datetime:
        """Wall-clock time: aware, in UTC."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call ``callback(*args)`` on the loop's thread in so many seconds."""


class SystemClock:
    """The operating system's clocks, and the timers of the running loop."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback, *args, context=contextvars.Context())
