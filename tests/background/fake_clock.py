"""A clock that a test moves by hand.

Passed as ``Pool(clock=...)``. An hour of backoff takes no time, and two timers fire in the order of
their moments, those of one moment in the order they were set, as the event loop does it. Like
`SystemClock`, it calls in an empty context.

``advance`` only calls the timers that are due. A worker or a caller that such a call wakes runs
when the test awaits something.
"""

import contextvars
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

#: The wall-clock time at the start: some moment.
START = datetime(2026, 1, 1, tzinfo=UTC)


class FakeTimer:
    def __init__(self, at: float, call: Callable[[], object]) -> None:
        self.at = at
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    def __init__(self) -> None:
        self._monotonic = 1000.0
        self._wall = START
        self._timers: list[FakeTimer] = []

    def now(self) -> datetime:
        """Return the wall-clock time as a datetime."""
        return self._wall

    def time(self) -> float:
        return self._wall.timestamp()

    def monotonic(self) -> float:
        return self._monotonic

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> FakeTimer:
        timer = FakeTimer(self._monotonic + seconds, lambda: contextvars.Context().run(callback, *args))
        self._timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` seconds pass, and call the timers that are due on the way."""
        end = self._monotonic + seconds
        while due := [timer for timer in self._pending() if timer.at <= end]:
            timer = min(due, key=lambda timer: timer.at)
            self._timers.remove(timer)
            self._move_to(max(timer.at, self._monotonic))
            timer.call()
        self._move_to(end)

    def sleep_through(self, seconds: float) -> None:
        """Let seconds pass in which no timer is called, as in a suspended machine; then call the
        timers that are due.
        """
        self._move_to(self._monotonic + seconds)
        self.advance(0)

    def jump(self, seconds: float) -> None:
        """Set the wall clock, as an administrator does. Durations and timers do not change."""
        self._wall += timedelta(seconds=seconds)

    def pending(self) -> list[float]:
        """Return in how many seconds each timer is due."""
        return sorted(timer.at - self._monotonic for timer in self._pending())

    def _pending(self) -> list[FakeTimer]:
        self._timers = [timer for timer in self._timers if not timer.cancelled]
        return self._timers

    def _move_to(self, monotonic: float) -> None:
        self._wall += timedelta(seconds=monotonic - self._monotonic)
        self._monotonic = monotonic
