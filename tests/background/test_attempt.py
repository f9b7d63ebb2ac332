"""One attempt: what is called where, and the verdict on what came of it."""

import asyncio
import contextvars
import functools
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from minibg.background import Event, Pool, Retry, TaskStatus
from minibg.background.attempt import Outcome, Verdict, attempt, judge
from minibg.background.run import Cut, RandomBits, Run
from minibg.background.threads import Threads
from tests.background.fake_clock import FakeClock
from tests.background.recording import named, reached

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="nobody's")


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
    """As a client library's call gives back: awaitable, and no coroutine."""

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
async def test_a_coroutine_function_is_called_on_the_loop_everything_else_in_a_thread(
    function: Callable[[], Awaitable[str] | str], thread: str
) -> None:
    async with Pool() as pool:
        result: Any = await pool.enqueue(function).wait()
    assert (result.status, result.return_value) == (TaskStatus.SUCCESSFUL, thread)


@pytest.mark.parametrize("function", [lambda: where(), lambda: HasAnAwaitable(), HasAnAwaitable])
async def test_an_awaitable_is_awaited_on_the_loop_afterwards(function: Callable[[], Awaitable[str]]) -> None:
    async with Pool() as pool:
        result: Any = await pool.enqueue(function).wait()
    assert (result.status, result.return_value) == (TaskStatus.SUCCESSFUL, MAIN)


def a_run(*, retry: Retry | None = None, attempts: int = 1, cut: Cut | None = None) -> Run:
    run = Run.of(named("a", where, retry=retry, timeout=3), (), {}, "", FakeClock(), RandomBits())
    run.result.attempts = attempts
    run.cut = cut
    return run


error, cancelled = ValueError(), asyncio.CancelledError()


@pytest.mark.parametrize(
    ("run", "outcome", "verdict"),
    [
        (a_run(), Outcome(3), Verdict(Event.SUCCEED)),
        (a_run(), Outcome(error=error), Verdict(Event.FAIL, error)),
        (a_run(), Outcome(error=cancelled), Verdict(Event.FAIL, cancelled)),
        (a_run(cut=Cut.STOP), Outcome(error=cancelled), Verdict(Event.LOSE, cancelled)),
        (a_run(cut=Cut.STOP), Outcome(3), Verdict(Event.SUCCEED)),
        (a_run(cut=Cut.STOP), Outcome(error=error), Verdict(Event.FAIL, error)),
        (a_run(cut=Cut.CANCEL), Outcome(error=cancelled), Verdict(Event.CANCEL, cancelled)),
        (a_run(cut=Cut.CANCEL), Outcome(3), Verdict(Event.SUCCEED)),
        (a_run(retry=Retry()), Outcome(error=error), Verdict(Event.RETRY, error, 0.5)),
        (a_run(retry=Retry(), attempts=4), Outcome(error=error), Verdict(Event.RETRY, error, 4.0)),
        (a_run(retry=Retry(), attempts=5), Outcome(error=error), Verdict(Event.FAIL, error)),
        (a_run(retry=Retry()), Outcome(error=cancelled), Verdict(Event.FAIL, cancelled)),
    ],
)
def test_the_verdict(run: Run, outcome: Outcome, verdict: Verdict) -> None:
    assert judge(run, outcome, lambda: 0.5) == verdict


@pytest.mark.parametrize("outcome", [Outcome(error=cancelled), Outcome(3), Outcome(error=error)])
def test_over_its_timeout_it_failed_whatever_it_made_of_that(outcome: Outcome) -> None:
    verdict = judge(a_run(cut=Cut.TIMEOUT), outcome, lambda: 0.5)
    assert (verdict.event, type(verdict.error), str(verdict.error)) == (
        Event.FAIL,
        TimeoutError,
        "a took longer than its timeout of 3 s",
    )
    assert verdict.error is not None
    assert verdict.error.__cause__ is outcome.error


def test_a_timeout_is_worth_another_attempt() -> None:
    verdict = judge(a_run(cut=Cut.TIMEOUT, retry=Retry()), Outcome(error=cancelled), lambda: 0.5)
    assert (verdict.event, verdict.delay) == (Event.RETRY, 0.5)


async def test_who_awaits_an_attempt_can_be_cancelled_in_the_moment_it_ends() -> None:
    loop = asyncio.get_running_loop()

    async def ends_with_the_caller() -> None:
        loop.call_soon(caller.cancel)

    run = Run.of(ends_with_the_caller, (), {}, "", FakeClock(), RandomBits())
    caller = asyncio.create_task(attempt(run, Threads(loop)))
    await asyncio.wait([caller])
    assert (caller.cancelled(), run.attempt) == (True, None)


# Context.


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
    assert [result.return_value for result in results] == ["first"] * 3 + ["second"] * 3 + ["nobody's"]


async def test_what_a_first_attempt_sets_a_second_does_not_see() -> None:
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
            task: Any = named("a", function, retry=Retry(attempts=2)).using(delay=9)
            result = pool.enqueue(task)
            request_id.set("of the next request")
            clock.advance(9)
            await reached(pool, result, TaskStatus.WAITING, attempt=1)
            clock.advance(0.5)
            await result.wait()
    assert seen == ["of the request"] * 4


async def test_workers_run_in_an_empty_context() -> None:
    request_id.set("of whoever started the pool")
    async with Pool(workers=1) as pool:
        result = await contextvars.Context().run(pool.enqueue, request_id.get).wait()
    assert result.return_value == "nobody's"


# Isolation.


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


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
        (raiser(Mute()), f"{__name__}.Mute"),
        (raiser_async(Mute()), f"{__name__}.Mute"),
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
    assert [record.getMessage() for record in records] == [f"{failed.name} {failed.id} failed at attempt 1"]
    assert records[0].exc_info is not None


async def test_a_return_value_of_100_mb_goes_with_its_record() -> None:
    async with Pool(keep_finished=0) as pool:
        result = await pool.enqueue(bytes, 100_000_000).wait()
        assert result.return_value is not None
        assert len(result.return_value) == 100_000_000
        assert pool.get(result.id) is None


@pytest.mark.parametrize("cut", [Cut.CANCEL, Cut.STOP])
def test_what_was_told_to_end_for_good_is_not_tried_again(cut: Cut) -> None:
    error = OSError("raised by its cleanup")
    run = a_run(retry=Retry(attempts=5), cut=cut)
    assert judge(run, Outcome(error=error), lambda: 0.5) == Verdict(Event.FAIL, error)


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
