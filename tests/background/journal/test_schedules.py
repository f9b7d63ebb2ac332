"""Any schedule of responses, cancels, stops and kills leaves a file that agrees with memory.

A property: hypothesis chooses what happens, `History` plays it through several owners of one file, and compares.
"""

import asyncio
import logging
from collections import Counter, defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import example, given, settings, strategies as st

from minibg.background import BackgroundTasks, CancelOutcome, Pool, TaskResult, TaskStatus
from minibg.background.task import TASKS
from tests.background.fake_clock import FakeClock
from tests.background.journal.files import as_a_kill_leaves_it, rows
from tests.background.journal.tasks import TASKS_HERE, calls, fails, insist, play, plays, stopped, turn, written

Step = tuple[Any, ...]

responses = st.lists(
    st.tuples(st.sampled_from(["ok", "fails", "insists", "key"]), st.sampled_from([None, None, 3.0, 40.0])), max_size=4
)
steps = st.one_of(
    st.tuples(st.just("respond"), responses, st.sampled_from(["release", "release", "hold", "drop"])),
    st.tuples(st.just("advance"), st.sampled_from([0.0, 1.0, 5.0, 50.0])),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("settle")),
    st.tuples(st.just("reopen"), st.booleans()),
    st.tuples(st.just("kill")),
)


class History:
    """A journal through several owners, and what must be true of it in each."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.path = folder / "tasks.db"
        self.clock = FakeClock()
        self.workers = workers
        #: The record in memory of each run that was committed to this pool or restored by it, by id.
        self.results: dict[str, TaskResult[Any]] = {}
        #: The runs that were committed and not dropped: id to response, position in it, and whether it has a delay.
        self.accepted: dict[str, tuple[int, int, bool]] = {}
        self.names: dict[str, str] = {}
        self.cancelled: set[str] = set()
        #: Runs that more than one response has, by their key: they are in the batch of the first that is released.
        self.shared: set[str] = set()
        self.kills = 0
        self.responses = 0

    async def open(self) -> None:
        before = rows(self.path, "id", "finished_at IS NULL") if self.path.exists() else []
        self.pool = Pool(
            journal=self.path, clock=self.clock, workers=self.workers, random=lambda: 0.5, queue_limit=10_000
        )
        await self.pool.open()
        # Every unfinished run is there, once, and in order; but for one that has crashed too often.
        failed = set(rows(self.path, "id", "finished_at IS NOT NULL"))
        unfinished = self.pool._ledger.unfinished
        marks = {id for id, run in unfinished.items() if run.result.name == "mark"}
        found = [run for batch in self.pool._restored for run in batch if run.result.id not in marks]
        order = {id: number for number, id in enumerate(before)}
        numbers = [order[run.result.id] for run in found]
        assert sorted(numbers) == [number for id, number in order.items() if id not in failed]
        suspects = set(rows(self.path, "id", "crashes > 0"))
        for batch in self.pool._restored:
            if not suspects.intersection(run.result.id for run in batch):  # Else it is a chain of batches.
                inside = [order[run.result.id] for run in batch if run.result.id not in marks]
                assert inside == sorted(inside)
        firsts = [order[batch[0].result.id] for batch in self.pool._restored if batch[0].result.id not in marks]
        assert firsts == sorted(firsts)
        for run in found:
            self.results[run.result.id] = run.result
        self.pool.start()

    async def respond(self, added: list[tuple[str, float | None]], then: str) -> None:
        hold, number = BackgroundTasks(self.pool), self.responses
        self.responses += 1
        places = []
        for place, (kind, delay) in enumerate(added):
            name = f"{number}.{place}"
            plays[name] = fails if kind in ("fails", "insists") else turn
            function = insist if kind == "insists" else play
            if kind == "key":
                function = function.using(key=f"key {place}")
            result = hold.add_task(function if delay is None else function.using(delay=delay), name)
            if result.id in self.results:
                self.shared.add(result.id)
            else:
                self.results[result.id] = result
                self.names[result.id] = name
                places.append((result.id, (number, place, delay is not None)))
        await hold.commit()
        if then == "drop":
            hold.drop()
        else:
            self.accepted.update(places)
            if then == "release":
                hold.release()

    async def settle(self) -> None:
        for _ in range(3):
            await written(self.pool)
            await turn()

    def cancel(self, number: int) -> None:
        ids = sorted(self.results)
        if ids:
            id = ids[number % len(ids)]
            if self.pool.cancel(id) is not CancelOutcome.FINISHED:
                self.cancelled.add(id)

    async def reopen(self, *, settled: bool) -> None:
        if settled:
            await self.settle()
        await stopped(self.pool, self.clock)
        self.compare()
        await self.open()

    def compare(self) -> None:
        """Compare the file with memory."""
        found = {id: row for id, *row in rows(self.path, "id, status, attempts, uncounted_attempts")}
        for id, result in self.results.items():
            if id not in found:  # It ended before it was written.
                assert result.status in (TaskStatus.CANCELLED, TaskStatus.DROPPED, TaskStatus.LOST)
                continue
            status, attempts, uncounted = found[id]
            assert status == result.status
            if status in ("SUCCESSFUL", "FAILED", "WAITING"):
                assert attempts == result.attempts
            else:  # A claim may have been written for an attempt that then did not begin.
                assert attempts - uncounted - 1 <= result.attempts <= attempts
        assert set(self.accepted) - self.cancelled <= set(found)

    async def kill(self) -> None:
        await written(self.pool)
        copy = as_a_kill_leaves_it(self.path)
        count = len(calls)
        await stopped(self.pool, self.clock)
        del calls[count:]  # Of the process that is dead by now.
        self.kills += 1
        copy = copy.rename(self.path.with_name(f"owner{self.kills}.db"))
        wal = self.path.with_name(f"killed-{self.path.name}-wal")
        if wal.exists():
            wal.rename(f"{copy}-wal")
        self.path, self.results = copy, {}
        await self.open()

    async def run(self, schedule: list[Step]) -> None:
        await self.open()
        for what, *details in schedule:
            match what:
                case "respond":
                    await self.respond(*details)
                case "advance":
                    self.clock.advance(*details)
                    await turn()
                case "cancel":
                    self.cancel(*details)
                case "settle":
                    await self.settle()
                case "reopen":
                    await self.reopen(settled=details[0])
                case "kill":
                    await self.kill()
        await self.reopen(settled=False)
        await self.finish()

    async def finish(self) -> None:
        """Let every run come to its end; runs that were HELD at the kill or stop run too."""
        while self.pool._ledger.unfinished:
            self.clock.advance(50)
            await turn()
            await written(self.pool)
        await stopped(self.pool, self.clock)
        self.compare()
        final = dict(rows(self.path, "id, status"))
        for id in set(self.accepted) - self.cancelled:
            assert final[id] in ("SUCCESSFUL", "FAILED"), "it was accepted"
        assert set(final.values()) <= {"SUCCESSFUL", "FAILED", "CANCELLED", "DROPPED"}
        self.check_the_order()
        self.check_the_counts()

    def check_the_order(self) -> None:
        """Within a response the first attempts come in order, however often the process ended in between."""
        first = {name: number for number, name in reversed(list(enumerate(calls)))}
        by_response: defaultdict[int, list[int]] = defaultdict(list)
        for id, (response, _, delayed) in sorted(self.accepted.items(), key=lambda item: item[1]):
            if not delayed and id not in self.shared and self.names[id] in first:
                by_response[response].append(first[self.names[id]])
        for order in by_response.values():
            assert order == sorted(order)

    def check_the_counts(self) -> None:
        """Every attempt is counted, and every count is an attempt, but for one that a cancel or a stop met while it was written."""
        counts = Counter(calls)
        for id, attempts, uncounted in rows(self.path, "id, attempts, uncounted_attempts"):
            if id in self.names and id not in self.cancelled and not self.kills:
                assert attempts - uncounted <= counts[self.names[id]] <= attempts


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.lists(steps, max_size=14))
@example(1, [("respond", [("ok", None), ("key", None)], then) for then in ("hold", "release")] + [("settle",)])
def test_any_schedule_leaves_a_file_that_says_what_happened(workers: int, schedule: list[Step]) -> None:
    TASKS.update(TASKS_HERE)
    calls.clear()
    plays.clear()
    logging.disable(logging.ERROR)  # Some thousand tracebacks.
    try:
        with TemporaryDirectory() as folder:
            asyncio.run(History(Path(folder), workers).run(schedule))
    finally:
        logging.disable(logging.NOTSET)
