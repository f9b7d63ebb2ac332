"""Properties of any list of events, and of any schedule of failures, delays and cancellations."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings, strategies as st

from minibg.background import (
    TRANSITIONS,
    BackgroundTasks,
    Event,
    IllegalTransition,
    Pool,
    QueueFull,
    Retry,
    RetryLater,
    TaskResult,
    TaskStatus,
    Transition,
)
from minibg.background.kept import InMemory
from minibg.background.ledger import Ledger
from minibg.background.run import Run
from tests.background.fake_clock import FakeClock
from tests.background.recording import a_run, named


@given(st.lists(st.sampled_from(Event)))
def test_any_list_of_events_stays_in_the_table_or_is_an_illegal_transition(events: list[Event]) -> None:
    clock = FakeClock()
    ledger, run = Ledger(clock, keep_finished=1, keep_for=1, journal=InMemory()), a_run(clock)
    ledger.add(run)
    for event in events:
        before = run.result.status
        try:
            ledger.note(run, event)
        except IllegalTransition:
            assert event not in TRANSITIONS[before]
            assert run.result.status is before
        else:
            assert run.result.status is TRANSITIONS[before][event]
        assert sum(ledger.by_status.values()) == 1
        assert ledger.by_status[run.result.status] == 1
        assert (run.result.id in ledger.unfinished) is not run.result.is_finished
        assert (run.result.finished_at is not None) is run.result.is_finished


@dataclass(frozen=True)
class Plan:
    """What one task does: fails so many times, is delayed, has a key; and a second in which it is cancelled."""

    failures: int
    attempts: int
    delay: float | None
    timeout: float | None
    hangs: bool
    key: str | None
    high: bool
    always: bool
    cancelled_at: int | None


plans = st.builds(
    Plan,
    failures=st.integers(0, 3),
    attempts=st.integers(1, 3),
    delay=st.sampled_from([None, None, 0.0, 2.0]),
    timeout=st.sampled_from([None, 1.0]),
    hangs=st.booleans(),
    key=st.sampled_from([None, None, "k"]),
    high=st.booleans(),
    always=st.booleans(),
    cancelled_at=st.sampled_from([None, None, 0, 1, 3]),
)
responses = st.lists(st.tuples(st.sampled_from(["release", "drop", "never"]), st.lists(plans, max_size=4)), max_size=5)

Batches = list[list[TaskResult[None]]]


def doing(plan: Plan) -> Callable[[], Coroutine[Any, Any, None]]:
    left = [RetryLater(after=1.0) if number % 2 else ValueError() for number in range(plan.failures)]

    async def does() -> None:
        if plan.hangs and plan.timeout is not None:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        if left:
            raise left.pop()

    return does


def watch(pool: Pool) -> list[int]:
    """Count the pool after every single transition. Return the sums that differed from the number of runs added."""
    ledger: Any = pool._ledger
    note, add, added, wrong = ledger.note, ledger.add, list[Run](), list[int]()

    def look() -> None:
        now = pool.statistics()
        finished = sum(number for status, number in now.by_status.items() if status.is_final)
        if now.held + now.ready + now.waiting + now.running + finished != len(added):
            wrong.append(len(added))
        if now.held + now.ready + now.waiting > now.queue_limit:
            wrong.append(now.queue_limit)

    def watched_add(run: Run) -> None:
        added.append(run)
        add(run)
        look()

    def watched_note(*args: Any, **kwargs: Any) -> None:
        note(*args, **kwargs)
        look()

    ledger.note, ledger.add = watched_note, watched_add
    return wrong


async def run_all(
    pool: Pool, clock: FakeClock, schedule: list[tuple[str, list[Plan]]]
) -> tuple[Batches, list[Transition], int]:
    """Play a schedule, twelve seconds of it, and stop. Return the results by response, and the transitions."""
    read: list[Transition] = []
    refused, batches, cancels = 0, [], defaultdict(list)

    async def listen() -> None:
        async for transition in follower:
            read.append(transition)

    async with pool:
        follower = pool.follow()
        listening = asyncio.create_task(listen())
        for end, tasks in schedule:
            hold, results = BackgroundTasks(pool), []
            for plan in tasks:
                task = named("a", doing(plan), retry=Retry(attempts=plan.attempts), timeout=plan.timeout)
                task = task.using(delay=plan.delay, priority="high" if plan.high else "normal", key=plan.key)
                try:
                    results.append(hold.add_task(task.using(always=plan.always)))
                except QueueFull:
                    refused += 1
                else:
                    cancels[plan.cancelled_at].append(results[-1].id)
            if end == "drop":
                hold.drop()
            if end != "never":
                hold.release()
            batches.append(results)
        for second in range(12):
            for id in cancels[second]:
                pool.cancel(id)
            for _ in range(40):
                await asyncio.sleep(0)
                counts = pool.statistics()
                assert counts.held + counts.ready + counts.waiting <= counts.queue_limit
            clock.advance(1)
        pool.drain_timeout = 0
        stop = asyncio.create_task(pool.stop())
        while not stop.done():
            await asyncio.sleep(0)
            clock.advance(1)
    await listening
    return batches, read, refused


@settings(max_examples=50, deadline=None)
@given(responses, st.integers(1, 3), st.integers(1, 12), st.floats(0, 1, exclude_max=True))
def test_for_any_schedule_the_order_holds_each_run_ends_once_and_the_counts_add_up(
    schedule: list[tuple[str, list[Plan]]], workers: int, limit: int, chance: float
) -> None:
    clock = FakeClock()
    pool = Pool(workers=workers, queue_limit=limit, clock=clock, random=lambda: chance)
    batches, read, refused = asyncio.run(run_all(pool, clock, schedule))

    # Each run that was added ends in exactly one final status, by a way that the table knows.
    ways: dict[str, list[Transition]] = defaultdict(list)
    for transition in read:
        ways[transition.id].append(transition)
    for way in ways.values():
        assert [each.event for each in way].count(Event.ADD) == 1
        assert [each.after.is_final for each in way] == [False] * (len(way) - 1) + [True]
        assert all(TRANSITIONS[each.before][each.event] is each.after for each in way if each.before is not None)
        assert [one.after for one in way[:-1]] == [two.before for two in way[1:]]

    # The counts add up.
    results = {result.id: result for batch in batches for result in batch}
    wanted = sum(len(tasks) for _, tasks in schedule)
    shared = sum(len(batch) for batch in batches) - len(results)
    assert len(ways) == len(results) == wanted - refused - shared
    counts = pool.statistics()
    assert sum(counts.by_status.values()) == len(results)
    assert (counts.held, counts.ready, counts.waiting, counts.running, counts.slots_taken) == (0, 0, 0, 0, 0)

    # Within a response no run starts before the one before it has ended, unless that has a delay of its own.
    ended = {way[0].id: read.index(way[-1]) for way in ways.values()}
    started = {
        id: read.index(way_[0]) for id, way in ways.items() if (way_ := [e for e in way if e.event is Event.START])
    }
    for batch, (_, tasks) in zip(batches, schedule, strict=True):
        one_after_another = [
            result
            for result in dict.fromkeys(batch)  # A key may be added twice in one response.
            if result.id in started
            and not any(each.event is Event.DEFER for each in ways[result.id])
            and sum(result in other for other in batches) == 1
        ]
        assert all(
            ended[one.id] < started[two.id] for one, two in zip(one_after_another, one_after_another[1:], strict=False)
        )
        assert len(batch) <= len(tasks)

    # Never more at once than there are workers.
    running = most = 0
    for transition in read:
        running += (transition.after is TaskStatus.RUNNING) - (transition.before is TaskStatus.RUNNING)
        most = max(most, running)
    assert most <= workers


@settings(max_examples=50, deadline=None)
@given(responses, st.integers(1, 3), st.integers(1, 12), st.floats(0, 1, exclude_max=True))
def test_every_run_that_was_added_is_counted_in_exactly_one_status_at_every_moment(
    schedule: list[tuple[str, list[Plan]]], workers: int, limit: int, chance: float
) -> None:
    """held + ready + waiting + running + finished is what was added, and no more are held, ready or waiting than there are slots."""
    clock = FakeClock()
    pool = Pool(workers=workers, queue_limit=limit, clock=clock, random=lambda: chance)
    wrong = watch(pool)
    asyncio.run(run_all(pool, clock, schedule))
    assert wrong == []
