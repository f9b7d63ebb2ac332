"""The queue: batches that wait for a worker, and batches that are due later.

A batch is the unit of the queue: the runs of one response. Batches leave the queue first in, first
out, in the order of their release. [order.1] Different batches go to different workers.

**Two lanes.** A batch whose first run has ``priority="high"`` is taken before all others. Two lanes
need two ordered dictionaries and one ``or``. Priorities from 0 to 9 would need a heap, and the
meaning of a 6 is unclear to users. The cost is that normal batches wait as long as high batches
keep coming; ``statistics().oldest_ready`` shows how long.

**Deferred batches.** A batch whose first run is due later costs a timer (some hundred bytes) and no
worker. When the timer fires, the queue notes that the run is due and appends the batch to its lane.
A time of day (``run_at``) is compared with the wall clock again, at least once a minute, because
that clock may be set while the run waits.

**The horizon.** A drain does not wait for a run that is due after its deadline. It sets the horizon
to that deadline, and the queue sets later batches aside: their runs are in ``set_aside``, their
timers are cancelled, and the journal, if there is one, keeps the runs for the next start.

**Cancelled runs leave.** A run that is cancelled while it is queued or deferred is taken out of its
batch, and an empty batch out of the queue, at once: memory is bounded by the number of unfinished
runs, and not by the number that was added. An `OrderedDict` removes a batch in constant time, at
its ends and in between.

`put` never waits, because a run has had its slot since it was added. `get` hands batches to idle
workers through futures. Two lanes of this kind cost 0.7 of one `asyncio.Queue` (measured). All
methods are for the event loop's thread.
"""

import asyncio
import math
from collections import OrderedDict, deque

from minibg.background.clock import Clock
from minibg.background.ledger import Ledger
from minibg.background.result import Event, TaskStatus
from minibg.background.run import Batch, Run

#: Seconds between two comparisons of a ``run_at`` with the wall clock.
WALL_CLOCK_CHECK_SECONDS = 60.0


class Queue:
    """Batches in two lanes, and deferred batches with their timers."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        #: The batches that are due later.
        self.deferred: set[Batch] = set()
        #: The runs of batches that are due after the horizon.
        self.set_aside: set[Run] = set()
        self._ledger = ledger
        self._clock = clock
        self._horizon = math.inf
        self._high: OrderedDict[Batch, None] = OrderedDict()
        self._normal: OrderedDict[Batch, None] = OrderedDict()
        self._idle_workers: deque[asyncio.Future[None]] = deque()

    # --- batches that wait for a worker ---

    def put(self, batch: Batch) -> None:
        """Append a batch to the lane of its first run, and wake an idle worker."""
        batch.queued_at = self._clock.monotonic()
        lane = self._high if batch.runs[0].options.priority == "high" else self._normal
        lane[batch] = None
        self._wake_worker()

    async def get(self) -> Batch:
        """Take the next batch; wait until there is one."""
        while not (lane := self._high or self._normal):
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle_workers.append(idle)
            try:
                await idle
            except asyncio.CancelledError:
                if not idle.cancelled():  # It was woken for a batch, and another worker has to take that batch.
                    self._wake_worker()
                raise
        batch, _ = lane.popitem(last=False)
        return batch

    def _wake_worker(self) -> None:
        while self._idle_workers:
            idle = self._idle_workers.popleft()
            if not idle.done():  # A worker that was cancelled leaves its future behind.
                idle.set_result(None)
                return

    def dismiss_workers(self) -> None:
        """End the idle workers: their `get` raises CancelledError."""
        while self._idle_workers:
            self._idle_workers.popleft().cancel()

    def oldest(self) -> float | None:
        """Return the time at which the oldest batch was queued, in monotonic seconds; None for an
        empty queue.
        """
        heads = [next(iter(lane)).queued_at for lane in (self._high, self._normal) if lane]
        return min(heads, default=None)

    # --- batches that are due later ---

    def defer(self, batch: Batch, seconds: float) -> None:
        """Queue a batch ``seconds`` from now, or set it aside when it is due after the horizon."""
        batch.due_at = self._clock.monotonic() + seconds
        if batch.due_at > self._horizon:
            self._set_aside(batch)
            return
        self.deferred.add(batch)
        if _waits_for_a_time_of_day(batch.runs[0]):
            seconds = min(seconds, WALL_CLOCK_CHECK_SECONDS)
        batch.timer = self._clock.call_later(seconds, self._on_timer, batch)

    def _on_timer(self, batch: Batch) -> None:
        first = batch.runs[0]
        self.deferred.discard(batch)
        left = first.seconds_until_due(self._clock) if _waits_for_a_time_of_day(first) else None
        if left:
            self.defer(batch, left)
            return
        batch.timer = None
        if first.result.status is TaskStatus.WAITING:  # Else it is READY: its claim could not be written.
            self._ledger.note(first, Event.DUE)
        self.put(batch)

    def set_horizon(self, moment: float) -> None:
        """Set aside deferred batches, present and future, that are due after this monotonic moment."""
        self._horizon = moment
        for batch in [batch for batch in self.deferred if batch.due_at > moment]:
            self._set_aside(batch)

    def _set_aside(self, batch: Batch) -> None:
        self._stop_timer(batch)
        self.set_aside.update(batch.runs)
        self._ledger.recheck()  # The drain may have waited for these runs only.

    def _stop_timer(self, batch: Batch) -> None:
        self.deferred.discard(batch)
        if batch.timer is not None:
            batch.timer.cancel()
            batch.timer = None

    # --- runs that are cancelled ---

    def remove(self, run: Run) -> None:
        """Remove a cancelled run from its batch. Siblings that waited only for this run are queued."""
        batch = run.batch
        if batch is None:  # It is HELD: its hold skips it at the release.
            return
        was_deferred = batch in self.deferred or run in self.set_aside
        was_first = batch.runs[0] is run
        batch.runs.remove(run)
        self.set_aside.discard(run)
        if was_deferred and was_first:
            self._stop_timer(batch)
            self.set_aside.difference_update(batch.runs)
            if batch.runs:
                self.put(batch)
        elif not batch.runs:
            self._high.pop(batch, None)
            self._normal.pop(batch, None)


def _waits_for_a_time_of_day(run: Run) -> bool:
    """Return whether a run waits for its ``run_at``, and not for its retry."""
    return run.options.run_at is not None and not run.result.attempts and run.result.status is TaskStatus.WAITING
