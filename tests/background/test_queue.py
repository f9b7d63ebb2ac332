"""The line and its places: the exact moment of every refusal, and who waits for whom."""

import asyncio
from typing import Any

import pytest

from minibg.background import BackgroundTasks, Event, Pool, QueueFull, Retry, TaskStatus, Transition
from minibg.background.queue import Batch, Queue
from minibg.background.run import RandomBits, Run
from tests.background.fake_clock import FakeClock
from tests.background.recording import named, reached, story


async def nothing() -> None: ...


def runs(clock: FakeClock, count: int, **options: Any) -> list[Run]:
    return [Run.of(named("a", nothing, **options), (), {}, "", clock, RandomBits()) for _ in range(count)]


async def turn() -> None:
    """Let what is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


# Places.


def test_reject_refuses_at_the_first_run_over_the_limit() -> None:
    clock = FakeClock()
    queue = Queue(2, clock)
    first, second, third = runs(clock, 3)
    queue.take_place_nowait(first)
    queue.take_place_nowait(second)
    with pytest.raises(QueueFull, match="no place for another task: the queue's limit is 2") as caught:
        queue.take_place_nowait(third)
    assert (caught.value.limit, caught.value.wanted, caught.value.retry_after) == (2, 1, 1)
    assert (queue.taken, third.has_place) == (2, False)
    queue.give_back(first)
    queue.give_back(first)
    assert queue.taken == 1
    queue.take_place_nowait(third)


async def test_places_that_are_there_are_taken_without_waiting() -> None:
    clock = FakeClock()
    queue = Queue(3, clock)
    await queue.take_places(runs(clock, 3), 5)
    assert (queue.taken, clock.pending()) == (3, [])


async def test_a_batch_waits_for_all_its_places_together_and_newcomers_do_not_pass_it() -> None:
    clock = FakeClock()
    queue, order = Queue(3, clock), []
    early = runs(clock, 3)
    await queue.take_places(early, 5)

    async def wait(name: str, count: int) -> None:
        await queue.take_places(runs(clock, count), 5)
        order.append(name)

    waiters = [asyncio.create_task(wait(name, count)) for name, count in (("big", 2), ("small", 1))]
    await turn()
    queue.give_back(early[0])
    await turn()
    assert (order, queue.taken) == ([], 2)
    with pytest.raises(QueueFull):
        queue.take_place_nowait(runs(clock, 1)[0])
    queue.give_back(early[1])
    queue.give_back(early[2])
    await asyncio.gather(*waiters)
    assert (order, queue.taken, clock.pending()) == (["big", "small"], 3, [])


async def test_who_waits_is_refused_at_the_deadline_and_not_before() -> None:
    clock = FakeClock()
    queue = Queue(1, clock)
    early = runs(clock, 1)
    await queue.take_places(early, 5)
    late = runs(clock, 1)
    waiter = asyncio.create_task(queue.take_places(late, 5))
    await turn()
    clock.advance(4.9)
    await turn()
    assert not waiter.done()
    clock.advance(0.1)
    with pytest.raises(QueueFull):
        await waiter
    queue.give_back(early[0])
    assert (queue.taken, late[0].has_place) == (0, False)


async def test_who_got_its_places_in_time_is_not_refused_though_the_deadline_comes_before_it_wakes() -> None:
    clock = FakeClock()
    queue = Queue(1, clock)
    early = runs(clock, 1)
    await queue.take_places(early, 5)
    waiter = asyncio.create_task(queue.take_places(runs(clock, 1), 5))
    await turn()
    queue.give_back(early[0])
    clock.advance(5)
    await waiter
    assert queue.taken == 1


async def test_when_the_first_that_waits_gives_up_the_next_may_fit() -> None:
    clock = FakeClock()
    queue = Queue(3, clock)
    await queue.take_places(runs(clock, 2), 5)
    big = asyncio.create_task(queue.take_places(runs(clock, 2), 5))
    await turn()
    small = asyncio.create_task(queue.take_places(runs(clock, 1), 9))
    await turn()
    clock.advance(5)
    await small
    with pytest.raises(QueueFull, match="no places for 2 tasks"):
        await big
    assert queue.taken == 3


async def test_a_batch_that_can_never_fit_is_refused_at_once() -> None:
    clock = FakeClock()
    queue = Queue(2, clock)
    with pytest.raises(QueueFull) as caught:
        await queue.take_places(runs(clock, 3), 5)
    assert (caught.value.wanted, clock.pending(), queue.taken) == (3, [], 0)


async def test_a_waiter_that_is_cancelled_takes_nothing_and_lets_the_next_pass() -> None:
    clock = FakeClock()
    queue = Queue(3, clock)
    await queue.take_places(runs(clock, 2), 5)
    big = asyncio.create_task(queue.take_places(runs(clock, 2), 5))
    await turn()
    small = asyncio.create_task(queue.take_places(runs(clock, 1), 5))
    await turn()
    big.cancel()
    await small
    assert (big.cancelled(), queue.taken, clock.pending()) == (True, 3, [])


async def test_a_waiter_cancelled_in_the_moment_it_got_its_places_gives_them_back() -> None:
    clock = FakeClock()
    queue = Queue(1, clock)
    early = runs(clock, 1)
    await queue.take_places(early, 5)
    waiter = asyncio.create_task(queue.take_places(runs(clock, 1), 5))
    await turn()
    queue.give_back(early[0])
    assert queue.taken == 1
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    assert (queue.taken, clock.pending()) == (0, [])


async def test_a_waiter_cancelled_in_the_moment_a_place_is_given_back_lets_the_next_pass() -> None:
    clock = FakeClock()
    queue = Queue(1, clock)
    holder, cancelled, served = runs(clock, 3)
    queue.take_place_nowait(holder)
    waiting = [asyncio.create_task(queue.take_places([run], 5)) for run in (cancelled, served)]
    await turn()
    waiting[0].cancel()
    queue.give_back(holder)  # It does not know yet that it is cancelled.
    await asyncio.wait(waiting)
    assert [each.cancelled() for each in waiting] == [True, False]
    assert (cancelled.has_place, served.has_place, queue.taken) == (False, True, 1)


async def test_a_waiter_cancelled_in_the_moment_of_its_deadline_is_cancelled() -> None:
    clock = FakeClock()
    queue = Queue(1, clock)
    holder, other = runs(clock, 2)
    queue.take_place_nowait(holder)
    waiting = asyncio.create_task(queue.take_places([other], 5))
    await turn()
    waiting.cancel()
    clock.advance(5)
    await asyncio.wait([waiting])
    assert (waiting.cancelled(), queue.taken) == (True, 1)


async def test_a_cancelled_waiter_leaves_a_shared_run_the_place_another_took_for_it() -> None:
    clock = FakeClock()
    queue = Queue(2, clock)
    shared, *others = runs(clock, 3)
    queue.take_place_nowait(shared)
    waiter = asyncio.create_task(queue.take_places([shared, *others], 5))
    with pytest.raises(QueueFull):
        await waiter
    queue.take_place_nowait(others[0])
    waiter = asyncio.create_task(queue.take_places([shared, others[1]], 5))
    await turn()
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    assert (shared.has_place, queue.taken) == (True, 2)


async def test_retry_after_is_estimated_from_the_rate_of_places_given_back() -> None:
    clock = FakeClock()
    queue = Queue(1, clock)
    assert queue.full(1).retry_after == 1
    for _ in range(200):
        run = runs(clock, 1)[0]
        queue.take_place_nowait(run)
        clock.advance(2)
        queue.give_back(run)
    assert [queue.full(wanted).retry_after for wanted in (1, 4, 1000)] == [2, 8, 60]


async def test_retry_after_grows_while_nothing_is_given_back() -> None:
    clock = FakeClock()
    queue = Queue(1, clock)
    run = runs(clock, 1)[0]
    queue.take_place_nowait(run)
    queue.give_back(run)
    clock.advance(7)
    assert queue.full(1).retry_after == 7


# The line.


async def test_the_line_is_first_in_first_out_and_high_goes_before_normal() -> None:
    clock = FakeClock()
    queue = Queue(10, clock)
    normal = [Batch(*runs(clock, 1)) for _ in range(2)]
    high = [Batch(*runs(clock, 1, priority="high")) for _ in range(2)]
    for batch in (normal[0], high[0], normal[1], high[1]):
        queue.put(batch)
    assert [await queue.get() for _ in range(4)] == [*high, *normal]


async def test_oldest_is_the_batch_that_has_stood_longest_in_either_lane() -> None:
    clock = FakeClock()
    queue = Queue(10, clock)
    assert queue.oldest() is None
    queue.put(Batch(*runs(clock, 1)))
    began = clock.monotonic()
    clock.advance(3)
    queue.put(Batch(*runs(clock, 1, priority="high")))
    assert queue.oldest() == began


async def test_a_worker_that_was_cancelled_is_not_woken_in_place_of_another() -> None:
    clock = FakeClock()
    queue = Queue(10, clock)
    gone, there = (asyncio.create_task(queue.get()) for _ in range(2))
    await turn()
    gone.cancel()
    await turn()
    batch = Batch(*runs(clock, 1))
    queue.put(batch)
    assert await there is batch


async def test_what_is_parked_comes_due_at_its_moment_unless_it_is_unparked() -> None:
    clock = FakeClock()
    queue = Queue(10, clock)
    due: list[Batch] = []
    first, second = Batch(*runs(clock, 1)), Batch(*runs(clock, 1))
    queue.park(first, 5, due.append)
    queue.park(second, 3, due.append)
    assert queue.parked == {first, second}
    queue.unpark(second)
    queue.unpark(second)
    clock.advance(4.9)
    assert due == []
    clock.advance(0.1)
    assert (due, queue.parked) == ([first], set())


# The same, through a pool.


def most_places_needed(transitions: list[Transition]) -> int:
    """The largest number of runs that were held, ready or waiting at once."""
    now: dict[str, TaskStatus] = {}
    most = 0
    for transition in transitions:
        now[transition.id] = transition.after
        most = max(most, sum(status in ("HELD", "READY", "WAITING") for status in now.values()))
    return most


async def test_the_limit_holds_at_every_moment() -> None:
    clock = FakeClock()
    fails = iter([True, False, True, True, False, True, False, False] * 10)

    async def sometimes() -> None:
        if next(fails):
            raise ValueError

    refused = 0
    async with Pool(workers=2, queue_limit=3, clock=clock, random=lambda: 0.5) as pool:
        follower = pool.follow()
        for number in range(30):
            hold = BackgroundTasks(pool)
            try:
                hold.add_task(named("a", sometimes, retry=Retry(attempts=3)))
                hold.add_task(named("b", nothing).using(delay=number % 3))
            except QueueFull:
                refused += 1
                hold.drop()
            hold.release()
            await turn()
            clock.advance(1)
        while pool.statistics().waiting:
            clock.advance(10)
            await turn()
    heard = [transition async for transition in follower]
    assert 0 < refused < 30
    assert most_places_needed(heard) == 3
    assert pool.statistics().places_taken == 0
    started = {each.id for each in heard if each.event is Event.START}
    added = {each.id for each in heard if each.event is Event.ADD}
    dropped = {each.id for each in heard if each.event is Event.DROP}
    assert (started, started & dropped) == (added - dropped, set())


async def test_a_run_that_starts_its_last_attempt_gives_its_place_back_and_one_that_may_come_back_does_not() -> None:
    go = asyncio.Event()
    async with Pool(workers=2, queue_limit=2) as pool:
        once = pool.enqueue(named("once", go.wait))
        await reached(pool, once, TaskStatus.RUNNING)
        assert pool.statistics().places_taken == 0
        again = pool.enqueue(named("again", go.wait, retry=Retry()))
        await reached(pool, again, TaskStatus.RUNNING)
        assert pool.statistics().places_taken == 1
        go.set()
        await pool.idle()
        assert pool.statistics().places_taken == 0


async def test_commit_with_overflow_wait_is_where_places_are_waited_for() -> None:
    go = asyncio.Event()
    async with Pool(workers=1, queue_limit=2, overflow="wait") as pool:
        follower = pool.follow()
        running = pool.enqueue(named("running", go.wait))
        await reached(pool, running, TaskStatus.RUNNING)
        pool.enqueue(named("ready", nothing))
        hold = BackgroundTasks(pool)
        for name in ("a", "b"):
            hold.add_task(named(name, nothing))
        commit = asyncio.create_task(hold.commit())
        await turn()
        assert (commit.done(), pool.statistics().held) == (False, 0)
        go.set()
        await commit
        assert pool.statistics().held == 2
        hold.release()
    assert [name for name, status in await story(follower) if status == "SUCCESSFUL"] == ["running", "ready", "a", "b"]


async def test_wait_the_response_waits_for_places_up_to_overflow_timeout_seconds_and_is_refused_then() -> None:
    clock, go = FakeClock(), asyncio.Event()
    async with Pool(workers=1, queue_limit=1, overflow="wait", overflow_timeout=5, clock=clock) as pool:
        follower = pool.follow()
        running = pool.enqueue(named("running", go.wait))
        await reached(pool, running, TaskStatus.RUNNING)
        pool.enqueue(named("ready", nothing))
        hold = BackgroundTasks(pool)
        result = hold.add_task(named("refused", nothing))
        commit = asyncio.create_task(hold.commit())
        await turn()
        clock.advance(5)
        with pytest.raises(QueueFull):
            await commit
        hold.drop()
        assert (result.status, (await result.wait()).finished_at) == (TaskStatus.DROPPED, clock.now())
        go.set()
    assert "refused" not in [name for name, _ in await story(follower)]


async def test_with_overflow_wait_a_batch_that_can_never_fit_is_refused_when_it_is_added() -> None:
    async with Pool(queue_limit=2, overflow="wait") as pool:
        hold = BackgroundTasks(pool)
        hold.add_task(nothing)
        hold.add_task(nothing)
        with pytest.raises(QueueFull, match="no places for 3 tasks"):
            hold.add_task(nothing)
        hold.drop()


async def test_a_place_once_reserved_is_never_taken_back_from_its_run() -> None:
    """Whoever comes later: one that does not wait, one that waits for too long, and one that stops to wait."""
    clock, go = FakeClock(), asyncio.Event()
    async with Pool(workers=1, queue_limit=2, overflow="wait", clock=clock) as pool:
        running = pool.enqueue(go.wait)
        await reached(pool, running, TaskStatus.RUNNING)
        first, later = BackgroundTasks(pool), [BackgroundTasks(pool), BackgroundTasks(pool)]
        owed = [first.add_task(nothing), first.add_task(named("retried", nothing, priority="high"))]
        await first.commit()
        for hold in later:
            hold.add_task(nothing)
        commits = [asyncio.create_task(hold.commit()) for hold in later]
        await turn()
        commits[0].cancel()
        await turn()
        clock.advance(5)
        outcomes = await asyncio.gather(*commits, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, QueueFull]
        with pytest.raises(QueueFull):
            pool.enqueue(nothing)
        assert (pool.statistics().places_taken, [result.status for result in owed]) == (2, [TaskStatus.HELD] * 2)
        first.release()
        go.set()
        for hold in later:
            hold.drop()
    assert [result.status for result in owed] == [TaskStatus.SUCCESSFUL] * 2


async def test_with_overflow_wait_enqueue_does_not_wait() -> None:
    go = asyncio.Event()
    async with Pool(workers=1, queue_limit=1, overflow="wait") as pool:
        await reached(pool, pool.enqueue(go.wait), TaskStatus.RUNNING)
        pool.enqueue(nothing)
        with pytest.raises(QueueFull):
            pool.enqueue(named("keyed", nothing, key="k"))
        go.set()
        await pool.idle()
        assert (await pool.enqueue(named("keyed", nothing, key="k")).wait()).status is TaskStatus.SUCCESSFUL


async def test_a_commit_that_is_cancelled_while_it_waits_gives_its_places_back() -> None:
    go = asyncio.Event()
    async with Pool(workers=1, queue_limit=1, overflow="wait") as pool:
        await reached(pool, pool.enqueue(go.wait), TaskStatus.RUNNING)
        pool.enqueue(nothing)
        hold = BackgroundTasks(pool)
        hold.add_task(nothing)
        commit = asyncio.create_task(hold.commit())
        await turn()
        commit.cancel()
        await asyncio.gather(commit, return_exceptions=True)
        hold.drop()
        go.set()
        await pool.idle()
        assert pool.statistics().places_taken == 0


async def test_a_task_that_adds_tasks_while_the_queue_is_full_is_told() -> None:
    async def adds(pool: Pool) -> str:
        pool.enqueue(nothing)
        try:
            pool.enqueue(nothing)
        except QueueFull:
            return "full"
        return "taken"

    async with Pool(workers=1, queue_limit=1) as pool:
        result = await pool.enqueue(adds, pool).wait()
    assert result.return_value == "full"
