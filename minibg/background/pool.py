"""The pool: a bounded queue, the workers that pull from it, and the order in which they stop.

It is used as a context manager, and needs no HTTP::

    async with Pool(workers=4) as pool:
        result = pool.enqueue(send_welcome_email, "a@example.org")
        await result.wait()

What lives in it: `queue.Queue` (who is next), `journal.Journal` (what has happened), `worker.Workers` (who does it). The
pool puts a run from one into the other and decides nothing about it by itself, but for three things: what is taken on,
what a cancellation can still do, and how it ends.

**Its life** is NEW, OPEN, RUNNING, DRAINING, STOPPED, in this order and never back. OPEN takes tasks on and does not work
yet: an application that starts up may add some, and they begin when it is up. ``async with`` goes through both.

**Taking on.** A run is *admitted* (it has a place, the journal knows it, it is HELD), *committed* (it is promised),
and *released* (the workers may have it) or *dropped*. A hold says these four words for a response; ``enqueue`` says
them in one breath.

**Ending**, in phases, each of which can be cut short by ``hurry`` (a second Ctrl-C):

1. What is there is worked off, up to ``drain_timeout``. Nothing is waited for that is due after that.
2. Coroutines that still run are cancelled *and awaited*, so their cleanup finds everything still open.
3. What is left is LOST, or stays in the durable journal for the next start, and the report names it. Threads cannot be
   stopped; they are daemons.

**Threads.** Everything here belongs to the loop's thread. ``add_task``, ``enqueue``, ``get`` and ``cancel`` may be
called from any other: they cross over and wait for the answer.
"""

import asyncio
import contextvars
import logging
import os
import random
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar, overload

from minibg.background.clock import Clock, SystemClock
from minibg.background.drain import DrainReport, Unfinished
from minibg.background.journal import Follower, Journal
from minibg.background.periodic import Periodic
from minibg.background.queue import Batch, NotAccepted, Queue
from minibg.background.result import Event, TaskResult, TaskStatus
from minibg.background.run import Cut, RandomBits, Run
from minibg.background.threads import Threads, on_loop
from minibg.background.worker import GRACE, Workers

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("minibg.background")

#: Seconds that cancelled coroutines have for their cleanup when the pool stops.
CLEANUP = 5.0


class PoolState(Enum):
    """Where a pool is in its life."""

    NEW = "is not running yet: use it with 'async with', or serve an application with it"
    OPEN = "takes tasks on"
    RUNNING = "runs"
    DRAINING = "works off what it has"
    STOPPED = "has stopped"


class PoolStopped(NotAccepted):
    """The pool takes nothing on any more: its process is about to end."""


class CancelOutcome(Enum):
    """What `Pool.cancel` could still do."""

    #: It will not run.
    CANCELLED = "cancelled"
    #: Its coroutine was told, and ends at its next await unless it swallows that.
    REQUESTED = "requested"
    #: It runs in a thread, which cannot be stopped. Nothing was done.
    RUNNING_IN_THREAD = "running in a thread"
    #: It had ended already.
    FINISHED = "finished"
    #: No run with this id is known.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Statistics:
    """A pool at one moment."""

    #: Runs with a place in the queue whose response has not left.
    held: int
    #: Runs in line.
    ready: int
    #: Runs that are due later.
    waiting: int
    #: Runs that a worker has.
    running: int
    #: How many runs are in each status, or have ended in it since the start.
    by_status: dict[TaskStatus, int]
    #: Seconds the batch has stood in line that has stood there longest; None when the line is empty.
    oldest_ready: float | None
    workers: int
    #: Places taken, and how many there are.
    places_taken: int
    queue_limit: int
    #: Threads that are over their run's timeout and have not returned: each keeps a worker.
    overrunning_threads: int


class Pool:
    """A bounded queue and ``workers`` workers.

    - ``workers``: how many runs are in progress at once.
    - ``queue_limit``: how many runs may be held, ready or waiting together.
    - ``overflow``: ``"reject"``: ``add_task`` raises QueueFull when there is no place. ``"wait"``: the response waits for
      places for all its tasks, up to ``overflow_timeout`` seconds, and is refused then.
    - ``drain_timeout``: seconds a stop waits for what is there.
    - ``keep_finished``, ``keep_for``: how many finished runs are remembered, and for how many seconds.
    - ``journal``: a file that keeps the tasks, so that they outlive the process (`durable.py`). None: they live in memory.
    - ``durability``: what an accepted task in that file outlives: ``"power"``: a loss of power too. ``"process"``: a kill.
    - ``clock``, ``random``: time and chance, for tests that want them exact.
    """

    def __init__(
        self,
        *,
        workers: int = 8,
        queue_limit: int = 1000,
        overflow: Literal["reject", "wait"] = "reject",
        overflow_timeout: float = 5.0,
        drain_timeout: float = 30.0,
        keep_finished: int = 10_000,
        keep_for: float = 3600.0,
        journal: str | os.PathLike[str] | None = None,
        durability: Literal["power", "process"] = "power",
        clock: Clock | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        if workers < 1 or queue_limit < 1:
            raise ValueError(f"a pool needs a worker and a place: workers={workers!r}, queue_limit={queue_limit!r}")
        if overflow not in ("reject", "wait"):
            raise ValueError(f"overflow= is 'reject' or 'wait', not {overflow!r}")
        if min(overflow_timeout, drain_timeout, keep_finished, keep_for) < 0:
            raise ValueError(
                "zero or more: "
                f"{overflow_timeout=!r}, {drain_timeout=!r} and {keep_for=!r} in seconds, {keep_finished=!r}"
            )
        self.drain_timeout = drain_timeout
        self._size = workers
        self._overflow = overflow
        self._overflow_timeout = overflow_timeout
        self._clock = clock or SystemClock()
        self._random = random
        self._random_bits = RandomBits()
        self._state = PoolState.NEW
        self._queue = Queue(queue_limit, self._clock)
        self._journal = _journal(journal, durability, self._clock, keep_finished, keep_for)
        #: The batches that an earlier life of the journal has left.
        self._left: list[list[Run]] = []
        self._periodic: list[Periodic] = []
        #: Runs the drain does not wait for, because they are due too late.
        self._abandoned: set[Run] = set()
        self._hurried = False
        self._stop: asyncio.Task[DrainReport] | None = None

    # Its life.

    async def open(self) -> None:
        """Take tasks on. They run when the pool has started. Raises JournalUnusable."""
        if self._state is not PoolState.NEW:
            raise RuntimeError(f"a pool is opened once: this one {self._state.value}")
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._threads = Threads(self._loop)
        self._workers = Workers(self._queue, self._journal, self._threads, self._clock, self._random, self._park)
        self._tasks: list[asyncio.Task[None]] = []
        self._left = await self._journal.open(self._resume, self._cancel)
        for batch in self._left:
            self._take_back(batch)
        self._state = PoolState.OPEN

    def start(self) -> None:
        """Begin to work."""
        if self._state is not PoolState.OPEN:
            raise RuntimeError(f"a pool is started when it is open: this one {self._state.value}")
        self._state = PoolState.RUNNING
        self._tasks = [
            self._loop.create_task(self._workers.work(), name=f"minibg-worker-{n}", context=contextvars.Context())
            for n in range(1, self._size + 1)
        ]
        for batch in self._left:
            self._put_in_line(batch)
        for periodic in self._periodic:
            periodic.start(self._clock)

    async def stop(self) -> DrainReport:
        """Work off what is there, cancel what takes too long, and say what did not finish.

        May be called more than once: every caller gets the same report.
        """
        if self._state is PoolState.NEW:
            return DrainReport(0, (), 0.0)
        if self._stop is None:
            self._stop = asyncio.create_task(self._drain(), name="minibg-drain", context=contextvars.Context())
        return await asyncio.shield(self._stop)

    def hurry(self) -> None:
        """Give up the phase of the stop that is being waited for, and go on to the next."""
        self._hurried = True
        self._journal.look()

    async def __aenter__(self) -> Self:
        await self.open()
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def is_new(self) -> bool:
        """Whether nobody has opened it yet."""
        return self._state is PoolState.NEW

    @property
    def is_draining(self) -> bool:
        """Whether it is being stopped, and `hurry` would have an effect."""
        return self._state is PoolState.DRAINING

    # What one does with it.

    @overload
    def enqueue(
        self, func: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskResult[T]: ...
    @overload
    def enqueue(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskResult[T]: ...
    def enqueue(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskResult[Any]:
        """Run ``func(*args, **kwargs)`` as soon as a worker is free, without waiting for any response.

        May be called from any thread. Raises TypeError for what cannot be run, QueueFull when there is no place (also
        with overflow "wait": there is no response that could wait), PoolStopped, RuntimeError before the start.
        With a durable journal it is on disk some moments later, at the latest before it starts; who has to know
        uses a `BackgroundTasks` and awaits its ``commit``.
        """
        run = self.prepare(func, args, kwargs, "")
        return self.on_loop(self._enqueue, run).result

    def get(self, id: str) -> TaskResult[Any] | None:
        """Give the record of a run; None when it is unknown, or was finished too long ago. From any thread."""
        return self.on_loop(self._journal.get, id)

    def cancel(self, id: str) -> CancelOutcome:
        """Cancel a run, as far as that is possible, and say how far that was. From any thread."""
        return self.on_loop(self._cancel, id)

    async def idle(self) -> None:
        """Wait until nothing is held, ready, waiting or running."""
        await self._journal.until(lambda: not self._journal.unfinished or self._state is PoolState.STOPPED)

    def follow(self) -> Follower:
        """Follow the transitions from now on: ``async for transition in pool.follow()``."""
        return self._journal.follow()

    def every(self, func: Callable[[], Any], /, *, seconds: float) -> Periodic:
        """Enqueue ``func()`` every so many seconds, the first time one interval from the start."""
        periodic = Periodic(self, func, seconds)
        self._periodic.append(periodic)
        if self._state is PoolState.RUNNING:
            periodic.start(self._clock)
        return periodic

    def statistics(self) -> Statistics:
        """Count everything at this moment."""
        by_status, oldest = dict(self._journal.by_status), self._queue.oldest()
        return Statistics(
            held=by_status[TaskStatus.HELD],
            ready=by_status[TaskStatus.READY],
            waiting=by_status[TaskStatus.WAITING],
            running=by_status[TaskStatus.RUNNING],
            by_status=by_status,
            oldest_ready=None if oldest is None else self._clock.monotonic() - oldest,
            workers=self._size,
            places_taken=self._queue.taken,
            queue_limit=self._queue.limit,
            overrunning_threads=0 if self._state is PoolState.NEW else self._workers.overrunning,
        )

    # What a hold asks of it.

    def prepare(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], origin: str) -> Run:
        """Make a run of a call, in the context of the caller. Raises TypeError for what cannot be run."""
        run = Run.of(func, args, kwargs, origin, self._clock, self._random_bits)
        self._journal.vet(run)
        return run

    def on_loop(self, function: Callable[..., T], *args: Any) -> T:
        """Call ``function(*args)`` on the loop's thread, from whatever thread this is."""
        if self._state is PoolState.NEW:
            raise RuntimeError(f"the pool {self._state.value}")
        if threading.get_ident() == self._thread:
            return function(*args)
        return on_loop(self._loop, function, *args)

    def admit(self, run: Run, already: int = 0) -> Run:
        """Take a run on, for a response that holds ``already`` others. Gives the unfinished run with its key, if any.

        With overflow "wait" the places are taken by ``commit``, and only a batch that can never fit is refused here. A run
        that runs always takes its place at once: it cannot wait for a commit that may never come.
        """
        if self._state is PoolState.STOPPED or self._workers.stopping:
            raise PoolStopped("the pool has stopped: nothing is taken on any more", retry_after=1)
        twin = self._journal.twin_of(run)
        if twin is not None:
            twin.holders += 1
            return twin
        if self._overflow == "reject" or run.options.always:
            self._queue.take_place_nowait(run)
            self._journal.add(run)
        elif already >= self._queue.limit:
            raise self._queue.full(already + 1)
        self._journal.take_key(run)
        return run

    async def commit(self, runs: Sequence[Run]) -> None:
        """Promise to run these. Raises NotAccepted; then none of them has become more than it was."""
        drafts = [run for run in dict.fromkeys(runs) if self._is_draft(run)]
        if drafts:
            await self._queue.take_places(drafts, self._overflow_timeout)
            for run in drafts:
                if self._is_draft(run):
                    self._journal.add(run)
        await self._journal.commit(runs)

    def release(self, runs: Sequence[Run]) -> None:
        """Give a response's runs to the workers."""
        ready = []
        for run in runs:
            if self._is_draft(run):
                self._refuse(run)
            elif run.result.status is not TaskStatus.HELD:
                continue  # Cancelled, or released by another response that shares it.
            elif (delay := run.delay(self._clock)) is None:
                self._journal.note(run, Event.RELEASE)
                ready.append(run)
            else:
                run.wait = delay
                self._journal.note(run, Event.DEFER)
                self._park(Batch(run), delay)
        if ready:
            self._queue.put(Batch(*ready))

    def drop(self, run: Run) -> None:
        """Let go of a run whose response was not produced. It is dropped when nobody else holds it."""
        run.holders -= 1
        if run.holders == 0 and self._is_draft(run):
            self._refuse(run)
        elif run.holders == 0 and run.result.status is TaskStatus.HELD:
            self._end(run, Event.DROP)

    def accept_and_release(self, run: Run) -> None:
        """Take a place for a run that has none, and let it go to the workers."""
        if self._is_draft(run):
            try:
                self._queue.take_place_nowait(run)
            except NotAccepted:
                self._refuse(run)
                raise
            self._journal.add(run)
        self.release([run])

    def _enqueue(self, run: Run) -> Run:
        run = self.admit(run)
        self.accept_and_release(run)
        return run

    # What a durable journal gives back.

    def _resume(self, batch: list[Run]) -> None:
        """Take back a batch, and put it in line."""
        self._take_back(batch)
        self._put_in_line(batch)

    def _take_back(self, batch: list[Run]) -> None:
        for run in batch:
            self._queue.keep_place(run)
            self._journal.add(run)
            self._journal.take_key(run)

    def _put_in_line(self, batch: list[Run]) -> None:
        """Release runs in their old order: when the first has to wait, the others wait for it."""
        held = [run for run in batch if run.result.status is TaskStatus.HELD]  # One may have been cancelled.
        if not held:
            return
        first, delay = held[0], held[0].delay(self._clock)
        for run in held[1:]:
            self._journal.note(run, Event.RELEASE)
        if delay is None:
            self._journal.note(first, Event.RELEASE)
            self._queue.put(Batch(*held))
        else:
            first.wait = delay
            self._journal.note(first, Event.DEFER)
            self._park(Batch(*held), delay)

    def _is_draft(self, run: Run) -> bool:
        """Whether a run was admitted and has no place yet."""
        if self._overflow == "reject":  # It has had one since it was admitted.
            return False
        return run.result.status is TaskStatus.HELD and run.result.id not in self._journal.unfinished

    def _refuse(self, run: Run) -> None:
        self._journal.refuse(run)
        self._queue.give_back(run)

    def _end(self, run: Run, event: Event) -> None:
        """End a run that no worker has."""
        self._journal.note(run, event)
        self._queue.give_back(run)

    def _park(self, batch: Batch, seconds: float) -> None:
        """Keep a batch until it is due; while draining, only if that is soon enough."""
        self._queue.park(batch, seconds, self._workers.due)
        if self._state is PoolState.DRAINING and batch.due_at > self._deadline:
            self._abandon(batch)

    def _cancel(self, id: str) -> CancelOutcome:
        run = self._journal.unfinished.get(id)
        if run is None:
            result = self._journal.get(id)
            return CancelOutcome.FINISHED if result is not None and result.is_finished else CancelOutcome.UNKNOWN
        if run.result.status is not TaskStatus.RUNNING:
            waited = run.result.status is TaskStatus.WAITING
            self._abandoned.discard(run)
            self._end(run, Event.CANCEL)
            if waited and run.batch is not None:  # Its later siblings need not wait for it any more.
                self._queue.unpark(run.batch)
                self._abandoned.difference_update(run.batch.runs)
                self._workers.due(run.batch)
            return CancelOutcome.CANCELLED
        if run.attempt is None:
            return CancelOutcome.RUNNING_IN_THREAD
        self._workers.cut(run, Cut.CANCEL)
        return CancelOutcome.REQUESTED

    # Its end.

    async def _drain(self) -> DrainReport:
        """Stop. A numbered procedure, see the top of this file."""
        began, ended_before = self._clock.monotonic(), self._ended()
        self._state, self._deadline = PoolState.DRAINING, began + self.drain_timeout
        for periodic in self._periodic:
            periodic.cancel()
        # 1. Work off what is there, but not what is due too late.
        for batch in list(self._queue.parked):
            if batch.due_at > self._deadline:
                self._abandon(batch)
        self._say_what_is_there()
        if self._tasks:  # Without workers, because the application never started, nothing is worked off.
            await self._wait(lambda: len(self._journal.unfinished) <= len(self._abandoned), self.drain_timeout)
        # 2. Cancel the coroutines that still run, and await them.
        left = [(run, run.result.status) for run in self._journal.unfinished.values()]
        self._workers.stopping = True
        for run, _ in left:
            self._workers.cut(run, Cut.STOP)
        await self._wait(lambda: not any(run.attempt for run, _ in left), CLEANUP)
        # 3. Whatever is left is lost, unless the journal keeps it.
        for run in list(self._journal.unfinished.values()):
            self._let_go(run)
        now, running = self._clock.now(), self._workers.running
        unfinished = tuple(
            Unfinished.of(run, was, now, in_thread=run.result.id in running and run.attempt is None)
            for run, was in left
            if run.result.status is TaskStatus.LOST or not run.result.is_finished
        )
        finished = self._ended() - ended_before - sum(line.became is TaskStatus.LOST for line in unfinished)
        await self._close()
        report = DrainReport(finished, unfinished, self._clock.monotonic() - began)
        for line in unfinished:
            logger.warning("did not finish: %s", line)
        logger.log(logging.WARNING if unfinished else logging.INFO, "%s", report)
        return report

    def _let_go(self, run: Run) -> None:
        if not run.seq:
            self._end(run, Event.LOSE)
        elif run.result.status is TaskStatus.RUNNING:
            self._journal.note(run, Event.PUT_BACK)

    async def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for a condition, for a time, or for somebody in a hurry."""
        self._hurried = False
        timer = self._clock.call_later(seconds, self.hurry)
        await self._journal.until(lambda: self._hurried or condition())
        timer.cancel()

    async def _close(self) -> None:
        self._state = PoolState.STOPPED
        for task in self._tasks:
            task.cancel()
        if self._tasks:  # A coroutine that swallows this cancellation too keeps its worker, and is left behind.
            await asyncio.wait(self._tasks, timeout=GRACE)
        self._workers.close()
        self._threads.close()
        await self._journal.close()

    def _abandon(self, batch: Batch) -> None:
        self._queue.unpark(batch)
        self._abandoned.update(run for run in batch.runs if not run.result.is_finished)
        self._journal.look()  # It may have been the last that was waited for.

    def _ended(self) -> int:
        return sum(count for status, count in self._journal.by_status.items() if status.is_final)

    def _say_what_is_there(self) -> None:
        now, counts = self._clock.monotonic(), self._journal.by_status
        parts = [f"{counts[status]} {status.lower()}" for status in TaskStatus if not status.is_final]
        parts += [f"{run.describe()} runs for {now - run.since:.1f} s" for run in self._workers.running.values()]
        if number := len(self._journal.unfinished) - len(self._abandoned):
            logger.info(
                "waiting up to %g s for %d %s: %s",
                self.drain_timeout,
                number,
                "task" if number == 1 else "tasks",
                ", ".join(parts),
            )


def _journal(path: str | os.PathLike[str] | None, durability: Any, *options: Any) -> Journal:
    if path is None:
        return Journal(*options)
    from minibg.background.durable import DurableJournal  # noqa: PLC0415 - needs fcntl, which does not exist everywhere.

    return DurableJournal(path, durability, *options)
