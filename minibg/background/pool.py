"""The pool: the public object around the queue, its states and its methods.

It is used as a context manager, and needs no HTTP::

    async with Pool(workers=4) as pool:
        result = pool.enqueue(send_welcome_email, "a@example.org")
        await result.wait()

It is made of `Slots` (the limit), `Ledger` (the records), `Queue` (the queued batches), `Workers`
(the runs in progress), `Admission` (adding) and `Drain` (stopping). Each part uses only earlier
parts of this list. The pool connects the parts and passes calls on.

**Its states** are NEW, OPENING, OPEN, RUNNING, DRAINING, STOPPED, in this order, and never back but
for an opening that fails. An OPEN pool
accepts tasks and has no workers yet: an application that starts up may add some, and they begin
when it has. ``async with`` opens and starts.

**One event loop.** A pool belongs to the event loop in which it was opened. ``add_task``,
``enqueue``, ``get`` and ``cancel`` may be called from other threads: the call is made on the event
loop's thread, and the caller waits for its result. A second event loop in the same thread, such as
a new one for each test, is refused with a RuntimeError: its tasks would never run.

With ``journal=`` the pool keeps its tasks in a file (`journal/`). The journal returns the tasks
that an earlier process left unfinished, and passes on the requests of ``minibg tasks``, which the
pool serves with `cancel` and `retry`.
"""

import asyncio
import contextvars
import os
import random
import threading
from collections.abc import Callable, Coroutine, Sequence
from enum import Enum
from typing import Any, Literal, ParamSpec, Self, TypeVar, overload

from minibg.background.admission import Admission
from minibg.background.clock import Clock, SystemClock, count, seconds as checked_seconds
from minibg.background.drain import CLEANUP_SECONDS, JOURNAL_SECONDS, Drain, DrainReport
from minibg.background.follow import Follower
from minibg.background.kept import InMemory, Journal
from minibg.background.ledger import Ledger
from minibg.background.periodic import Periodic
from minibg.background.queue import Queue
from minibg.background.result import CancelOutcome, Event, Statistics, TaskResult, TaskStatus
from minibg.background.run import CancelReason, Ids, Request, Run
from minibg.background.slots import Slots
from minibg.background.task import CallKind
from minibg.background.worker import CANCEL_SECONDS, Workers
from minibg.threads import on_loop

P = ParamSpec("P")
T = TypeVar("T")


class PoolState(Enum):
    """The state of a pool. The value is the predicate of an error message about the pool."""

    NEW = "is not running yet: use it with 'async with', or serve an application with it"
    OPENING = "is being opened"
    OPEN = "accepts tasks"
    RUNNING = "runs"
    DRAINING = "is draining"
    STOPPED = "has stopped"


class Pool:
    """A bounded queue and its workers.

    - ``workers``: the largest number of runs in progress at once.
    - ``queue_limit``: the largest number of runs that are held, ready or waiting together.
    - ``drain_timeout``: seconds that a stop waits for accepted runs.
    - ``keep_finished``, ``keep_for``: the number of finished runs whose records are kept, and for
      how many seconds.
    - ``journal``: a file that keeps the tasks, so that they outlive the process; needs POSIX locks.
      None: the tasks are in memory.
    - ``durability``: with ``"power"`` an accepted task in that file survives a loss of power, with
      ``"process"`` a killed process.
    - ``clock``, ``random``: the sources of time and random numbers, replaced by tests.

    Raises a ValueError that names the option for an invalid value.
    """

    def __init__(
        self,
        *,
        workers: int = 8,
        queue_limit: int = 1000,
        drain_timeout: float = 30.0,
        keep_finished: int = 10_000,
        keep_for: float = 3600.0,
        journal: str | os.PathLike[str] | None = None,
        durability: Literal["power", "process"] = "power",
        clock: Clock | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.drain_timeout = checked_seconds("drain_timeout=", drain_timeout)
        keep = count("keep_finished=", keep_finished, least=0), checked_seconds("keep_for=", keep_for)
        self._clock = clock = clock or SystemClock()
        self._journal = InMemory() if journal is None else _journal(journal, durability, clock)
        self._slots = Slots(count("queue_limit=", queue_limit), clock)
        self._ledger = Ledger(clock, *keep, self._journal)
        self._queue = Queue(self._ledger, clock)
        shared = (self._queue, self._ledger, self._slots, self._journal, clock)
        self._workers = Workers(count("workers=", workers), *shared, random)
        #: The admission, for holds.
        self.admission = Admission(self._slots, self._ledger, self._queue, self._journal, clock)
        self._ids = Ids()
        self._state = PoolState.NEW
        #: The event loop that the pool belongs to; None before `open`.
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        #: The batches that an earlier process left in the journal.
        self._restored: Sequence[list[Run]] = ()
        self._periodic: list[Periodic] = []
        self._requests: asyncio.Task[None] | None = None
        self._drain: Drain | None = None
        self._stop: asyncio.Task[DrainReport] | None = None

    # --- start and stop ---

    async def open(self) -> None:
        """Accept tasks, which run once the pool is started. Raises JournalUnusable, and then leaves
        nothing behind.
        """
        if self._state is not PoolState.NEW:
            raise RuntimeError(f"a pool is opened once: this one {self._state.value}")
        self._state = PoolState.OPENING  # A second open beside this one would close its file.
        try:
            self._restored = await self._journal.open()
        except BaseException:
            self._state = PoolState.NEW
            raise
        self.loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._state = PoolState.OPEN
        for batch in self._restored:
            self.admission.restore(batch)

    def start(self) -> None:
        """Start the workers."""
        if self._state is not PoolState.OPEN:
            raise RuntimeError(f"a pool is started when it is open: this one {self._state.value}")
        self._state = PoolState.RUNNING
        self._workers.start()
        restored, self._restored = self._restored, ()
        for batch in restored:
            self.admission.resume(batch)
        for periodic in self._periodic:
            periodic.start()
        requests = self._serve_requests()
        self._requests = asyncio.create_task(requests, name="minibg-requests", context=contextvars.Context())

    async def stop(self) -> DrainReport:
        """Finish accepted runs, cancel the remaining ones after the deadline, and report the
        unfinished runs (see `drain.py`).

        May be called more than once, by any asyncio task: every caller gets the same report. Takes
        at most `stop_seconds`. Raises RuntimeError in another event loop while the
        pool's is open.
        """
        if self._state in (PoolState.NEW, PoolState.OPENING):
            return DrainReport(0, (), 0.0)
        if self._stop is None:
            if self.loop is not None and not self.loop.is_closed():
                self.check_loop()
            self._stop = asyncio.create_task(self._stop_in_phases(), name="minibg-drain", context=contextvars.Context())
        return await asyncio.shield(self._stop)

    async def _stop_in_phases(self) -> DrainReport:
        has_workers = self._state is PoolState.RUNNING
        self._state = PoolState.DRAINING
        for periodic in self._periodic:
            periodic.cancel()
        parts = (self._ledger, self._queue, self._workers, self._slots, self._clock)
        self._drain = drain = Drain(*parts, self.drain_timeout)
        try:
            await drain.finish(has_workers=has_workers)
            await drain.cancel()
        finally:  # Also when the event loop ends in the middle of the stop.
            drain.leave()
            try:
                await self._workers.close()
            finally:
                await self._close()
                report = drain.report()
        return report

    async def _close(self) -> None:
        self._state = PoolState.STOPPED
        if self._requests is not None:
            self._requests.cancel()
        goes_on = any(run.stored is not None for run in self._workers.running.values())
        await self._journal.close(JOURNAL_SECONDS, keep_lock=goes_on)
        self._ledger.close()

    def hurry(self) -> None:
        """End the current phase of the stop and go on to the next. Has no effect before the stop."""
        if self._drain is not None:
            self._drain.hurry()

    async def __aenter__(self) -> Self:
        await self.open()
        self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    @property
    def stop_seconds(self) -> float:
        """The longest time that `stop` takes, whatever a task does."""
        return self.drain_timeout + CLEANUP_SECONDS + CANCEL_SECONDS + JOURNAL_SECONDS

    @property
    def is_new(self) -> bool:
        """Whether the pool has never been opened."""
        return self._state is PoolState.NEW

    @property
    def is_open(self) -> bool:
        """Whether the pool was opened and has not stopped."""
        return self._state in (PoolState.OPEN, PoolState.RUNNING, PoolState.DRAINING)

    @property
    def is_draining(self) -> bool:
        """Whether the pool is being stopped, so that `hurry` has an effect."""
        return self._state is PoolState.DRAINING

    # --- adding tasks without a response ---

    @overload
    def enqueue(
        self, func: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskResult[T]: ...
    @overload
    def enqueue(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskResult[T]: ...
    def enqueue(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskResult[Any]:
        """Run ``func(*args, **kwargs)`` as soon as a worker is free, without waiting for a
        response. From any thread.

        Raises TypeError for a callable that cannot be run as a task, QueueFull when no slot is
        free, PoolStopped, and RuntimeError before the start. With a journal the run is on disk
        shortly afterwards, and always before it starts; `aenqueue` waits for that write.
        """
        run = self.prepare(func, args, kwargs)
        return self.on_loop(self._enqueue, run).result

    def _enqueue(self, run: Run) -> Run:
        added = self.admission.add(run)
        self.admission.release([added])
        return added

    @overload
    async def aenqueue(
        self, func: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskResult[T]: ...
    @overload
    async def aenqueue(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskResult[T]: ...
    async def aenqueue(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskResult[Any]:
        """Enqueue as `enqueue` does, but wait for a free slot and, with a journal, until the run is
        on disk. [bounded.9]

        There is no time limit: set one with ``asyncio.timeout``. Raises TypeError, PoolStopped,
        JournalFailed.
        """
        run = self.prepare(func, args, kwargs)
        self.check_loop()
        await self._slots.reserve(1, None)
        try:
            added = self.admission.add(run, reserved=True)
        finally:
            if not run.has_slot:  # It was refused, or an unfinished run has its key.
                self._slots.free_unused(1)
        await self.admission.accept(added)
        return added.result

    def every(self, func: Callable[[], Any], /, *, seconds: float) -> Periodic:
        """Enqueue ``func()`` every ``seconds`` seconds, the first time one interval after the start
        of the pool.

        A moment is skipped, and counted in ``missed``, while the previous run is unfinished or the
        queue is full. Returns the `Periodic`, which can be cancelled. Raises ValueError for an
        interval that is not above zero.
        """
        periodic = Periodic(self.enqueue, func, seconds, self._clock)
        self._periodic.append(periodic)
        if self._state is PoolState.RUNNING:
            periodic.start()
        return periodic

    # --- watching runs, and changing them ---

    def get(self, id: str) -> TaskResult[Any] | None:
        """Return the record of a run; None when the id is unknown or the record was forgotten. From
        any thread.
        """
        return self.on_loop(self._ledger.get, id)

    def cancel(self, id: str) -> CancelOutcome:
        """Cancel a run as far as possible, and return the outcome. From any thread."""
        return self.on_loop(self._cancel, id)

    def _cancel(self, id: str) -> CancelOutcome:
        run = self._ledger.unfinished.get(id)
        if run is None:
            result = self._ledger.get(id)  # Not finished: the journal has it, and its task is not registered here.
            return CancelOutcome.FINISHED if result is not None and result.is_finished else CancelOutcome.UNKNOWN
        if run.result.status is not TaskStatus.RUNNING:
            self._queue.remove(run)  # First: a drain compares the numbers of unfinished and set-aside runs.
            self._ledger.note(run, Event.CANCEL)
            self._slots.free(run)
            return CancelOutcome.CANCELLED
        if run.attempt is None or run.attempt.kind is CallKind.PLAIN:
            return CancelOutcome.RUNNING_IN_THREAD
        self._ledger.free_key(run)
        self._workers.cancel_attempt(run, CancelReason.REQUEST)
        return CancelOutcome.REQUESTED

    async def retry(self, id: str) -> TaskResult[Any]:
        """Run a FAILED run of the journal again, with all its attempts. Return its new record.

        Raises LookupError, with the reason in a sentence, when the run is unknown or not FAILED,
        its thread has not returned, or an unfinished run has its key; QueueFull, JournalFailed,
        PoolStopped.
        """
        run = await self._journal.revive(id)
        if id in self._workers.running:
            raise LookupError(f"{id} cannot be retried: its last attempt is still in progress")
        if id in self._ledger.unfinished:
            raise LookupError(f"{id} cannot be retried: it is retried already")
        if self._ledger.unfinished_with_key(run) is not None:
            raise LookupError(f"{id} cannot be retried: an unfinished run has its key {run.options.key!r}")
        self._ledger.forget(id)
        self.admission.add(run)
        # Shielded: a caller that is cancelled here would drop the run, and a FAILED run can be
        # retried, a DROPPED one cannot.
        await asyncio.shield(asyncio.create_task(self.admission.accept(run)))
        return run.result

    async def idle(self) -> None:
        """Wait until no run is held, ready, waiting or running, or the pool has stopped."""
        self.check_loop()
        await self._ledger.wait_until(lambda: not self._ledger.unfinished or self._state is PoolState.STOPPED)

    def follow(self) -> Follower:
        """Follow the transitions of all runs from now on: ``async for transition in
        pool.follow()``.

        The buffer of a follower holds 1,000 transitions; a slow follower loses the oldest. The
        follower ends when the pool has stopped.
        """
        return self._ledger.follow()

    def statistics(self) -> Statistics:
        """Return the counts of the pool at this moment."""
        oldest = self._queue.oldest()
        return Statistics(
            by_status=dict(self._ledger.by_status),
            oldest_ready=None if oldest is None else self._clock.monotonic() - oldest,
            workers=self._workers.size,
            slots_taken=self._slots.taken,
            queue_limit=self._slots.limit,
            overrunning_threads=self._workers.overrunning,
        )

    # --- for holds ---

    def prepare(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], origin: str = "") -> Run:
        """Make a run of a call, with a copy of the caller's context. Raises TypeError for a call
        that cannot be run or stored.
        """
        run = Run.of(func, args, kwargs, origin, self._clock, self._ids)
        self._journal.check_storable(run)
        return run

    def on_loop(self, function: Callable[..., T], *args: Any) -> T:
        """Call ``function(*args)`` on the event loop's thread. From any thread."""
        if self.loop is not None and threading.get_ident() != self._thread:
            return on_loop(self.loop, function, *args)
        self.check_loop()
        return function(*args)

    def check_loop(self) -> None:
        """Raise RuntimeError before `open`, and in another event loop than that of `open`."""
        if self.loop is None:
            raise RuntimeError(f"the pool {self._state.value}")
        running = asyncio._get_running_loop()  # noqa: SLF001 - documented, and None instead of a RuntimeError.
        if self.loop.is_closed() or (running is not self.loop and running is not None):
            raise RuntimeError(
                "this pool belongs to another event loop, where it was opened: open one in this event loop"
            )

    # --- requests of `minibg tasks` ---

    async def _serve_requests(self) -> None:
        while True:
            request = await self._journal.next_request()
            self._journal.answer(request, await self._apply(request))

    async def _apply(self, request: Request) -> str | None:
        """Apply a request. Return None, or the reason for a refusal in a sentence."""
        try:
            if request.action == "retry":
                await self.retry(request.id)
                return None
            outcome = self._cancel(request.id)
        except Exception as error:  # noqa: BLE001 - a row may be unreadable; the next request is served all the same.
            return str(error)
        refused = outcome in (CancelOutcome.FINISHED, CancelOutcome.RUNNING_IN_THREAD)
        return f"{request.id} cannot be cancelled: {outcome.value}" if refused else None


def _journal(path: str | os.PathLike[str], durability: Literal["power", "process"], clock: Clock) -> Journal:
    from minibg.background.journal import DiskJournal  # noqa: PLC0415 - needs fcntl, which does not exist everywhere.

    return DiskJournal(path, durability, clock)
