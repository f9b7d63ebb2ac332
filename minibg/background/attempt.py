"""One attempt at a run: the call itself, and the verdict on it.

A coroutine function is called on the event loop, in an asyncio task of its own, so that it can be
cancelled and has a context of its own; every other callable is called in a thread. [adding.2] An
awaitable that such a callable returns (a lambda around a coroutine function, a client library's
method) is awaited on the event loop afterwards [adding.3]; Starlette drops it silently.

`perform` returns an `Outcome`, whatever the task does: SystemExit and KeyboardInterrupt are
outcomes too, which would otherwise travel through the asyncio task into the event loop and stop the
server. The failure of one task changes no other task and no connection. [isolation.2]

`judge` turns an outcome into the event that follows. It is pure: it decides, and the worker acts.

The asyncio task per attempt was weighed against stepping the coroutine inside the worker's own
task, which saves some microseconds: a task that keeps a reference to ``asyncio.current_task()``, as
timeouts and cancel scopes do, could then cancel its worker.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, NamedTuple

from minibg.background.clock import seconds
from minibg.background.result import Event, TaskStatus
from minibg.background.run import Attempt, CancelReason, Run
from minibg.background.task import CallKind
from minibg.threads import Threads


class Outcome(NamedTuple):
    """What came of a call: a value, or an error."""

    value: Any = None
    error: BaseException | None = None


class Verdict(NamedTuple):
    """What follows from an outcome."""

    event: Event
    #: The error to record, for `Event.FAIL` and `Event.RETRY`.
    error: BaseException | None = None
    #: Seconds until the next attempt, for `Event.RETRY`.
    delay: float = 0.0


async def perform(run: Run, attempt: Attempt, threads: Threads) -> Outcome:
    """Make the call of the attempt in progress, and return its outcome.

    Raises CancelledError only when the caller itself is cancelled.
    """
    # A copy: one attempt does not see what another has set, and no two calls are in one context at
    # a time.
    context = run.context.copy()
    if attempt.kind is CallKind.COROUTINE:
        return await _on_loop(run, attempt, _outcome_of(run), context)
    value, error = await threads.call(_call, run, context=context)
    if error is not None or not hasattr(type(value), "__await__"):
        return Outcome(value, error)
    if attempt.cancelled_by is not None or run.result.status is not TaskStatus.RUNNING:
        # The timeout or the stop came while the thread was at work: the awaitable is not begun.
        if type(value) is CoroutineType:
            value.close()
        return Outcome(error=asyncio.CancelledError())
    attempt.kind = CallKind.COROUTINE
    return await _on_loop(run, attempt, _outcome_of(run, value), context)


async def _on_loop(run: Run, attempt: Attempt, call: Coroutine[Any, Any, Outcome], context: Context) -> Outcome:
    """Await a call in an asyncio task of its own, which `Attempt.cancel` can cancel."""
    task = asyncio.get_running_loop().create_task(call, name=run.result.name, context=context)
    attempt.task = task
    try:
        return await task
    except asyncio.CancelledError as cancelled:
        # The task was cancelled before its first step; or the worker that awaits it here is
        # cancelled.
        if not task.cancelled():
            raise
        return Outcome(error=cancelled)
    finally:
        attempt.task = None


async def _outcome_of(run: Run, awaitable: Any = None) -> Outcome:
    """Call the function of a run, or await what it returned, on the event loop."""
    try:
        return Outcome(await (awaitable if awaitable is not None else run.function(*run.args, **run.kwargs)))
    except BaseException as error:  # noqa: BLE001 - every exception is an outcome, see above.
        return Outcome(error=error)


def _call(run: Run) -> Outcome:
    """Call the function of a run, in a thread."""
    try:
        value = run.function(*run.args, **run.kwargs)
    except BaseException as error:  # noqa: BLE001 - every exception is an outcome, see above.
        return Outcome(error=error)
    kind = type(value)  # Compared by identity: a value or its metaclass may fail when it is asked for anything.
    if kind is GeneratorType or kind is AsyncGeneratorType:
        return Outcome(error=TypeError(f"{run.result.name} returned a generator: nothing of it has run"))
    if kind is CoroutineType and run.result.status is not TaskStatus.RUNNING:
        value.close()  # The pool has stopped or the attempt has timed out: nothing will await this coroutine.
        return Outcome()
    return Outcome(value)


def judge(run: Run, attempt: Attempt, outcome: Outcome, random: Callable[[], float]) -> Verdict:
    """Return the event that follows from an outcome, with the error to record and the delay of a
    retry.
    """
    error, reason = outcome.error, attempt.cancelled_by
    was_cancelled = isinstance(error, asyncio.CancelledError)
    # 1. The pool stops. A journal keeps the run for the next start, whatever its clean-up raised.
    if error is not None and reason is CancelReason.STOP and run.stored is not None:
        return Verdict(Event.REQUEUE, error)
    if was_cancelled and reason is CancelReason.STOP:
        return Verdict(Event.LOSE, error)
    # 2. `Pool.cancel` was called, and the coroutine ended by that.
    if was_cancelled and reason is CancelReason.REQUEST:
        return Verdict(Event.CANCEL, error)
    # 3. The attempt timed out. A value that comes after the cancellation comes too late.
    if reason is CancelReason.TIMEOUT:
        error = timeout_error(run, error)
    if error is None:
        return Verdict(Event.SUCCEED)
    # 4. It raised. A run that was told to end for good is not tried again, whatever its clean-up
    # raised.
    retry = None if reason in (CancelReason.REQUEST, CancelReason.STOP) else run.options.retry
    delay = retry.delay(run.counted_attempts, error, random) if retry is not None else None
    if delay is None:
        return Verdict(Event.FAIL, error)
    return Verdict(Event.RETRY, error, seconds("the delay of a Retry", delay))


def timeout_error(run: Run, cause: BaseException | None = None) -> TimeoutError:
    """Return the error of a run over its timeout; ``cause`` is the exception whose traceback shows
    where it was.
    """
    error = TimeoutError(f"{run.result.name} took longer than its timeout of {run.options.timeout:g} s")
    error.__cause__ = cause
    return error
