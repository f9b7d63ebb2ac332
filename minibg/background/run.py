"""A run: one call of a task, with everything that the call needs; and the batch of the run.

A `TaskResult` is for the reader, a `Run` is for the queue: the function and its arguments, the
options, the contextvars of the moment of ``add_task``, the holds that share it, the attempt in
progress. The `Run` is released when it ends, and its arguments with it; the record stays.

**The context is a snapshot.** A request id that middleware set is visible to the tasks of that
request, and to no other task. [context.2] Workers run in an empty context [context.3], and every
attempt enters a copy of the snapshot: a second attempt does not see the contextvars that the first
one set. [context.4] A worker that runs tasks in its own context leaks contextvars from one request
to the next (measured in aiojobs: the jobs of the second and the third request saw the id of the
first).

**A batch** is the runs of one response that were released together; they run strictly one after
another. [order.2] A worker takes a whole batch, so the order is that of a list and needs no lock.
Run and Batch refer to each other, so they are in one file.

**A shared run.** Two holds may have the same run, when it was added twice with the same ``key``
(`admission.py` has the table). It is dropped when both holds drop it. When one of the holds is
released, the run joins the batch of that hold; the tasks of the other hold do not wait for it.
"""

import asyncio
import contextvars
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal

from minibg.background.clock import Clock, Timer
from minibg.background.result import TaskResult
from minibg.background.task import DEFAULTS, CallKind, Options, Task, innermost, kind_of, name_of


class CancelReason(Enum):
    """Why an attempt was told to end before its call returned."""

    #: The attempt exceeded its timeout.
    TIMEOUT = auto()
    #: `Pool.cancel` was called.
    REQUEST = auto()
    #: The pool stops.
    STOP = auto()


@dataclass(slots=True, eq=False)
class Attempt:
    """An attempt in progress."""

    #: Whether the call is on the event loop, where it can be cancelled, or in a thread, where it
    #: cannot.
    kind: CallKind
    #: When it began: monotonic seconds.
    began: float
    #: The asyncio task of the call, while the call is on the event loop.
    task: asyncio.Task[Any] | None = None
    #: Why it was told to end. The first reason stays, see `cancel`.
    cancelled_by: CancelReason | None = None
    #: Whether a warning has named it as a long attempt.
    warned: bool = False

    def cancel(self, reason: CancelReason) -> bool:
        """Tell the attempt to end, unless it was told before. Return whether this call was the
        first.

        The first reason stays [cancel.2], and an attempt is interrupted only once. So a timeout
        during the clean-up neither retries a run that was cancelled on request, nor marks a run
        that the stop cancelled as timed out. One exception: a request replaces a timeout, because a
        timeout could be followed by a retry.
        """
        if self.task is not None and self.task.done():  # It has ended, and its worker has not resumed yet.
            return False
        if self.cancelled_by is not None:
            if self.cancelled_by is CancelReason.TIMEOUT and reason is CancelReason.REQUEST:
                self.cancelled_by = reason
            return False
        self.cancelled_by = reason
        if self.task is not None:
            self.task.cancel()
        return True


@dataclass(slots=True, eq=False)
class StoredRun:
    """The part of a run that a journal on disk needs. Only `journal/` writes it."""

    #: Positional and keyword arguments as JSON.
    arguments_json: str
    #: The options of this run that differ from the options of the task, as a JSON object.
    option_overrides: str = "{}"
    #: The number of its row, in order of acceptance; None while it is neither in the file nor on
    #: its way there.
    row: int | None = None
    #: The row of the first run that was committed together with it; None when it is alone.
    batch: int | None = None
    #: Attempts that a crash or a stop ended, and not the task: they do not count for its `Retry`.
    uncounted_attempts: int = 0
    #: The file has it as FAILED until a commit resets it.
    must_reset: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """A request of ``minibg tasks`` to the owner of a journal."""

    action: Literal["retry", "cancel"]
    id: str


class Ids:
    """Makes ids: milliseconds since 1970 and 80 random bits, as in a UUID of version 7 (RFC 9562 §5.7).

    Ids sort by time, so new ids are neighbours in an index on disk, which saves 9 of 27
    microseconds a run (measured). The random bits of many ids are fetched at once: a system call
    for each id releases the interpreter's lock, which next to the journal's thread costs a tenth of
    a durable task.
    """

    def __init__(self) -> None:
        self._spare: deque[str] = deque()

    def new(self, now: float) -> str:
        """Return an id that no other run has. From any thread."""
        while True:
            try:
                return f"{int(now * 1000):012x}{self._spare.popleft()}"
            except IndexError:  # Two threads may both fetch; each piece is still used once.
                bits = os.urandom(256 * 10).hex()
                self._spare.extend(bits[start : start + 20] for start in range(0, len(bits), 20))


@dataclass(slots=True, eq=False)
class Run:
    """One call of a task, from ``add_task`` to its final status."""

    #: What is called, and where.
    function: Callable[..., Any]
    kind: CallKind
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: Options
    #: The contextvars of the moment of ``add_task``.
    context: contextvars.Context
    result: TaskResult[Any]
    #: The number of holds that share it.
    holders: int = 1
    #: Whether it has a slot of the queue. False once its last possible attempt has begun.
    has_slot: bool = False
    #: The batch it is in, from its release on.
    batch: "Batch | None" = None
    #: The attempt in progress; None between attempts.
    attempt: Attempt | None = None
    #: Its part in the journal on disk; None when no journal keeps it.
    stored: StoredRun | None = None
    #: Seconds of its delay, counted from the moment it became WAITING.
    wait_seconds: float = 0.0

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        origin: str,
        clock: Clock,
        ids: Ids,
    ) -> "Run":
        """Make a run of a call, with a copy of the caller's context. Raises TypeError for a
        callable that cannot be run as a task.
        """
        task = innermost(function)
        if isinstance(task, Task):  # A partial of a task has the task's name and options.
            kind, name, options = task.kind, task.name, task.options
        else:
            kind, name, options = kind_of(function), name_of(function), DEFAULTS
        now = clock.time()
        result: TaskResult[Any] = TaskResult(ids.new(now), name, origin, now)
        return cls(function, kind, args, kwargs, options, contextvars.copy_context(), result)

    @property
    def counted_attempts(self) -> int:
        """The number of attempts that count for its `Retry`."""
        return self.result.attempts - (self.stored.uncounted_attempts if self.stored is not None else 0)

    def may_be_retried(self) -> bool:
        """Return whether the attempt that begins now may be followed by another."""
        return self.options.retry is not None and self.counted_attempts + 1 < self.options.retry.attempts

    def seconds_until_due(self, clock: Clock) -> float | None:
        """Return the seconds until the run is due; None for a run without a delay."""
        if self.options.run_at is not None:
            return max(0.0, self.options.run_at.timestamp() - clock.time())
        return self.options.delay

    def describe(self) -> str:
        """Return the name of the run for the log: task, id, and request."""
        return f"{self.result.name} {self.result.id}{of_origin(self.result.origin)}"


class Batch:
    """Runs that run one after another. ``runs[0]`` is the next one, or the one in progress."""

    __slots__ = ("due_at", "queued_at", "runs", "timer")

    def __init__(self, *runs: Run) -> None:
        #: A list: a `deque` takes 760 bytes, and most batches have one run. Its ``pop(0)`` is a
        #: move of pointers.
        self.runs = list(runs)
        for run in runs:
            run.batch = self
        #: When it was last queued: monotonic seconds.
        self.queued_at = 0.0
        #: When its first run is due, in monotonic seconds, and the timer for that; set while it is
        #: deferred.
        self.due_at = 0.0
        self.timer: Timer | None = None


def of_origin(origin: str) -> str:
    """Return the name of the request for the log, escaped: the client chose the path, and could put
    a newline into it.
    """
    return f" of {ascii(origin)[1:-1]}" if origin else ""
