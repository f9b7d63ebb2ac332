"""The stop of a pool, in three phases with deadlines, and its report.

1. **Finish.** The pool runs accepted runs for up to ``drain_timeout`` seconds. [drain.3] A run that
   is due after that deadline is not waited for. [drain.4] Tasks may still add other tasks.
2. **Cancel.** Nothing is accepted any more and no attempt begins. Coroutines that still run are
   cancelled *and awaited* [drain.5], for up to `CLEANUP_SECONDS`, while the resources of the
   application are still open.
3. **Leave.** A run that has not finished is LOST, unless a journal keeps it. A run in the journal
   keeps its status, or is requeued if it was in progress, and runs after the next start. Threads,
   and coroutines that swallow their cancellation, are named in the log and left behind. [drain.11]

`hurry` ends a phase early; a second signal calls it. [drain.8] After the phases the pool closes its
workers within 1 s (`worker.CANCEL_SECONDS`), the journal within `JOURNAL_SECONDS`. So a pool stops
within ``drain_timeout + 5 + 1 + 5`` seconds, whatever a task does. [drain.10]

The report has one line for each run that did not finish, and a summary. [drain.7] It is logged
here, and returned to every caller of `Pool.stop`.

Rejected: polling "is everything done?" ten times a second, and one timeout around the whole stop,
which leaves the interrupted tasks no time for their clean-up.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from minibg.background.clock import Clock
from minibg.background.ledger import Ledger
from minibg.background.queue import Queue
from minibg.background.result import Event, TaskStatus
from minibg.background.run import CancelReason, Run, of_origin
from minibg.background.slots import Slots
from minibg.background.task import CallKind
from minibg.background.worker import Workers
from minibg.log import SafeLogger

logger = SafeLogger("minibg.background")

#: Seconds that cancelled coroutines have for their clean-up. There is no precedent; a rollback
#: needs about that long.
CLEANUP_SECONDS = 5.0
#: Seconds that the journal has to write its remaining entries and to unlock its file.
JOURNAL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A run that did not finish before the stop."""

    #: The run: its id, the task's name, and the request that added it.
    id: str
    name: str
    origin: str
    #: Seconds since it was added.
    age: float
    #: Its status at the end of phase 1.
    was: TaskStatus
    #: Its status after the stop.
    became: TaskStatus
    #: Its attempt is still in progress, in a thread or in a coroutine that swallows its
    #: cancellation.
    left_behind: bool = False

    def __str__(self) -> str:
        kept = "" if self.became.is_final else ", kept for the next start"
        left = ", its attempt goes on and is left behind" if self.left_behind else ""
        run = f"{self.name} {self.id}{of_origin(self.origin)}"
        return f"{run}, {self.age:.1f} s old, was {self.was}: {self.became}{kept}{left}"


@dataclass(frozen=True, slots=True)
class DrainReport:
    """The result of a stop."""

    #: The number of runs that ended during the stop.
    finished: int
    #: The runs that did not end during the stop.
    unfinished: tuple[Unfinished, ...]
    #: Seconds that the stop took.
    seconds: float

    def __str__(self) -> str:
        return f"drained in {self.seconds:.1f} s: {self.finished} finished, {len(self.unfinished)} did not"


class PhaseEnd(Enum):
    """Why a phase ended early."""

    #: Its deadline has passed.
    DEADLINE = auto()
    #: `hurry` was called.
    HURRIED = auto()


class Drain:
    """One stop. `finish`, `cancel` and `leave` are its phases; `report` returns its result."""

    def __init__(
        self, ledger: Ledger, queue: Queue, workers: Workers, slots: Slots, clock: Clock, drain_timeout: float
    ) -> None:
        self._ledger = ledger
        self._queue = queue
        self._workers = workers
        self._slots = slots
        self._clock = clock
        self._drain_timeout = drain_timeout
        self._began = clock.monotonic()
        self._finished_before = self._finished()
        #: The unfinished runs and their statuses at the end of phase 1, or at its beginning if the
        #: event loop ends before.
        self._left: dict[Run, TaskStatus] = {}
        #: Why the current phase ended early, if it did.
        self._phase_end: PhaseEnd | None = None

    def hurry(self) -> None:
        """End the current phase and go on to the next."""
        self._end_phase(PhaseEnd.HURRIED)

    async def finish(self, *, has_workers: bool) -> None:
        """Phase 1. It waits only if there are workers: without them the application never started."""
        self._queue.set_horizon(self._began + self._drain_timeout)
        self._left = self._unfinished()
        if has_workers:
            self._log_remaining()
            await self._wait_until(
                lambda: len(self._ledger.unfinished) <= len(self._queue.set_aside), self._drain_timeout
            )

    async def cancel(self) -> None:
        """Phase 2."""
        self._accept_nothing()
        self._left = self._unfinished()
        for run in self._left:
            self._workers.cancel_attempt(run, CancelReason.STOP)
        await self._wait_until(lambda: not any(_is_on_loop(run) for run in self._left), CLEANUP_SECONDS)

    def leave(self) -> None:
        """Phase 3."""
        self._accept_nothing()
        self._left |= self._unfinished() | self._left  # For a run that was looked at before, its status then stands.
        for run in list(self._ledger.unfinished.values()):
            if run.stored is None or run.stored.row is None:
                self._ledger.note(run, Event.LOSE)
                self._slots.free(run)
            elif run.result.status is TaskStatus.RUNNING:
                self._ledger.note(run, Event.REQUEUE)

    def report(self) -> DrainReport:
        """Return the report of the stop, and log it."""
        now = self._clock.time()
        unfinished = tuple(
            Unfinished(
                *(run.result.id, run.result.name, run.result.origin, now - run.result.added),
                *(was, run.result.status),
                left_behind=run.attempt is not None,
            )
            for run, was in self._left.items()
            if run.result.status is TaskStatus.LOST or not run.result.is_finished
        )
        finished = self._finished() - self._finished_before
        report = DrainReport(finished, unfinished, self._clock.monotonic() - self._began)
        for line in unfinished:
            logger.warning("did not finish: %s", line)
        logger.log(logging.WARNING if unfinished else logging.INFO, "%s", report)
        return report

    def _accept_nothing(self) -> None:
        self._workers.stopping = True
        self._slots.close()

    def _unfinished(self) -> dict[Run, TaskStatus]:
        return {run: run.result.status for run in self._ledger.unfinished.values()}

    def _finished(self) -> int:
        return self._ledger.ended() - self._ledger.by_status[TaskStatus.LOST]

    async def _wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until a condition is true, the phase reaches its deadline, or `hurry` is called."""
        self._phase_end = None
        timer = self._clock.call_later(seconds, self._end_phase, PhaseEnd.DEADLINE)
        try:
            await self._ledger.wait_until(lambda: self._phase_end is not None or condition())
        finally:
            timer.cancel()

    def _end_phase(self, reason: PhaseEnd) -> None:
        self._phase_end = reason
        self._ledger.recheck()

    def _log_remaining(self) -> None:
        number = len(self._ledger.unfinished) - len(self._queue.set_aside)
        if not number:
            return
        now, counts = self._clock.monotonic(), self._ledger.by_status
        parts = [f"{counts[status]} {status.lower()}" for status in TaskStatus if not status.is_final]
        running = [(run.describe(), run.attempt.began) for run in self._workers.running.values() if run.attempt]
        parts += [f"{described} runs for {now - began:.1f} s" for described, began in running]
        tasks = "task" if number == 1 else "tasks"
        logger.info("waiting up to %g s for %d %s: %s", self._drain_timeout, number, tasks, ", ".join(parts))


def _is_on_loop(run: Run) -> bool:
    return run.attempt is not None and run.attempt.kind is CallKind.COROUTINE
