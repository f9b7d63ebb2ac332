"""Admission: the table of keys, row by row and option by option, and what becomes of a run that two
holds share.
"""

import asyncio
from typing import Any

import pytest

from minibg.background import BackgroundTasks, Event, Pool, QueueFull, Retry, Task, TaskResult, TaskStatus
from minibg.background.kept import InMemory
from minibg.background.run import Ids, Run, StoredRun
from minibg.background.task import CallOptions
from tests.background.fake_clock import FakeClock
from tests.background.recording import named, nothing, reached, story, turn


class Keeping(InMemory):
    """A journal that keeps the runs of durable tasks, in memory."""

    def __init__(self) -> None:
        self.rows = 0

    def check_storable(self, run: Run) -> None:
        if run.options.durable:
            run.stored = StoredRun("[]")

    async def commit(self, runs: Any) -> None:
        for run in runs:
            if run.stored is not None and run.stored.row is None:
                self.rows += 1
                run.stored.row = self.rows


async def a_pool(clock: FakeClock | None = None, *, durable: bool = False, workers: int = 1) -> Pool:
    """Return a running pool, whose journal keeps durable tasks if it is asked to."""
    pool = Pool(workers=workers, clock=clock, drain_timeout=0)
    if durable:
        journal = Keeping()
        pool._journal = pool.admission._journal = pool._workers._journal = pool._ledger._journal = journal
    await pool.open()
    pool.start()
    return pool


class Waits:
    """A coroutine function that waits for an event of the test, and its clean-up for a second one."""

    def __init__(self) -> None:
        self.go, self.end = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> None:
        try:
            await self.go.wait()
        finally:
            if not self.go.is_set():
                await self.end.wait()


class Given:
    """A run with the key "k" in a status, in a pool with one worker."""

    def __init__(self, pool: Pool, clock: FakeClock) -> None:
        self.pool, self.clock, self.function, self.blocking = pool, clock, Waits(), Waits()
        self.hold = BackgroundTasks(pool)

    def keyed(self, delay: float | None = None) -> Task[[], Any]:
        return named("a", self.function, key="k", delay=delay)

    async def in_status(self, status: str) -> TaskResult[Any]:
        result: TaskResult[Any]
        match status:
            case "HELD":
                return self.hold.add_task(self.keyed())
            case "READY":
                await reached(self.pool, self.pool.enqueue(self.blocking), TaskStatus.RUNNING)
                return self.pool.enqueue(self.keyed())
            case "WAITING":
                return self.pool.enqueue(self.keyed(delay=60))
            case "RUNNING" | "told to end":
                result = self.pool.enqueue(self.keyed())
                await reached(self.pool, result, TaskStatus.RUNNING)
                if status == "told to end":
                    await turn()
                    self.pool.cancel(result.id)
                    await turn()
                return result
            case "SUCCESSFUL":
                self.function.go.set()
                return await self.pool.enqueue(self.keyed()).wait()
            case "CANCELLED":
                result = self.hold.add_task(self.keyed())
                self.pool.cancel(result.id)
                return result
        result = self.hold.add_task(self.keyed())
        self.hold.drop()
        return result

    async def end(self) -> None:
        """Let all runs end, and check that no slot and no key is left."""
        for function in (self.function, self.blocking):
            function.go.set()
            function.end.set()
        self.hold.drop()
        stop = asyncio.create_task(self.pool.stop())
        while not stop.done():
            await turn()
            self.clock.advance(1)
        assert (self.pool.statistics().slots_taken, self.pool._ledger._keys) == (0, {})


# --- the table ---


@pytest.mark.parametrize(
    ("status", "shared"),
    [
        ("HELD", True),
        ("READY", True),
        ("WAITING", True),
        ("RUNNING", True),
        ("told to end", False),
        ("SUCCESSFUL", False),
        ("CANCELLED", False),
        ("DROPPED", False),
    ],
)
@pytest.mark.parametrize("add", ["hold", "hold after its release", "enqueue", "aenqueue"])
async def test_a_second_add_with_the_same_key_returns_the_first_run_or_makes_a_new_one(
    status: str, shared: bool, add: str
) -> None:
    clock = FakeClock()
    pool = await a_pool(clock)
    given = Given(pool, clock)
    first = await given.in_status(status)
    taken, known = pool.statistics().slots_taken, sum(pool.statistics().by_status.values())
    hold = BackgroundTasks(pool)
    if add == "hold after its release":
        hold.release()
    match add:
        case "enqueue":
            second = pool.enqueue(given.keyed())
        case "aenqueue":
            second = await pool.aenqueue(given.keyed())
        case _:
            second = hold.add_task(given.keyed())
    assert (second is first) is shared
    assert sum(pool.statistics().by_status.values()) == known + (not shared)
    assert pool.statistics().slots_taken == taken + (not shared)
    hold.drop()
    await given.end()


@pytest.mark.parametrize("status", ["READY", "WAITING", "RUNNING"])
@pytest.mark.parametrize("end", ["drop", "release", "commit and release"])
async def test_the_end_of_the_second_response_changes_nothing_for_an_accepted_run(status: str, end: str) -> None:
    clock = FakeClock()
    pool = await a_pool(clock)
    given = Given(pool, clock)
    first = await given.in_status(status)
    hold = BackgroundTasks(pool)
    hold.add_task(given.keyed())
    if end == "commit and release":
        await hold.commit()
    hold.drop() if end == "drop" else hold.release()
    assert first.status == status
    await given.end()
    assert first.attempts <= 1


def ends() -> list[tuple[str, str, str]]:
    """Two holds share a run: how each of them ends, in either order, and what becomes of the run."""
    return [
        ("first drop", "second drop", "DROPPED"),
        ("second drop", "first drop", "DROPPED"),
        ("first drop", "second release", "SUCCESSFUL"),
        ("second drop", "first release", "SUCCESSFUL"),
        ("first release", "second drop", "SUCCESSFUL"),
        ("second release", "first drop", "SUCCESSFUL"),
        ("first release", "second release", "SUCCESSFUL"),
        ("second release", "first release", "SUCCESSFUL"),
    ]


@pytest.mark.parametrize(("one", "two", "status"), ends())
@pytest.mark.parametrize("commits", [0, 1, 2])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("durable", [False, True])
async def test_a_held_run_that_two_holds_share_runs_once_or_is_dropped_by_the_last(
    one: str, two: str, status: str, commits: int, twice: bool, durable: bool
) -> None:
    pool = await a_pool(durable=durable)
    follower = pool.follow()
    keyed = named("a", nothing, key="k")
    holds = {"first": BackgroundTasks(pool), "second": BackgroundTasks(pool)}
    result = holds["first"].add_task(keyed)
    for _ in range(1 + twice):  # One hold counts once.
        assert holds["second"].add_task(keyed) is result
    await asyncio.gather(*(hold.commit() for hold in [*holds.values()][:commits]))
    for end in (one, two):
        name, verb = end.split()
        getattr(holds[name], verb)()
        if status == "DROPPED" and end == one:
            assert result.status is TaskStatus.HELD
        await turn()
    for hold in holds.values():
        hold.release()
    await pool.idle()
    assert (result.status, pool.statistics().slots_taken, pool._ledger._keys) == (status, 0, {})
    await pool.stop()
    events = [transition.after async for transition in follower]
    assert events == ["HELD", "DROPPED"] if status == "DROPPED" else ["HELD", "READY", "RUNNING", "SUCCESSFUL"]


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")])
@pytest.mark.parametrize("durable", [False, True])
async def test_always_counts_for_the_hold_that_said_it(order: tuple[str, str], durable: bool) -> None:
    """Both holds are dropped, and the run stays for the one that said ``always``."""
    pool = await a_pool(durable=durable)
    holds = {"first": BackgroundTasks(pool), "second": BackgroundTasks(pool)}
    result = holds["first"].add_task(named("a", nothing, key="k"))
    holds["second"].add_task(named("a", nothing, key="k", always=True))
    for name in order:
        holds[name].drop()
        assert result.status is not TaskStatus.DROPPED
        holds[name].release()
    assert (await result.wait()).status is TaskStatus.SUCCESSFUL
    assert pool.statistics().slots_taken == 0
    await pool.stop()


async def test_always_counts_when_one_hold_says_it_at_its_second_add() -> None:
    pool = await a_pool()
    hold = BackgroundTasks(pool)
    result = hold.add_task(named("a", nothing, key="k", always=True))
    hold.add_task(named("a", nothing, key="k"))
    hold.drop()
    hold.release()
    assert (await result.wait()).status is TaskStatus.SUCCESSFUL
    await pool.stop()


@pytest.mark.parametrize("first_is_durable", [True, False])
async def test_a_run_that_the_journal_keeps_and_one_that_it_does_not_keep_never_share(first_is_durable: bool) -> None:
    pool = await a_pool(durable=True)
    durable, visible = named("a", nothing, key="k"), named("a", nothing, key="k", durable=False)
    hold = BackgroundTasks(pool)
    pair = (durable, visible) if first_is_durable else (visible, durable)
    one, two = (hold.add_task(each) for each in pair)
    assert one is not two
    assert [hold.add_task(each) for each in pair] == [one, two]
    hold.release()
    await pool.idle()
    assert [each.status for each in (one, two)] == [TaskStatus.SUCCESSFUL] * 2
    await pool.stop()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"delay": 60}),
        ({}, {"retry": Retry(attempts=3), "timeout": 1}),
        ({"delay": 60}, {}),
        ({"priority": "high"}, {"priority": "normal"}),
    ],
)
async def test_the_options_of_the_first_run_stand(first: Any, second: Any) -> None:
    clock = FakeClock()
    pool = await a_pool(clock)
    holds = BackgroundTasks(pool), BackgroundTasks(pool)
    result = holds[0].add_task(named("a", nothing, key="k", **first))
    run = pool._ledger.unfinished[result.id]
    options = run.options
    assert holds[1].add_task(named("a", nothing, key="k", **second)) is result
    assert run.options is options
    holds[1].release()
    assert result.status is (TaskStatus.WAITING if "delay" in first else TaskStatus.READY)
    clock.advance(60)
    await result.wait()
    holds[0].release()
    await pool.stop()


async def test_a_key_belongs_to_one_task() -> None:
    pool = await a_pool()
    hold = BackgroundTasks(pool)
    one, two = (hold.add_task(named(name, nothing, key="k")) for name in "ab")
    assert one is not two
    hold.drop()
    await pool.stop()


async def test_a_key_is_free_after_its_add_was_refused() -> None:
    async with Pool(queue_limit=1) as pool:
        keyed = named("keyed", nothing, key="k")
        filler = BackgroundTasks(pool)
        filler.add_task(nothing)
        with pytest.raises(QueueFull):
            BackgroundTasks(pool).add_task(keyed)
        filler.drop()
        assert (await pool.enqueue(keyed).wait()).status is TaskStatus.SUCCESSFUL


async def test_a_run_that_is_cancelled_while_two_holds_share_it_is_gone_for_both() -> None:
    pool = await a_pool()
    follower = pool.follow()
    holds = BackgroundTasks(pool), BackgroundTasks(pool)
    keyed = named("a", nothing, key="k")
    first = holds[0].add_task(keyed)
    holds[1].add_task(keyed)
    pool.cancel(first.id)
    second = holds[1].add_task(keyed)
    assert second is not first
    for hold in holds:
        await hold.commit()
        hold.release()
    await pool.idle()
    await pool.stop()
    assert (first.status, second.status, pool.statistics().slots_taken) == ("CANCELLED", "SUCCESSFUL", 0)
    assert [status for _, status in await story(follower)].count("RUNNING") == 1


# --- commit ---


class Gated(Keeping):
    """A journal whose commits wait for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.commits: list[list[str]] = []

    async def commit(self, runs: Any) -> None:
        self.commits.append([run.result.name for run in runs])
        await self.gate.wait()
        await super().commit(runs)


async def a_gated_pool() -> tuple[Pool, Gated]:
    pool, journal = Pool(workers=1), Gated()
    pool._journal = pool.admission._journal = pool._ledger._journal = pool._workers._journal = journal
    await pool.open()
    pool.start()
    return pool, journal


async def test_a_task_that_is_added_while_the_commit_waits_is_committed_too() -> None:
    """The commit returned with a task in the hold that no journal had."""
    pool, journal = await a_gated_pool()
    hold = BackgroundTasks(pool)
    hold.add_task(named("a", nothing))
    commit = asyncio.create_task(hold.commit())
    await turn()
    hold.add_task(named("b", nothing))
    journal.gate.set()
    await commit
    assert journal.commits == [["a"], ["a", "b"]]
    hold.drop_uncommitted()
    assert len(hold) == 2
    hold.release()
    await pool.stop()


async def test_an_aenqueue_returns_when_the_journal_has_the_run_and_a_cancelled_one_drops_it() -> None:
    pool, journal = await a_gated_pool()
    cancelled = asyncio.create_task(pool.aenqueue(named("a", nothing)))
    await turn()
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert (pool.statistics().by_status[TaskStatus.DROPPED], pool.statistics().slots_taken) == (1, 0)
    enqueued = asyncio.create_task(pool.aenqueue(named("b", nothing)))
    await turn()
    assert (enqueued.done(), pool.statistics().held) == (False, 1)
    journal.gate.set()
    await (await enqueued).wait()
    await pool.stop()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_two_commits_of_a_shared_run_and_a_task_of_its_own_both_return(order: tuple[int, int]) -> None:
    """One of them waited for ever."""
    pool, journal = await a_gated_pool()
    holds = BackgroundTasks(pool), BackgroundTasks(pool)
    keyed = named("shared", nothing, key="k")
    for hold in holds:
        hold.add_task(keyed)
    holds[1].add_task(named("own", nothing))
    commits = [asyncio.create_task(holds[number].commit()) for number in order]
    await turn()
    journal.gate.set()
    await asyncio.wait_for(asyncio.gather(*commits), 10)
    for hold in holds:
        hold.release()
    await pool.idle()
    assert (pool.statistics().by_status[TaskStatus.SUCCESSFUL], pool.statistics().slots_taken) == (2, 0)
    await pool.stop()


# --- runs that a journal gives back ---


def left_by_an_earlier_process(clock: FakeClock, *options: CallOptions) -> list[Run]:
    return [
        Run.of(named(f"{number}", nothing, **each), (), {}, "", clock, Ids()) for number, each in enumerate(options)
    ]


async def restored(clock: FakeClock, *batches: list[Run]) -> Pool:
    class Leaves(InMemory):
        async def open(self) -> Any:
            return batches

    pool = Pool(workers=1, queue_limit=1, clock=clock)
    pool._journal = Leaves()
    await pool.open()
    return pool


async def test_restored_batches_run_in_their_order_and_may_exceed_the_limit() -> None:
    clock = FakeClock()
    pool = await restored(clock, left_by_an_earlier_process(clock, {}, {}, {}))
    follower = pool.follow()
    assert (pool.statistics().held, pool.statistics().slots_taken) == (3, 3)
    with pytest.raises(QueueFull):
        pool.enqueue(nothing)
    pool.start()
    await pool.idle()
    assert pool.statistics().slots_taken == 0
    await pool.stop()
    assert [name for name, status in await story(follower) if status == "RUNNING"] == ["0", "1", "2"]


async def test_when_the_first_run_of_a_restored_batch_has_to_wait_the_others_wait_for_it() -> None:
    clock = FakeClock()
    runs = left_by_an_earlier_process(clock, {"delay": 60}, {})
    pool = await restored(clock, runs)
    pool.start()
    await turn()
    assert [run.result.status for run in runs] == [TaskStatus.WAITING, TaskStatus.READY]
    clock.advance(60)
    await pool.idle()
    assert [run.result.status for run in runs] == [TaskStatus.SUCCESSFUL] * 2
    await pool.stop()


async def test_restored_runs_that_are_cancelled_before_the_start_are_skipped() -> None:
    clock = FakeClock()
    batches = [left_by_an_earlier_process(clock, {}, {}), left_by_an_earlier_process(clock, {})]
    pool = await restored(clock, *batches)
    follower = pool.follow()
    for run in (batches[0][0], batches[1][0]):
        pool.cancel(run.result.id)
    pool.start()
    await pool.idle()
    assert pool.statistics().slots_taken == 0
    await pool.stop()
    events = [(each.name, each.event) async for each in follower]
    assert ("1", Event.SUCCEED) in events
    assert [each for each in events if each[1] is Event.START] == [("1", Event.START)]
