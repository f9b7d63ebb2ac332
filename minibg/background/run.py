"""A run: one call of a task, with everything that is needed to make it.

What `TaskResult` is for the reader, `Run` is for the queue: the function and its arguments, the options, the
contextvars of the moment of ``add_task``, and who still holds it. It is dropped when the run ends, and the arguments
with it; the record stays.

The context is a snapshot, so a request id that middleware set is seen by the task and by nobody else. Workers run in an
empty context, and every attempt enters a copy of the snapshot: what a first attempt sets, a second does not see. A
worker that runs tasks in its own context leaks from one request to the next (measured in aiojobs: the second and third
request's job saw the first one's id).

A run may be held by more than one response, when it has a ``key``: it is dropped only when the last of them drops it, and
released with the first that leaves. It stands in that one's line, and the others' tasks do not wait for it.
"""

import asyncio
import contextvars
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from minibg.background.clock import Clock
from minibg.background.result import TaskResult
from minibg.background.task import DEFAULTS, Kind, Options, Task, innermost, kind_of, name_of

if TYPE_CHECKING:
    from minibg.background.queue import Batch


class Cut(Enum):
    """Why a running attempt was told to end before it did so itself."""

    #: It is over its timeout.
    TIMEOUT = auto()
    #: `Pool.cancel` was called.
    CANCEL = auto()
    #: The pool stops.
    STOP = auto()


@dataclass(slots=True, eq=False)
class Run:
    """One call of a task on its way through the queue."""

    #: What is called.
    function: Callable[..., Any]
    kind: Kind
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: Options
    context: contextvars.Context
    result: TaskResult[Any]
    #: How many responses hold it.
    holders: int = 1
    #: Whether it counts against the queue's limit.
    has_place: bool = False
    #: The batch it stands in line with.
    batch: "Batch | None" = None
    #: The coroutine attempt that is running, and why it shall end, if it shall.
    attempt: "asyncio.Task[Any] | None" = None
    cut: Cut | None = None
    #: When the attempt began: monotonic seconds; and whether the log has said already that it takes long.
    since: float = 0.0
    warned: bool = False
    #: Seconds it waits, from the moment it is WAITING.
    wait: float = 0.0
    #: Its arguments and what differs from its task's options, as JSON, if a durable journal keeps it.
    payload: str | None = None
    changes: str = "{}"
    #: Its number in that journal's file, 0 while it is not there, and that of its batch.
    seq: int = 0
    response: int = 0
    #: Attempts that did not end by the task's fault: the process died, or stopped. They do not count for its `Retry`.
    excused: int = 0

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        origin: str,
        clock: Clock,
        random_bits: Callable[[], str],
    ) -> "Run":
        """Make a run of a call, in the context of the caller. Raises TypeError for what cannot be run."""
        task = innermost(function)
        if isinstance(task, Task):  # A partial of a task has what that task has.
            kind, name, options = task.kind, task.name, task.options
        else:
            kind, name, options = kind_of(function), name_of(function), DEFAULTS
        now = clock.now()
        result: TaskResult[Any] = TaskResult(_id(now, random_bits()), name, origin, now)
        return cls(function, kind, args, kwargs, options, contextvars.copy_context(), result)

    def may_come_back(self) -> bool:
        """Whether the attempt that begins now may be followed by another."""
        retry = self.options.retry
        return retry is not None and self.result.attempts + 1 - self.excused < retry.attempts

    def delay(self, clock: Clock) -> float | None:
        """Seconds from now until it is due; None when it has no delay at all."""
        if self.options.run_at is not None:
            return max(0.0, (self.options.run_at - clock.now()).total_seconds())
        return self.options.delay

    def describe(self) -> str:
        """Name it in the log: task, id, and where it came from."""
        return f"{self.result.name} {self.result.id}{of_origin(self.result.origin)}"


class RandomBits:
    """Gives 80 random bits, as text. Asks the system for many at a time: a system call a run can be a tenth of what it costs."""

    def __init__(self) -> None:
        self._spare: deque[str] = deque()

    def __call__(self) -> str:
        while True:
            try:
                return self._spare.popleft()
            except IndexError:  # From any thread: two that come here fetch twice, and none is given out twice.
                bits = os.urandom(256 * 10).hex()
                self._spare.extend(bits[start : start + 20] for start in range(0, len(bits), 20))


def _id(now: datetime, random_bits: str) -> str:
    """Milliseconds since 1970 and 80 random bits, as in a UUID of version 7 (RFC 9562 §5.7).

    They sort by time, so the newest stand together in an index on disk: 9 of 27 microseconds a run (measured).
    """
    return f"{int(now.timestamp() * 1000):012x}{random_bits}"


def of_origin(origin: str) -> str:
    """Where a run came from, for a line of the log. Escaped: a client chose the path, and could end the line."""
    return f" of {ascii(origin)[1:-1]}" if origin else ""
