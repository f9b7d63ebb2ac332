"""One attempt at a run: the call itself, and the verdict on it.

A coroutine function is called on the loop, in an asyncio task of its own so that it can be cancelled and has its own
context. Everything else is called in a thread; if it returns an awaitable (a lambda around a coroutine function, a
callable that hands its work to a client library), that is awaited on the loop afterwards. Starlette drops it silently.

An attempt never raises. It gives an `Outcome`, whatever happened: `SystemExit` and `KeyboardInterrupt` too, which
would otherwise travel through the asyncio task into the loop and stop the server. One task's failure is one task's.

`judge` turns an outcome into the event that follows. It is pure: it decides, the worker acts. The cases, in its order:

1. It was cancelled because the pool stops: LOSE, or PUT_BACK when a durable journal keeps it for the next start, whatever its
   cleanup raised.
2. It was cancelled on request, and let itself be: CANCEL.
3. It was cut by its timeout: a TimeoutError, which says where it stood. Also when it swallowed the cancellation and
   returned something: that came too late.
4. It raised: `Retry.delay` decides between RETRY and FAIL. A task that cancels itself has raised CancelledError. One that was
   cancelled on request, or by the stop, and raises something else in its cleanup has failed: it is not tried again.
5. It returned: SUCCEED.
"""

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from minibg.background.result import Event, TaskStatus
from minibg.background.run import Cut, Run
from minibg.background.task import Kind
from minibg.background.threads import Threads


class Outcome(NamedTuple):
    """What came of a call: a value, or an error."""

    value: Any = None
    error: BaseException | None = None


class Verdict(NamedTuple):
    """What follows from an outcome."""

    event: Event
    error: BaseException | None = None
    #: Seconds until the next attempt, for Event.RETRY.
    delay: float = 0.0


def attempt(run: Run, threads: Threads) -> Coroutine[Any, Any, Outcome]:
    """Make one attempt. Never raises, but for the cancellation of its caller."""
    # A copy, so that one attempt does not see what another has set, and so that no two are in one context at a time.
    context = run.context.copy()
    if run.kind is Kind.COROUTINE:
        return _on_the_loop(run, _call_and_await(run), context, threads.loop)
    return _in_a_thread(run, context, threads)


async def _in_a_thread(run: Run, context: contextvars.Context, threads: Threads) -> Outcome:
    outcome = await threads.call(lambda: context.run(_call, run))
    if not inspect.isawaitable(outcome.value):
        return outcome
    if run.cut is None:
        return await _on_the_loop(run, _await(outcome.value), context, threads.loop)
    if inspect.iscoroutine(outcome.value):
        outcome.value.close()  # The call is over its timeout already: what it returned is not begun.
    return Outcome()


async def _on_the_loop(
    run: Run, coroutine: Coroutine[Any, Any, Outcome], context: contextvars.Context, loop: asyncio.AbstractEventLoop
) -> Outcome:
    run.attempt = attempt = loop.create_task(coroutine, name=run.result.name, context=context)
    try:
        return await attempt
    except asyncio.CancelledError as cancelled:
        # Either the attempt was cancelled before its first step, or whoever awaits it here is.
        if not attempt.cancelled():
            raise
        return Outcome(error=cancelled)
    finally:
        run.attempt = None


async def _call_and_await(run: Run) -> Outcome:
    try:
        return Outcome(await run.function(*run.args, **run.kwargs))
    except BaseException as error:  # noqa: BLE001 - an attempt never raises, see above.
        return Outcome(error=error)


async def _await(awaitable: Any) -> Outcome:
    try:
        return Outcome(await awaitable)
    except BaseException as error:  # noqa: BLE001 - an attempt never raises, see above.
        return Outcome(error=error)


def _call(run: Run) -> Outcome:
    try:
        value = run.function(*run.args, **run.kwargs)
    except BaseException as error:  # noqa: BLE001 - an attempt never raises, see above.
        return Outcome(error=error)
    if run.result.status is not TaskStatus.RUNNING and inspect.iscoroutine(value):
        value.close()  # Over its timeout, or the pool has stopped: nobody may be there any more who would await it.
    return Outcome(value)


def judge(run: Run, outcome: Outcome, random: Callable[[], float]) -> Verdict:
    """Decide what follows from an outcome."""
    error = outcome.error
    if error is not None and run.cut is Cut.STOP and run.seq:
        return Verdict(Event.PUT_BACK, error)
    if isinstance(error, asyncio.CancelledError) and run.cut is Cut.STOP:
        return Verdict(Event.LOSE, error)
    if isinstance(error, asyncio.CancelledError) and run.cut is Cut.CANCEL:
        return Verdict(Event.CANCEL, error)
    if run.cut is Cut.TIMEOUT:
        error = overdue(run, error)
    if error is None:
        return Verdict(Event.SUCCEED)
    # What was told to end for good is not tried again, whatever its cleanup raised.
    retry = None if run.cut in (Cut.CANCEL, Cut.STOP) else run.options.retry
    delay = retry.delay(run.result.attempts - run.excused, error, random) if retry is not None else None
    return Verdict(Event.FAIL, error) if delay is None else Verdict(Event.RETRY, error, delay)


def overdue(run: Run, stood: BaseException | None = None) -> TimeoutError:
    """Say that a run is over its timeout; ``stood`` is the exception that shows where."""
    error = TimeoutError(f"{run.result.name} took longer than its timeout of {run.options.timeout} s")
    error.__cause__ = stood
    return error
