"""What happened: the one list, its counts, its followers, and what it forgets."""

import asyncio
import gc
from typing import Any

import pytest

from minibg.background import Event, IllegalTransition, Pool, TaskStatus
from minibg.background.journal import FOLLOWER_ROOM, Journal
from minibg.background.run import RandomBits, Run

from tests.background.fake_clock import FakeClock
from tests.background.recording import named, reached, story


async def nothing() -> None: ...


def a_run(clock: FakeClock, **options: Any) -> Run:
    return Run.of(named("a", nothing, **options), (), {}, "", clock, RandomBits())


def test_an_event_that_the_status_does_not_allow_is_an_error_and_changes_nothing() -> None:
    clock = FakeClock()
    journal = Journal(clock, 10, 10)
    run = a_run(clock)
    journal.add(run)
    with pytest.raises(IllegalTransition, match="which is HELD") as caught:
        journal.note(run, Event.SUCCEED)
    assert (caught.value.event, caught.value.result) == (Event.SUCCEED, run.result)
    assert (run.result.status, journal.by_status[TaskStatus.HELD]) == (TaskStatus.HELD, 1)


def test_a_final_run_stays_as_it_is() -> None:
    clock = FakeClock()
    journal = Journal(clock, 10, 10)
    run = a_run(clock)
    journal.add(run)
    journal.note(run, Event.DROP)
    for event in Event:
        with pytest.raises(IllegalTransition):
            journal.note(run, event)
    assert run.result.status is TaskStatus.DROPPED


async def test_a_follower_hears_every_transition_from_now_on_and_ends_with_the_pool() -> None:
    async with Pool(workers=1) as pool:
        await pool.enqueue(named("before", nothing)).wait()
        follower = pool.follow()
        result = await pool.enqueue(named("after", nothing)).wait()
    heard = [transition async for transition in follower]
    assert [(each.event, each.before, each.after, each.attempt) for each in heard] == [
        (Event.ADD, None, TaskStatus.HELD, 0),
        (Event.RELEASE, TaskStatus.HELD, TaskStatus.READY, 0),
        (Event.START, TaskStatus.READY, TaskStatus.RUNNING, 1),
        (Event.SUCCEED, TaskStatus.RUNNING, TaskStatus.SUCCESSFUL, 1),
    ]
    assert {(each.id, each.name, each.origin, each.missed) for each in heard} == {(result.id, "after", "", 0)}
    assert [each.at for each in heard] == sorted(each.at for each in heard)


async def test_a_follower_may_wait_before_anything_happens() -> None:
    async with Pool() as pool:
        first = asyncio.ensure_future(anext(pool.follow()))
        pool.enqueue(named("a", nothing))
        assert (await first).event is Event.ADD


async def test_a_follower_that_waits_is_woken_when_the_pool_stops() -> None:
    pool = Pool()
    async with pool:
        heard = asyncio.create_task(story(pool.follow()))
    assert await heard == []


async def test_a_follower_of_a_stopped_pool_ends_at_once() -> None:
    async with Pool() as pool:
        pass
    assert await story(pool.follow()) == []


async def test_a_slow_follower_loses_the_oldest_and_is_told_how_many() -> None:
    runs = FOLLOWER_ROOM // 4 + 5
    async with Pool(workers=1, queue_limit=runs) as pool:
        slow = pool.follow()
        for _ in range(runs):
            pool.enqueue(nothing)
        await pool.idle()
    heard = [transition async for transition in slow]
    assert len(heard) == FOLLOWER_ROOM
    assert [each.missed for each in heard] == [20] + [0] * (FOLLOWER_ROOM - 1)


async def test_a_follower_that_raises_or_is_let_go_is_forgotten() -> None:
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
        assert len(pool._journal._followers) == 0
        await pool.enqueue(nothing).wait()


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


async def test_nothing_finished_is_kept_if_nothing_shall_be() -> None:
    async with Pool(keep_finished=0) as pool:
        result = await pool.enqueue(nothing).wait()
        assert (pool.get(result.id), result.status) == (None, TaskStatus.SUCCESSFUL)


async def test_what_is_unfinished_is_never_forgotten() -> None:
    clock, go = FakeClock(), asyncio.Event()
    async with Pool(keep_finished=0, keep_for=0, clock=clock) as pool:
        result = pool.enqueue(go.wait)
        clock.advance(10)
        assert pool.get(result.id) is result
        go.set()


async def test_an_unknown_id_is_none() -> None:
    async with Pool() as pool:
        assert pool.get("never heard of") is None


async def test_idle_waits_until_nothing_is_held_ready_waiting_or_running() -> None:
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


async def test_a_wall_clock_that_jumps_changes_stamps_and_nothing_else() -> None:
    clock = FakeClock()
    async with Pool(clock=clock, keep_for=60) as pool:
        before = await pool.enqueue(nothing).wait()
        waiting = pool.enqueue(named("later", nothing).using(delay=5))
        clock.jump(-86_400)
        assert pool.get(before.id) is before
        assert waiting.status is TaskStatus.WAITING
        clock.advance(5)
        await waiting.wait()
        assert waiting.finished_at is not None
        assert waiting.finished_at < waiting.added_at


def test_conditions_are_looked_at_once_they_are_true() -> None:
    async def two_watches_of_one_moment() -> list[str]:
        clock = FakeClock()
        journal = Journal(clock, 10, 10)
        run = a_run(clock)
        journal.add(run)
        watch = asyncio.create_task(journal.until(lambda: run.result.is_finished))
        await asyncio.sleep(0)
        journal.note(run, Event.DROP)
        journal.look()
        await watch
        return [run.result.status]

    assert asyncio.run(two_watches_of_one_moment()) == ["DROPPED"]
