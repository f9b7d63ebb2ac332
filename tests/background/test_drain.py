"""The stop of a pool: the runs that are finished, cancelled and lost, and the report."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from minibg.background import (
    BackgroundTasks,
    CancelOutcome,
    DrainReport,
    Pool,
    PoolStopped,
    Retry,
    TaskResult,
    TaskStatus,
    Unfinished,
)
from tests.background.fake_clock import FakeClock
from tests.background.recording import named, nothing, reached, story, turn


async def fails() -> None:
    raise ValueError


@asynccontextmanager
async def started(pool: Pool) -> AsyncIterator[Pool]:
    """A pool whose stop the test calls itself."""
    await pool.open()
    pool.start()
    yield pool


def unfinished(report: DrainReport) -> list[tuple[str, str, str, float, bool]]:
    return [(each.name, each.was, each.became, each.age, each.left_behind) for each in report.unfinished]


async def test_an_unused_pool_stops_at_once() -> None:
    assert await Pool().stop() == DrainReport(0, (), 0.0)
    async with started(Pool(clock=FakeClock())) as pool:
        assert await pool.stop() == DrainReport(0, (), 0.0)


async def test_a_pool_that_was_opened_and_never_started_stops_at_once_and_its_tasks_are_lost() -> None:
    pool = Pool(clock=FakeClock())
    await pool.open()
    result = pool.enqueue(named("a", nothing))
    report = await pool.stop()
    assert unfinished(report) == [("a", "READY", "LOST", 0.0, False)]
    assert (result.status, pool.statistics().slots_taken) == (TaskStatus.LOST, 0)


async def test_accepted_runs_are_finished_up_to_drain_timeout() -> None:
    clock, go = FakeClock(), asyncio.Event()
    async with started(Pool(workers=1, clock=clock)) as pool:
        results: list[TaskResult[Any]] = [pool.enqueue(named("a", go.wait)), pool.enqueue(named("b", nothing))]
        results.append(pool.enqueue(named("c", nothing, delay=29)))
        stop = asyncio.create_task(pool.stop())
        await turn()
        assert pool.is_draining
        go.set()
        clock.advance(28)
        await turn()
        assert not stop.done()
        clock.advance(1)
        report = await stop
    assert report == DrainReport(3, (), 29.0)
    assert str(report) == "drained in 29.0 s: 3 finished, 0 did not"
    assert [each.status for each in results] == [TaskStatus.SUCCESSFUL] * 3
    assert not pool.is_draining


async def test_a_stop_waits_for_a_response_that_is_in_flight() -> None:
    async with started(Pool(clock=FakeClock())) as pool:
        hold = BackgroundTasks(pool)
        result = hold.add_task(nothing)
        stop = asyncio.create_task(pool.stop())
        await turn()
        hold.release()
        assert (await stop).finished == 1
        assert result.status is TaskStatus.SUCCESSFUL


async def test_coroutines_that_still_run_are_cancelled_and_awaited(caplog: pytest.LogCaptureFixture) -> None:
    clock, cleaned, begun = FakeClock(), [], asyncio.Event()

    async def slow() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await turn()
            cleaned.append("cleaned up")

    async with started(Pool(workers=1, drain_timeout=10, clock=clock)) as pool:
        running = BackgroundTasks(pool, "POST /register").add_task(named("held", nothing))
        hold = BackgroundTasks(pool, "POST /slow")
        slow_one, sibling = hold.add_task(named("slow", slow)), hold.add_task(named("sibling", nothing))
        hold.release()
        await begun.wait()
        stop = asyncio.create_task(pool.stop())
        await turn()
        clock.advance(9.9)
        await turn()
        assert cleaned == []
        clock.advance(0.1)
        report = await stop
    assert cleaned == ["cleaned up"]
    assert unfinished(report) == [
        ("held", "HELD", "LOST", 10.0, False),
        ("slow", "RUNNING", "LOST", 10.0, False),
        ("sibling", "READY", "LOST", 10.0, False),
    ]
    assert [each.status for each in (running, slow_one, sibling)] == [TaskStatus.LOST] * 3
    assert [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING] == [
        f"did not finish: held {running.id} of POST /register, 10.0 s old, was HELD: LOST",
        f"did not finish: slow {slow_one.id} of POST /slow, 10.0 s old, was RUNNING: LOST",
        f"did not finish: sibling {sibling.id} of POST /slow, 10.0 s old, was READY: LOST",
        "drained in 10.0 s: 0 finished, 3 did not",
    ]


async def test_a_coroutine_that_returns_when_it_is_cancelled_has_finished() -> None:
    clock, begun = FakeClock(), asyncio.Event()

    async def finishes_quickly() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "just in time"
        return ""

    async with started(Pool(drain_timeout=0, clock=clock)) as pool:
        result = pool.enqueue(finishes_quickly)
        await begun.wait()
        stop = asyncio.create_task(pool.stop())
        await turn()
        clock.advance(0)
        report = await stop
    assert (report.finished, report.unfinished, result.return_value) == (1, (), "just in time")


async def test_a_thread_that_does_not_return_is_named_and_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minibg.background.worker.CANCEL_SECONDS", 0.0)
    clock, go = FakeClock(), threading.Event()
    async with started(Pool(workers=1, drain_timeout=10, clock=clock)) as pool:
        result = pool.enqueue(named("stuck", go.wait))
        await reached(pool, result, TaskStatus.RUNNING)
        stop = asyncio.create_task(pool.stop())
        await turn()
        clock.advance(10)
        report = await stop
        go.set()
    assert unfinished(report) == [("stuck", "RUNNING", "LOST", 10.0, True)]
    assert str(report.unfinished[0]).endswith("was RUNNING: LOST, its attempt goes on and is left behind")


async def test_a_coroutine_that_swallows_its_cancellation_is_named_and_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("minibg.background.worker.CANCEL_SECONDS", 0.0)
    clock, go, begun, swallowed = FakeClock(), asyncio.Event(), asyncio.Event(), []

    async def stubborn() -> None:
        begun.set()
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                swallowed.append(True)

    async with started(Pool(workers=1, drain_timeout=10, clock=clock)) as pool:
        result = pool.enqueue(named("stubborn", stubborn))
        await begun.wait()
        stop = asyncio.create_task(pool.stop())
        await turn()
        clock.advance(10)
        await turn()
        clock.advance(5)
        report = await stop
        assert (unfinished(report), len(swallowed)) == ([("stubborn", "RUNNING", "LOST", 15.0, True)], 1)
        worker = next(task for task in asyncio.all_tasks() if task.get_name() == "minibg-worker-1")
        go.set()
        await asyncio.wait([worker])
    assert (result.status, pool.statistics().overrunning_threads) == (TaskStatus.LOST, 0)


async def test_each_phase_can_be_ended_early_by_hurry() -> None:
    clock, begun = FakeClock(), asyncio.Event()

    async def slow() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with started(Pool(clock=clock)) as pool:
        pool.hurry()
        pool.enqueue(named("slow", slow))
        await begun.wait()
        stop = asyncio.create_task(pool.stop())
        await turn()
        assert not stop.done()
        pool.hurry()
        report = await stop
    assert (unfinished(report), report.seconds) == ([("slow", "RUNNING", "LOST", 0.0, False)], 0.0)


async def test_a_run_that_is_due_after_the_deadline_is_not_waited_for() -> None:
    clock = FakeClock()
    async with started(Pool(drain_timeout=30, clock=clock)) as pool:
        pool.enqueue(named("late", nothing, delay=30.1))
        report = await pool.stop()
    assert unfinished(report) == [("late", "WAITING", "LOST", 0.0, False)]
    assert report.seconds == 0.0


async def test_a_retry_due_past_the_deadline_is_not_waited_for_nor_its_siblings() -> None:
    clock, go = FakeClock(), asyncio.Event()

    async def fails_on_the_word() -> None:
        await go.wait()
        raise ValueError

    async with started(Pool(drain_timeout=30, clock=clock, random=lambda: 1.0)) as pool:
        hold = BackgroundTasks(pool)
        first = hold.add_task(named("a", fails_on_the_word, retry=Retry(base=31)))
        hold.add_task(named("b", nothing))
        hold.release()
        await reached(pool, first, TaskStatus.RUNNING)
        stop = asyncio.create_task(pool.stop())
        await turn()
        go.set()
        report = await stop
    assert unfinished(report) == [("a", "WAITING", "LOST", 0.0, False), ("b", "READY", "LOST", 0.0, False)]


async def test_a_retry_due_in_time_is_waited_for() -> None:
    clock = FakeClock()
    async with started(Pool(drain_timeout=30, clock=clock, random=lambda: 1.0)) as pool:
        result = pool.enqueue(named("a", fails, retry=Retry(attempts=2, base=29)))
        await reached(pool, result, TaskStatus.WAITING)
        stop = asyncio.create_task(pool.stop())
        await turn()
        clock.advance(29)
        assert (await stop).finished == 1
    assert (result.status, result.attempts) == (TaskStatus.FAILED, 2)


async def test_when_a_run_beyond_the_deadline_is_cancelled_its_siblings_are_waited_for() -> None:
    clock, go = FakeClock(), asyncio.Event()
    async with started(Pool(workers=2, clock=clock, random=lambda: 1.0)) as pool:
        hold = BackgroundTasks(pool)
        first = hold.add_task(named("a", fails, retry=Retry(base=100)))
        second = hold.add_task(named("b", nothing))
        hold.release()
        other = pool.enqueue(named("c", go.wait))
        await reached(pool, first, TaskStatus.WAITING)
        stop = asyncio.create_task(pool.stop())
        await turn()
        assert pool.cancel(first.id) is CancelOutcome.CANCELLED
        await second.wait()
        await turn()
        assert not stop.done()
        go.set()
        report = await stop
    assert (report.finished, report.unfinished, other.status) == (3, (), TaskStatus.SUCCESSFUL)


async def test_a_task_that_is_added_during_phase_1_runs_too() -> None:
    async def adds(pool: Pool, hold: BackgroundTasks) -> None:
        while not pool.is_draining:
            await asyncio.sleep(0)
        pool.enqueue(named("enqueued", nothing))
        hold.add_task(named("added", nothing))
        pool.enqueue(named("too late", nothing, delay=100))

    async with started(Pool(clock=FakeClock())) as pool:
        follower, hold = pool.follow(), BackgroundTasks(pool)
        hold.add_task(named("adds", adds), pool, hold)
        hold.release()
        report = await pool.stop()
    assert (report.finished, [each.name for each in report.unfinished]) == (3, ["too late"])
    done = [name for name, status in await story(follower) if status == "SUCCESSFUL"]
    assert sorted(done) == ["added", "adds", "enqueued"]


async def test_a_task_that_is_added_in_the_clean_up_of_phase_2_is_refused() -> None:
    clock, begun, refused = FakeClock(), asyncio.Event(), []

    async def adds_in_its_cleanup(pool: Pool) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            try:
                pool.enqueue(nothing)
            except PoolStopped:
                refused.append(True)

    async with started(Pool(drain_timeout=0, clock=clock)) as pool:
        pool.enqueue(adds_in_its_cleanup, pool)
        await begun.wait()
        stop = asyncio.create_task(pool.stop())
        await turn()
        clock.advance(0)
        await stop
    assert refused == [True]


async def test_no_attempt_begins_after_phase_1() -> None:
    clock, begun = FakeClock(), asyncio.Event()

    async def slow() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with started(Pool(workers=1, drain_timeout=1, clock=clock)) as pool:
        follower = pool.follow()
        hold = BackgroundTasks(pool)
        hold.add_task(named("a", slow))
        hold.add_task(named("b", nothing))
        hold.release()
        pool.enqueue(named("c", nothing))
        await begun.wait()
        stop = asyncio.create_task(pool.stop())
        await turn()
        clock.advance(1)
        await stop
    assert [name for name, status in await story(follower) if status == "RUNNING"] == ["a"]


async def test_a_response_that_leaves_after_the_stop_finds_its_tasks_lost() -> None:
    async with started(Pool(drain_timeout=0, clock=(clock := FakeClock()))) as pool:
        hold = BackgroundTasks(pool)
        result = hold.add_task(nothing)
        stop = asyncio.create_task(pool.stop())
        await turn()
        clock.advance(0)
        await stop
        hold.release()
        hold.drop()
    assert result.status is TaskStatus.LOST


async def test_two_calls_of_stop_return_one_report() -> None:
    async with started(Pool(clock=FakeClock())) as pool:
        pool.enqueue(nothing)
        first, second = await asyncio.gather(pool.stop(), pool.stop())
        assert first is second
        assert await pool.stop() is first


async def test_a_caller_of_stop_may_be_cancelled_and_the_stop_goes_on() -> None:
    go = asyncio.Event()
    async with started(Pool(clock=FakeClock())) as pool:
        pool.enqueue(go.wait)
        impatient = asyncio.create_task(pool.stop())
        await turn()
        impatient.cancel()
        await turn()
        assert (impatient.cancelled(), pool.is_draining) == (True, True)
        go.set()
        assert (await pool.stop()).finished == 1


async def test_the_log_names_the_runs_that_a_stop_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "minibg.background")
    clock, go = FakeClock(), asyncio.Event()
    async with started(Pool(workers=1, clock=clock)) as pool:
        result = pool.enqueue(named("a", go.wait))
        pool.enqueue(named("b", nothing))
        pool.enqueue(named("late", nothing, delay=100))
        await reached(pool, result, TaskStatus.RUNNING)
        clock.advance(2)
        stop = asyncio.create_task(pool.stop())
        await turn()
        go.set()
        await stop
    assert caplog.messages[0] == (
        f"waiting up to 30 s for 2 tasks: 0 held, 1 ready, 1 running, 1 waiting, a {result.id} runs for 2.0 s"
    )


async def test_one_task_is_not_called_tasks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "minibg.background")
    async with started(Pool(clock=FakeClock())) as pool:
        hold = BackgroundTasks(pool)
        hold.add_task(nothing)
        stop = asyncio.create_task(pool.stop())
        await turn()
        hold.release()
        await stop
    assert caplog.messages[0] == "waiting up to 30 s for 1 task: 1 held, 0 ready, 0 running, 0 waiting"


async def test_the_report_has_one_line_for_each_run_that_did_not_finish_and_a_summary(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    async with started(Pool(workers=1, drain_timeout=1, clock=clock)) as pool:
        await pool.enqueue(named("finished", nothing)).wait()
        clock.advance(2)
        held = BackgroundTasks(pool, "GET /a").add_task(named("held", nothing))
        late = pool.enqueue(named("late", nothing, delay=60))
        clock.advance(3)
        stop = asyncio.create_task(pool.stop())
        await turn()
        clock.advance(1)
        report = await stop
    assert (report.finished, report.seconds) == (0, 1.0)
    assert [str(line) for line in report.unfinished] == [
        f"held {held.id} of GET /a, 4.0 s old, was HELD: LOST",
        f"late {late.id}, 4.0 s old, was WAITING: LOST",
    ]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        *(f"did not finish: {line}" for line in report.unfinished),
        "drained in 1.0 s: 0 finished, 2 did not",
    ]


def test_a_line_of_the_report_cannot_be_ended_by_a_client() -> None:
    line = Unfinished("id", "name", "GET /a\nb", 1.0, TaskStatus.HELD, TaskStatus.LOST)
    assert str(line) == r"name id of GET /a\nb, 1.0 s old, was HELD: LOST"


async def test_a_task_that_is_added_in_the_moment_the_last_one_ends_is_finished_too() -> None:
    gate = asyncio.Event()

    async def chain(pool: Pool) -> TaskStatus:
        await pool.enqueue(gate.wait)
        return (await pool.enqueue(nothing)).status

    pool = Pool()
    await pool.open()
    pool.start()
    chained = asyncio.create_task(chain(pool))
    await turn()
    stop = asyncio.create_task(pool.stop())
    await turn()
    gate.set()
    assert ((await stop).unfinished, await chained) == ((), TaskStatus.SUCCESSFUL)
