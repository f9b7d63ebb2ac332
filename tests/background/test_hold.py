"""The tasks of one response: held, then released, or dropped."""

import asyncio

import pytest

from minibg.background import BackgroundTasks, Pool, QueueFull, TaskStatus
from tests.background.recording import named, reached, story


async def nothing() -> None: ...


async def test_nothing_runs_before_the_release() -> None:
    async with Pool() as pool:
        hold = BackgroundTasks(pool, "POST /register")
        result = hold.add_task(nothing)
        await hold.commit()
        await pool.enqueue(nothing).wait()
        assert (len(hold), result.status, result.origin) == (1, TaskStatus.HELD, "POST /register")
        hold.release()
        assert (len(hold), result.status) == (0, TaskStatus.READY)
        await result.wait()


async def test_a_release_of_nothing_is_nothing() -> None:
    async with Pool() as pool:
        hold = BackgroundTasks(pool)
        await hold.commit()
        hold.release()
        hold.drop()
        assert sum(pool.statistics().by_status.values()) == 0


async def test_what_is_dropped_never_runs_and_gives_its_place_back() -> None:
    async with Pool(queue_limit=1) as pool:
        follower = pool.follow()
        hold = BackgroundTasks(pool)
        result = hold.add_task(named("a", nothing))
        hold.drop()
        hold.release()
        assert (result.status, pool.statistics().places_taken) == (TaskStatus.DROPPED, 0)
        assert await result.wait() is result
    assert await story(follower) == [("a", "HELD"), ("a", "DROPPED")]


@pytest.mark.parametrize("overflow", ["reject", "wait"])
async def test_always_runs_whatever_happened(overflow: str) -> None:
    async with Pool(overflow=overflow) as pool:  # type: ignore[arg-type]
        hold = BackgroundTasks(pool)
        dropped = hold.add_task(named("a", nothing))
        always = hold.add_task(named("b", nothing).using(always=True))
        hold.drop()
        hold.release()
        await always.wait()
    assert (dropped.status, always.status) == (TaskStatus.DROPPED, TaskStatus.SUCCESSFUL)


async def test_after_a_drop_the_handler_of_the_error_may_add_its_own() -> None:
    async with Pool(overflow="wait") as pool:
        hold = BackgroundTasks(pool)
        hold.add_task(nothing)
        await hold.commit()
        hold.drop()
        own = hold.add_task(nothing)
        await hold.commit()
        hold.release()
        await own.wait()
    assert own.status is TaskStatus.SUCCESSFUL


async def test_what_was_never_committed_with_overflow_wait_is_refused_at_the_release() -> None:
    async with Pool(overflow="wait") as pool:
        hold = BackgroundTasks(pool)
        result = hold.add_task(nothing)
        hold.release()
        assert (result.status, pool.statistics().places_taken) == (TaskStatus.DROPPED, 0)


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


async def test_a_second_commit_promises_what_was_added_since() -> None:
    async with Pool(queue_limit=2, overflow="wait") as pool:
        hold = BackgroundTasks(pool)
        hold.add_task(nothing)
        await hold.commit()
        await hold.commit()
        assert pool.statistics().held == 1
        hold.add_task(nothing)
        await hold.commit()
        assert pool.statistics().held == 2
        hold.release()


@pytest.mark.parametrize("overflow", ["reject", "wait"])
async def test_a_twin_held_by_two_responses_is_dropped_only_by_the_last(overflow: str) -> None:
    async with Pool(overflow=overflow) as pool:  # type: ignore[arg-type]
        keyed = named("a", nothing, key="k")
        first, second = BackgroundTasks(pool), BackgroundTasks(pool)
        result = first.add_task(keyed)
        assert second.add_task(keyed) is result
        first.drop()
        assert result.status is TaskStatus.HELD
        second.drop()
        assert (result.status, pool.statistics().places_taken) == (TaskStatus.DROPPED, 0)


@pytest.mark.parametrize("overflow", ["reject", "wait"])
async def test_a_twin_runs_once_when_the_first_of_its_responses_has_left(overflow: str) -> None:
    async with Pool(overflow=overflow) as pool:  # type: ignore[arg-type]
        follower = pool.follow()
        keyed = named("a", nothing, key="k")
        first, second = BackgroundTasks(pool), BackgroundTasks(pool)
        result = first.add_task(keyed)
        second.add_task(keyed)
        second.add_task(keyed)
        await asyncio.gather(first.commit(), second.commit())
        second.release()
        first.release()
        await result.wait()
        first.drop()
    assert await story(follower) == [("a", "HELD"), ("a", "READY"), ("a", "RUNNING"), ("a", "SUCCESSFUL")]


async def test_a_twin_that_two_commits_wait_for_is_taken_on_once() -> None:
    go = asyncio.Event()
    async with Pool(workers=1, queue_limit=1, overflow="wait") as pool:
        await reached(pool, pool.enqueue(go.wait), TaskStatus.RUNNING)
        pool.enqueue(nothing)
        keyed = named("a", nothing, key="k")
        first, second = BackgroundTasks(pool), BackgroundTasks(pool)
        result = first.add_task(keyed)
        second.add_task(keyed)
        commits = asyncio.gather(first.commit(), second.commit())
        await asyncio.sleep(0)
        go.set()
        await commits
        first.release()
        second.release()
        await result.wait()
        assert (pool.statistics().places_taken, pool.statistics().by_status[TaskStatus.SUCCESSFUL]) == (0, 3)


async def test_enqueue_of_a_key_that_is_held_lets_it_go() -> None:
    async with Pool(overflow="wait") as pool:
        keyed = named("a", nothing, key="k")
        hold = BackgroundTasks(pool)
        result = hold.add_task(keyed)
        assert pool.enqueue(keyed) is result
        await result.wait()
        await hold.commit()
        hold.release()
    assert result.status is TaskStatus.SUCCESSFUL
