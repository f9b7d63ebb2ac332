"""The workers: each takes a batch, runs it, and comes back for the next.

The loop is the whole idea::

    while True:
        batch = await queue.get()
        await run(batch)

Workers pull. Nobody spawns a task per run, so at most ``workers`` runs are in progress whatever the load, and the order
within a batch is the order of a loop.

What the loop has to respect:

- A failing run never stops its siblings, another batch, or the worker.
- A run that is to be tried again frees its worker: the batch is parked with that run at its head, so its later
  siblings wait for it, and comes back to the end of the line when it is due.
- A run that was cancelled while it stood in line is skipped. It gave its place back when it was cancelled.
- A coroutine over its timeout is cancelled and awaited. If it swallows the cancellation the log names it, and its
  worker stays taken: two of the same run at once would be worse than one worker less.
- A thread cannot be cancelled. Over its timeout its run is FAILED at once, so whoever waits for it knows, and its worker
  stays taken until the thread returns. It is not tried again, for the same reason. `overrunning` counts those.
- Once a minute is over, a warning names what still runs. Nothing is cut for it.

A worker is a plain asyncio task in an empty context. It suspends at least once per run, in the attempt's own task or
thread, so a burst of tiny tasks cannot hold the loop.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from minibg.background.attempt import Outcome, Verdict, attempt, judge, overdue
from minibg.background.clock import Clock, Timer
from minibg.background.journal import Journal
from minibg.background.queue import Batch, NotAccepted, Queue
from minibg.background.result import Event, TaskError, TaskStatus
from minibg.background.run import Cut, Run
from minibg.background.threads import Threads
from minibg.background.watchdog import Watchdog

logger = logging.getLogger("minibg.background")

#: Seconds after which a run that is still going is named in a warning, once. A task of this kind of queue takes
#: seconds; a minute is worth a look.
LONG = 60.0
#: Seconds between two looks for such runs.
LOOK_EVERY = 10.0
#: Seconds until a claim is tried again that the disk refused.
CLAIM_AGAIN = 1.0
#: Seconds a cancelled coroutine has to end before the log says that it does not.
GRACE = 1.0


class Workers:
    """What all workers share, and the loop that each of them is in."""

    def __init__(
        self,
        queue: Queue,
        journal: Journal,
        threads: Threads,
        clock: Clock,
        random: Callable[[], float],
        park: Callable[[Batch, float], None],
    ) -> None:
        #: The runs that an attempt is being made at, by id; also those whose thread is over its timeout.
        self.running: dict[str, Run] = {}
        #: How many threads are over their timeout and have not returned.
        self.overrunning = 0
        #: No attempt is begun any more.
        self.stopping = False
        self._queue = queue
        self._journal = journal
        self._threads = threads
        self._watchdog = Watchdog(asyncio.get_running_loop(), self.running)
        self._clock = clock
        self._random = random
        self._park = park
        self._look: Timer | None = None

    async def work(self) -> None:
        """Be one worker."""
        while not self.stopping:
            await self._run(await self._queue.get())

    async def _run(self, batch: Batch) -> None:
        while batch.runs and not self.stopping:
            run = batch.runs[0]
            if run.result.status is TaskStatus.READY:
                delay = await self._try(run)
                if delay is not None:
                    self._park(batch, delay)
                    return
            batch.runs.popleft()

    def due(self, batch: Batch) -> None:
        """Put a batch in line whose first run was waiting."""
        if batch.runs[0].result.status is TaskStatus.WAITING:
            self._journal.note(batch.runs[0], Event.DUE)
        self._queue.put(batch)

    async def _try(self, run: Run) -> float | None:
        """Make one attempt. Seconds until the next one, or None when there is none."""
        try:
            if not await self._claim(run):
                return None
        except NotAccepted:
            return CLAIM_AGAIN
        self._begin(run)
        timer = self._set_timeout(run)
        try:
            outcome = await attempt(run, self._threads)
        finally:
            del self.running[run.result.id]
            if timer is not None:
                timer.cancel()
        if run.result.status is TaskStatus.RUNNING:
            return self._conclude(run, judge(run, outcome, self._random), outcome)
        if run.result.status is TaskStatus.FAILED:  # Else it was lost: it swallowed even the end of the pool.
            self._note_late_return(run)
        return None

    async def _claim(self, run: Run) -> bool:
        """Have the attempt counted. False when it must not begin. Raises NotAccepted: not now."""
        allowed = await self._journal.claim(run)
        if run.result.status is not TaskStatus.READY or self.stopping:
            return False
        if not allowed:  # It was cancelled in the journal's file.
            self._journal.note(run, Event.CANCEL)
            self._queue.give_back(run)
        return allowed

    def _begin(self, run: Run) -> None:
        if not run.may_come_back():
            self._queue.give_back(run)
        run.since = self._clock.monotonic()
        run.cut = None
        self.running[run.result.id] = run
        self._journal.note(run, Event.START)
        self._watchdog.wake()
        if self._look is None:
            self._look = self._clock.call_later(LOOK_EVERY, self._look_for_long_ones)

    def _conclude(self, run: Run, verdict: Verdict, outcome: Outcome) -> float | None:
        error = None
        if verdict.event in (Event.FAIL, Event.RETRY) and verdict.error is not None:
            error = TaskError.of(verdict.error, run.result.attempts, self._clock.now())
        run.wait = verdict.delay
        self._journal.note(run, verdict.event, error=error, value=outcome.value)
        self._report(run, verdict)
        if verdict.event is Event.RETRY:
            return verdict.delay
        self._queue.give_back(run)
        return None

    def _report(self, run: Run, verdict: Verdict) -> None:
        number = run.result.attempts
        match verdict.event:
            case Event.FAIL:
                log(run, logging.ERROR, f"{run.describe()} failed at attempt {number}", verdict.error)
            case Event.RETRY:
                message = f"{run.describe()} failed at attempt {number}, the next is in {verdict.delay:.1f} s"
                log(run, logging.WARNING, message, verdict.error)
            case Event.CANCEL:
                log(run, logging.INFO, f"{run.describe()} was cancelled at attempt {number}")

    # Time limits.

    def _set_timeout(self, run: Run) -> Timer | None:
        if run.options.timeout is None:
            return None
        return self._clock.call_later(run.options.timeout, self._over_time, run)

    def _over_time(self, run: Run) -> None:
        if run.attempt is not None:
            self.cut(run, Cut.TIMEOUT)
        else:
            run.cut = Cut.TIMEOUT
            self._fail_overrunning_thread(run)

    def _fail_overrunning_thread(self, run: Run) -> None:
        self.overrunning += 1
        self._conclude(run, Verdict(Event.FAIL, overdue(run)), Outcome())

    def _note_late_return(self, run: Run) -> None:
        self.overrunning -= 1
        seconds = self._clock.monotonic() - run.since
        log(
            run,
            logging.WARNING,
            f"{run.describe()} returned after {seconds:.1f} s, long past its timeout: its worker is free",
        )

    def cut(self, run: Run, cut: Cut) -> None:
        """Cancel the running coroutine of a run; say so in the log if it does not end."""
        if run.attempt is not None:
            run.cut = cut
            run.attempt.cancel()
            self._clock.call_later(GRACE, self._is_it_still_there, run, run.attempt)

    def _is_it_still_there(self, run: Run, attempt: asyncio.Task[Any]) -> None:
        if not attempt.done():
            log(run, logging.WARNING, f"{run.describe()} swallows its cancellation: its worker stays taken")

    def _look_for_long_ones(self) -> None:
        self._look = None
        now = self._clock.monotonic()
        for run in self.running.values():
            if now - run.since >= LONG and not run.warned:
                run.warned = True
                log(run, logging.WARNING, f"{run.describe()} still runs after {now - run.since:.0f} s")
        if self.running:
            self._look = self._clock.call_later(LOOK_EVERY, self._look_for_long_ones)

    def close(self) -> None:
        self._watchdog.close()
        if self._look is not None:
            self._look.cancel()


def log(run: Run, level: int, message: str, error: BaseException | None = None) -> None:
    """Log in the context of the run, so that a filter which reads a request id from it finds it."""
    run.context.copy().run(logger.log, level, message, exc_info=error)
