"""The line: batches of runs that wait for a worker, and the places they take.

What stands in line is a *batch*: the runs of one response, to be run strictly one after another. A worker takes a
whole batch, so the order within a response needs no lock and no rule, it is the order of a deque. Batches of different
responses go to different workers. Between batches the line is first in, first out by release.

**Two lanes.** ``priority="high"`` batches are taken before all others; a batch stands in the lane of its first run.
Two lanes are two deques and one ``or``; a number from 0 to 9 would be a heap, and nobody can say what a 6 is. The price
is said openly: as long as high work keeps coming, normal work waits. ``statistics().oldest_ready`` shows it.

**Places.** The line is bounded by counting, not by its length: a run takes a place when it is added, long before it
stands in line, and ``held + ready + waiting <= limit`` holds at every moment. That is what makes an overflow visible
while there is still a response to change. A place, once reserved, is never taken back from its run. It is given back
when the run starts its last possible attempt, or ends. A run that may be tried again keeps its place while it runs:
coming back to a full line it would have to break the limit, or be lost. Only what comes out of a durable journal may stand
beyond the limit, one that is lower than it was: it is owed, and nothing new is accepted until there is room again.

**Later.** A batch whose next run is due later is *parked*: it costs a timer (some hundred bytes) and no worker.

**Two ways to overflow.** ``take_place_nowait`` raises `QueueFull` at once. ``take_places`` waits in line for a number
of places all together, so two half-accepted responses can never wait for each other. Those who wait are served first
in, first out, and newcomers do not pass them.

Deques and parked futures instead of `asyncio.Queue`: two lanes and a time of arrival at 0.7 of its cost (measured), and ``put``
never waits, because the place has been there since the beginning. All methods are for the loop's thread.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence

from minibg.background.clock import Clock, Timer
from minibg.background.run import Run

#: Weight of the newest interval in the moving average of the time between two places given back. About ten intervals
#: decide: short enough to follow a burst, long enough not to follow one task.
NEWEST_INTERVAL = 0.1
#: Bounds of Retry-After in seconds: it has no fractions (RFC 9110 §10.2.3), and nobody plans an hour ahead.
SHORTEST_RETRY_AFTER, LONGEST_RETRY_AFTER = 1, 60


class NotAccepted(Exception):
    """The work was not taken on: nothing of it will run. The client may try again in ``retry_after`` seconds."""

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(NotAccepted):
    """There is no place for this task: ``limit`` runs are held, ready or waiting."""

    def __init__(self, limit: int, *, wanted: int = 1, retry_after: int = SHORTEST_RETRY_AFTER) -> None:
        wish = "no place for another task" if wanted == 1 else f"no places for {wanted} tasks"
        super().__init__(f"{wish}: the queue's limit is {limit}", retry_after=retry_after)
        self.limit = limit
        self.wanted = wanted


class Batch:
    """Runs to be run one after another."""

    __slots__ = ("due_at", "runs", "since", "timer")

    def __init__(self, *runs: Run) -> None:
        self.runs = deque(runs)
        for run in self.runs:
            run.batch = self
        #: When it was put in line: monotonic seconds.
        self.since = 0.0
        #: When it is due, and what will say so: set while it is parked.
        self.due_at = 0.0
        self.timer: Timer | None = None


class Queue:
    """Batches in line, batches that are due later, and a bounded number of places."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self.limit = limit
        #: Places that are taken: by all runs held, ready and waiting, and by the running ones that may come back.
        self.taken = 0
        #: The batches that are due later.
        self.parked: set[Batch] = set()
        self._clock = clock
        self._high: deque[Batch] = deque()
        self._normal: deque[Batch] = deque()
        self._parked_workers: deque[asyncio.Future[None]] = deque()
        self._waiting_for_places: deque[tuple[Sequence[Run], asyncio.Future[None]]] = deque()
        self._given_back_at: float | None = None
        self._interval = 0.0

    # Places.

    def take_place_nowait(self, run: Run) -> None:
        """Reserve a place. Raises QueueFull."""
        if self.taken >= self.limit or self._waiting_for_places:
            raise self.full(1)
        self._take([run])

    def keep_place(self, run: Run) -> None:
        """Give a place to a run that had one in an earlier life of its journal, beyond the limit if need be."""
        self._take([run])

    async def take_places(self, runs: Sequence[Run], timeout: float) -> None:
        """Reserve a place for each run, all or none; wait for them at most ``timeout`` seconds. Raises QueueFull."""
        if self._fits(runs) and not self._waiting_for_places:
            self._take(runs)
            return
        if len(runs) > self.limit:
            raise self.full(len(runs))
        waiter = (runs, asyncio.get_running_loop().create_future())
        self._waiting_for_places.append(waiter)
        timer = self._clock.call_later(timeout, self._refuse, waiter)
        try:
            await waiter[1]
        except asyncio.CancelledError:
            self._forget(waiter)
            raise
        finally:
            timer.cancel()

    def give_back(self, run: Run) -> None:
        """Give back the place of a run, if it still has one."""
        if not run.has_place:
            return
        run.has_place = False
        self.taken -= 1
        self._measure()
        self._serve_those_who_wait()

    def full(self, wanted: int) -> QueueFull:
        """Say that there is no place, and estimate from the current rate when there will be."""
        if self._given_back_at is None:
            return QueueFull(self.limit, wanted=wanted)
        standstill = self._clock.monotonic() - self._given_back_at
        seconds = math.ceil(max(self._interval, standstill) * wanted)
        return QueueFull(
            self.limit, wanted=wanted, retry_after=min(max(seconds, SHORTEST_RETRY_AFTER), LONGEST_RETRY_AFTER)
        )

    def _fits(self, runs: Sequence[Run]) -> bool:
        return self.taken + sum(not run.has_place for run in runs) <= self.limit

    def _take(self, runs: Sequence[Run]) -> None:
        for run in runs:
            if not run.has_place:  # One that two responses share by its key may have got it from the other.
                run.has_place = True
                self.taken += 1

    def _serve_those_who_wait(self) -> None:
        while self._waiting_for_places:
            runs, future = self._waiting_for_places[0]
            if future.done() or not self._fits(runs):  # Who was cancelled and is not awake yet leaves by `_forget`.
                return
            self._waiting_for_places.popleft()
            self._take(runs)
            future.set_result(None)

    def _refuse(self, waiter: tuple[Sequence[Run], asyncio.Future[None]]) -> None:
        if waiter in self._waiting_for_places and not waiter[1].done():
            self._waiting_for_places.remove(waiter)
            waiter[1].set_exception(self.full(len(waiter[0])))
            self._serve_those_who_wait()

    def _forget(self, waiter: tuple[Sequence[Run], asyncio.Future[None]]) -> None:
        """Take back what a waiter got, or would have got, who does not wait any more."""
        if waiter in self._waiting_for_places:  # It got nothing: what its runs have, another response took.
            self._waiting_for_places.remove(waiter)
            self._serve_those_who_wait()
        else:
            for run in waiter[0]:
                self.give_back(run)

    def _measure(self) -> None:
        now = self._clock.monotonic()
        if self._given_back_at is not None:
            self._interval += (now - self._given_back_at - self._interval) * NEWEST_INTERVAL
        self._given_back_at = now

    # The line.

    def put(self, batch: Batch) -> None:
        """Put a batch at the end of its lane. Never waits: its runs have had their places since they were added."""
        batch.since = self._clock.monotonic()
        (self._high if batch.runs[0].options.priority == "high" else self._normal).append(batch)
        self._wake_a_worker()

    async def get(self) -> Batch:
        """Take the next batch; wait for one."""
        while not (lane := self._high or self._normal):
            parked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._parked_workers.append(parked)
            await parked
        return lane.popleft()

    def _wake_a_worker(self) -> None:
        while self._parked_workers:
            parked = self._parked_workers.popleft()
            if not parked.done():  # A worker that was cancelled leaves its future behind.
                parked.set_result(None)
                return

    def oldest(self) -> float | None:
        """When the batch that has stood longest was put in line; None when nobody stands there."""
        heads = [lane[0].since for lane in (self._high, self._normal) if lane]
        return min(heads, default=None)

    # Later.

    def park(self, batch: Batch, seconds: float, due: Callable[[Batch], None]) -> None:
        """Keep a batch out of the line for so many seconds, then call ``due`` with it."""
        batch.due_at = self._clock.monotonic() + seconds
        batch.timer = self._clock.call_later(seconds, self._come_due, batch, due)
        self.parked.add(batch)

    def unpark(self, batch: Batch) -> None:
        """Forget that a batch is due later."""
        self.parked.discard(batch)
        if batch.timer is not None:
            batch.timer.cancel()
            batch.timer = None

    def _come_due(self, batch: Batch, due: Callable[[Batch], None]) -> None:
        self.unpark(batch)
        due(batch)
