"""One run of a task: the statuses it goes through, and the record it leaves.

A run's life is a finite state machine, and the machine is the literal table below: `TRANSITIONS[status][event]` is the
next status. What is not in the table cannot happen: `journal.py`, the only place that changes a status, raises
`IllegalTransition` for it. The diagram in the README is drawn from this table and a test compares the two.

The path of most runs is the first column of each row::

    (add) -> HELD -> READY -> RUNNING -> SUCCESSFUL

A run is HELD while its response is still on its way, READY when it stands in the queue, RUNNING while a worker has it.
READY, RUNNING, SUCCESSFUL and FAILED are Django's words (`django.tasks`) and mean what they mean there. The others
name what Django has no word for; Celery calls nearly all of them PENDING, which is also its answer for an id it has
never heard of. Here an unknown id is None.

One event is not raised by anything yet: HAND_OFF belongs to an engine in another process. The table has it because
HANDED_OFF is one of the statuses a reader of results has to expect.

Two words are easily confused. DROPPED: its response was never produced, so the run was never owed to anybody.
LOST: it was owed, the process stopped before it ended, and nothing durable keeps it.

A `TaskResult` is live: the run writes it, whoever holds it sees it change. It refers to no exception, no frame and
no argument, only to text, so keeping ten thousand of them is cheap. The one exception is ``return_value``, kept as it
is: a task that returns 100 MB holds them for as long as its result is kept.
"""

import asyncio
import traceback
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Generic, TypeVar

T = TypeVar("T")

#: How many errors of one run are kept, the newest. A task that is tried a thousand times shall not keep a thousand
#: tracebacks; twenty show the pattern.
ERRORS_KEPT = 20
#: How many characters of one traceback are kept, its end. Deep recursion makes long ones.
TRACEBACK_KEPT = 20_000


class TaskStatus(StrEnum):
    """Where a run is."""

    #: Its response has not left yet.
    HELD = "HELD"
    #: It stands in the queue.
    READY = "READY"
    #: A worker has it.
    RUNNING = "RUNNING"
    #: It is due later: by its delay, or by a retry.
    WAITING = "WAITING"
    #: It returned.
    SUCCESSFUL = "SUCCESSFUL"
    #: It raised or ran out of time, and no attempt is left.
    FAILED = "FAILED"
    #: Somebody asked for that.
    CANCELLED = "CANCELLED"
    #: Its response was never produced.
    DROPPED = "DROPPED"
    #: The process stopped before it ended, and nothing durable keeps it.
    LOST = "LOST"
    #: An engine has it: another process runs it.
    HANDED_OFF = "HANDED_OFF"

    @property
    def is_final(self) -> bool:
        return not TRANSITIONS[self]


class Event(StrEnum):
    """What happens to a run."""

    #: It is added: the way in. It has no row below because there is no status before it.
    ADD = "add"
    #: Its response has left.
    RELEASE = "release"
    #: Its response has left, and it has a delay.
    DEFER = "defer"
    #: Its response was not produced.
    DROP = "drop"
    #: Its time has come.
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
    #: The process stops.
    LOSE = "lose"
    #: The process stops, and a durable journal keeps it for the next start.
    PUT_BACK = "put back"
    #: An engine takes it. Not raised yet.
    HAND_OFF = "hand off"


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
    _S.RUNNING: {_E.SUCCEED: _S.SUCCESSFUL, _E.FAIL: _S.FAILED, _E.RETRY: _S.WAITING, _E.CANCEL: _S.CANCELLED}
    | {_E.LOSE: _S.LOST, _E.PUT_BACK: _S.READY, _E.HAND_OFF: _S.HANDED_OFF},
    _S.WAITING: {_E.DUE: _S.READY, _E.CANCEL: _S.CANCELLED, _E.LOSE: _S.LOST},
    # The rest are final: nothing happens to them any more.
    _S.SUCCESSFUL: {},
    _S.FAILED: {},
    _S.CANCELLED: {},
    _S.DROPPED: {},
    _S.LOST: {},
    _S.HANDED_OFF: {},
}


@dataclass(frozen=True, slots=True)
class TaskError:
    """What one attempt raised, as text."""

    #: The number of the attempt, from 1.
    attempt: int
    #: The exception's class: ``smtplib.SMTPServerDisconnected``.
    type: str
    #: What the exception says.
    message: str
    #: The end of its traceback.
    traceback: str
    #: When, in UTC.
    at: datetime

    @classmethod
    def of(cls, error: BaseException, attempt: int, at: datetime) -> "TaskError":
        """The text of an exception, whatever the exception does when it is asked for it."""
        described = traceback.TracebackException.from_exception(error)
        kind = type(error)
        prefix = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        return cls(
            attempt=attempt,
            type=prefix + kind.__qualname__,
            message=str(described),
            traceback="".join(described.format())[-TRACEBACK_KEPT:],
            at=at,
        )


class _Waited:
    """Those who wait for a run. Apart from its record, whose fields are all for the reader."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def announce(self) -> None:
        """Wake everyone in `TaskResult.wait`. The journal calls it, once."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _wait(self, timeout: float | None) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter
        finally:  # Who asks again every second leaves nothing behind.
            self._waiters.remove(waiter)


@dataclass(slots=True, eq=False)
class TaskResult(_Waited, Generic[T]):
    """The record of one run. Times are aware datetimes in UTC, None while they have not come."""

    #: 32 hexadecimal digits, the last 20 random: ids sort by time, and who knows one cannot guess another.
    id: str
    #: The task's name: ``@task(name=)``, else module and name of the function.
    name: str
    #: Where the request came from that added it, ``"POST /register"``; empty without a request.
    origin: str
    #: When it was added.
    added_at: datetime
    #: Where it is now.
    status: TaskStatus = TaskStatus.HELD
    #: How many attempts have begun.
    attempts: int = 0
    #: When its response had left.
    released_at: datetime | None = None
    #: When its first attempt began.
    started_at: datetime | None = None
    #: When it reached the status it keeps.
    finished_at: datetime | None = None
    #: What its attempts raised: the newest twenty.
    errors: list[TaskError] = field(default_factory=list)
    #: What it returned, if it is SUCCESSFUL.
    return_value: T | None = None
    #: Whether a journal on disk keeps it: it outlives the process.
    durable: bool = False

    def __post_init__(self) -> None:
        _Waited.__init__(self)

    @property
    def is_finished(self) -> bool:
        return self.status.is_final

    async def wait(self, timeout: float | None = None) -> "TaskResult[T]":
        """Wait until the run has reached a final status, at most ``timeout`` seconds. Gives back this same record.

        Raises TimeoutError; the run goes on. When its pool stops before, and a durable journal keeps the run for the next start,
        the record comes back as it is then, not finished.
        """
        if not self.is_finished:
            await self._wait(timeout)
        return self

    def add_error(self, error: TaskError) -> None:
        self.errors.append(error)
        del self.errors[:-ERRORS_KEPT]
