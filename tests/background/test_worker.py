"""The workers: order, retries, timeouts, and the lines of the log."""

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from minibg.background import BackgroundTasks, CancelOutcome, Pool, Retry, RetryLater, TaskResult, TaskStatus
from tests.background.fake_clock import FakeClock
from tests.background.recording import named, nothing, reached, story


def failing(times: int, error: BaseException | None = None) -> Callable[[], Coroutine[Any, Any, str]]:
    """A coroutine function that fails so many times."""
    left = [error or ValueError("not yet")] * times

    async def fails() -> str:
        if left:
            raise left.pop()
        return "done"

    return fails


def a_response(pool: Pool, *tasks: Any, origin: str = "") -> list[Any]:
    hold = BackgroundTasks(pool, origin)
    results = [hold.add_task(task) for task in tasks]
    hold.release()
    return results


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


# --- order ---


async def test_the_runs_of_one_response_run_strictly_one_after_another() -> None:
    async def slow() -> None:
        await asyncio.sleep(0)

    async with Pool(workers=4) as pool:
        follower = pool.follow()
        a_response(pool, named("a", slow), named("b", failing(1)), named("c", lambda: None), named("d", slow))
    assert (await story(follower))[8:] == [
        ("a", "RUNNING"),
        ("a", "SUCCESSFUL"),
        ("b", "RUNNING"),
        ("b", "FAILED"),
        ("c", "RUNNING"),
        ("c", "SUCCESSFUL"),
        ("d", "RUNNING"),
        ("d", "SUCCESSFUL"),
    ]


async def test_batches_leave_the_queue_in_the_order_of_their_release() -> None:
    async with Pool(workers=1) as pool:
        follower = pool.follow()
        first, second = BackgroundTasks(pool), BackgroundTasks(pool)
        first.add_task(named("first", nothing))
        second.add_task(named("second", nothing))
        second.release()
        first.release()
    assert [name for name, status in await story(follower) if status == "RUNNING"] == ["second", "first"]


async def test_at_most_workers_runs_are_in_progress_whatever_the_load() -> None:
    go = asyncio.Event()
    async with Pool(workers=2) as pool:
        first, second, third = (a_response(pool, go.wait)[0] for _ in range(3))
        await reached(pool, second, TaskStatus.RUNNING)
        assert (first.status, third.status) == (TaskStatus.RUNNING, TaskStatus.READY)
        assert (pool.statistics().running, pool.statistics().ready) == (2, 1)
        go.set()


async def test_a_run_that_waits_for_its_retry_frees_its_worker_its_later_siblings_wait_for_it() -> None:
    clock = FakeClock()
    async with Pool(workers=1, clock=clock, random=lambda: 0.5) as pool:
        follower = pool.follow()
        first, second = a_response(pool, named("a", failing(1), retry=Retry()), named("b", nothing))
        await reached(pool, first, TaskStatus.WAITING)
        await pool.enqueue(named("other", nothing)).wait()
        assert second.status is TaskStatus.READY
        clock.advance(0.49)
        await asyncio.sleep(0)
        assert first.status is TaskStatus.WAITING
        clock.advance(0.01)
        await second.wait()
    assert (await story(follower))[4:] == [
        ("a", "RUNNING"),
        ("a", "WAITING"),
        ("other", "HELD"),
        ("other", "READY"),
        ("other", "RUNNING"),
        ("other", "SUCCESSFUL"),
        ("a", "READY"),
        ("a", "RUNNING"),
        ("a", "SUCCESSFUL"),
        ("b", "RUNNING"),
        ("b", "SUCCESSFUL"),
    ]


async def test_a_task_with_a_delay_leaves_its_batch() -> None:
    clock = FakeClock()
    async with Pool(workers=1, clock=clock) as pool:
        delayed, after = a_response(pool, named("a", nothing, delay=60), named("b", nothing))
        await after.wait()
        assert delayed.status is TaskStatus.WAITING
        clock.advance(60)
        await delayed.wait()


async def test_a_burst_of_tiny_tasks_does_not_block_the_event_loop() -> None:
    turns = 0

    async def counts_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with Pool(workers=1) as pool:
        counting = asyncio.create_task(counts_turns())
        for _ in range(100):
            pool.enqueue(nothing)
        await pool.idle()
        counting.cancel()
    assert turns >= 100


# --- retry ---


async def test_the_errors_of_the_attempts_stay_in_the_task_result_the_log_has_their_tracebacks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    async with Pool(clock=clock, random=lambda: 0.5) as pool:
        [result] = a_response(pool, named("a", failing(3), retry=Retry(attempts=3)), origin="POST /register")
        await reached(pool, result, TaskStatus.WAITING, attempt=1)
        assert clock.pending()[0] == 0.5
        clock.advance(0.5)
        await reached(pool, result, TaskStatus.WAITING, attempt=2)
        clock.advance(1)
        await result.wait()
    assert (result.status, result.attempts) == (TaskStatus.FAILED, 3)
    assert [(error.attempt, error.type, error.message) for error in result.errors] == [
        (1, "ValueError", "not yet"),
        (2, "ValueError", "not yet"),
        (3, "ValueError", "not yet"),
    ]
    who = f"a {result.id} of POST /register"
    assert messages(caplog, logging.WARNING) == [
        f"{who}: attempt 1 failed, the next is in 0.5 s",
        f"{who}: attempt 2 failed, the next is in 1.0 s",
    ]
    assert messages(caplog, logging.ERROR) == [f"{who}: FAILED after 1.500 s, attempt 3"]
    raised = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [repr(error) for error in raised] == ["ValueError('not yet')"] * 3
    assert [error is not None and error.__traceback__ is not None for error in raised] == [True] * 3


async def test_a_run_that_succeeds_at_its_second_attempt_keeps_the_first_error() -> None:
    clock = FakeClock()
    async with Pool(clock=clock, random=lambda: 0.0) as pool:
        result = pool.enqueue(named("a", failing(1), retry=Retry()))
        await reached(pool, result, TaskStatus.WAITING)
        clock.advance(0)
        await result.wait()
    assert (result.status, result.attempts, len(result.errors), result.return_value) == (
        TaskStatus.SUCCESSFUL,
        2,
        1,
        "done",
    )


async def test_a_task_without_a_retry_has_one_attempt() -> None:
    async with Pool() as pool:
        result = await pool.enqueue(named("a", failing(1, RetryLater(after=3)))).wait()
    assert (result.status, result.attempts) == (TaskStatus.FAILED, 1)


async def test_retry_later_chooses_the_delay() -> None:
    clock = FakeClock()
    async with Pool(clock=clock) as pool:
        result = pool.enqueue(named("a", failing(1, RetryLater(after=30)), retry=Retry()))
        await reached(pool, result, TaskStatus.WAITING)
        clock.advance(29.9)
        assert result.status is TaskStatus.WAITING
        clock.advance(0.1)
        assert (await result.wait()).status is TaskStatus.SUCCESSFUL


async def test_give_up_on_ends_it_at_once() -> None:
    async with Pool() as pool:
        result = await pool.enqueue(named("a", failing(1), retry=Retry(give_up_on=(ValueError,)))).wait()
    assert (result.status, result.attempts) == (TaskStatus.FAILED, 1)


async def test_the_log_is_written_in_the_context_of_the_run() -> None:
    request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
    seen: list[str] = []

    class Reads(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            seen.append(request_id.get())
            return True

    logger, reads = logging.getLogger("minibg.background"), Reads()
    logger.addFilter(reads)
    try:
        async with Pool() as pool:
            request_id.set("one")
            result = pool.enqueue(failing(1))
            request_id.set("two")
            await result.wait()
            assert seen == ["one"]
    finally:
        logger.removeFilter(reads)


# --- timeout ---


async def test_a_coroutine_over_its_timeout_is_cancelled_and_awaited() -> None:
    clock, begun, story_ = FakeClock(), asyncio.Event(), []

    async def slow() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            story_.append("cleaned up")

    async with Pool(workers=1, clock=clock) as pool:
        result = pool.enqueue(named("a", slow, timeout=3))
        await begun.wait()
        clock.advance(2.9)
        assert result.status is TaskStatus.RUNNING
        clock.advance(0.1)
        await result.wait()
        story_.append(result.status)
        clock.advance(10)
    assert story_ == ["cleaned up", TaskStatus.FAILED]
    assert (result.errors[0].type, result.errors[0].message) == (
        "TimeoutError",
        "a took longer than its timeout of 3 s",
    )
    assert "await asyncio.Event().wait()" in result.errors[0].traceback


async def test_there_is_no_timeout_unless_one_is_set() -> None:
    clock, go, thread_go = FakeClock(), asyncio.Event(), threading.Event()
    async with Pool(clock=clock) as pool:
        results: list[TaskResult[Any]] = [pool.enqueue(go.wait), pool.enqueue(thread_go.wait)]
        for result in results:
            await reached(pool, result, TaskStatus.RUNNING)
        clock.advance(7 * 24 * 3600)
        await asyncio.sleep(0)
        assert [result.status for result in results] == [TaskStatus.RUNNING] * 2
        go.set()
        thread_go.set()
    assert [result.status for result in results] == [TaskStatus.SUCCESSFUL] * 2


async def test_a_timeout_can_be_retried() -> None:
    clock, begun = FakeClock(), asyncio.Event()
    attempts: list[Any] = []

    async def slow_at_first() -> None:
        attempts.append(len(attempts) + 1)
        begun.set()
        if attempts == [1]:
            await asyncio.Event().wait()

    async with Pool(clock=clock, random=lambda: 0.5) as pool:
        result = pool.enqueue(named("a", slow_at_first, timeout=3, retry=Retry()))
        await begun.wait()
        clock.advance(3)
        await reached(pool, result, TaskStatus.WAITING)
        clock.advance(0.5)
        assert (await result.wait()).status is TaskStatus.SUCCESSFUL
    assert attempts == [1, 2]


async def test_an_attempt_may_time_out_before_its_first_step() -> None:
    clock = FakeClock()
    async with Pool(clock=clock) as pool:
        result = pool.enqueue(named("a", nothing, timeout=3))
        await reached(pool, result, TaskStatus.RUNNING)
        clock.advance(3)
        await result.wait()
    assert (result.status, result.errors[0].type) == (TaskStatus.FAILED, "TimeoutError")


async def test_the_timer_of_a_coroutine_that_ends_in_time_is_cancelled() -> None:
    clock = FakeClock()
    async with Pool(clock=clock) as pool:
        result = await pool.enqueue(named("a", nothing, timeout=3)).wait()
        assert (result.status, 3.0 in clock.pending()) == (TaskStatus.SUCCESSFUL, False)


async def test_a_coroutine_that_swallows_its_cancellation_is_named_and_keeps_its_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, go, begun, swallowed = FakeClock(), asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stubborn() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        await go.wait()
        return "too late"

    async with Pool(workers=1, clock=clock) as pool:
        result = pool.enqueue(named("a", stubborn, timeout=3))
        after = pool.enqueue(named("b", nothing))
        await begun.wait()
        clock.advance(3)
        await swallowed.wait()
        clock.advance(1)
        assert messages(caplog, logging.WARNING) == [f"a {result.id} swallows its cancellation: its worker stays taken"]
        assert (result.status, after.status) == (TaskStatus.RUNNING, TaskStatus.READY)
        go.set()
        await after.wait()
    assert (result.status, result.errors[0].type, result.return_value) == (TaskStatus.FAILED, "TimeoutError", None)


async def test_a_thread_over_its_timeout_is_failed_at_once_and_keeps_its_worker_until_it_returns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, go = FakeClock(), threading.Event()

    async with Pool(workers=1, clock=clock) as pool:
        result = pool.enqueue(named("a", go.wait, timeout=3, retry=Retry()))
        await reached(pool, result, TaskStatus.RUNNING)
        after = pool.enqueue(named("b", nothing))
        clock.advance(3)
        assert (result.status, result.errors[0].type, result.attempts) == (TaskStatus.FAILED, "TimeoutError", 1)
        assert (after.status, pool.statistics().overrunning_threads, pool.statistics().running) == (
            TaskStatus.READY,
            1,
            0,
        )
        assert pool.cancel(result.id) is CancelOutcome.FINISHED
        clock.advance(2)
        go.set()
        await after.wait()
        assert pool.statistics().overrunning_threads == 0
    assert (result.status, result.return_value, result.attempts) == (TaskStatus.FAILED, None, 1)
    assert messages(caplog, logging.ERROR) == [f"a {result.id}: FAILED after 3.000 s, attempt 1"]
    assert messages(caplog, logging.WARNING) == [
        f"a {result.id} returned after 5.0 s, past its timeout: its worker is free"
    ]


async def test_the_awaitable_of_a_call_over_its_timeout_is_not_begun() -> None:
    clock, go, begun = FakeClock(), threading.Event(), []

    async def begins() -> None:
        begun.append("coroutine")

    class Awaitable:
        def __await__(self) -> Any:
            begun.append("awaitable")
            return begins().__await__()

    def returns_a_coroutine() -> Any:
        go.wait()
        return begins()

    def returns_an_awaitable() -> Any:
        go.wait()
        return Awaitable()

    async with Pool(workers=2, clock=clock) as pool:
        results = [pool.enqueue(named("a", f, timeout=3)) for f in (returns_a_coroutine, returns_an_awaitable)]
        for result in results:
            await reached(pool, result, TaskStatus.RUNNING)
        clock.advance(3)
        go.set()
        a_response(pool, nothing)
        while pool.statistics().overrunning_threads:  # Each worker is free when its thread has returned.
            await pool.enqueue(threading.get_ident).wait()
    assert ([result.status for result in results], begun) == ([TaskStatus.FAILED] * 2, [])


@pytest.mark.parametrize("timeout", [None, 3])
@pytest.mark.parametrize("loop_is_open", [True, False])
def test_the_coroutine_of_a_call_that_outlives_the_pool_is_closed(
    timeout: float | None, loop_is_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else Python would warn that it was never awaited, and a warning is an error here."""
    monkeypatch.setattr("minibg.background.worker.CANCEL_SECONDS", 0.0)
    go, coroutines, before = threading.Event(), list[Any](), {*threading.enumerate()}

    async def never_awaited() -> None: ...

    def returns_a_coroutine() -> Any:
        go.wait()
        coroutines.append(never_awaited())
        return coroutines[0]

    def the_threads_end() -> None:
        go.set()
        for thread in {*threading.enumerate()} - before:
            if thread.name.startswith("minibg-task"):
                thread.join(5)

    async def stops() -> None:
        clock = FakeClock()
        async with Pool(workers=1, drain_timeout=0, clock=clock) as pool:
            result = pool.enqueue(named("a", returns_a_coroutine, timeout=timeout))
            await reached(pool, result, TaskStatus.RUNNING)
            clock.advance(3)
            stop = asyncio.create_task(pool.stop())
            while not stop.done():
                await asyncio.sleep(0)
                clock.advance(0)
        if loop_is_open:
            await asyncio.to_thread(the_threads_end)

    asyncio.run(stops())
    the_threads_end()
    assert [each.cr_frame for each in coroutines] == [None]


async def test_the_awaitable_of_a_call_is_cancelled_at_the_timeout_of_both() -> None:
    clock, begun = FakeClock(), asyncio.Event()

    async def waits() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with Pool(clock=clock) as pool:
        result = pool.enqueue(named("a", lambda: waits(), timeout=3))
        await begun.wait()
        clock.advance(3)
        await result.wait()
    assert (result.status, result.errors[0].type) == (TaskStatus.FAILED, "TimeoutError")


async def test_a_warning_names_a_run_that_still_runs_after_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock, go = FakeClock(), asyncio.Event()
    async with Pool(clock=clock) as pool:
        result = pool.enqueue(named("a", go.wait))
        await reached(pool, result, TaskStatus.RUNNING)
        clock.advance(59)
        assert messages(caplog, logging.WARNING) == []
        clock.advance(200)
        assert messages(caplog, logging.WARNING) == [f"a {result.id} still runs after 60 s"]
        go.set()
        await pool.idle()
        clock.advance(20)
        assert clock.pending() == []


# --- priority ---


async def test_a_high_batch_runs_before_normal_ones_that_were_queued_earlier() -> None:
    go = asyncio.Event()
    async with Pool(workers=1) as pool:
        follower = pool.follow()
        pool.enqueue(named("first", go.wait))
        pool.enqueue(named("normal", nothing))
        pool.enqueue(named("high", nothing, priority="high"))
        pool.enqueue(named("high, later", nothing).using(priority="high"))
        go.set()
    done = [name for name, status in await story(follower) if status == "SUCCESSFUL"]
    # The worker takes its first batch when the event loop goes on: by then all four are queued.
    assert done == ["high", "high, later", "first", "normal"]
