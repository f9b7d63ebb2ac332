"""Tasks that run at a fixed interval.

A schedule is a series of moments, ``start + n * seconds``, in monotonic time. At each moment the
task is enqueued like any other: its run takes a slot, is queued, may be retried, and is recorded in
the ledger.

The rules:

- Runs do not overlap. A moment is missed while the previous run is unfinished.
- The next moment is computed from the schedule, not from the end of the run: a task that takes 3 s
  and runs every 60 s stays on the minute.
- A missed moment is counted, and not made up for. The causes are an unfinished run, a full queue,
  and an event loop or machine that slept over several moments. For the same reason a journal on
  disk does not keep these runs: the next start would make up for a missed moment.

Cron expressions are not here: a library's trigger (APScheduler has one) computes the next moment,
and ``run_at`` takes it.
"""

from collections.abc import Callable
from typing import Any

from minibg.background.clock import Clock, Timer, seconds as checked_seconds
from minibg.background.errors import NotAccepted
from minibg.background.result import TaskResult
from minibg.background.task import as_task, name_of
from minibg.log import SafeLogger

logger = SafeLogger("minibg.background")


class Periodic:
    """One task on a schedule. Made by `Pool.every`; ends when it is cancelled or the pool stops.

    Raises ValueError unless ``seconds`` is a number above zero, TypeError for a callable that
    cannot be run as a task.
    """

    def __init__(
        self, enqueue: Callable[[Any], TaskResult[Any]], func: Callable[[], Any], seconds: float, clock: Clock
    ) -> None:
        #: The number of missed moments.
        self.missed = 0
        #: The newest run.
        self.result: TaskResult[Any] | None = None
        self._enqueue = enqueue
        self._func = as_task(func).using(durable=False)
        self._seconds = checked_seconds("seconds=", seconds, positive=True)
        self._clock = clock
        self._due_at = 0.0
        self._timer: Timer | None = None
        self._cancelled = False

    def start(self) -> None:
        """Start the schedule now: the first moment is one interval away."""
        if not self._cancelled:
            self._due_at = self._clock.monotonic()
            self._set_timer()

    def cancel(self) -> None:
        """Schedule no further run. A run in progress goes on."""
        self._cancelled = True
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        late = self._clock.monotonic() - self._due_at
        skipped = int(late / self._seconds)
        self._miss(skipped, "the event loop was late")
        self._due_at += (skipped + 1) * self._seconds
        self._timer = self._clock.call_later(self._due_at - self._clock.monotonic(), self._due)

    def _due(self) -> None:
        if self.result is not None and not self.result.is_finished:
            self._miss(1, "the last run has not ended")
        else:
            try:
                self.result = self._enqueue(self._func)
            except NotAccepted as refusal:
                self._miss(1, str(refusal))
        self._set_timer()

    def _miss(self, count: int, why: str) -> None:
        if count:
            self.missed += count
            logger.warning("%s missed %d of its moments: %s", name_of(self._func), count, why)
