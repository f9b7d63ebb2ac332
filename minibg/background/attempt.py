"""One attempt: the call of the task, and the event that its outcome leads to.

A coroutine function is called on the event loop, in an asyncio task of its own, so that it can be
cancelled and has a context of its own; every other callable is called in a thread. [adding.2] If
the call in the thread returns an awaitable (a lambda around a coroutine function does, and so do
the methods of some client libraries), the awaitable is awaited on the event loop [adding.3].
Starlette discards it silently.

`perform` returns an `Outcome`, whatever the task does. SystemExit and KeyboardInterrupt are
outcomes too: raised through the asyncio task into the event loop, they would stop the server. The
failure of one task changes no other task and no connection. [isolation.2]

`judge` turns an outcome into the event that follows. It is a pure function: it decides, and the
worker acts.

Rejected: awaiting the coroutine in the worker's own asyncio task. It saves some microseconds, but
code that keeps a reference to ``asyncio.current_task()``, as timeouts and cancel scopes do, could
then cancel the worker.
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
    """The result of a call: a value, or an error."""

    value: Any = None
    error: BaseException | None = None


class Verdict(NamedTuple):
    """The event that follows from an outcome."""

    event: Event
    #: The error to record, for `Event.FAIL` and `Event.RETRY`.
    error: BaseException | None = None
    #: Seconds until the next attempt, for `Event.RETRY`.
    delay: float = 0.0


async def perform(run: Run, attempt: Attempt, threads: Threads) -> Outcome:
    """Make the call of the attempt in progress, and return its outcome.

    Raises CancelledError only when the caller itself is cancelled.
    """
    # A copy, so that an attempt does not see the contextvars that another one set, and no two calls
    # enter one context at the same time.
    context = run.context.copy()
    if attempt.kind is CallKind.COROUTINE:
        return await _on_loop(run, attempt, _outcome_of(run), context)
    value, error = await threads.call(_call, run, context=context)
    if error is not None or not hasattr(type(value), "__await__"):
        return Outcome(value, error)
    if attempt.cancelled_by is not None or run.result.status is not TaskStatus.RUNNING:
        # The attempt timed out or the pool stopped during the call: the awaitable is not started.
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
        # Either the task was cancelled before its first step, or the worker that awaits it was
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
    kind = type(value)  # Compared by identity: isinstance() may run code of the value, which may raise.
    if kind is GeneratorType or kind is AsyncGeneratorType:
        return Outcome(error=TypeError(f"{run.result.name} returned a generator: nothing of it has run"))
    if kind is CoroutineType and run.result.status is not TaskStatus.RUNNING:
        value.close()  # The pool has stopped or the attempt has timed out: nothing will await the coroutine.
        return Outcome()
    return Outcome(value)


def judge(run: Run, attempt: Attempt, outcome: Outcome, random: Callable[[], float]) -> Verdict:
    """Return the event that follows from an outcome, the error to record, and the delay of a retry."""
    error, reason = outcome.error, attempt.cancelled_by
    was_cancelled = isinstance(error, asyncio.CancelledError)
    # 1. The pool stops. A stored run is kept for the next start, whatever its clean-up raised.
    if error is not None and reason is CancelReason.STOP and run.stored is not None:
        return Verdict(Event.REQUEUE, error)
    if was_cancelled and reason is CancelReason.STOP:
        return Verdict(Event.LOSE, error)
    # 2. `Pool.cancel` was called, and the cancellation ended the coroutine.
    if was_cancelled and reason is CancelReason.REQUEST:
        return Verdict(Event.CANCEL, error)
    # 3. The attempt timed out. A value that is returned after the cancellation is discarded.
    if reason is CancelReason.TIMEOUT:
        error = timeout_error(run, error)
    if error is None:
        return Verdict(Event.SUCCEED)
    # 4. The call raised. A run that was cancelled by request or by the stop is not tried again,
    # whatever its clean-up raised.
    retry = None if reason in (CancelReason.REQUEST, CancelReason.STOP) else run.options.retry
    delay = retry.delay(run.counted_attempts, error, random) if retry is not None else None
    if delay is None:
        return Verdict(Event.FAIL, error)
    return Verdict(Event.RETRY, error, seconds("the delay of a Retry", delay))


def timeout_error(run: Run, cause: BaseException | None = None) -> TimeoutError:
    """Return the error of a run that timed out. The traceback of ``cause`` shows where the task was
    interrupted.
    """
    error = TimeoutError(f"{run.result.name} took longer than its timeout of {run.options.timeout:g} s")
    error.__cause__ = cause
    return error
