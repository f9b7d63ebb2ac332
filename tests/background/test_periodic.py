"""Tasks on a schedule: runs do not overlap, the schedule is kept, missed moments are counted."""

import asyncio
import logging

import pytest

from minibg.background import BackgroundTasks, Pool, TaskStatus
from tests.background.fake_clock import START, FakeClock
from tests.background.recording import named, nothing, reached


def seconds_since_start(clock: FakeClock) -> float:
    return (clock.now() - START).total_seconds()


async def test_the_first_run_is_one_interval_from_the_start_and_the_schedule_is_kept() -> None:
    clock, ran_at = FakeClock(), []

    async def notes() -> None:
        ran_at.append(seconds_since_start(clock))

    pool = Pool(clock=clock)
    periodic = pool.every(notes, seconds=60)
    clock.advance(100)
    async with pool:
        for _ in range(3):
            clock.advance(60)
            assert periodic.result is not None
            await periodic.result.wait()
    assert (ran_at, periodic.missed) == ([160, 220, 280], 0)


async def test_it_can_be_added_to_a_pool_that_runs() -> None:
    clock = FakeClock()
    async with Pool(clock=clock) as pool:
        periodic = pool.every(nothing, seconds=5)
        clock.advance(4.9)
        assert periodic.result is None
        clock.advance(0.1)
        assert periodic.result is not None


async def test_runs_do_not_overlap_and_a_missed_moment_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock, go = FakeClock(), asyncio.Event()
    async with Pool(clock=clock) as pool:
        periodic = pool.every(named("a", go.wait), seconds=60)
        clock.advance(60)
        first = periodic.result
        assert first is not None
        await reached(pool, first, TaskStatus.RUNNING)
        clock.advance(130)
        assert (periodic.result, periodic.missed) == (first, 2)
        go.set()
        await first.wait()
        clock.advance(50)
        assert periodic.result is not first
    missed = [each.getMessage() for each in caplog.records if "missed" in each.getMessage()]
    assert missed == ["a missed 1 of its moments: the last run has not ended"] * 2


async def test_moments_that_a_machine_slept_through_are_not_made_up_for(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    async with Pool(clock=clock) as pool:
        periodic = pool.every(named("a", nothing), seconds=60)
        clock.sleep_through(200)
        assert periodic.result is not None
        await periodic.result.wait()
        assert (periodic.missed, clock.pending()[0]) == (2, 10.0)
        assert caplog.messages == ["a missed 2 of its moments: the event loop was late"]
        first = periodic.result
        clock.advance(40)
        assert periodic.result is not first


async def test_a_full_queue_is_a_missed_moment() -> None:
    clock = FakeClock()
    async with Pool(queue_limit=1, clock=clock) as pool:
        hold = BackgroundTasks(pool)
        hold.add_task(nothing)
        periodic = pool.every(nothing, seconds=60)
        clock.advance(60)
        assert (periodic.result, periodic.missed) == (None, 1)
        hold.release()
        await pool.idle()
        clock.advance(60)
        assert periodic.result is not None


async def test_cancel_ends_the_schedule_and_leaves_the_run_alone() -> None:
    clock, go = FakeClock(), asyncio.Event()
    async with Pool(clock=clock) as pool:
        periodic = pool.every(go.wait, seconds=60)
        clock.advance(60)
        result = periodic.result
        periodic.cancel()
        clock.advance(600)
        go.set()
        assert result is not None
        await result.wait()
    assert (periodic.result, periodic.missed, result.status) == (result, 0, TaskStatus.SUCCESSFUL)


async def test_a_schedule_that_is_cancelled_before_the_start_never_starts() -> None:
    clock = FakeClock()
    pool = Pool(clock=clock)
    periodic = pool.every(nothing, seconds=60)
    periodic.cancel()
    async with pool:
        clock.advance(60)
    assert periodic.result is None


async def test_a_stop_ends_the_schedule() -> None:
    clock = FakeClock()
    async with Pool(clock=clock) as pool:
        periodic = pool.every(nothing, seconds=60)
    clock.advance(600)
    assert (periodic.result, periodic.missed) == (None, 0)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), 10**400])
def test_an_interval_that_is_not_above_zero_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds= is a number of seconds, above zero"):
        Pool().every(nothing, seconds=seconds)


async def test_the_log_of_a_missed_moment_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    async with Pool(clock=clock) as pool:
        pool.every(nothing, seconds=1)
        clock.sleep_through(3)
    assert [each.levelno for each in caplog.records] == [logging.WARNING]
