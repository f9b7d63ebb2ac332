"""The workers: each takes a batch, runs it, and takes the next.

A worker is this loop::

    while not self.stopping:
        await self._run(await self._queue.get())

Workers pull. The queue and the response spawn no asyncio task per run, so at most ``workers`` runs
are in progress at any load [order.3], and the loop runs a batch in order.

The guarantees of the loop:

- A failing run never stops its siblings, another batch, or the worker. [isolation.1]
- A run that waits for its retry frees its worker. Its batch is deferred with that run at its head,
  so its later siblings wait for it [order.4], and is queued again when the run is due.
- A coroutine over its timeout is cancelled and awaited. [timeout.2] A coroutine that swallows its
  cancellation is named in the log and keeps its worker [timeout.3], because the lack of one worker
  is better than two simultaneous attempts of one run.
- A thread cannot be cancelled. A run in a thread is FAILED at its timeout, so `TaskResult.wait`
  returns, and it keeps its worker until the thread returns. [timeout.4] It is not retried, because
  the retry could run beside that thread. `overrunning` counts such threads.
- A warning names a run that still runs after a minute. [timeout.5] The run is not cancelled.
- A worker never dies. [isolation.4] If a step raises because of an exception's ``__str__``, a
  `Retry` rule, a logging filter or a follower, `_fail_by_last_resort` ends the run as FAILED with
  that error and frees its slot, and the worker goes on.

A worker is an asyncio task in an empty context. It suspends at least once per run, in the attempt's
own task or thread, so a burst of tiny tasks cannot block the event loop. A worker ends when the
pool stops, or when the event loop itself cancels it.
"""

import asyncio
import contextvars
import logging
from collections.abc import Callable

from minibg.background.attempt import Outcome, Verdict, judge, perform, timeout_error
from minibg.background.clock import Clock, Timer
from minibg.background.errors import NotAccepted
from minibg.background.kept import Journal
from minibg.background.ledger import Ledger, log, logger
from minibg.background.queue import Queue
from minibg.background.result import Event, TaskStatus
from minibg.background.run import Attempt, Batch, CancelReason, Run
from minibg.background.slots import Slots
from minibg.background.task import CallKind
from minibg.background.watchdog import Watchdog
from minibg.threads import Threads

#: Seconds after which a run in progress is named in a warning, once. A task of this kind of queue
#: takes seconds, so a minute is unusual.
LONG_SECONDS = 60.0
#: Seconds between two checks for such runs.
LOOK_SECONDS = 10.0
#: Seconds before a claim that could not be written to disk is tried again.
CLAIM_AGAIN_SECONDS = 1.0
#: Seconds after which a warning names a cancelled coroutine that has not ended.
CANCEL_SECONDS = 1.0


class Workers:
    """The workers of a pool, with their shared threads and watchdog."""

    def __init__(
        self,
        size: int,
        queue: Queue,
        ledger: Ledger,
        slots: Slots,
        journal: Journal,
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        self.size = size
        #: The runs with an attempt in progress, by id. A timed-out run stays here until its thread
        #: returns.
        self.running: dict[str, Run] = {}
        #: Whether the stop forbids further attempts.
        self.stopping = False
        self._queue = queue
        self._ledger = ledger
        self._slots = slots
        self._journal = journal
        self._threads = Threads("minibg-task", size)
        self._watchdog = Watchdog(self.running)
        self._clock = clock
        self._random = random
        self._tasks: list[asyncio.Task[None]] = []
        self._look: Timer | None = None

    @property
    def overrunning(self) -> int:
        """The number of threads that have not returned after their timeout."""
        return sum(run.result.status is TaskStatus.FAILED for run in self.running.values())

    # --- the loop ---

    def start(self) -> None:
        """Start the workers."""
        loop = asyncio.get_running_loop()
        for number in range(1, self.size + 1):
            task = loop.create_task(self._work(), name=f"minibg-worker-{number}", context=contextvars.Context())
            self._tasks.append(task)

    async def _work(self) -> None:
        while not self.stopping:
            await self._run(await self._queue.get())

    async def _run(self, batch: Batch) -> None:
        """Run a batch in order; defer the batch when its next run has to wait."""
        while batch.runs and not self.stopping:
            run = batch.runs[0]
            wait_seconds = None
            try:
                wait_seconds = await self._try(run)
            except GeneratorExit:  # The event loop has ended, and the worker is closed.
                raise
            except BaseException as error:  # noqa: BLE001 - whatever it is, the worker goes on.
                _check_cancelled()
                self._fail_by_last_resort(run, error)
            if wait_seconds is not None and batch.runs:  # Else its runs were cancelled during the claim.
                self._queue.defer(batch, wait_seconds)
                return
            if batch.runs and batch.runs[0] is run:  # Else it was cancelled and removed from the batch.
                batch.runs.pop(0)

    async def _try(self, run: Run) -> float | None:
        """Make one attempt. Return the seconds until the next attempt, or None if none follows."""
        try:
            if not await self._claim(run):
                return None
        except NotAccepted:  # The disk refuses to count the attempt.
            return CLAIM_AGAIN_SECONDS
        attempt, timer = self._begin(run)
        try:
            outcome = await perform(run, attempt, self._threads)
            _check_cancelled()  # The attempt may have swallowed the cancellation of this worker.
        except asyncio.CancelledError:
            if run.result.status is TaskStatus.RUNNING:
                self._ledger.note(run, Event.LOSE if run.stored is None else Event.REQUEUE)
                self._slots.free(run)
            raise
        finally:
            run.attempt = None
            del self.running[run.result.id]
            if timer is not None:
                timer.cancel()
        return self._conclude(run, attempt, outcome)

    async def _claim(self, run: Run) -> bool:
        """Count the attempt in the journal; return whether it may begin. Raises NotAccepted when
        the journal cannot count it now.
        """
        allowed = await self._journal.claim(run)
        if run.result.status is not TaskStatus.READY or self.stopping:
            return False  # It was cancelled meanwhile, or the pool stops.
        if not allowed:  # `minibg tasks cancel` has cancelled it in the file.
            self._ledger.note(run, Event.CANCEL)
            self._slots.free(run)
        return allowed

    def _begin(self, run: Run) -> tuple[Attempt, Timer | None]:
        """Begin an attempt, and make the run RUNNING. Return the attempt and the timer of its
        timeout.
        """
        if not run.may_be_retried():
            self._slots.free(run)
        run.attempt = attempt = Attempt(run.kind, self._clock.monotonic())
        self.running[run.result.id] = run
        self._ledger.note(run, Event.START)
        self._watchdog.wake()
        if self._look is None:
            self._look = self._clock.call_later(LOOK_SECONDS, self._warn_about_long_runs)
        if run.options.timeout is None:
            return attempt, None
        return attempt, self._clock.call_later(run.options.timeout, self._on_timeout, run, attempt)

    def _conclude(self, run: Run, attempt: Attempt, outcome: Outcome) -> float | None:
        """Record the end of an attempt. Return the seconds until the next attempt, or None if none
        follows.
        """
        match run.result.status:
            case TaskStatus.RUNNING:
                return self._note(run, judge(run, attempt, outcome, self._random), outcome.value)
            case TaskStatus.FAILED:  # It failed at its timeout, and now its thread has returned.
                self._warn_about_late_return(run, attempt)
        return None  # Any other status: the stop lost or requeued it while it ignored its cancellation.

    def _note(self, run: Run, verdict: Verdict, value: object = None) -> float | None:
        run.wait_seconds = verdict.delay
        self._ledger.note(run, verdict.event, error=verdict.error, value=value)
        if verdict.event is Event.RETRY:
            return verdict.delay
        self._slots.free(run)
        return None

    def _fail_by_last_resort(self, run: Run, error: BaseException) -> None:
        """End a run whose step raised where no step should: a `Retry` rule, a return value, minibg
        itself.
        """
        if run.result.status is TaskStatus.READY:
            self._ledger.note(run, Event.START)
        if run.result.status is TaskStatus.RUNNING:
            self._ledger.note(run, Event.FAIL, error=error)
        else:
            logger.error("%s: an error after its end", run.describe(), exc_info=error)
        self._slots.free(run)

    # --- time limits ---

    def _on_timeout(self, run: Run, attempt: Attempt) -> None:
        if attempt.kind is CallKind.COROUTINE:
            self.cancel_attempt(run, CancelReason.TIMEOUT)
        elif attempt.cancel(CancelReason.TIMEOUT):
            self._note(run, Verdict(Event.FAIL, timeout_error(run)))

    def _warn_about_late_return(self, run: Run, attempt: Attempt) -> None:
        seconds = self._clock.monotonic() - attempt.began
        message = f"{run.describe()} returned after {seconds:.1f} s, past its timeout: its worker is free"
        log(run, logging.WARNING, message)

    def cancel_attempt(self, run: Run, reason: CancelReason) -> None:
        """Cancel the coroutine of an attempt in progress; a warning names it if it does not end.

        A thread cannot be cancelled, but an awaitable that it returns is not started.
        """
        attempt = run.attempt
        if attempt is not None and attempt.cancel(reason) and attempt.task is not None:
            self._clock.call_later(CANCEL_SECONDS, self._warn_if_not_ended, run, attempt)

    def _warn_if_not_ended(self, run: Run, attempt: Attempt) -> None:
        if run.attempt is attempt:
            log(run, logging.WARNING, f"{run.describe()} swallows its cancellation: its worker stays taken")

    def _warn_about_long_runs(self) -> None:
        self._look = None
        now = self._clock.monotonic()
        for run in self.running.values():
            attempt = run.attempt
            if attempt is not None and now - attempt.began >= LONG_SECONDS and not attempt.warned:
                attempt.warned = True
                log(run, logging.WARNING, f"{run.describe()} still runs after {now - attempt.began:.0f} s")
        if self.running:
            self._look = self._clock.call_later(LOOK_SECONDS, self._warn_about_long_runs)

    # --- the end ---

    async def close(self) -> None:
        """End the workers, the threads without a call, and the watchdog.

        A worker whose attempt does not end within `CANCEL_SECONDS` is left behind, and its attempt
        is not interrupted again.
        """
        self.stopping = True
        self._queue.dismiss_workers()
        self._watchdog.close()
        self._threads.close()
        if self._look is not None:
            self._look.cancel()
        if tasks := [task for task in self._tasks if not task.done()]:
            await asyncio.wait(tasks, timeout=CANCEL_SECONDS)


def _check_cancelled() -> None:
    """Raise CancelledError when the running asyncio task has been cancelled."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
