"""One attempt: where the call is made, and the verdict on its outcome."""

import asyncio
import contextvars
import functools
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from minibg.background import Event, Pool, Retry, TaskStatus
from minibg.background.attempt import Outcome, Verdict, judge, perform
from minibg.background.run import Attempt, CancelReason, Ids, Run, StoredRun
from minibg.background.task import CallKind
from minibg.threads import Threads
from tests.background.fake_clock import FakeClock
from tests.background.recording import named, reached

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")


async def where() -> str:
    await asyncio.sleep(0)
    return threading.current_thread().name


def where_plain() -> str:
    return threading.current_thread().name


class Callables:
    async def method(self) -> str:
        return await where()

    async def __call__(self) -> str:
        return await where()


class HasAnAwaitable:
    """The result of a client library's call: an awaitable that is no coroutine."""

    def __await__(self) -> Any:
        return where().__await__()


MAIN = threading.main_thread().name
THREAD = "minibg-task-1"


@pytest.mark.parametrize(
    ("function", "thread"),
    [
        (where, MAIN),
        (functools.partial(where), MAIN),
        (Callables().method, MAIN),
        (Callables(), MAIN),
        (where_plain, THREAD),
        (functools.partial(where_plain), THREAD),
    ],
)
async def test_a_coroutine_function_is_called_on_the_event_loop_every_other_callable_in_a_thread(
    function: Callable[[], Awaitable[str] | str], thread: str
) -> None:
    async with Pool() as pool:
        result: Any = await pool.enqueue(function).wait()
    assert (result.status, result.return_value) == (TaskStatus.SUCCESSFUL, thread)


@pytest.mark.parametrize("function", [lambda: where(), lambda: HasAnAwaitable(), HasAnAwaitable])
async def test_an_awaitable_that_is_returned_is_awaited_on_the_event_loop(
    function: Callable[[], Awaitable[str]],
) -> None:
    async with Pool() as pool:
        result: Any = await pool.enqueue(function).wait()
    assert (result.status, result.return_value) == (TaskStatus.SUCCESSFUL, MAIN)


def failed_attempt(*, retry: Retry | None = None, attempts: int = 1, stored: bool = False) -> Run:
    run = Run.of(named("a", where, retry=retry, timeout=3), (), {}, "", FakeClock(), Ids())
    run.result.attempts = attempts
    run.stored = StoredRun("[]") if stored else None
    return run


error, cancelled = ValueError(), asyncio.CancelledError()
NONE, TIMEOUT, REQUEST, STOP = None, CancelReason.TIMEOUT, CancelReason.REQUEST, CancelReason.STOP
failed, raised, returned = Outcome(error=error), Outcome(error=cancelled), Outcome(3)


@pytest.mark.parametrize(
    ("run", "reason", "outcome", "verdict"),
    [
        # The attempt was not told to end.
        (failed_attempt(), NONE, returned, Verdict(Event.SUCCEED)),
        (failed_attempt(), NONE, failed, Verdict(Event.FAIL, error)),
        (failed_attempt(), NONE, raised, Verdict(Event.FAIL, cancelled)),
        (failed_attempt(retry=Retry()), NONE, failed, Verdict(Event.RETRY, error, 0.5)),
        (failed_attempt(retry=Retry(), attempts=4), NONE, failed, Verdict(Event.RETRY, error, 4.0)),
        (failed_attempt(retry=Retry(), attempts=5), NONE, failed, Verdict(Event.FAIL, error)),
        (failed_attempt(retry=Retry()), NONE, raised, Verdict(Event.FAIL, cancelled)),
        # Cancelled on request: a value counts, and an error of the clean-up is not followed by
        # another attempt.
        (failed_attempt(retry=Retry()), REQUEST, raised, Verdict(Event.CANCEL, cancelled)),
        (failed_attempt(retry=Retry()), REQUEST, returned, Verdict(Event.SUCCEED)),
        (failed_attempt(retry=Retry()), REQUEST, failed, Verdict(Event.FAIL, error)),
        (failed_attempt(stored=True), REQUEST, raised, Verdict(Event.CANCEL, cancelled)),
        # The pool stops: the same, and a journal keeps the run for the next start.
        (failed_attempt(retry=Retry()), STOP, raised, Verdict(Event.LOSE, cancelled)),
        (failed_attempt(retry=Retry()), STOP, returned, Verdict(Event.SUCCEED)),
        (failed_attempt(retry=Retry()), STOP, failed, Verdict(Event.FAIL, error)),
        (failed_attempt(retry=Retry(), stored=True), STOP, raised, Verdict(Event.REQUEUE, cancelled)),
        (failed_attempt(retry=Retry(), stored=True), STOP, failed, Verdict(Event.REQUEUE, error)),
        (failed_attempt(retry=Retry(), stored=True), STOP, returned, Verdict(Event.SUCCEED)),
    ],
)
def test_the_verdict(run: Run, reason: CancelReason | None, outcome: Outcome, verdict: Verdict) -> None:
    attempt = Attempt(CallKind.COROUTINE, 0.0, cancelled_by=reason)
    assert judge(run, attempt, outcome, lambda: 0.5) == verdict


@pytest.mark.parametrize("outcome", [raised, returned, failed])
@pytest.mark.parametrize(("retry", "event"), [(None, Event.FAIL), (Retry(), Event.RETRY)])
def test_over_its_timeout_the_attempt_has_failed_whatever_comes_of_it(
    outcome: Outcome, retry: Retry | None, event: Event
) -> None:
    attempt = Attempt(CallKind.COROUTINE, 0.0, cancelled_by=TIMEOUT)
    verdict = judge(failed_attempt(retry=retry), attempt, outcome, lambda: 0.5)
    assert (verdict.event, type(verdict.error), str(verdict.error)) == (
        event,
        TimeoutError,
        "a took longer than its timeout of 3 s",
    )
    assert verdict.error is not None
    assert verdict.error.__cause__ is outcome.error


async def test_the_caller_of_an_attempt_can_be_cancelled_in_the_moment_it_ends() -> None:
    loop = asyncio.get_running_loop()

    async def ends_with_the_caller() -> None:
        loop.call_soon(caller.cancel)

    run, attempt = Run.of(ends_with_the_caller, (), {}, "", FakeClock(), Ids()), Attempt(CallKind.COROUTINE, 0.0)
    caller = asyncio.create_task(perform(run, attempt, Threads("test", 1)))
    await asyncio.wait([caller])
    assert (caller.cancelled(), attempt.task) == (True, None)


# --- context ---


async def test_the_contextvars_of_the_moment_of_add_task_are_those_of_the_task() -> None:
    async def see() -> str:
        return request_id.get()

    async with Pool(workers=1) as pool:
        results = []
        for name in ("first", "second"):
            request_id.set(name)
            results += [pool.enqueue(see), pool.enqueue(request_id.get), pool.enqueue(lambda: see())]
        request_id.set("third")
        empty: contextvars.Context = contextvars.Context()
        results.append(empty.run(pool.enqueue, see))
        await pool.idle()
    assert [result.return_value for result in results] == ["first"] * 3 + ["second"] * 3 + ["none"]


async def test_a_second_attempt_does_not_see_the_contextvars_that_the_first_one_set() -> None:
    clock, seen = FakeClock(), []

    async def sees_and_fails() -> None:
        seen.append(request_id.get())
        request_id.set("set by an attempt")
        raise ValueError

    def sees_in_a_thread() -> None:
        seen.append(request_id.get())
        request_id.set("set by a thread")
        raise ValueError

    async with Pool(workers=1, clock=clock, random=lambda: 0.5) as pool:
        for function in (sees_and_fails, sees_in_a_thread):
            request_id.set("of the request")
            task: Any = named("a", function, retry=Retry(attempts=2), delay=9)
            result = pool.enqueue(task)
            request_id.set("of the next request")
            clock.advance(9)
            await reached(pool, result, TaskStatus.WAITING, attempt=1)
            clock.advance(0.5)
            await result.wait()
    assert seen == ["of the request"] * 4


async def test_workers_run_in_an_empty_context() -> None:
    request_id.set("of the caller that started the pool")
    async with Pool(workers=1) as pool:
        result = await contextvars.Context().run(pool.enqueue, request_id.get).wait()
    assert result.return_value == "none"


# --- isolation ---


def recursion() -> None:
    recursion()


def raiser(error: BaseException) -> Callable[[], None]:
    def raises() -> None:
        raise error

    return raises


def raiser_async(error: BaseException) -> Callable[[], Any]:
    async def raises() -> None:
        raise error

    return raises


async def recursion_async() -> None:
    await recursion_async()


async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("function", "type_"),
    [
        (raiser(ValueError("no")), "ValueError"),
        (raiser_async(ValueError("no")), "ValueError"),
        (raiser(SystemExit(3)), "SystemExit"),
        (raiser_async(SystemExit(3)), "SystemExit"),
        (raiser(KeyboardInterrupt()), "KeyboardInterrupt"),
        (raiser_async(KeyboardInterrupt()), "KeyboardInterrupt"),
        (lambda: raiser_async(KeyboardInterrupt())(), "KeyboardInterrupt"),
        (raiser_async(GeneratorExit()), "GeneratorExit"),
        (raiser(StopIteration()), "StopIteration"),
        (raiser_async(StopIteration()), "RuntimeError"),
        (recursion, "RecursionError"),
        (recursion_async, "RecursionError"),
        (raiser_async(asyncio.CancelledError()), "asyncio.exceptions.CancelledError"),
        (cancels_itself, "asyncio.exceptions.CancelledError"),
        (lambda x: x, "TypeError"),
    ],
)
async def test_a_failing_run_never_stops_its_siblings_or_the_worker(
    function: Callable[[], Any], type_: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Pool(workers=1) as pool:
        failed = pool.enqueue(function)
        after = pool.enqueue(where)
        await pool.idle()
        assert (failed.status, [error.type for error in failed.errors]) == (TaskStatus.FAILED, [type_])
        assert (after.status, after.return_value) == (TaskStatus.SUCCESSFUL, MAIN)
    records = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(records) == 1
    assert records[0].getMessage().startswith(f"{failed.name} {failed.id}: FAILED after ")
    assert records[0].exc_info is not None


async def test_a_return_value_of_100_mb_goes_with_its_record() -> None:
    async with Pool(keep_finished=0) as pool:
        result = await pool.enqueue(bytes, 100_000_000).wait()
        assert result.return_value is not None
        assert len(result.return_value) == 100_000_000
        assert pool.get(result.id) is None


async def test_a_partial_of_a_task_has_the_options_of_the_task() -> None:
    def add(number: int, more: int) -> int:
        if not tried:
            tried.append(number)
            raise OSError
        return number + more

    tried: list[int] = []
    clock = FakeClock()
    async with Pool(clock=clock, random=lambda: 0.0) as pool:
        partly = functools.partial(named("add", add, retry=Retry(attempts=2)), 20)
        result = pool.enqueue(partly, 1)
        await reached(pool, result, TaskStatus.WAITING)
        clock.advance(0)
        await result.wait()
    assert (result.status, result.return_value, result.attempts, result.name) == (TaskStatus.SUCCESSFUL, 21, 2, "add")
