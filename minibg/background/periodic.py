"""Tasks that run every so many seconds.

A schedule is a line of moments, ``start + n * seconds``, in monotonic time. At each of them the task is enqueued like
any other: it stands in the same line, takes a place, may be retried, and shows up in the journal.

The rules:

- No overlap. If the run of the last moment has not ended, this moment is missed.
- The next moment is counted from the schedule, not from the end of the run: a task of 3 s every 60 s stays on the
  minute.
- What is missed is skipped and counted, never made up for. That goes for a run that is still going, a full queue, and
  a loop or machine that slept over several moments.

Cron expressions are not here: a library's trigger (APScheduler has one) computes the next moment, and ``run_at`` takes it.
"""

import logging
from typing import TYPE_CHECKING, Any

from minibg.background.clock import Clock, Timer
from minibg.background.queue import NotAccepted
from minibg.background.result import TaskResult
from minibg.background.task import as_task, name_of

if TYPE_CHECKING:
    from minibg.background.pool import Pool

logger = logging.getLogger("minibg.background")


class Periodic:
    """One task on a schedule. Made by `Pool.every`; lives until it is cancelled or the pool stops."""

    def __init__(self, pool: "Pool", func: Any, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"every {seconds!r} seconds is no schedule: give a number above zero")
        #: How many moments had to be skipped.
        self.missed = 0
        #: The newest run.
        self.result: TaskResult[Any] | None = None
        self._pool = pool
        # Missed moments are not made up for, so a journal on disk has nothing to keep.
        self._func = as_task(func).using(durable=False)
        self._seconds = seconds
        self._due_at = 0.0
        self._timer: Timer | None = None
        self._cancelled = False

    def start(self, clock: Clock) -> None:
        """Count from now: the first moment is one interval away."""
        if not self._cancelled:
            self._due_at = clock.monotonic()
            self._set_timer(clock)

    def cancel(self) -> None:
        """Schedule nothing more. A run that is on its way is not touched."""
        self._cancelled = True
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self, clock: Clock) -> None:
        late = clock.monotonic() - self._due_at
        skipped = int(late / self._seconds)
        self._miss(skipped, "the loop was late")
        self._due_at += (skipped + 1) * self._seconds
        self._timer = clock.call_later(self._due_at - clock.monotonic(), self._due, clock)

    def _due(self, clock: Clock) -> None:
        if self.result is not None and not self.result.is_finished:
            self._miss(1, "the last run has not ended")
        else:
            try:
                self.result = self._pool.enqueue(self._func)
            except NotAccepted as refusal:
                self._miss(1, str(refusal))
        self._set_timer(clock)

    def _miss(self, count: int, why: str) -> None:
        if count:
            self.missed += count
            logger.warning("%s missed %d of its moments: %s", name_of(self._func), count, why)
