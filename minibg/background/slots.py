"""The slots that bound the queue: taken in ``add_task``, and freed when a run cannot return to the
queue.

The queue is bounded by a count of slots, not by its length. A run has its slot from ``add_task``
on, long before it is queued, and ``held + ready + waiting <= limit`` holds at every moment.
[bounded.1] So a full queue is noticed while the handler can still answer with an error. Every held,
ready or waiting run has a slot.

The rules:

- A slot, once taken, is never taken back from its run. [bounded.8] It is freed when the run ends,
  or when its last possible attempt begins. A run that may be retried keeps its slot while it runs.
  Without it, a retry into a full queue would have to exceed the limit or be lost.
- `reserve_nowait` takes a slot or raises `QueueFull`. `reserve` waits, first come, first served,
  until all of its slots are free: all or none. [bounded.5] So two responses that have half of their
  slots can never wait for each other. While a caller waits, `reserve_nowait` raises, even if slots
  are free.
- Runs that are restored from a journal may exceed the limit, because they were accepted, perhaps
  under a higher limit. New tasks are refused until the number of taken slots is below the limit.

A refusal has an estimate for ``Retry-After``: the time between two freed slots, as a moving
average, times the number of wanted slots.

All methods are for the event loop's thread.
"""

import asyncio
import math
from collections import deque
from typing import NamedTuple

from minibg.background.clock import Clock
from minibg.background.errors import SHORTEST_RETRY_AFTER, PoolStopped, QueueFull
from minibg.background.run import Run
from minibg.log import SafeLogger

logger = SafeLogger("minibg.background")

#: Seconds between two warnings of a full queue, so that a burst of refusals logs one line.
WARNING_SECONDS = 10.0
#: Weight of the newest interval in the moving average of the time between two freed slots. The
#: average covers about ten intervals, so that it follows a burst and not a single task.
NEWEST_INTERVAL = 0.1
#: Seconds: the longest ``Retry-After``. A longer estimate would be of no use to a client.
LONGEST_RETRY_AFTER = 60


class _Waiter(NamedTuple):
    """A caller that waits in `reserve`."""

    wanted: int
    future: asyncio.Future[None]


class Slots:
    """``limit`` slots. ``taken`` of them belong to runs, or are reserved for tasks to be added."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self.limit = limit
        self.taken = 0
        #: Whether the pool refuses new tasks, because it is stopping or has stopped.
        self.is_closed = False
        self._clock = clock
        self._waiters: deque[_Waiter] = deque()
        #: When the last slot was freed (monotonic), and the average seconds between two freed
        #: slots.
        self._freed_at: float | None = None
        self._interval = 0.0
        #: Refusals since the last warning of a full queue, and when the next one may be logged.
        self._refusals = 0
        self._warn_at = -math.inf

    def reserve_nowait(self) -> None:
        """Take a slot. Raises QueueFull."""
        if self.taken >= self.limit or self._waiters:
            raise self._full(1)
        self.taken += 1

    async def reserve(self, wanted: int, timeout: float | None) -> None:
        """Wait at most ``timeout`` seconds for ``wanted`` slots and take them, all or none. Raises
        QueueFull, PoolStopped.
        """
        self.check_open()
        if wanted > self.limit:  # They can never be free together.
            raise self._full(wanted)
        if not self._waiters and self.taken + wanted <= self.limit:
            self.taken += wanted
            return
        waiter = _Waiter(wanted, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        timer = self._clock.call_later(timeout, self._refuse, waiter) if timeout is not None else None
        try:
            await waiter.future
        except asyncio.CancelledError:
            self._withdraw(waiter)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def check_open(self) -> None:
        """Raise PoolStopped when the pool refuses new tasks."""
        if self.is_closed:
            raise PoolStopped("the pool has stopped and accepts no tasks")

    def close(self) -> None:
        """Refuse the waiting callers and all later ones."""
        self.is_closed = True
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.future.done():
                waiter.future.set_exception(PoolStopped("the pool has stopped while its slots were waited for"))

    def restore(self, run: Run) -> None:
        """Take a slot for a run that is restored from a journal, even beyond the limit."""
        run.has_slot = True
        self.taken += 1

    def free(self, run: Run) -> None:
        """Free the slot of a run, if it still has one."""
        if run.has_slot:
            run.has_slot = False
            self.free_unused(1)

    def free_unused(self, number: int) -> None:
        """Free ``number`` slots that belong to no run."""
        if number:
            self.taken -= number
            self._measure()
            self._grant_waiters()

    def _grant_waiters(self) -> None:
        while self._waiters and self.taken + self._waiters[0].wanted <= self.limit:
            waiter = self._waiters.popleft()
            if not waiter.future.done():  # Else it was cancelled, and has not resumed yet.
                self.taken += waiter.wanted
                waiter.future.set_result(None)

    def _refuse(self, waiter: _Waiter) -> None:
        """Refuse a waiter whose timeout has passed."""
        if waiter in self._waiters and not waiter.future.done():
            self._waiters.remove(waiter)
            waiter.future.set_exception(self._full(waiter.wanted))
            self._grant_waiters()  # The next waiter may want fewer slots.

    def _withdraw(self, waiter: _Waiter) -> None:
        """Undo the reservation of a waiter that was cancelled."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            self._grant_waiters()
        elif not waiter.future.cancelled() and waiter.future.exception() is None:
            self.free_unused(waiter.wanted)  # The slots were granted just before the cancellation.

    def _full(self, wanted: int) -> QueueFull:
        """Return a QueueFull with an estimate of when a slot will be free."""
        if wanted <= self.limit:
            self._warn()
        if self._freed_at is None:
            return QueueFull(self.limit, wanted=wanted)
        standstill = self._clock.monotonic() - self._freed_at
        estimate = math.ceil(max(self._interval, standstill) * wanted)
        bounded = min(max(estimate, SHORTEST_RETRY_AFTER), LONGEST_RETRY_AFTER)
        return QueueFull(self.limit, wanted=wanted, retry_after=bounded)

    def _warn(self) -> None:
        """Log that the queue is full, at most once in `WARNING_SECONDS`."""
        self._refusals += 1
        now = self._clock.monotonic()
        if now >= self._warn_at:
            message = "the queue is full, %d of %d slots are taken: %d refused since the last such line"
            logger.warning(message, self.taken, self.limit, self._refusals)
            self._refusals, self._warn_at = 0, now + WARNING_SECONDS

    def _measure(self) -> None:
        now = self._clock.monotonic()
        if self._freed_at is not None:
            self._interval += (now - self._freed_at - self._interval) * NEWEST_INTERVAL
        self._freed_at = now
