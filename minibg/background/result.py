"""The statuses of a run, and its record.

A run is a finite state machine, and the machine is the literal table below:
``TRANSITIONS[status][event]`` is the next status. An event without an entry in its row is an
`IllegalTransition`, raised by `ledger.py`, the only file that changes a status. The diagram in the
README is drawn from this table, and a test compares the two.

Most runs take the first event of each row::

    (add) -> HELD -> READY -> RUNNING -> SUCCESSFUL

A run is HELD until its response has left, READY while it is queued, RUNNING while a worker has it.
READY, RUNNING, SUCCESSFUL and FAILED are Django's words (`django.tasks`) and mean the same. Django
has no words for the other statuses. Celery calls most of them PENDING, and also reports PENDING for
an unknown id; minibg returns None for an unknown id.

Two statuses are easily confused. A DROPPED run was never accepted, because its response was never
produced. A LOST run was accepted, but the process stopped before the run ended, and no journal
keeps it.

A `TaskResult` is live: every reference to it sees the changes that the ledger makes. It holds text
instead of exceptions, frames and arguments, so ten thousand records are cheap. Only
``return_value`` can be large: 100 MB that a task returns stay in memory as long as its record.
"""

import asyncio
import traceback
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, StrEnum
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: The number of errors kept for one run, the newest. A task with a thousand attempts must not keep
#: a thousand tracebacks; twenty show the pattern.
ERRORS_KEPT = 20
#: The number of characters kept of an exception's message. A database driver's error may contain
#: the whole statement.
MESSAGE_KEPT = 2_000
#: The number of characters kept of a traceback, from its end. Deep recursion makes long tracebacks.
TRACEBACK_KEPT = 20_000


class TaskStatus(StrEnum):
    """The status of a run."""

    #: Its response has not left yet.
    HELD = "HELD"
    #: It is queued: a worker may take it.
    READY = "READY"
    #: A worker has it.
    RUNNING = "RUNNING"
    #: It is due later, by its delay or by a retry.
    WAITING = "WAITING"
    #: The task returned.
    SUCCESSFUL = "SUCCESSFUL"
    #: The task raised or timed out, and no attempt is left.
    FAILED = "FAILED"
    #: It was cancelled on request.
    CANCELLED = "CANCELLED"
    #: Its response was never produced.
    DROPPED = "DROPPED"
    #: The process stopped before it ended, and no journal keeps it.
    LOST = "LOST"

    @property
    def is_final(self) -> bool:
        """Whether no event can change this status."""
        return not TRANSITIONS[self]


class Event(StrEnum):
    """An event that changes the status of a run."""

    #: It is added, as HELD. The table below has no row for this event, because there is no status
    #: before it.
    ADD = "add"
    #: Its response has left.
    RELEASE = "release"
    #: Its response has left, and it has a delay.
    DEFER = "defer"
    #: Its response was not produced.
    DROP = "drop"
    #: Its delay is over.
    DUE = "due"
    #: A worker begins an attempt.
    START = "start"
    #: The attempt returned.
    SUCCEED = "succeed"
    #: The attempt failed, and was the last.
    FAIL = "fail"
    #: The attempt failed, and another follows.
    RETRY = "retry"
    #: It is cancelled on request.
    CANCEL = "cancel"
    #: The process stops, and no journal keeps the run.
    LOSE = "lose"
    #: The process stops during an attempt, and a journal keeps the run for the next start.
    REQUEUE = "requeue"


_S, _E = TaskStatus, Event
TRANSITIONS: dict[TaskStatus, dict[Event, TaskStatus]] = {
    _S.HELD: {
        _E.RELEASE: _S.READY,
        _E.DEFER: _S.WAITING,
        _E.DROP: _S.DROPPED,
        _E.CANCEL: _S.CANCELLED,
        _E.LOSE: _S.LOST,
    },
    _S.READY: {_E.START: _S.RUNNING, _E.CANCEL: _S.CANCELLED, _E.LOSE: _S.LOST},
    _S.RUNNING: {
        _E.SUCCEED: _S.SUCCESSFUL,
        _E.FAIL: _S.FAILED,
        _E.RETRY: _S.WAITING,
        _E.CANCEL: _S.CANCELLED,
        _E.LOSE: _S.LOST,
        _E.REQUEUE: _S.READY,
    },
    _S.WAITING: {_E.DUE: _S.READY, _E.CANCEL: _S.CANCELLED, _E.LOSE: _S.LOST},
    # The rest are final.
    _S.SUCCESSFUL: {},
    _S.FAILED: {},
    _S.CANCELLED: {},
    _S.DROPPED: {},
    _S.LOST: {},
}


@dataclass(frozen=True, slots=True)
class TaskError:
    """The exception of one attempt, as text."""

    #: The number of the attempt, from 1.
    attempt: int
    #: The exception's class: ``smtplib.SMTPServerDisconnected``.
    type: str
    #: The exception's message, at most 2,000 characters of it.
    message: str
    #: The end of its traceback, at most 20,000 characters.
    traceback: str
    #: When it was raised, in UTC.
    at: datetime

    @classmethod
    def of(cls, error: BaseException, attempt: int, at: float) -> "TaskError":
        """Describe an exception. Never raises: if the exception's own methods raise, the text is
        shorter.
        """
        kind, message, trace = object.__repr__(error), "", ""
        with suppress(BaseException):
            described = traceback.TracebackException.from_exception(error)
            module, name = type(error).__module__, type(error).__qualname__
            kind = name if module == "builtins" else f"{module}.{name}"
            message, trace = str(described)[:MESSAGE_KEPT], "".join(described.format())[-TRACEBACK_KEPT:]
        return cls(attempt, kind, message, trace, datetime.fromtimestamp(at, UTC))


@dataclass(slots=True, eq=False)
class TaskResult(Generic[T]):
    """The record of one run.

    ``added_at``, ``released_at``, ``started_at`` and ``finished_at`` are aware datetimes in UTC, or
    None before the event; ``added``, ``released``, ``started`` and ``finished`` are the same times
    in seconds since 1970. ``await result`` waits for the end of the run and returns this record.
    """

    #: 32 hexadecimal digits, of which the last 20 are random: ids sort by time, and cannot be
    #: guessed.
    id: str
    #: The task's name: ``@task(name=)``, else module and name of the function.
    name: str
    #: The request that added it, ``"POST /register"``; empty without a request.
    origin: str
    added: float
    #: Its status now.
    status: TaskStatus = TaskStatus.HELD
    #: The number of attempts that have begun.
    attempts: int = 0
    released: float | None = None
    started: float | None = None
    finished: float | None = None
    #: The errors of its attempts: the newest twenty, oldest first.
    errors: tuple[TaskError, ...] = ()
    #: The return value of the task, once the run is SUCCESSFUL.
    return_value: T | None = None
    #: Whether a journal on disk keeps it, so that it outlives the process.
    durable: bool = False
    #: The waiting calls of `wait`; None once no further transition follows in this process.
    _waiters: list[asyncio.Future[None]] | None = field(default_factory=list, repr=False)

    @property
    def added_at(self) -> datetime:
        """When ``add_task`` or ``enqueue`` was called."""
        return datetime.fromtimestamp(self.added, UTC)

    @property
    def released_at(self) -> datetime | None:
        """When its response had left."""
        return _datetime(self.released)

    @property
    def started_at(self) -> datetime | None:
        """When its first attempt began."""
        return _datetime(self.started)

    @property
    def finished_at(self) -> datetime | None:
        """When it reached its final status."""
        return _datetime(self.finished)

    @property
    def is_finished(self) -> bool:
        """Whether its status is final."""
        return self.status.is_final

    async def wait(self, timeout: float | None = None) -> "TaskResult[T]":
        """Wait until the run has reached a final status, at most ``timeout`` seconds. Returns this
        record.

        Raises TimeoutError after the timeout; the run goes on. When the pool stops first and a
        journal keeps the run for the next start, the unfinished record is returned.
        """
        waiters = self._waiters
        if waiters is not None and not self.is_finished:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiters.append(waiter)
            try:
                if self._waiters is not None:  # Else the run has ended this moment, in the thread of its pool.
                    async with asyncio.timeout(timeout):
                        await waiter
            finally:
                waiters.remove(waiter)  # A caller that asks again every second leaves nothing behind.
        return self

    def __await__(self) -> Generator[Any, None, "TaskResult[T]"]:
        return self.wait().__await__()

    def _settle(self) -> None:
        """Wake all waiting calls of `wait`; later calls return at once. The ledger calls it once,
        after the last transition.
        """
        waiters, self._waiters = self._waiters or (), None
        running = asyncio._get_running_loop()  # noqa: SLF001 - documented, and None outside a loop.
        for waiter in tuple(waiters):
            if (loop := waiter.get_loop()) is running:
                _wake(waiter)
            else:
                with suppress(RuntimeError):  # That event loop may be closed.
                    loop.call_soon_threadsafe(_wake, waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _datetime(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


class CancelOutcome(Enum):
    """The outcome of `Pool.cancel`."""

    #: The run was held, ready or waiting, and never starts.
    CANCELLED = "cancelled"
    #: Its coroutine was cancelled, and ends at its next await unless it swallows the cancellation.
    REQUESTED = "requested"
    #: It runs in a thread, which cannot be stopped. Nothing was done.
    RUNNING_IN_THREAD = "running in a thread"
    #: It had ended already.
    FINISHED = "finished"
    #: There is no run with this id.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Statistics:
    """The counts of a pool at one moment."""

    #: The number of runs in each status, including runs that ended in it since the start.
    by_status: dict[TaskStatus, int]
    #: Age of the oldest queued batch in seconds; None when the queue is empty.
    oldest_ready: float | None
    #: The number of workers.
    workers: int
    #: The number of slots that are taken by runs or reserved by holds, and the number of all slots.
    slots_taken: int
    queue_limit: int
    #: The number of threads that have not returned after their run's timeout. Each occupies a
    #: worker.
    overrunning_threads: int

    @property
    def held(self) -> int:
        """Runs whose response has not left."""
        return self.by_status[TaskStatus.HELD]

    @property
    def ready(self) -> int:
        """Runs that wait for a worker."""
        return self.by_status[TaskStatus.READY]

    @property
    def waiting(self) -> int:
        """Runs that are due later."""
        return self.by_status[TaskStatus.WAITING]

    @property
    def running(self) -> int:
        """Runs that a worker has."""
        return self.by_status[TaskStatus.RUNNING]
