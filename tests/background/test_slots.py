"""The slots: the exact moment of every refusal, and the order in which waiting callers are served."""

import asyncio

import pytest

from minibg.background import BackgroundTasks, Event, Pool, QueueFull, Retry, TaskStatus, Transition
from minibg.background.slots import Slots
from tests.background.fake_clock import FakeClock
from tests.background.recording import a_run, named, nothing, reached, turn
from tests.shared import logged


async def reserved(limit: int, taken: int) -> tuple[Slots, FakeClock]:
    """Return slots of which some are taken, and their clock."""
    clock = FakeClock()
    slots = Slots(limit, clock)
    if taken:
        await slots.reserve(taken, None)
    return slots, clock


# --- without waiting ---


async def test_a_full_queue_is_a_warning_at_once_and_then_every_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    slots, clock = await reserved(2, taken=2)
    for seconds in (0, 0, 9.9, 0.1, 60):
        clock.advance(seconds)
        with pytest.raises(QueueFull):
            slots.reserve_nowait()
    with pytest.raises(QueueFull):
        await slots.reserve(3, None)  # More than there are: this is no full queue.
    assert logged(caplog) == [
        f"the queue is full, 2 of 2 slots are taken: {number} refused since the last such line" for number in (1, 3, 1)
    ]


def test_a_slot_is_refused_at_the_limit_and_a_run_frees_its_slot_once() -> None:
    clock = FakeClock()
    slots, run = Slots(2, clock), a_run(clock)
    slots.restore(run)
    slots.reserve_nowait()
    with pytest.raises(QueueFull, match="no slot is free for another task: the queue's limit is 2") as caught:
        slots.reserve_nowait()
    assert (caught.value.limit, caught.value.wanted, caught.value.retry_after) == (2, 1, 1)
    slots.free(run)
    slots.free(run)
    assert slots.taken == 1
    slots.reserve_nowait()


def test_a_restored_run_may_exceed_the_limit_and_then_nothing_new_is_accepted() -> None:
    clock = FakeClock()
    slots, runs = Slots(1, clock), [a_run(clock) for _ in range(3)]
    for run in runs:
        slots.restore(run)
    for run in runs:
        with pytest.raises(QueueFull):
            slots.reserve_nowait()
        slots.free(run)
    slots.reserve_nowait()


# --- waiting ---


async def test_free_slots_are_reserved_at_once() -> None:
    slots, clock = await reserved(3, taken=0)
    await slots.reserve(3, 5)
    assert (slots.taken, clock.pending()) == (3, [])


async def test_a_reservation_waits_for_all_its_slots_and_no_other_caller_passes_it() -> None:
    slots, clock = await reserved(3, taken=3)
    order: list[str] = []

    async def reserve(name: str, wanted: int) -> None:
        await slots.reserve(wanted, 5)
        order.append(name)

    waiting = [asyncio.create_task(reserve(name, wanted)) for name, wanted in (("two", 2), ("one", 1))]
    await turn()
    slots.free_unused(1)
    await turn()
    assert (order, slots.taken) == ([], 2)
    with pytest.raises(QueueFull):
        slots.reserve_nowait()
    slots.free_unused(2)
    await asyncio.gather(*waiting)
    assert (order, slots.taken, clock.pending()) == (["two", "one"], 3, [])


async def test_a_reservation_is_refused_at_its_timeout_and_not_before() -> None:
    slots, clock = await reserved(1, taken=1)
    waiting = asyncio.create_task(slots.reserve(1, 5))
    await turn()
    clock.advance(4.9)
    await turn()
    assert not waiting.done()
    clock.advance(0.1)
    with pytest.raises(QueueFull):
        await waiting
    slots.free_unused(1)
    assert slots.taken == 0


async def test_a_granted_reservation_stands_although_its_timeout_comes_before_the_caller_wakes() -> None:
    slots, clock = await reserved(1, taken=1)
    waiting = asyncio.create_task(slots.reserve(1, 5))
    await turn()
    slots.free_unused(1)
    clock.advance(5)
    await waiting
    assert slots.taken == 1


async def test_when_the_first_caller_is_refused_the_next_is_served() -> None:
    slots, clock = await reserved(3, taken=2)
    two = asyncio.create_task(slots.reserve(2, 5))
    await turn()
    one = asyncio.create_task(slots.reserve(1, 9))
    await turn()
    clock.advance(5)
    await one
    with pytest.raises(QueueFull, match="no 2 slots are free together"):
        await two
    assert slots.taken == 3


async def test_a_reservation_larger_than_the_limit_is_refused_at_once() -> None:
    slots, clock = await reserved(2, taken=0)
    with pytest.raises(QueueFull) as caught:
        await slots.reserve(3, 5)
    assert (caught.value.wanted, clock.pending(), slots.taken) == (3, [], 0)


async def test_a_caller_that_is_cancelled_while_it_waits_reserves_nothing_and_the_next_is_served() -> None:
    slots, clock = await reserved(3, taken=2)
    two = asyncio.create_task(slots.reserve(2, 5))
    await turn()
    one = asyncio.create_task(slots.reserve(1, 5))
    await turn()
    two.cancel()
    await one
    assert (two.cancelled(), slots.taken, clock.pending()) == (True, 3, [])


async def test_a_caller_that_is_granted_and_cancelled_in_the_same_moment_frees_its_slots_for_the_next() -> None:
    slots, clock = await reserved(1, taken=1)
    cancelled, served = (asyncio.create_task(slots.reserve(1, 5)) for _ in range(2))
    await turn()
    slots.free_unused(1)
    assert slots.taken == 1
    cancelled.cancel()
    await asyncio.wait([cancelled])
    await served
    assert (cancelled.cancelled(), slots.taken, clock.pending()) == (True, 1, [])


async def test_a_slot_that_is_freed_before_a_cancelled_caller_wakes_goes_to_the_next() -> None:
    slots, _ = await reserved(1, taken=1)
    cancelled, served = (asyncio.create_task(slots.reserve(1, 5)) for _ in range(2))
    await turn()
    cancelled.cancel()
    slots.free_unused(1)
    await asyncio.wait([cancelled, served])
    assert ([cancelled.cancelled(), served.cancelled()], slots.taken) == ([True, False], 1)


async def test_a_caller_that_is_cancelled_in_the_moment_of_its_timeout_is_cancelled() -> None:
    slots, clock = await reserved(1, taken=1)
    waiting = asyncio.create_task(slots.reserve(1, 5))
    await turn()
    waiting.cancel()
    clock.advance(5)
    await asyncio.wait([waiting])
    assert (waiting.cancelled(), slots.taken) == (True, 1)


async def test_a_caller_that_is_refused_and_cancelled_in_the_same_moment_is_cancelled() -> None:
    slots, clock = await reserved(1, taken=1)
    waiting = asyncio.create_task(slots.reserve(1, 5))
    await turn()
    clock.advance(5)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert (waiting.cancelled(), slots.taken) == (True, 1)


# --- when to come back ---


def test_retry_after_is_estimated_from_the_rate_at_which_slots_are_freed() -> None:
    clock = FakeClock()
    slots = Slots(1, clock)
    assert slots._full(1).retry_after == 1
    for _ in range(200):
        slots.reserve_nowait()
        clock.advance(2)
        slots.free_unused(1)
    assert [slots._full(wanted).retry_after for wanted in (1, 4, 1000)] == [2, 8, 60]


def test_retry_after_grows_while_no_slot_is_freed() -> None:
    clock = FakeClock()
    slots = Slots(1, clock)
    slots.reserve_nowait()
    slots.free_unused(1)
    clock.advance(7)
    assert slots._full(1).retry_after == 7


# --- through a pool ---


def most_slots_needed(transitions: list[Transition]) -> int:
    """Return the largest number of runs that were held, ready or waiting at once."""
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
                hold.add_task(named("b", nothing, delay=number % 3))
            except QueueFull:
                refused += 1
                hold.drop()
            hold.release()
            await turn()
            clock.advance(1)
        while pool.statistics().waiting:
            clock.advance(10)
            await turn()
    read = [transition async for transition in follower]
    assert 0 < refused < 30
    assert most_slots_needed(read) == 3
    assert pool.statistics().slots_taken == 0
    started = {each.id for each in read if each.event is Event.START}
    added = {each.id for each in read if each.event is Event.ADD}
    dropped = {each.id for each in read if each.event is Event.DROP}
    assert (started, started & dropped) == (added - dropped, set())


async def test_a_run_frees_its_slot_when_its_last_possible_attempt_begins() -> None:
    go = asyncio.Event()
    async with Pool(workers=2, queue_limit=2) as pool:
        once = pool.enqueue(named("once", go.wait))
        await reached(pool, once, TaskStatus.RUNNING)
        assert pool.statistics().slots_taken == 0
        again = pool.enqueue(named("again", go.wait, retry=Retry()))
        await reached(pool, again, TaskStatus.RUNNING)
        assert pool.statistics().slots_taken == 1
        go.set()
        await pool.idle()
        assert pool.statistics().slots_taken == 0


async def test_a_slot_once_taken_is_never_taken_back_from_its_run() -> None:
    """Later callers are one that does not wait, one that waits too long, and one that is cancelled
    while it waits.
    """
    clock, go = FakeClock(), asyncio.Event()
    async with Pool(workers=1, queue_limit=2, clock=clock) as pool:
        await reached(pool, pool.enqueue(go.wait), TaskStatus.RUNNING)
        first, later = BackgroundTasks(pool), [BackgroundTasks(pool), BackgroundTasks(pool)]
        accepted = [first.add_task(nothing), first.add_task(named("high", nothing, priority="high"))]
        await first.commit()
        waiting = [asyncio.create_task(hold.reserve(timeout=5)) for hold in later]
        await turn()
        waiting[0].cancel()
        await turn()
        clock.advance(5)
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, QueueFull]
        with pytest.raises(QueueFull):
            pool.enqueue(nothing)
        assert (pool.statistics().slots_taken, [each.status for each in accepted]) == (2, [TaskStatus.HELD] * 2)
        first.release()
        go.set()
    assert [each.status for each in accepted] == [TaskStatus.SUCCESSFUL] * 2


async def test_a_task_that_adds_tasks_meets_the_limit_too() -> None:
    async def adds(pool: Pool) -> str:
        pool.enqueue(nothing)
        try:
            pool.enqueue(nothing)
        except QueueFull:
            return "full"
        return "accepted"

    async with Pool(workers=1, queue_limit=1) as pool:
        result = await pool.enqueue(adds, pool).wait()
    assert result.return_value == "full"
