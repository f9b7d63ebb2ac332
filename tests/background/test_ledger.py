"""The ledger: the runs, their counts, the followers, and the records that are forgotten."""

import asyncio
import gc

import pytest

from minibg.background import Event, IllegalTransition, Pool, TaskStatus
from minibg.background.follow import BUFFER
from minibg.background.kept import InMemory
from minibg.background.ledger import Ledger
from tests.background.fake_clock import FakeClock
from tests.background.recording import a_run, named, nothing, reached, story


def a_ledger(clock: FakeClock) -> Ledger:
    return Ledger(clock, keep_finished=10, keep_for=10, journal=InMemory())


# --- writing ---


def test_an_event_that_the_status_does_not_allow_is_an_error_and_changes_nothing() -> None:
    clock = FakeClock()
    ledger, run = a_ledger(clock), a_run(clock)
    ledger.add(run)
    with pytest.raises(IllegalTransition, match=f"succeed is not allowed for a {run.result.id}, which is HELD"):
        ledger.note(run, Event.SUCCEED)
    assert (run.result.status, ledger.by_status[TaskStatus.HELD]) == (TaskStatus.HELD, 1)


def test_a_final_run_stays_as_it_is() -> None:
    clock = FakeClock()
    ledger, run = a_ledger(clock), a_run(clock)
    ledger.add(run)
    ledger.note(run, Event.DROP)
    for event in Event:
        with pytest.raises(IllegalTransition):
            ledger.note(run, event)
    assert run.result.status is TaskStatus.DROPPED


# --- followers ---


async def test_a_follower_reads_every_transition_from_now_on_and_ends_with_the_pool() -> None:
    async with Pool(workers=1) as pool:
        await pool.enqueue(named("before", nothing)).wait()
        follower = pool.follow()
        result = await pool.enqueue(named("after", nothing)).wait()
    read = [transition async for transition in follower]
    assert [(each.event, each.before, each.after, each.attempt) for each in read] == [
        (Event.ADD, None, TaskStatus.HELD, 0),
        (Event.RELEASE, TaskStatus.HELD, TaskStatus.READY, 0),
        (Event.START, TaskStatus.READY, TaskStatus.RUNNING, 1),
        (Event.SUCCEED, TaskStatus.RUNNING, TaskStatus.SUCCESSFUL, 1),
    ]
    assert {(each.id, each.name, each.origin, each.missed) for each in read} == {(result.id, "after", "", 0)}
    assert [each.at for each in read] == sorted(each.at for each in read)


async def test_a_follower_may_wait_before_anything_happens() -> None:
    async with Pool() as pool:
        first = asyncio.ensure_future(anext(pool.follow()))
        pool.enqueue(named("a", nothing))
        assert (await first).event is Event.ADD


async def test_a_follower_that_waits_is_woken_when_the_pool_stops() -> None:
    async with Pool() as pool:
        read = asyncio.create_task(story(pool.follow()))
    assert await read == []


async def test_a_follower_of_a_stopped_pool_ends_at_once() -> None:
    async with Pool() as pool:
        pass
    assert await story(pool.follow()) == []


async def test_a_slow_follower_loses_the_oldest_and_is_told_how_many() -> None:
    runs = BUFFER // 4 + 5
    async with Pool(workers=1, queue_limit=runs) as pool:
        slow = pool.follow()
        for _ in range(runs):
            pool.enqueue(nothing)
        await pool.idle()
    read = [transition async for transition in slow]
    assert [each.missed for each in read] == [20] + [0] * (BUFFER - 1)


async def test_a_follower_that_raises_or_is_not_used_any_more_is_forgotten() -> None:
    async def follows_and_fails(pool: Pool) -> None:
        async for _ in pool.follow():
            raise ValueError

    async with Pool() as pool:
        failing = asyncio.create_task(follows_and_fails(pool))
        await asyncio.sleep(0)
        await pool.enqueue(nothing).wait()
        assert isinstance((await asyncio.gather(failing, return_exceptions=True))[0], ValueError)
        pool.follow()
        del failing
        gc.collect()
        assert len(pool._ledger._followers) == 0
        assert (await pool.enqueue(nothing).wait()).status is TaskStatus.SUCCESSFUL


# --- records ---


async def test_finished_ones_are_kept_by_count_and_forgotten_in_the_order_they_ended() -> None:
    async with Pool(keep_finished=2) as pool:
        ids = [(await pool.enqueue(nothing).wait()).id for _ in range(4)]
        assert [pool.get(id) is not None for id in ids] == [False, False, True, True]
        assert pool.statistics().by_status[TaskStatus.SUCCESSFUL] == 4


async def test_finished_ones_are_kept_by_age() -> None:
    clock = FakeClock()
    async with Pool(keep_for=60, clock=clock) as pool:
        old = await pool.enqueue(nothing).wait()
        clock.advance(30)
        young = await pool.enqueue(nothing).wait()
        clock.advance(30)
        assert (pool.get(old.id), pool.get(young.id)) == (old, young)
        clock.advance(1)
        assert (pool.get(old.id), pool.get(young.id)) == (None, young)


async def test_no_finished_record_is_kept_with_keep_finished_0() -> None:
    async with Pool(keep_finished=0) as pool:
        result = await pool.enqueue(nothing).wait()
        assert (pool.get(result.id), result.status) == (None, TaskStatus.SUCCESSFUL)


async def test_an_unfinished_record_is_never_forgotten() -> None:
    clock, go = FakeClock(), asyncio.Event()
    async with Pool(keep_finished=0, keep_for=0, clock=clock) as pool:
        result = pool.enqueue(go.wait)
        clock.advance(10)
        assert pool.get(result.id) is result
        go.set()


async def test_an_unknown_id_is_none() -> None:
    async with Pool() as pool:
        assert pool.get("unknown") is None


async def test_a_wall_clock_that_is_set_back_changes_the_times_in_records_and_nothing_else() -> None:
    clock = FakeClock()
    async with Pool(clock=clock, keep_for=60) as pool:
        before = await pool.enqueue(nothing).wait()
        waiting = pool.enqueue(named("later", nothing, delay=5))
        clock.jump(-86_400)
        assert pool.get(before.id) is before
        assert waiting.status is TaskStatus.WAITING
        clock.advance(5)
        await waiting.wait()
        assert waiting.finished_at is not None
        assert waiting.finished_at < waiting.added_at


# --- conditions ---


async def test_idle_waits_until_no_run_is_held_ready_waiting_or_running() -> None:
    go = asyncio.Event()
    async with Pool(workers=1) as pool:
        await pool.idle()
        running, ready = pool.enqueue(go.wait), pool.enqueue(nothing)
        idle, impatient = asyncio.create_task(pool.idle()), asyncio.create_task(pool.idle())
        await reached(pool, running, TaskStatus.RUNNING)
        assert not idle.done()
        impatient.cancel()
        go.set()
        await idle
        assert (running.status, ready.status) == (TaskStatus.SUCCESSFUL, TaskStatus.SUCCESSFUL)


async def test_a_condition_that_became_true_is_not_evaluated_again() -> None:
    clock = FakeClock()
    ledger, run = a_ledger(clock), a_run(clock)
    ledger.add(run)
    waiting = asyncio.create_task(ledger.wait_until(lambda: run.result.is_finished))
    await asyncio.sleep(0)
    ledger.note(run, Event.DROP)
    ledger.recheck()
    await waiting
