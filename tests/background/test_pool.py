"""The pool as a whole: its states, adding from any thread, cancelling, statistics."""

import asyncio
import gc
import threading
import weakref
from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest

from minibg.background import BackgroundTasks, CancelOutcome, Pool, PoolStopped, QueueFull, Retry, TaskStatus
from minibg.background.task import Options
from tests.background.fake_clock import START, FakeClock
from tests.background.recording import named, nothing, reached, story, turn


async def fails() -> None:
    raise ValueError


# --- its states ---


async def test_a_pool_is_used_without_http() -> None:
    async with Pool(workers=4) as pool:
        result = pool.enqueue(pow, 2, 10)
        assert (await result.wait()).return_value == 1024


@pytest.mark.parametrize("use", ["enqueue", "get", "cancel", "add_task"])
def test_use_before_the_start_is_a_runtime_error(use: str) -> None:
    pool = Pool()
    uses: dict[str, Any] = {
        "enqueue": lambda: pool.enqueue(nothing),
        "get": lambda: pool.get("id"),
        "cancel": lambda: pool.cancel("id"),
        "add_task": lambda: BackgroundTasks(pool).add_task(nothing),
    }
    with pytest.raises(RuntimeError, match="is not running yet: use it with 'async with'"):
        uses[use]()


async def test_a_pool_is_opened_once_and_started_once() -> None:
    pool = Pool()
    assert Pool().is_new
    with pytest.raises(RuntimeError, match="not running yet"):
        pool.start()
    await pool.open()
    assert not pool.is_new
    with pytest.raises(RuntimeError, match="this one accepts tasks"):
        await pool.open()
    pool.start()
    with pytest.raises(RuntimeError, match="this one runs"):
        pool.start()
    await pool.stop()
    with pytest.raises(RuntimeError, match="has stopped"):
        await pool.open()


async def test_a_task_that_is_added_before_the_start_runs_at_the_start() -> None:
    pool = Pool()
    await pool.open()
    result = pool.enqueue(nothing)
    assert result.status is TaskStatus.READY
    pool.start()
    await result.wait()
    await pool.stop()


async def test_a_stopped_pool_accepts_no_task() -> None:
    async with Pool() as pool:
        hold = BackgroundTasks(pool)
    with pytest.raises(PoolStopped) as caught:
        pool.enqueue(nothing)
    assert caught.value.retry_after == 1
    with pytest.raises(PoolStopped):
        hold.add_task(nothing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers= is"),
        ({"queue_limit": 0}, "queue_limit= is"),
        ({"drain_timeout": -1}, "drain_timeout= is"),
        ({"keep_finished": -1}, "keep_finished= is"),
        ({"keep_for": -1}, "keep_for= is"),
    ],
)
def test_options_that_make_no_sense_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pool(**options)


# --- adding ---


async def test_tasks_can_be_added_read_and_cancelled_from_any_thread() -> None:
    go = asyncio.Event()

    def from_a_thread(pool: Pool) -> tuple[Any, Any, CancelOutcome, Any]:
        added = pool.enqueue(nothing)
        held = BackgroundTasks(pool).add_task(nothing)
        return added, pool.get(added.id), pool.cancel(held.id), held

    async with Pool(workers=1) as pool:
        await reached(pool, pool.enqueue(go.wait), TaskStatus.RUNNING)
        added, read, outcome, held = await asyncio.to_thread(from_a_thread, pool)
        assert (added is read, outcome, held.status) == (True, CancelOutcome.CANCELLED, TaskStatus.CANCELLED)
        go.set()
        assert (await added.wait()).status is TaskStatus.SUCCESSFUL


async def test_a_refusal_is_raised_in_the_thread_that_adds() -> None:
    async with Pool(queue_limit=1) as pool:
        BackgroundTasks(pool).add_task(held := named("held", nothing))
        with pytest.raises(QueueFull):
            await asyncio.to_thread(pool.enqueue, held)
        assert pool.statistics().held == 1
        pool.hurry()
        pool.drain_timeout = 0


async def test_options_never_share_a_namespace_with_the_functions_arguments() -> None:
    def takes(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return args, kwargs

    words: dict[str, Any] = dict.fromkeys(
        ["func", "function", "self", "name", *(each.name for each in fields(Options))], 3
    )
    async with Pool() as pool:
        hold = BackgroundTasks(pool)
        results = [
            pool.enqueue(takes, 1, **words),
            hold.add_task(takes, 1, **words),
            pool.enqueue(named("a", takes, timeout=60, priority="high").using(always=True), 1, **words),
        ]
        hold.release()
    assert [result.return_value for result in results] == [((1,), words)] * 3


# --- delays ---


async def test_run_at_is_a_moment_of_the_wall_clock() -> None:
    clock = FakeClock()
    async with Pool(clock=clock) as pool:
        result = pool.enqueue(named("a", nothing, run_at=START + timedelta(hours=1)))
        past = pool.enqueue(named("b", nothing, run_at=START - timedelta(hours=1)))
        clock.advance(0)
        await past.wait()
        clock.advance(3599)
        assert result.status is TaskStatus.WAITING
        clock.advance(1)
        await result.wait()
        assert result.started_at == START + timedelta(hours=1)


async def test_a_delay_of_zero_leaves_the_batch_too() -> None:
    clock = FakeClock()
    async with Pool(clock=clock) as pool:
        result = pool.enqueue(named("a", nothing).using(delay=0))
        assert result.status is TaskStatus.WAITING
        clock.advance(0)
        await result.wait()


async def test_run_at_follows_the_wall_clock_when_it_is_set() -> None:
    clock = FakeClock()
    async with Pool(clock=clock) as pool:
        noon = clock.now() + timedelta(hours=1)
        early, on_time = (pool.enqueue(named("a", nothing, run_at=noon)) for _ in range(2))
        pool.cancel(early.id)
        clock.jump(-7200)  # The clock is set back by two hours, which the run has to wait longer.
        clock.advance(3600)
        await turn()
        assert on_time.status is TaskStatus.WAITING
        clock.jump(7200 - 60)  # And set forward to one minute before.
        clock.advance(60)
        await on_time.wait(10)
        assert on_time.started_at is not None
        assert timedelta(0) <= on_time.started_at - noon <= timedelta(seconds=60)


async def test_the_retry_of_a_run_with_run_at_waits_for_its_whole_delay() -> None:
    """The timer that looks at the wall clock every minute ended the backoff of 600 s after 60."""
    clock = FakeClock()
    async with Pool(clock=clock, random=lambda: 1.0) as pool:
        result = pool.enqueue(named("a", fails, retry=Retry(attempts=2, base=600), run_at=clock.now()))
        clock.advance(0)
        await reached(pool, result, TaskStatus.WAITING, attempt=1)
        clock.jump(86_400)
        clock.advance(599)
        await turn()
        assert result.attempts == 1
        clock.advance(1)
        assert (await result.wait(10)).attempts == 2


# --- cancel ---


async def test_in_each_status_cancel_does_what_it_answers() -> None:
    clock, go, thread_go = FakeClock(), asyncio.Event(), threading.Event()
    async with Pool(workers=2, clock=clock) as pool:
        hold = BackgroundTasks(pool)
        held = hold.add_task(named("held", nothing))
        waiting = pool.enqueue(named("waiting", nothing).using(delay=9))
        in_thread = pool.enqueue(named("in thread", thread_go.wait))
        running = pool.enqueue(named("running", go.wait))
        await reached(pool, running, TaskStatus.RUNNING)
        ready = pool.enqueue(named("ready", nothing))
        outcomes = [pool.cancel(each.id) for each in (held, waiting, ready, in_thread, running)]
        assert outcomes == [
            CancelOutcome.CANCELLED,
            CancelOutcome.CANCELLED,
            CancelOutcome.CANCELLED,
            CancelOutcome.RUNNING_IN_THREAD,
            CancelOutcome.REQUESTED,
        ]
        hold.release()
        await running.wait()
        thread_go.set()
        await in_thread.wait()
        clock.advance(9)
        await pool.idle()
        assert [each.status for each in (held, waiting, ready, in_thread, running)] == [
            TaskStatus.CANCELLED,
            TaskStatus.CANCELLED,
            TaskStatus.CANCELLED,
            TaskStatus.SUCCESSFUL,
            TaskStatus.CANCELLED,
        ]
        assert [pool.cancel(each.id) for each in (held, in_thread)] == [CancelOutcome.FINISHED] * 2
        assert pool.cancel("unknown") is CancelOutcome.UNKNOWN
        assert pool.statistics().slots_taken == 0


async def test_a_running_coroutine_that_swallows_its_cancellation_goes_on() -> None:
    begun = asyncio.Event()

    async def swallows() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "all the same"
        return ""

    async with Pool() as pool:
        result = pool.enqueue(swallows)
        await begun.wait()
        assert pool.cancel(result.id) is CancelOutcome.REQUESTED
        await result.wait()
    assert (result.status, result.return_value) == (TaskStatus.SUCCESSFUL, "all the same")


async def test_when_a_run_that_waits_for_its_retry_is_cancelled_its_siblings_go_on() -> None:
    clock = FakeClock()
    async with Pool(workers=1, clock=clock, random=lambda: 1.0) as pool:
        hold = BackgroundTasks(pool)
        first = hold.add_task(named("a", fails, retry=Retry(base=100)))
        second = hold.add_task(named("b", nothing))
        hold.release()
        await reached(pool, first, TaskStatus.WAITING)
        assert pool.cancel(first.id) is CancelOutcome.CANCELLED
        await second.wait()
        assert (first.status, second.status) == (TaskStatus.CANCELLED, TaskStatus.SUCCESSFUL)
        assert clock.pending() == [10.0]  # The timer that looks for long runs.


async def test_a_cancelled_sibling_is_skipped() -> None:
    async with Pool(workers=1) as pool:
        follower = pool.follow()
        hold = BackgroundTasks(pool)
        results = [hold.add_task(named(name, nothing)) for name in "abc"]
        hold.release()
        pool.cancel(results[1].id)
        await pool.idle()
    assert [name for name, status in await story(follower) if status == "RUNNING"] == ["a", "c"]


async def test_a_run_that_waits_behind_a_retry_can_be_cancelled() -> None:
    clock = FakeClock()
    async with Pool(workers=1, clock=clock, random=lambda: 1.0) as pool:
        hold = BackgroundTasks(pool)
        first = hold.add_task(named("a", fails, retry=Retry(attempts=2)))
        second = hold.add_task(named("b", nothing))
        hold.release()
        await reached(pool, first, TaskStatus.WAITING)
        assert pool.cancel(second.id) is CancelOutcome.CANCELLED
        assert first.status is TaskStatus.WAITING
        clock.advance(1)
        await first.wait()
    assert (first.status, second.status) == (TaskStatus.FAILED, TaskStatus.CANCELLED)


# --- statistics ---


async def test_statistics_count_everything_at_one_moment() -> None:
    clock, go = FakeClock(), asyncio.Event()
    async with Pool(workers=1, queue_limit=10, clock=clock) as pool:
        hold = BackgroundTasks(pool)
        hold.add_task(nothing)
        running = pool.enqueue(go.wait)
        await reached(pool, running, TaskStatus.RUNNING)
        pool.enqueue(nothing)
        clock.advance(3)
        pool.enqueue(nothing)
        pool.enqueue(named("later", nothing).using(delay=60))
        now = pool.statistics()
        assert (now.held, now.ready, now.waiting, now.running) == (1, 2, 1, 1)
        assert (now.oldest_ready, now.workers, now.slots_taken, now.queue_limit) == (3.0, 1, 4, 10)
        assert sum(now.by_status.values()) == 5
        now.by_status.clear()
        go.set()
        hold.release()
        clock.advance(60)
        await pool.idle()
        then = pool.statistics()
        assert (then.held, then.ready, then.waiting, then.running, then.slots_taken) == (0, 0, 0, 0, 0)
        assert (then.oldest_ready, then.by_status[TaskStatus.SUCCESSFUL]) == (None, 5)


def test_a_new_pool_has_statistics() -> None:
    assert (Pool().statistics().running, Pool().statistics().overrunning_threads) == (0, 0)


async def test_the_arguments_of_a_run_are_forgotten_when_it_ends() -> None:
    class Argument: ...

    async with Pool() as pool:
        argument = Argument()
        reference = weakref.ref(argument)
        result = await pool.enqueue(lambda _: None, argument).wait()
        del argument
        await pool.enqueue(nothing).wait()
        gc.collect()
        assert (reference(), result.status) == (None, TaskStatus.SUCCESSFUL)
