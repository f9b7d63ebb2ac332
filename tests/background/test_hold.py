"""The hold: the tasks of one response are held, then released, or dropped; and slots that it
reserves.
"""

import asyncio
import logging
import threading

import pytest

from minibg.background import BackgroundTasks, Pool, PoolStopped, QueueFull, TaskStatus
from tests.background.fake_clock import FakeClock
from tests.background.recording import named, nothing, reached, story, turn
from tests.shared import logged

# --- hold, commit, release, drop ---


async def test_no_task_runs_before_the_release() -> None:
    async with Pool() as pool:
        hold = BackgroundTasks(pool, "POST /register")
        result = hold.add_task(nothing)
        await hold.commit()
        await pool.enqueue(nothing).wait()
        assert (len(hold), result.status, result.origin) == (1, TaskStatus.HELD, "POST /register")
        hold.release()
        assert (len(hold), result.status) == (0, TaskStatus.READY)
        await result.wait()


async def test_an_empty_hold_changes_nothing() -> None:
    async with Pool() as pool:
        hold = BackgroundTasks(pool)
        await hold.commit()
        hold.release()
        hold.drop()
        assert sum(pool.statistics().by_status.values()) == 0


async def test_a_dropped_task_never_runs_and_frees_its_slot() -> None:
    async with Pool(queue_limit=1) as pool:
        follower = pool.follow()
        hold = BackgroundTasks(pool)
        result = hold.add_task(named("a", nothing))
        hold.drop()
        hold.release()
        assert (result.status, pool.statistics().slots_taken) == (TaskStatus.DROPPED, 0)
        assert await result.wait() is result
    assert await story(follower) == [("a", "HELD"), ("a", "DROPPED")]


async def test_always_runs_whatever_happened() -> None:
    async with Pool() as pool:
        hold = BackgroundTasks(pool)
        dropped = hold.add_task(named("a", nothing))
        always = hold.add_task(named("b", nothing).using(always=True))
        hold.drop()
        hold.release()
        await always.wait()
    assert (dropped.status, always.status) == (TaskStatus.DROPPED, TaskStatus.SUCCESSFUL)


async def test_runs_that_are_dropped_together_are_one_warning_with_their_number_and_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A run that another hold shares is not dropped, and not named."""
    async with Pool() as pool:
        hold, other = BackgroundTasks(pool, "POST /a"), BackgroundTasks(pool, "POST /b")
        shared = named("shared", nothing).using(key="1")
        results = [hold.add_task(each) for each in (named("a", nothing), named("b", nothing), shared)]
        other.add_task(shared)
        hold.drop("the disk is full")
        hold.drop()  # There is nothing left to drop.
        other.release()
        await pool.idle()
    names = f"a {results[0].id}, b {results[1].id}"
    assert logged(caplog) == [f"2 dropped of POST /a, because the disk is full: {names}"]
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    fields = {name: vars(record)[name] for name in ("event", "origin", "number", "reason")}
    assert fields == {"event": "drop", "origin": "POST /a", "number": 2, "reason": "the disk is full"}


async def test_after_a_drop_the_handler_of_the_error_may_add_its_own_task() -> None:
    async with Pool() as pool:
        hold = BackgroundTasks(pool)
        hold.add_task(nothing)
        await hold.commit()
        hold.drop()
        own = hold.add_task(nothing)
        await hold.commit()
        hold.release()
        await own.wait()
    assert own.status is TaskStatus.SUCCESSFUL


async def test_after_the_release_a_task_starts_at_once() -> None:
    async with Pool(queue_limit=1) as pool:
        hold = BackgroundTasks(pool)
        hold.release()
        result = hold.add_task(nothing)
        assert (len(hold), result.status) == (0, TaskStatus.READY)
        with pytest.raises(QueueFull):
            hold.add_task(nothing)


async def test_queue_full_is_raised_in_the_handler_where_it_can_be_caught_and_answered() -> None:
    async with Pool(queue_limit=2) as pool:
        hold = BackgroundTasks(pool)
        hold.add_task(nothing)
        hold.add_task(nothing)
        with pytest.raises(QueueFull):
            hold.add_task(nothing)
        assert (len(hold), pool.statistics().held) == (2, 2)
        hold.release()


async def test_tasks_that_are_added_too_late_to_be_accepted_are_dropped_alone() -> None:
    async with Pool() as pool:
        hold = BackgroundTasks(pool)
        accepted = hold.add_task(nothing)
        await hold.commit()
        late = hold.add_task(nothing)
        hold.drop_uncommitted()
        hold.release()
        await accepted.wait()
    assert (accepted.status, late.status) == (TaskStatus.SUCCESSFUL, TaskStatus.DROPPED)


# --- reserve ---


async def test_reserve_waits_first_come_first_served_until_all_slots_are_free() -> None:
    """The handler that waits for two slots is served before the one that came later and needs one."""
    go, order = asyncio.Event(), []
    async with Pool(workers=1, queue_limit=2) as pool:
        await reached(pool, pool.enqueue(go.wait), TaskStatus.RUNNING)
        blocking = BackgroundTasks(pool)
        blocking.add_task(nothing)

        async def handler(name: str, wanted: int) -> None:
            hold = BackgroundTasks(pool)
            await hold.reserve(wanted)
            order.append(name)
            for _ in range(wanted):
                hold.add_task(named(name, nothing))
            await hold.commit()
            hold.release()

        handlers = [asyncio.create_task(handler("two", 2)), asyncio.create_task(handler("one", 1))]
        await turn()
        assert (order, pool.statistics().slots_taken) == ([], 1)
        blocking.drop()
        await turn()
        assert (order, pool.statistics().slots_taken) == (["two"], 2)
        go.set()
        await asyncio.gather(*handlers)
        await pool.idle()
        assert (order, pool.statistics().slots_taken) == (["two", "one"], 0)


async def test_reserve_raises_queue_full_after_its_timeout_and_the_hold_is_as_before() -> None:
    clock = FakeClock()
    async with Pool(queue_limit=2, clock=clock) as pool:
        other, hold = BackgroundTasks(pool), BackgroundTasks(pool)
        other.add_task(nothing)
        result = hold.add_task(nothing)
        reserve = asyncio.create_task(hold.reserve(timeout=5))
        await turn()
        clock.advance(5)
        with pytest.raises(QueueFull):
            await reserve
        other.drop()
        hold.release()
        await result.wait()
        assert pool.statistics().slots_taken == 0


async def test_reserve_of_more_than_the_limit_is_refused_at_once() -> None:
    async with Pool(queue_limit=2) as pool:
        with pytest.raises(QueueFull, match="no 3 slots are free together: the queue's limit is 2"):
            await BackgroundTasks(pool).reserve(3)


@pytest.mark.parametrize(
    ("n", "timeout", "option"), [(0, None, "n="), (1.5, None, "n="), (1, -1, "timeout="), (1, float("nan"), "timeout=")]
)
async def test_a_number_that_makes_no_sense_is_refused_by_reserve(n: int, timeout: float | None, option: str) -> None:
    async with Pool() as pool:
        with pytest.raises(ValueError, match=option):
            await BackgroundTasks(pool).reserve(n, timeout)


async def test_the_commit_frees_the_reserved_slots_that_were_not_used() -> None:
    async with Pool(queue_limit=3) as pool:
        hold = BackgroundTasks(pool)
        await hold.reserve(3)
        hold.add_task(nothing)
        assert (pool.statistics().slots_taken, pool.statistics().held) == (3, 1)
        with pytest.raises(QueueFull):
            pool.enqueue(nothing)
        await hold.commit()
        assert pool.statistics().slots_taken == 1
        hold.release()


@pytest.mark.parametrize("end", ["drop", "release"])
async def test_a_hold_that_ends_without_a_commit_frees_its_reserved_slots(end: str) -> None:
    async with Pool(queue_limit=3) as pool:
        hold = BackgroundTasks(pool)
        await hold.reserve(3)
        getattr(hold, end)()
        assert pool.statistics().slots_taken == 0


async def test_two_reservations_of_one_hold_add_up_and_more_tasks_need_free_slots() -> None:
    async with Pool(queue_limit=3) as pool:
        hold = BackgroundTasks(pool)
        await hold.reserve()
        await hold.reserve()
        for _ in range(3):
            hold.add_task(nothing)
        with pytest.raises(QueueFull):
            hold.add_task(nothing)
        hold.drop()
        assert pool.statistics().slots_taken == 0


async def test_a_second_add_with_the_same_key_uses_no_reserved_slot() -> None:
    async with Pool(queue_limit=2) as pool:
        keyed = named("a", nothing, key="k")
        other, hold = BackgroundTasks(pool), BackgroundTasks(pool)
        other.add_task(keyed)
        await hold.reserve()
        hold.add_task(keyed)
        own = hold.add_task(nothing)
        with pytest.raises(QueueFull):
            pool.enqueue(nothing)
        hold.release()
        other.drop()
        await own.wait()
        await pool.idle()
        assert pool.statistics().slots_taken == 0


async def test_slots_that_are_granted_after_the_release_are_freed() -> None:
    async with Pool(queue_limit=1) as pool:
        other, hold = BackgroundTasks(pool), BackgroundTasks(pool)
        other.add_task(nothing)
        reserve = asyncio.create_task(hold.reserve())
        await turn()
        hold.release()
        other.drop()
        await reserve
        assert pool.statistics().slots_taken == 0
        await hold.add_task(nothing).wait()


async def test_a_handler_that_is_cancelled_in_the_moment_its_slots_are_granted_frees_them() -> None:
    async with Pool(queue_limit=1) as pool:
        other, hold = BackgroundTasks(pool), BackgroundTasks(pool)
        other.add_task(nothing)
        reserve = asyncio.create_task(hold.reserve())
        await turn()
        other.drop()
        reserve.cancel()
        await asyncio.wait([reserve])
        hold.drop()
        hold.release()
        assert (reserve.cancelled(), pool.statistics().slots_taken) == (True, 0)


async def test_a_sync_handler_uses_slots_that_its_dependency_has_reserved() -> None:
    async with Pool(queue_limit=1) as pool:
        hold = BackgroundTasks(pool)
        await hold.reserve()
        result = await asyncio.to_thread(hold.add_task, threading.get_ident)
        hold.release()
        assert (await result.wait()).status is TaskStatus.SUCCESSFUL


# --- aenqueue ---


async def test_aenqueue_waits_for_a_slot_in_turn_with_reserve() -> None:
    async with Pool(queue_limit=1) as pool:
        other, hold = BackgroundTasks(pool), BackgroundTasks(pool)
        other.add_task(nothing)
        enqueued = asyncio.create_task(pool.aenqueue(pow, 2, 10))
        await turn()
        reserve = asyncio.create_task(hold.reserve())
        await turn()
        assert (enqueued.done(), reserve.done()) == (False, False)
        other.drop()
        assert (await (await enqueued).wait()).return_value == 1024
        await reserve
        hold.drop()


@pytest.mark.parametrize("granted", [False, True])
async def test_an_aenqueue_that_is_cancelled_leaves_nothing_behind(granted: bool) -> None:
    async with Pool(queue_limit=1) as pool:
        other = BackgroundTasks(pool)
        other.add_task(nothing)
        enqueued = asyncio.create_task(pool.aenqueue(nothing))
        await turn()
        if granted:
            other.drop()
        enqueued.cancel()
        await asyncio.wait([enqueued])
        other.drop()
        assert (pool.statistics().slots_taken, pool.statistics().by_status[TaskStatus.DROPPED]) == (0, 1)
        assert enqueued.cancelled()


async def test_an_aenqueue_with_the_key_of_an_unfinished_run_returns_that_one_and_takes_no_slot() -> None:
    async with Pool(workers=1, queue_limit=2) as pool:
        keyed = named("a", nothing, key="k")
        hold = BackgroundTasks(pool)
        held = hold.add_task(keyed)
        assert await pool.aenqueue(keyed) is held
        await pool.idle()
        hold.release()
        assert pool.statistics().slots_taken == 0


async def test_an_aenqueue_in_a_stopped_pool_is_refused() -> None:
    async with Pool() as pool:
        pass
    with pytest.raises(PoolStopped):
        await pool.aenqueue(nothing)
    assert pool.statistics().slots_taken == 0
