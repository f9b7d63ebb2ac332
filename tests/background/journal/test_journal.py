"""The journal under a pool: what is on disk at which moment, what the next start gets back, and a disk that is slow, full or locked.

A kill is made by copying the file while it is in use. Real processes die in `test_faults.py`.
"""

import asyncio
import functools
import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from minibg.background import (
    BackgroundTasks,
    CancelOutcome,
    JournalFailed,
    JournalUnusable,
    NotAccepted,
    Pool,
    QueueFull,
    RetryLater,
    TaskStatus,
)
from minibg.background.journal import DiskJournal, codec
from minibg.background.journal.file import File, connect
from minibg.background.journal.lock import Lock
from minibg.background.task import TASKS
from tests.background.fake_clock import FakeClock
from tests.background.journal.files import as_a_kill_leaves_it, change, rows
from tests.background.journal.tasks import (
    FULL,
    Disk,
    calls,
    committed,
    fails,
    forever,
    forget,
    insist,
    note,
    play,
    play_in_thread,
    plays,
    responded,
    stopped,
    turn,
    written,
)
from tests.background.recording import reached


def statuses(path: Path) -> list[str]:
    return rows(path, "status")


def disk_messages(caplog: pytest.LogCaptureFixture, path: Path) -> list[tuple[str, str]]:
    lines = [(r.levelname, r.getMessage()) for r in caplog.records if r.getMessage().startswith(f"{path} ")]
    return [(level, message.removeprefix(f"{path} ")) for level, message in lines]


@pytest.mark.parametrize("options", [{"journal": ""}, {"journal": "x", "durability": "luck"}])
def test_options_that_make_no_sense_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match="journal= is the path of a file"):
        Pool(**options)


# --- a commit ---


async def test_a_commit_is_on_disk_before_it_returns_in_one_transaction(path: Path, disk: Disk) -> None:
    async with Pool(journal=path) as pool:
        hold = BackgroundTasks(pool, "POST /register")
        for name in "abc":
            hold.add_task(play, name)
        assert rows(path) == []
        await hold.commit()
        assert rows(path, "name, status, origin, batch") == [("play", "HELD", "POST /register", 1)] * 3
        hold.add_task(play, "d")  # While the body streams: it belongs to the same batch.
        await hold.commit()
        hold.release()
        await pool.idle()
    assert disk.inserted == [3, 1]
    assert rows(path, "name, status, attempts, batch") == [("play", "SUCCESSFUL", 1, 1)] * 4


async def test_commits_that_come_together_share_one_flush(path: Path, disk: Disk) -> None:
    async with Pool(journal=path) as pool:
        await asyncio.gather(*(responded(pool, (play, str(number))) for number in range(64)))
        await pool.idle()
    assert disk.inserted == [64]


async def test_everything_that_happens_while_the_disk_is_busy_is_one_group(path: Path, disk: Disk) -> None:
    async with Pool(journal=path, queue_limit=100) as pool:
        async with disk.busy(pool):
            commits = [asyncio.create_task(responded(pool, (note, n), (note, n))) for n in range(32)]
            enqueued = pool.enqueue(play, "a")
            await turn()
            assert (any(commit.done() for commit in commits), enqueued.status, calls) == (False, TaskStatus.READY, [])
            before = len(disk.groups)
        await asyncio.gather(*commits)
        # The task that `busy` has added is in this group or in the one before it.
        assert max(len(group.inserts) for group in disk.groups[before:]) >= 65
        await pool.idle()
    assert statuses(path) == ["SUCCESSFUL"] * 65


async def test_commits_of_responses_that_share_a_run_return_while_one_is_written(path: Path, disk: Disk) -> None:
    """On the old code the second one waited for ever, when it had a task of its own: 61 of 300 requests got no answer."""
    once = play.using(key="k", delay=100)
    async with Pool(journal=path) as pool:
        async with disk.busy(pool):
            first = asyncio.create_task(committed(pool, (once, "shared"), (play, "own 1")))
            await turn()
            disk.free.set()
            while pool._journal._group.inserts:  # type: ignore[attr-defined]
                await asyncio.sleep(0)
            # Its group is being written now. These have the shared run, and tasks in the group that gathers.
            others = [asyncio.create_task(committed(pool, (once, "shared"), (play, f"own {n}"))) for n in (2, 3)]
            async with asyncio.timeout(10):
                holds = [hold for hold, _ in await asyncio.gather(first, *others)]
        for hold in holds:
            hold.release()
        for id in rows(path, "id", "key IS NULL"):
            assert (result := pool.get(id)) is not None
            await result.wait()
        await stopped(pool)
    assert sorted(calls) == ["own 1", "own 2", "own 3"]
    assert Counter(statuses(path)) == {"WAITING": 1, "SUCCESSFUL": 3}


async def test_many_responses_that_share_keys_are_all_answered(path: Path) -> None:
    async with Pool(journal=path, queue_limit=1000) as pool:

        async def respond(n: int) -> None:
            await asyncio.sleep(n % 7 / 1000)
            await responded(pool, (play.using(key=f"k{n % 3}"), "shared"), (note, n))

        async with asyncio.timeout(30):
            await asyncio.gather(*(respond(n) for n in range(300)))
            await pool.idle()
    assert rows(path, "count(*)", "name = 'note' AND status = 'SUCCESSFUL'") == [300]


async def test_a_task_that_is_cancelled_before_its_commit_is_never_written(path: Path) -> None:
    async with Pool(journal=path) as pool:
        hold = BackgroundTasks(pool)
        cancelled, other = hold.add_task(play, "cancelled"), hold.add_task(play, "other")
        assert pool.cancel(cancelled.id) is CancelOutcome.CANCELLED
        await hold.commit()
        hold.release()
        await other.wait()
    assert rows(path, "id, status") == [(other.id, "SUCCESSFUL")]


async def test_a_response_whose_commit_is_cancelled_leaves_nothing_that_runs(path: Path, disk: Disk) -> None:
    async with Pool(journal=path) as pool:
        async with disk.busy(pool):
            hold = BackgroundTasks(pool)
            results = [hold.add_task(play, "a"), hold.add_task(play, "b")]
            commit = asyncio.create_task(hold.commit())
            await turn()
            commit.cancel()
            await asyncio.gather(commit, return_exceptions=True)
            hold.drop()
        await written(pool)
        assert [result.status for result in results] == [TaskStatus.DROPPED] * 2
    assert set(statuses(path)) <= {"DROPPED"}
    async with Pool(journal=path) as pool:
        await pool.idle()
    assert calls == []


async def test_a_dropped_response_that_was_committed_is_dropped_in_the_file(path: Path) -> None:
    async with Pool(journal=path) as pool:
        hold, _ = await committed(pool, (play, "a"), (play.using(always=True), "always"))
        assert statuses(path) == ["HELD", "HELD"]
        hold.drop()
        hold.release()
        await pool.idle()
    assert (calls, statuses(path)) == (["always"], ["DROPPED", "SUCCESSFUL"])


async def test_a_task_that_is_not_durable_takes_any_argument_and_is_not_in_the_file(path: Path) -> None:
    async with Pool(journal=path) as pool:
        volatile = pool.enqueue(forget, object())
        chosen = pool.enqueue(play.using(durable=False), "a")
        stored = pool.enqueue(play, "b")
        assert (volatile.durable, chosen.durable, stored.durable) == (False, False, True)
        with pytest.raises(TypeError, match="argument name of play"):
            BackgroundTasks(pool).add_task(play, object())  # type: ignore[call-overload]
        await pool.idle()
    assert rows(path, "name, status") == [("play", "SUCCESSFUL")]


async def test_runs_of_a_schedule_are_not_kept(path: Path) -> None:
    clock = FakeClock()
    async with Pool(journal=path, clock=clock) as pool:
        pool.every(functools.partial(play, "a"), seconds=1)
        clock.advance(1.0)
        await pool.idle()
    assert (calls, rows(path)) == (["a"], [])


async def test_threads_may_add_get_and_cancel(path: Path) -> None:
    async with Pool(journal=path, queue_limit=500) as pool:
        outcomes: list[Any] = []

        def use() -> None:
            for n in range(20):
                result = pool.enqueue(note, n)
                cancelled = pool.enqueue(play.using(delay=100), "never")
                outcomes.append((pool.get(result.id) is result, pool.cancel(cancelled.id)))

        await asyncio.gather(*(asyncio.to_thread(use) for _ in range(4)))
        await pool.idle()
    assert outcomes == [(True, CancelOutcome.CANCELLED)] * 80
    assert Counter(rows(path, "name"))["note"] == 80


# --- keys ---


async def test_a_key_gives_the_same_run_also_after_a_restart(path: Path) -> None:
    once = play.using(key="order 1", delay=3600)
    async with Pool(journal=path, drain_timeout=0) as pool:
        (first,) = await responded(pool, (once, "a"))
        (second,) = await responded(pool, (once, "a"))
        assert second is first
    async with Pool(journal=path, drain_timeout=0) as pool:
        (third,) = await responded(pool, (once, "a"))
        assert third.id == first.id
        assert pool.cancel(first.id) is CancelOutcome.CANCELLED
        (fourth,) = await responded(pool, (once, "a"))
        assert fourth.id != first.id
    assert rows(path, "status, key") == [("CANCELLED", "order 1"), ("WAITING", "order 1")]


async def test_a_response_is_not_behind_the_delay_of_a_run_that_it_shares(path: Path) -> None:
    clock = FakeClock()
    remind = note.using(key="user 1", delay=86400)
    async with Pool(journal=path, clock=clock) as pool:
        await responded(pool, (remind,))
        plays["other"] = forever
        shared, mail = await responded(pool, (remind,), (play, "other"))
        await reached(pool, mail, TaskStatus.RUNNING)
        await written(pool)
        copy = as_a_kill_leaves_it(path)
        pool.cancel(mail.id)
        await stopped(pool, clock)
    del plays["other"]
    async with Pool(journal=copy, clock=clock) as pool:
        result = pool.get(mail.id)
        assert result is not None
        await result.wait()
        assert (waiting := pool.get(shared.id)) is not None
        assert (waiting.status, statuses(copy)[0]) == (TaskStatus.WAITING, "WAITING")
        await stopped(pool, clock)


async def test_a_key_can_be_taken_again_while_the_end_of_its_last_run_is_not_written(path: Path, disk: Disk) -> None:
    gate = asyncio.Event()
    plays["a"] = gate.wait
    once = play.using(key="k")
    async with Pool(journal=path) as pool:
        (first,) = await responded(pool, (once, "a"))
        await reached(pool, first, TaskStatus.RUNNING)
        async with disk.busy(pool):
            gate.set()
            await first.wait()
            commit = asyncio.create_task(responded(pool, (once, "b")))
            await turn()
        (second,) = await commit
        await second.wait()
    assert rows(path, "id, key, status") == [(first.id, "k", "SUCCESSFUL"), (second.id, "k", "SUCCESSFUL")]


async def test_keys_of_runs_that_came_and_went_while_the_disk_was_busy_are_free(path: Path, disk: Disk) -> None:
    once = play.using(key="k")
    async with Pool(journal=path) as pool:
        async with disk.busy(pool):
            holds = [BackgroundTasks(pool) for _ in range(3)]
            commits = []
            for hold in holds:
                result = hold.add_task(once, "a")
                commits.append(asyncio.create_task(hold.commit()))
                await turn()
                if hold is not holds[-1]:
                    assert pool.cancel(result.id) is CancelOutcome.CANCELLED
        await asyncio.gather(*commits)
        holds[-1].release()
        await result.wait()
    assert rows(path, "id, status") == [(result.id, "SUCCESSFUL")]


async def test_a_key_of_a_row_whose_task_is_not_registered_refuses_no_run(path: Path) -> None:
    """Its module may be imported later."""
    async with Pool(journal=path, drain_timeout=0) as pool:
        (old,) = await responded(pool, (play.using(key="k", delay=100), "a"))
    del TASKS["play"]
    async with Pool(journal=path) as pool:
        TASKS["play"] = play
        results = await asyncio.gather(responded(pool, (play.using(key="k"), "b")), responded(pool, (note, 1)))
        await pool.idle()
    assert [result.status for each in results for result in each] == [TaskStatus.SUCCESSFUL] * 2
    assert rows(path, "name, key, status") == [
        ("play", "k", "WAITING"),
        ("play", None, "SUCCESSFUL"),
        ("note", None, "SUCCESSFUL"),
    ]
    assert rows(path, "id")[0] == old.id


# --- claims, and writes behind ---


async def test_a_claim_is_on_disk_before_the_task_runs_also_in_a_thread_and_at_the_second_attempt(path: Path) -> None:
    clock, seen = FakeClock(), []

    def look() -> None:
        seen.append(rows(path))

    async def look_and_fail() -> None:
        look()
        raise ValueError

    plays["thread"], plays["coroutine"] = look, look_and_fail
    async with Pool(journal=path, clock=clock, workers=1, random=lambda: 0.5) as pool:
        threaded, insisted = await responded(pool, (play_in_thread, "thread"), (insist, "coroutine"))
        await threaded.wait()
        for attempt in (1, 2):
            await reached(pool, insisted, TaskStatus.WAITING, attempt)
            clock.advance(5)
        await insisted.wait()
    assert seen[0][0] == ("play_in_thread", "RUNNING", 1)
    assert [each[1] for each in seen] == [("insist", "HELD", 0), *(("insist", "RUNNING", n) for n in (1, 2, 3))]
    assert rows(path) == [("play_in_thread", "SUCCESSFUL", 1), ("insist", "FAILED", 3)]


async def test_a_task_that_is_cancelled_while_its_claim_is_written_never_begins(path: Path, disk: Disk) -> None:
    async with Pool(journal=path) as pool:
        hold, (result,) = await committed(pool, (play, "a"))
        disk.free.clear()
        hold.release()
        await turn()  # A worker has it, and has asked.
        assert pool.cancel(result.id) is CancelOutcome.CANCELLED
        disk.free.set()
        await pool.idle()
    assert (calls, statuses(path)) == ([], ["CANCELLED"])
    assert pool.statistics().slots_taken == 0


async def test_a_run_that_was_ended_in_the_file_does_not_begin(path: Path) -> None:
    async with Pool(journal=path) as pool:
        hold, (result,) = await committed(pool, (play, "a"))
        change(path, "UPDATE runs SET status = 'CANCELLED', finished_at = 1")
        hold.release()
        await result.wait()
        assert (result.status, result.attempts, pool.statistics().slots_taken) == (TaskStatus.CANCELLED, 0, 0)
    assert calls == []


@pytest.mark.parametrize("how", ["a second in the queue", "a stop"])
async def test_a_queued_run_is_written_as_ready_after_a_second_and_at_a_stop(path: Path, how: str) -> None:
    """A run that is claimed at once is not: its claim says so."""
    clock = FakeClock()
    plays["a"] = forever
    async with Pool(journal=path, clock=clock, workers=1) as pool:
        await responded(pool, (play, "a"))
        await responded(pool, (play, "b"))
        await written(pool)
        assert statuses(path) == ["RUNNING", "HELD"]
        if how == "a second in the queue":
            clock.advance(1)
            await written(pool)
            assert statuses(path) == ["RUNNING", "READY"]
        await stopped(pool, clock)
    assert statuses(path) == ["READY", "READY"]


@pytest.mark.parametrize("how", ["delay", "retry"])
async def test_a_run_that_waits_without_end_does_not_stop_the_journal(path: Path, how: str) -> None:
    async def later() -> None:
        raise RetryLater(after=float("inf"))

    plays["a"], clock = later, FakeClock()
    async with Pool(journal=path, clock=clock) as pool:
        function = play.using(delay=float("inf")) if how == "delay" else insist
        (result,) = await responded(pool, (function, "a"))
        await reached(pool, result, TaskStatus.WAITING)
        (other,) = await responded(pool, (note, 1))
        await other.wait()
        await stopped(pool, clock)
    assert statuses(path) == ["WAITING", "SUCCESSFUL"]
    async with Pool(journal=path, clock=clock) as pool:
        assert (again := pool.get(result.id)) is not None
        assert again.status is TaskStatus.WAITING
        await stopped(pool, clock)


# --- a disk that refuses ---


async def test_a_disk_that_refuses_leaves_nothing_half_accepted_and_is_logged_once_with_its_end(
    path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "minibg.background")
    async with Pool(journal=path, queue_limit=2, clock=FakeClock()) as pool:
        for error in (FULL, sqlite3.OperationalError("disk I/O error")):
            disk.refuses = error
            for _ in range(3):  # The slots are free again each time.
                with pytest.raises(JournalFailed, match=f"could not be written to disk: {error}") as refusal:
                    await responded(pool, (play, "a"), (play, "b"))
                assert refusal.value.retry_after == 10
                assert pool.statistics().slots_taken == 0
            disk.refuses = None
            await responded(pool, (play, "c"))
            await pool.idle()
    lost = "cannot be written: {}; its tasks are refused, or wait"
    assert disk_messages(caplog, path) == [
        ("ERROR", lost.format(FULL)),
        ("INFO", "is written again"),
        ("ERROR", lost.format("disk I/O error")),
        ("INFO", "is written again"),
    ]
    assert (calls, statuses(path)) == (["c", "c"], ["SUCCESSFUL"] * 2)


async def test_a_full_database_refuses_new_runs_and_finishes_old_ones(path: Path) -> None:
    """No fake disk: SQLite's own limit of pages."""
    gate = asyncio.Event()
    plays["old"] = gate.wait
    async with Pool(journal=path, queue_limit=1000) as pool:
        (old,) = await responded(pool, (play, "old"))
        await reached(pool, old, TaskStatus.RUNNING)
        await written(pool)
        database = pool._journal._file._database  # type: ignore[attr-defined]
        database.execute("PRAGMA max_page_count = 1")
        many = [(note, "x" * 100)] * 200
        refusals = await asyncio.gather(*(responded(pool, *many) for _ in range(3)), return_exceptions=True)
        assert [type(refusal) for refusal in refusals] == [JournalFailed] * 3
        gate.set()
        await old.wait()
        database.execute("PRAGMA max_page_count = 100000")
        (new,) = await responded(pool, (note, "new"))
        await new.wait()
    assert rows(path) == [("play", "SUCCESSFUL", 1), ("note", "SUCCESSFUL", 1)]


async def test_claims_and_ends_are_written_when_only_inserts_are_refused(path: Path, disk: Disk) -> None:
    async with Pool(journal=path) as pool:
        hold, (kept,) = await committed(pool, (play, "kept"))
        async with disk.busy(pool):
            disk.is_full = FULL
            hold.release()  # Its claim is in one group with the insert that is refused.
            commit = asyncio.create_task(committed(pool, (play, "refused")))
            await turn()
        with pytest.raises(JournalFailed):
            await commit
        await kept.wait()
    assert (calls, rows(path)) == (["kept"], [("play", "SUCCESSFUL", 1)])


@pytest.mark.parametrize("how", ["committed", "enqueued"])
async def test_an_attempt_that_cannot_be_counted_waits_for_the_disk(path: Path, disk: Disk, how: str) -> None:
    async with Pool(journal=path) as pool:
        if how == "committed":
            hold, (result,) = await committed(pool, (play, "a"))
            disk.refuses = FULL
            hold.release()
        else:
            disk.refuses = FULL
            result = pool.enqueue(play, "a")
        while not any(group.update_error for group in disk.groups):
            await asyncio.sleep(0)
        assert (result.status, calls) == (TaskStatus.READY, [])
        disk.refuses = None
        await result.wait(30)
        assert (result.status, calls) == (TaskStatus.SUCCESSFUL, ["a"])
    assert rows(path, "status, attempts") == [("SUCCESSFUL", 1)]


async def test_a_run_whose_insert_was_refused_is_written_when_there_is_room_again(path: Path, disk: Disk) -> None:
    clock = FakeClock()
    plays["a"] = forever
    async with Pool(journal=path, clock=clock, workers=1) as pool:
        await responded(pool, (play, "a"))
        await written(pool)
        disk.is_full = FULL
        pool.enqueue(play, "b")
        pool.enqueue(play.using(delay=100), "c")
        cancelled = pool.enqueue(play, "cancelled")
        with pytest.raises(JournalFailed):
            await written(pool)
        disk.is_full = None
        assert statuses(path) == ["RUNNING"]
        assert pool.cancel(cancelled.id) is CancelOutcome.CANCELLED
        for expected in ("HELD", "READY"):
            clock.advance(1)
            await written(pool)
            assert statuses(path) == ["RUNNING", expected, "WAITING"]
        await stopped(pool, clock)
    assert statuses(path) == ["READY", "READY", "WAITING"]


async def test_a_run_that_the_disk_refused_is_shared_by_a_response_that_is_committed(path: Path, disk: Disk) -> None:
    clock = FakeClock()
    async with Pool(journal=path, clock=clock) as pool:
        disk.refuses = FULL
        once = play.using(key="k")
        first = pool.enqueue(once, "a")
        while len(disk.groups) < 2:
            await asyncio.sleep(0)
        disk.refuses = None
        (second,) = await responded(pool, (once, "a"))
        assert second is first
        assert (first.status, calls, statuses(path)) == (TaskStatus.READY, [], ["HELD"])
        clock.advance(1)
        await first.wait()
    assert (calls, rows(path)) == (["a"], [("play", "SUCCESSFUL", 1)])


async def test_everything_that_happened_in_an_outage_is_written_after_it(path: Path, disk: Disk) -> None:
    clock, gates = FakeClock(), {name: asyncio.Event() for name in "ab"}

    async def fail_later() -> None:
        await gates["b"].wait()
        raise ValueError("b failed")

    plays.update(a=gates["a"].wait, b=fail_later, c=forever)
    async with Pool(journal=path, clock=clock, random=lambda: 0.5) as pool:
        added: list[Any] = [(play, "a"), (insist, "b"), (play, "c"), (play, "d"), (play.using(delay=60), "e")]
        pairs = [await committed(pool, each) for each in added]
        holds, (ok, again, interrupted, cancelled, late) = zip(
            *((hold, results[0]) for hold, results in pairs), strict=True
        )
        for hold in holds[:3]:
            hold.release()
        for result in (ok, again, interrupted):
            await reached(pool, result, TaskStatus.RUNNING)
        await written(pool)
        disk.refuses = FULL
        for gate in gates.values():
            gate.set()
        await ok.wait()
        await reached(pool, again, TaskStatus.WAITING)
        pool.cancel(interrupted.id)
        await interrupted.wait()
        pool.cancel(cancelled.id)
        holds[4].release()
        with pytest.raises(JournalFailed):
            await responded(pool, (note, 1))
        assert statuses(path) == ["RUNNING"] * 3 + ["HELD"] * 2
        disk.refuses = None
        await written(pool)
        assert rows(path, "status, attempts, round(due_at - added_at)") == [
            ("SUCCESSFUL", 1, None),
            ("WAITING", 1, 5),
            ("CANCELLED", 1, None),
            ("CANCELLED", 0, None),
            ("WAITING", 0, 60),
        ]
        assert late.status is TaskStatus.WAITING
        await stopped(pool, clock)


async def test_a_lock_on_the_database_refuses_a_commit_within_two_seconds_and_does_not_prolong_the_stop(
    path: Path,
) -> None:
    """On the old code a commit waited ten seconds, and a stop twenty."""
    async with Pool(journal=path, drain_timeout=0) as pool:
        with closing(connect(str(path), "rw")) as other:
            other.execute("BEGIN EXCLUSIVE")
            began = time.monotonic()
            refusals = await asyncio.gather(*(responded(pool, (play, "a")) for _ in range(2)), return_exceptions=True)
            assert [type(refusal) for refusal in refusals] == [JournalFailed] * 2
            assert time.monotonic() - began < 2.5
            pool.enqueue(play, "b")
            began = time.monotonic()
            await pool.stop()
            assert time.monotonic() - began < 5.5


async def test_a_file_that_was_removed_refuses_commits(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gate = asyncio.Event()
    plays["a"] = gate.wait
    async with Pool(journal=path) as pool:
        (result,) = await responded(pool, (play, "a"))
        await reached(pool, result, TaskStatus.RUNNING)
        path.rename(path.with_name("moved.db"))
        for _ in range(2):
            with pytest.raises(JournalFailed, match="the file was removed or replaced while it was in use"):
                await responded(pool, (play, "b"))
        gate.set()
        await result.wait()
    assert calls == ["a"]
    lost = "cannot be written: the file was removed or replaced while it was in use; its tasks are refused, or wait"
    assert disk_messages(caplog, path)[0] == ("ERROR", lost)


# --- the writer ---


async def test_a_logging_filter_that_raises_does_not_end_the_writer(path: Path, disk: Disk) -> None:
    """On the old code it did, and every commit after that waited for ever."""

    def refuse(record: logging.LogRecord) -> bool:
        raise LookupError("request_id")

    logger = logging.getLogger("minibg.background")
    logger.addFilter(refuse)
    try:
        async with Pool(journal=path) as pool:
            disk.refuses = FULL
            with pytest.raises(JournalFailed):
                await responded(pool, (play, "a"))
            disk.refuses = None
            async with asyncio.timeout(10):
                (result,) = await responded(pool, (play, "b"))
                await result.wait()
    finally:
        logger.removeFilter(refuse)
    assert calls == ["b"]


@pytest.mark.parametrize("fault", ["no thread", "a fault while settling"])
async def test_a_fault_of_one_group_is_told_to_its_commits_and_the_writer_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    async with Pool(journal=path) as pool:
        journal = pool._journal
        assert isinstance(journal, DiskJournal)
        with monkeypatch.context() as patch:
            if fault == "no thread":

                def call(*_: Any) -> None:
                    raise RuntimeError("can't start new thread")

                patch.setattr(journal._threads, "call", call)
                with pytest.raises(JournalFailed, match="can't start new thread"):
                    await responded(pool, (play, "a"))
            else:
                patch.setattr(journal, "_log_disk_state", lambda _: 1 / 0)
                await responded(pool, (play, "a"))
        async with asyncio.timeout(10):
            (result,) = await responded(pool, (play, "b"))
            await result.wait()
    assert calls[-1] == "b"


async def test_the_end_of_the_writer_is_told_to_every_commit_that_waits_and_to_every_later_one(
    path: Path, disk: Disk
) -> None:
    """The event loop ends, and cancels every asyncio task."""
    async with Pool(journal=path, drain_timeout=0) as pool:
        await written(pool)
        disk.free.clear()
        commits = [asyncio.create_task(committed(pool, (play, "a")))]
        await turn()  # This group is being written, and the next one gathers.
        commits.append(asyncio.create_task(committed(pool, (play, "b"))))
        await turn()
        pool._journal._writer.cancel()  # type: ignore[attr-defined]
        async with asyncio.timeout(10):
            outcomes = await asyncio.gather(*commits, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [JournalFailed] * 2
            with pytest.raises(JournalFailed, match="is closed"):
                await committed(pool, (play, "c"))
        disk.free.set()
    assert calls == []
    lock = Lock(str(path))
    assert lock.acquire()
    lock.release()


async def test_after_the_stop_nothing_is_accepted(path: Path) -> None:
    async with Pool(journal=path, drain_timeout=0) as pool:
        hold = BackgroundTasks(pool)
        result = hold.add_task(play, "a")
    async with asyncio.timeout(10):
        with pytest.raises(NotAccepted):
            await hold.commit()
    assert (result.status, statuses(path)) == (TaskStatus.LOST, [])


# --- opening ---


def journal_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("minibg-journal")]


def wait_for_no_thread() -> None:
    for thread in journal_threads():
        thread.join(10)
    assert journal_threads() == []


async def test_a_file_that_is_in_use_can_be_opened_when_it_is_free(path: Path) -> None:
    async with Pool(journal=path) as pool:
        other = Pool(journal=path)
        with pytest.raises(JournalUnusable, match="in use by this process"):
            await other.open()
        assert other.is_new
    async with other:
        (result,) = await responded(other, (play, "a"))
        await result.wait()
    assert calls == ["a"]
    wait_for_no_thread()


@pytest.mark.parametrize("at", ["the file", "the recovery", "the reader"])
@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_an_open_that_is_cancelled_or_fails_leaves_neither_a_thread_nor_a_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch, at: str, how: str
) -> None:
    """On the old code both were left, when the open was cancelled."""
    async with Pool(journal=path, drain_timeout=0) as pool:
        await responded(pool, (play.using(delay=100), "a"))
    entered, leave = threading.Event(), threading.Event()
    inspect, recover = File._inspect, codec.decode_run

    def stop_here(function: Callable[..., Any], *args: Any) -> Any:
        entered.set()
        assert leave.wait(60)
        if how == "failed":
            raise OSError("no")
        return function(*args)

    with monkeypatch.context() as patch:
        if at == "the file":
            patch.setattr(File, "_inspect", lambda file: stop_here(inspect, file))
        elif at == "the recovery":
            patch.setattr("minibg.background.journal.recovery.recover", lambda *args: stop_here(recover, *args))
        elif how == "failed":
            leave.set()
            patch.setattr("minibg.background.journal.group_commit.connect", lambda *_, **__: stop_here(connect))
        else:
            pytest.skip("nothing is awaited there")
        opening = asyncio.create_task(Pool(journal=path).open())
        if at != "the reader":
            await asyncio.to_thread(entered.wait, 60)
        if how == "cancelled":
            opening.cancel()
            await turn()
        leave.set()
        (outcome,) = await asyncio.gather(opening, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError if how == "cancelled" else JournalUnusable | OSError)
    wait_for_no_thread()
    async with Pool(journal=path) as pool:
        await stopped(pool)
    assert rows(path, "status, crashes") == [("WAITING", 0)]


async def test_a_start_makes_runs_of_rows_beside_the_event_loop(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the old code 100,000 unfinished rows blocked it for six seconds."""
    async with Pool(journal=path, drain_timeout=0) as pool:
        await responded(pool, *[(play.using(delay=100), "a")] * 3)
    threads = set()
    decode = codec.decode_run

    def watched(*args: Any) -> Any:
        threads.add(threading.current_thread())
        return decode(*args)

    monkeypatch.setattr(codec, "decode_run", watched)
    async with Pool(journal=path, drain_timeout=0) as pool:
        assert pool.statistics().waiting == 3
    assert len(threads) == 1
    assert threading.main_thread() not in threads


# --- what the next start gets back ---


async def killed(path: Path, live: Callable[[Pool], Any]) -> Path:
    """Start a pool, and return the file as a kill leaves it after ``live``."""
    clock = FakeClock()
    async with Pool(journal=path, clock=clock, workers=2) as pool:
        await live(pool)
        await written(pool)
        copy = as_a_kill_leaves_it(path)
        await stopped(pool, clock)
    calls.clear()
    plays.clear()
    return copy


async def test_runs_that_were_in_progress_run_again_and_the_order_is_kept(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """FIFO by acceptance, one after another within a response, and a run with a delay is behind none of them."""
    caplog.set_level(logging.INFO, "minibg.background")

    async def live(pool: Pool) -> None:
        plays["a"] = forever
        for _ in range(2):
            await responded(pool, (play, "a"), (note, "behind"))
        await turn()
        for response in "bc":
            await responded(pool, (note, response, 0), (note.using(delay=86400), "late"), (note, response, 1))
        await committed(pool, (note, "held"))

    copy = await killed(path, live)
    clock = FakeClock()
    async with Pool(journal=copy, workers=1, clock=clock) as pool:
        while pool.statistics().by_status[TaskStatus.SUCCESSFUL] < 10:  # With the mark of `written`.
            await asyncio.sleep(0)
        assert pool.statistics().waiting == 2
        await stopped(pool, clock)
    behind: Any = (("behind",), {})
    assert calls == ["a", behind, "a", behind, *(((r, n), {}) for r in "bc" for n in (0, 1)), (("held",), {})]
    assert rows(copy, "attempts, uncounted_attempts, crashes, status", "name = 'play'") == [(2, 1, 1, "SUCCESSFUL")] * 2
    assert f"{copy}: 12 unfinished runs, 2 of them interrupted" in [r.getMessage() for r in caplog.records]


async def test_suspects_of_a_crash_run_one_after_another_and_everything_else_beside_them(path: Path) -> None:
    """On the old code a poisonous task took innocent ones along, which ran beside it at all three crashes."""

    async def live(pool: Pool) -> None:
        plays["a"] = plays["b"] = forever
        await responded(pool, (play, "a"))
        await responded(pool, (play, "b"), (play, "behind b"))
        await turn()
        await responded(pool, (play, "c"))

    copy = await killed(path, live)
    gate = asyncio.Event()
    plays["a"] = gate.wait
    async with Pool(journal=copy, workers=8) as pool:
        while "c" not in calls:
            await asyncio.sleep(0)
        await written(pool)
        assert calls == ["a", "c"]
        assert rows(copy, "json_extract(arguments, '$[0][0]')", "status = 'RUNNING'") == ["a"]
        gate.set()
        await pool.idle()
    assert calls == ["a", "c", "b", "behind b"]


async def test_a_run_that_was_in_progress_at_three_crashes_fails_and_its_siblings_run(path: Path) -> None:
    """Its attempts do not count for its `Retry`: another run has two crashes, and three attempts that fail."""

    async def live(pool: Pool) -> None:
        plays["poison"] = forever
        if not path.exists() or not rows(path):
            await responded(pool, (play, "poison"), (play, "after"))
        result = pool.get(rows(path, "id")[0])
        assert result is not None
        await reached(pool, result, TaskStatus.RUNNING)

    for _ in range(3):
        path = await killed(path, live)
    async with Pool(journal=path) as pool:
        result = pool.get(rows(path, "id")[0])
        assert result is not None
        assert (result.status, result.errors[-1].type) == (TaskStatus.FAILED, "WorkerDied")
        await pool.idle()
    assert (calls, statuses(path)) == (["after"], ["FAILED", "SUCCESSFUL"])


@pytest.mark.parametrize("how", ["a crash", "a stop"])
async def test_attempts_that_a_crash_or_a_stop_ended_do_not_count_for_the_retry(path: Path, how: str) -> None:
    async def live(pool: Pool) -> None:
        plays["a"] = forever
        if not rows(path):
            await responded(pool, (insist, "a"))
        result = pool.get(rows(path, "id")[0])
        assert result is not None
        await reached(pool, result, TaskStatus.RUNNING)

    times = 2 if how == "a crash" else 5
    for _ in range(times):
        copy = await killed(path, live)
        path = copy if how == "a crash" else path
    plays["a"] = fails
    clock = FakeClock()
    async with Pool(journal=path, clock=clock, random=lambda: 0.5) as pool:
        result = pool.get(rows(path, "id")[0])
        assert result is not None
        for attempt in (1, 2):
            await reached(pool, result, TaskStatus.WAITING, times + attempt)
            clock.advance(5)
        await result.wait()
    crashes = times if how == "a crash" else 0
    assert rows(path, "status, attempts, uncounted_attempts, crashes") == [("FAILED", times + 3, times, crashes)]
    assert [error.attempt for error in result.errors] == [times + n for n in (1, 2, 3)]


async def test_a_retry_keeps_its_due_time_and_its_siblings_behind_it(path: Path) -> None:
    async def fail() -> None:
        raise ConnectionError("no line")

    clock = FakeClock()
    plays["a"] = fail
    async with Pool(journal=path, clock=clock, drain_timeout=0, random=lambda: 0.9) as pool:
        first, second = await responded(pool, (insist, "a"), (play, "b"))
        await reached(pool, first, TaskStatus.WAITING)
    plays.clear()
    calls.clear()
    clock.advance(4.0)
    async with Pool(journal=path, clock=clock) as pool:
        before = pool.get(first.id)
        assert before is not None
        assert before.errors == first.errors
        assert [(error.type, error.message) for error in before.errors] == [("ConnectionError", "no line")]
        assert (before.status, before.attempts) == (TaskStatus.WAITING, 1)
        clock.advance(4.9)
        await asyncio.sleep(0)
        assert (before.status, calls) == (TaskStatus.WAITING, [])
        clock.advance(0.2)
        await pool.idle()
    assert calls == ["a", "b"]
    assert second.id == rows(path, "id")[1]


async def test_a_delay_is_not_longer_because_the_clock_was_set_back(path: Path) -> None:
    clock = FakeClock()
    async with Pool(journal=path, clock=clock, drain_timeout=0) as pool:
        pool.enqueue(play.using(delay=60), "a")
    clock.jump(-86400.0)
    async with Pool(journal=path, clock=clock) as pool:
        clock.advance(61.0)
        await pool.idle()
    assert calls == ["a"]


async def test_a_row_that_cannot_be_run_is_kept_and_named_and_runs_when_it_can_be(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Pool(journal=path, drain_timeout=0) as pool:
        unknown, spoilt, _ = await responded(
            pool, (play.using(delay=0.1), "a"), (note.using(delay=0.1), "b"), (note, "c")
        )
    change(path, "UPDATE runs SET arguments = '{' WHERE id = ?", spoilt.id)
    del TASKS["play"]
    calls.clear()
    async with Pool(journal=path) as pool:
        await pool.idle()
        assert pool.cancel(unknown.id) is not CancelOutcome.CANCELLED
        assert (known := pool.get(unknown.id)) is not None
        assert not known.is_finished
    (warning,) = [message for level, message in disk_messages(caplog, path) if level == "WARNING"]
    assert warning.startswith("keeps runs that cannot be run: ")
    assert (unknown.id in warning, spoilt.id in warning) == (True, True)
    TASKS["play"] = play
    change(path, "UPDATE runs SET arguments = '[[\"b\"], {}]' WHERE id = ?", spoilt.id)
    async with Pool(journal=path) as pool:
        await pool.idle()
    assert Counter(map(str, calls)) <= Counter(["a", str((("b",), {})), str((("c",), {}))])
    assert statuses(path) == ["SUCCESSFUL"] * 3


async def test_a_finished_run_of_an_earlier_process_is_read_from_the_file(path: Path) -> None:
    class Thing: ...

    async def make() -> Thing:
        return Thing()

    async with Pool(journal=path) as pool:
        plays["a"] = make
        short = await pool.enqueue(note, 1, {"a": [None, True, "é"]}).wait()
        no_json = await pool.enqueue(play, "a").wait()
        assert isinstance(no_json.return_value, Thing)
    async with Pool(journal=path) as pool:
        again = pool.get(short.id)
        assert again is not None
        assert (again.status, again.return_value, again.attempts, again.durable) == (
            TaskStatus.SUCCESSFUL,
            [1, {"a": [None, True, "é"]}],
            1,
            True,
        )
        assert (again.added_at, again.finished_at) == (short.added_at, short.finished_at)
        assert await again.wait() is again
        assert pool.cancel(short.id) is CancelOutcome.FINISHED
        assert (found := pool.get(no_json.id)) is not None
        assert (found.status, found.return_value) == (TaskStatus.SUCCESSFUL, None)
        for id in ("", "none", "0" * 32, "\ud800", "ä", "a\0b", "'; DROP TABLE runs", "x" * 100_000):
            assert (pool.get(id), pool.cancel(id)) == (None, CancelOutcome.UNKNOWN)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            pool._journal._reader.execute("DELETE FROM runs")  # type: ignore[attr-defined]


async def test_runs_beyond_a_lower_limit_are_accepted_and_nothing_new_is(path: Path) -> None:
    async with Pool(journal=path, drain_timeout=0) as pool:
        await responded(pool, *((play.using(delay=3600), str(number)) for number in range(5)))
    async with Pool(journal=path, drain_timeout=0, queue_limit=3) as pool:
        assert (pool.statistics().waiting, pool.statistics().slots_taken) == (5, 5)
        with pytest.raises(QueueFull):
            pool.enqueue(play, "new")


# --- the stop ---


async def test_a_stop_keeps_unfinished_runs_names_them_and_wakes_who_waits(path: Path) -> None:
    clock = FakeClock()

    async def stubborn() -> None:
        try:
            await forever()
        finally:
            raise RuntimeError("the clean-up fails")

    plays["stubborn"] = stubborn
    async with Pool(journal=path, clock=clock, workers=1) as pool:
        done, running, sibling = await responded(pool, (note, 1), (play, "stubborn"), (play, "sibling"))
        (delayed,) = await responded(pool, (play.using(delay=100), "delayed"))
        _, (in_response,) = await committed(pool, (play, "held"))
        uncommitted = BackgroundTasks(pool).add_task(play, "uncommitted")
        volatile = pool.enqueue(forget, object())
        await reached(pool, running, TaskStatus.RUNNING)
        waiters = [asyncio.create_task(each.wait()) for each in (running, sibling, delayed, in_response, volatile)]
        idle = asyncio.create_task(pool.idle())
        await turn()
        report = await stopped(pool, clock)
        assert not Path(f"{path}-wal").exists()
        await asyncio.gather(idle, *waiters)
    assert {
        line.id: (line.was.value, line.became.value, "kept for the next start" in str(line))
        for line in report.unfinished
    } == {
        running.id: ("RUNNING", "READY", True),
        sibling.id: ("READY", "READY", True),
        delayed.id: ("WAITING", "WAITING", True),
        in_response.id: ("HELD", "HELD", True),
        uncommitted.id: ("HELD", "LOST", False),
        volatile.id: ("READY", "LOST", False),
    }
    assert sum(pool.statistics().by_status.values()) == 7
    assert rows(path, "id, status, crashes") == [
        (done.id, "SUCCESSFUL", 0),
        (running.id, "READY", 0),
        (sibling.id, "READY", 0),
        (delayed.id, "WAITING", 0),
        (in_response.id, "HELD", 0),
    ]


async def test_a_run_that_was_cancelled_before_the_stop_does_not_run_again(path: Path) -> None:
    """On the old code the stop had the last word, and the run was requeued."""
    cleaning, leave = asyncio.Event(), asyncio.Event()

    async def clean_up() -> None:
        try:
            await forever()
        finally:
            cleaning.set()
            await leave.wait()

    plays["a"] = clean_up
    async with Pool(journal=path, drain_timeout=0) as pool:
        (result,) = await responded(pool, (insist.using(timeout=60), "a"))
        while not calls:
            await asyncio.sleep(0)
        assert pool.cancel(result.id) is CancelOutcome.REQUESTED
        await cleaning.wait()
        stop = asyncio.create_task(pool.stop())
        await turn()
        leave.set()
        await stop
    assert rows(path, "status, attempts") == [("CANCELLED", 1)]
    async with Pool(journal=path) as pool:
        await pool.idle()
    assert calls == ["a"]


async def test_a_thread_that_goes_on_after_the_stop_keeps_the_file(path: Path) -> None:
    begun, leave = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        leave.wait(60)

    plays["a"] = hang
    async with Pool(journal=path, drain_timeout=0) as pool:
        result = pool.enqueue(play_in_thread, "a")
        await asyncio.to_thread(begun.wait, 60)
        report = await pool.stop()
        assert [(line.id, line.left_behind) for line in report.unfinished] == [(result.id, True)]
    try:
        with pytest.raises(JournalUnusable, match="is in use by this process"):
            await Pool(journal=path).open()
        assert rows(path, "status, crashes") == [("READY", 0)]
    finally:
        leave.set()
        wait_for_no_thread()


async def test_a_disk_that_hangs_does_not_prolong_the_stop_and_keeps_the_lock_until_it_answers(
    path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(journal=path)
    await pool.open()
    journal = pool._journal
    await written(pool)
    disk.free.clear()
    commit = asyncio.create_task(committed(pool, (play, "a")))
    await turn()
    began = time.monotonic()
    await journal.close(0.2)
    assert time.monotonic() - began < 5
    assert (await asyncio.gather(commit, return_exceptions=True))[0].__class__ is JournalFailed
    assert "the disk did not answer within 0.2 s; its thread and its lock are left behind" in caplog.text
    with pytest.raises(JournalUnusable, match="is in use by this process"):
        await Pool(journal=path).open()
    disk.free.set()
    wait_for_no_thread()
    other = File(str(path), "power")
    assert [row.status for row in other.open(0.0)[0]] == ["HELD"]  # The outcome of that commit was unknown.
    other.close()


async def test_a_close_that_is_cancelled_lets_go_of_the_file_all_the_same(path: Path, disk: Disk) -> None:
    pool = Pool(journal=path)
    await pool.open()
    hold, _ = await committed(pool, (play, "a"))
    disk.free.clear()
    closing_task = asyncio.create_task(pool._journal.close(30.0))
    await turn()
    closing_task.cancel()
    await asyncio.gather(closing_task, return_exceptions=True)
    disk.free.set()
    wait_for_no_thread()
    other = File(str(path), "power")
    assert [row.status for row in other.open(0.0)[0]] == ["HELD"]
    other.close()
    del hold


async def test_a_file_that_cannot_be_closed_in_order_is_logged_and_let_go(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Pool(journal=path) as pool:
        await pool.enqueue(play, "a").wait()
        monkeypatch.setattr("minibg.background.journal.schema.REQUEUE_RUNNING", "SELECT nonsense")
    assert "was not closed in order; the next start counts what ran as a crash" in caplog.text
    lock = Lock(str(path))
    assert lock.acquire(patience=0)
    lock.release()
