"""Properties of any list of events, and of any schedule of failures, delays and cancellations."""

import asyncio
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from hypothesis import given, settings, strategies as st

from minibg.background import (
    TRANSITIONS,
    BackgroundTasks,
    DrainReport,
    Event,
    Follower,
    IllegalTransition,
    Pool,
    PoolStopped,
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
from tests.background.recording import a_run, named, turn


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
    """What one task does: fails so many times, is delayed, has a key; and a second in which it is
    cancelled.
    """

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
    """Count the pool after every single transition. Return the sums that differed from the number
    of runs added.
    """
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
    """Play a schedule, twelve seconds of it, and stop. Return the results by response, and the
    transitions.
    """
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

    # Within a response no run starts before the one before it has ended, unless that has a delay of
    # its own.
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
    """held + ready + waiting + running + finished is what was added, and no more are held, ready or
    waiting than there are slots.
    """
    clock = FakeClock()
    pool = Pool(workers=workers, queue_limit=limit, clock=clock, random=lambda: chance)
    wrong = watch(pool)
    asyncio.run(run_all(pool, clock, schedule))
    assert wrong == []


# --- the verbs of several holds, in any order ---

HOLDS = 3

#: A hold, and what it does; or what happens to the pool.
operations = st.one_of(
    st.tuples(st.just("add"), st.integers(0, HOLDS - 1), plans),
    st.tuples(st.just("add"), st.integers(0, HOLDS - 1), plans),
    st.tuples(st.just("enqueue"), st.just(0), plans),
    st.tuples(st.just("aenqueue"), st.just(0), plans),
    st.tuples(st.just("reserve"), st.integers(0, HOLDS - 1), st.integers(1, 4)),
    st.tuples(st.sampled_from(["commit", "release", "drop", "drop_uncommitted"]), st.integers(0, HOLDS - 1), st.none()),
    st.tuples(st.just("cancel"), st.integers(0, 9), st.none()),
    st.tuples(st.just("cancel caller"), st.integers(0, 9), st.none()),
    st.tuples(st.just("wait"), st.integers(0, 3), st.none()),
)


class Machine:
    """A pool and some holds, to which operations are applied; the invariants are checked after each
    of them.
    """

    def __init__(self, workers: int, limit: int, chance: float) -> None:
        self.clock = FakeClock()
        self.pool = Pool(
            workers=workers, queue_limit=limit, clock=self.clock, random=lambda: chance, drain_timeout=5, keep_for=1e9
        )
        self.holds = [BackgroundTasks(self.pool) for _ in range(HOLDS)]
        self.results: dict[str, TaskResult[Any]] = {}
        self.callers: list[asyncio.Task[Any]] = []
        #: The runs of one release, in order.
        self.batches: list[list[str]] = []

    def task(self, plan: Plan) -> Any:
        made = named("a", doing(plan), retry=Retry(attempts=plan.attempts), timeout=plan.timeout)
        priority: Literal["high", "normal"] = "high" if plan.high else "normal"
        return made.using(delay=plan.delay, priority=priority, key=plan.key, always=plan.always)

    async def apply(self, verb: str, number: int, argument: Any) -> None:
        hold = self.holds[number % HOLDS]
        match verb:
            case "add" | "enqueue":
                add: Any = hold.add_task if verb == "add" else self.pool.enqueue
                with suppress(QueueFull):
                    result = add(self.task(argument))
                    self.results[result.id] = result
            case "aenqueue":
                self.call(self.pool.aenqueue(self.task(argument)))
            case "reserve":
                self.call(hold.reserve(argument, timeout=3))
            case "commit":
                await hold.commit()
            case "release":
                self.batches.append([run.result.id for run in hold._runs if run.result.status is TaskStatus.HELD])
                hold.release()
                self.holds[number % HOLDS] = BackgroundTasks(self.pool)
            case "drop" | "drop_uncommitted":
                getattr(hold, verb)()
            case "cancel" if self.results:
                self.pool.cancel([*self.results][number % len(self.results)])
            case "cancel caller" if self.callers:
                self.callers[number % len(self.callers)].cancel()
            case "wait":
                self.clock.advance(number)
                await turn()

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.callers.append(asyncio.create_task(coroutine))

    def check(self) -> None:
        now, runs = self.pool.statistics(), self.pool._ledger.unfinished.values()
        assert now.held + now.ready + now.waiting <= now.slots_taken <= now.queue_limit
        assert all(run.has_slot for run in runs if run.result.status is not TaskStatus.RUNNING)
        statuses = Counter(run.result.status for run in runs)
        assert all(statuses[each] == number for each, number in now.by_status.items() if not each.is_final)
        keyed = [run for run in runs if run.options.key is not None]
        assert all(run in keyed for run in self.pool._ledger._keys.values())
        queue = self.pool._queue
        assert all(batch.runs for batch in (*queue._high, *queue._normal, *queue.deferred))

    async def play(self, schedule: list[tuple[str, int, Any]], *, to_the_end: bool) -> DrainReport:
        """Apply a schedule, then let everything end, or stop in the middle of it."""
        await self.pool.open()
        self.pool.start()
        for operation in schedule:
            await self.apply(*operation)
            self.check()
        if to_the_end:
            await self.end_of_all_responses()
        stop = asyncio.create_task(self.pool.stop())
        while not stop.done():
            await turn()
            self.clock.advance(1)
        for hold in self.holds:  # A response that ends after the stop.
            hold.drop()
            hold.release()
        await turn()
        return stop.result()

    async def end_of_all_responses(self) -> None:
        for hold in self.holds:
            with suppress(PoolStopped):
                await hold.commit()
            hold.release()
        for _ in range(60):
            await turn()
            self.check()
            self.clock.advance(1)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(operations, max_size=25),
    st.integers(1, 3),
    st.integers(1, 6),
    st.floats(0, 1, exclude_max=True),
    st.booleans(),
)
def test_for_any_order_of_verbs_nothing_leaks_and_every_run_ends_once(
    schedule: list[tuple[str, int, Any]], workers: int, limit: int, chance: float, to_the_end: bool
) -> None:
    machine = Machine(workers, limit, chance)
    followers: list[Follower] = [machine.pool.follow()]
    report = asyncio.run(machine.play(schedule, to_the_end=to_the_end))
    read = list(followers[0]._buffer)
    ways: dict[str, list[Transition]] = defaultdict(list)
    for transition in read:
        ways[transition.id].append(transition)

    # Every run ends once, in one status, and no slot, key, timer or caller is left.
    assert all([each.after.is_final for each in way] == [False] * (len(way) - 1) + [True] for way in ways.values())
    assert all(result.is_finished for result in machine.results.values())
    assert (machine.pool.statistics().slots_taken, machine.pool._ledger._keys) == (0, {})
    assert (machine.pool._ledger.unfinished, machine.pool._workers.running) == ({}, {})
    assert all(caller.done() for caller in machine.callers)
    failures = [caller.exception() for caller in machine.callers if not caller.cancelled()]
    assert {type(each) for each in failures} <= {type(None), QueueFull, PoolStopped}

    # The report has a line for each run that was lost, and for no other.
    lost = {id for id, way in ways.items() if way[-1].after is TaskStatus.LOST}
    assert {line.id for line in report.unfinished} == lost
    assert not (to_the_end and lost - {id for id, way in ways.items() if len(way) > 1})

    # The runs of one release start in their order, and each when the one before it has ended, but
    # for those with a delay.
    position = {(each.id, each.event): number for number, each in enumerate(read)}
    for batch in machine.batches:
        started = [id for id in batch if (id, Event.START) in position and (id, Event.DEFER) not in position]
        for one, two in itertools.pairwise(started):
            assert read.index(ways[one][-1]) < next(
                number for number, each in enumerate(read) if each.id == two and each.event is Event.START
            )
