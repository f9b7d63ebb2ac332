"""The durable journal where it is pressed: a disk that refuses or is slow at the wrong moment, rows that were tampered with,
what two responses share, what is asked for from outside, and any schedule of all of that.

What it does on good days is in `test_durable_journal.py`. A kill is made here by copying the file while it is in use.
"""

import asyncio
import logging
import sqlite3
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from minibg.background import (
    BackgroundTasks,
    CancelOutcome,
    JournalFailed,
    JournalUnusable,
    Pool,
    Retry,
    RetryLater,
    TaskResult,
    TaskStatus,
    task,
)
from minibg.background.sqlite import ASK, File, Group
from minibg.background.task import TASKS
from tests.background.durable_tasks import (
    FULL,
    MINE,
    Disk,
    as_a_kill_leaves_it,
    calls,
    change,
    disk as disk,
    durable_tasks as durable_tasks,
    fails,
    forget,
    insist,
    mark,
    note,
    path as path,
    play,
    play_in_thread,
    plays,
    promised,
    rows,
    written,
)
from tests.background.fake_clock import FakeClock
from tests.background.recording import reached


async def turn() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def statuses(path: Path) -> list[str]:
    return rows(path, "status")


async def stopped(pool: Pool, clock: FakeClock) -> Any:
    """Stop a pool that waits for nothing, and whose clock does not go by itself."""
    pool.drain_timeout = 0
    stop = asyncio.create_task(pool.stop())
    while not stop.done():
        clock.advance(0)
        await asyncio.sleep(0)
    return stop.result()


# --- what two responses share ---


async def test_a_task_that_is_cancelled_before_its_response_is_promised_is_never_written(path: Path) -> None:
    async with Pool(journal=path) as pool:
        hold = BackgroundTasks(pool)
        cancelled, other = hold.add_task(play, "cancelled"), hold.add_task(play, "other")
        assert pool.cancel(cancelled.id) is CancelOutcome.CANCELLED
        await hold.commit()
        hold.release()
        await other.wait()
    assert rows(path, "id, status") == [(other.id, "SUCCESSFUL")]


async def test_what_the_disk_refused_runs_when_a_response_that_shares_it_is_promised(path: Path, disk: Disk) -> None:
    """It is in line already: its claim is what the file hears of that."""
    clock = FakeClock()
    async with Pool(journal=path, clock=clock) as pool:
        disk.refuses = FULL
        once = play.using(key="k")
        first = pool.enqueue(once, "a")
        while len(disk.groups) < 2:
            await asyncio.sleep(0)
        disk.refuses = None
        (second,) = await promised(pool, (once, "a"))
        assert second is first
        assert (first.status, calls, statuses(path)) == (TaskStatus.READY, [], ["HELD"])
        clock.advance(1)
        await first.wait()
    assert (calls, rows(path)) == (["a"], [("play", "SUCCESSFUL", 1)])


async def test_a_response_does_not_stand_behind_the_delay_of_a_task_it_shares(path: Path) -> None:
    clock = FakeClock()
    remind = note.using(key="user 1", delay=86400)
    async with Pool(journal=path, clock=clock) as pool:
        await promised(pool, (remind,))
        gate = plays["other"] = asyncio.Event().wait
        assert gate is not None
        shared, mail = await promised(pool, (remind,), (play, "other"))
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
        assert statuses(copy)[0] == "WAITING"
        assert (waiting := pool.get(shared.id)) is not None
        assert waiting.status is TaskStatus.WAITING
        await stopped(pool, clock)


async def test_a_key_that_is_free_again_can_be_taken_while_its_last_end_is_not_written(path: Path, disk: Disk) -> None:
    gate = asyncio.Event()
    plays["a"] = gate.wait
    once = play.using(key="k")
    async with Pool(journal=path) as pool:
        (first,) = await promised(pool, (once, "a"))
        await reached(pool, first, TaskStatus.RUNNING)
        async with disk.busy(pool):
            gate.set()
            await first.wait()
            commit = asyncio.create_task(promised(pool, (once, "b")))
            await turn()
        (second,) = await commit
        await second.wait()
    assert rows(path, "id, key, status") == [(first.id, "k", "SUCCESSFUL"), (second.id, "k", "SUCCESSFUL")]


async def test_keys_of_what_came_and_went_while_the_disk_was_busy_are_free(path: Path, disk: Disk) -> None:
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


async def test_a_key_that_a_row_of_an_unknown_task_has_refuses_nobody(path: Path) -> None:
    """Its module may be imported later."""
    async with Pool(journal=path, drain_timeout=0) as pool:
        (old,) = await promised(pool, (play.using(key="k", delay=100), "a"))
    del TASKS["play"]
    async with Pool(journal=path) as pool:
        TASKS["play"] = play
        results = await asyncio.gather(promised(pool, (play.using(key="k"), "b")), promised(pool, (note, 1)))
        await pool.idle()
    assert [result.status for each in results for result in each] == [TaskStatus.SUCCESSFUL] * 2
    assert rows(path, "name, key, status") == [
        ("play", "k", "WAITING"),
        ("play", None, "SUCCESSFUL"),
        ("note", None, "SUCCESSFUL"),
    ]
    assert rows(path, "id")[0] == old.id


# --- a slow disk ---


async def test_whatever_gathers_while_the_disk_is_busy_is_one_group(path: Path, disk: Disk) -> None:
    async with Pool(journal=path, queue_limit=100) as pool:
        async with disk.busy(pool):
            commits = [asyncio.create_task(promised(pool, (note, n), (note, n))) for n in range(32)]
            await turn()
            before = len(disk.groups)
        await asyncio.gather(*commits)
        # Beside them there is the task that `busy` has added, in this group or in the one before it.
        assert max(len(group.entered) for group in disk.groups[before:]) >= 64
        await pool.idle()
    assert statuses(path) == ["SUCCESSFUL"] * 64


async def test_nothing_leaves_and_nothing_runs_while_the_disk_has_not_answered(path: Path, disk: Disk) -> None:
    async with Pool(journal=path) as pool:
        async with disk.busy(pool):
            commit = asyncio.create_task(promised(pool, (play, "a")))
            enqueued = pool.enqueue(play, "b")
            await turn()
            assert (commit.done(), enqueued.status, calls) == (False, TaskStatus.READY, [])
        await commit
        await pool.idle()
    assert calls == ["b", "a"]


async def test_a_task_that_is_cancelled_while_its_claim_is_written_never_begins(path: Path, disk: Disk) -> None:
    async with Pool(journal=path) as pool:
        await written(pool)
        disk._free.clear()
        disk._busy.clear()
        hold = BackgroundTasks(pool)
        result = hold.add_task(play, "a")
        disk._free.set()
        await hold.commit()
        disk._free.clear()
        hold.release()
        await turn()  # A worker has it, and has asked.
        disk._busy.clear()
        assert pool.cancel(result.id) is CancelOutcome.CANCELLED
        disk._free.set()
        await pool.idle()
    assert (calls, statuses(path)) == ([], ["CANCELLED"])
    assert pool.statistics().places_taken == 0


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


async def test_a_dropped_response_that_was_promised_is_dropped_in_the_file(path: Path) -> None:
    async with Pool(journal=path) as pool:
        hold = BackgroundTasks(pool)
        hold.add_task(play, "a")
        hold.add_task(play.using(always=True), "always")
        await hold.commit()
        assert statuses(path) == ["HELD", "HELD"]
        hold.drop()
        hold.release()
        await pool.idle()
    assert (calls, statuses(path)) == (["always"], ["DROPPED", "SUCCESSFUL"])


async def test_a_claim_is_in_the_file_before_the_body_runs_also_in_a_thread_and_at_the_second_attempt(
    path: Path,
) -> None:
    clock, seen = FakeClock(), []

    def look() -> None:
        seen.append(rows(path))

    async def look_and_fail() -> None:
        look()
        raise ValueError

    plays["thread"], plays["coroutine"] = look, look_and_fail
    async with Pool(journal=path, clock=clock, workers=1, random=lambda: 0.5) as pool:
        threaded, insisted = await promised(pool, (play_in_thread, "thread"), (insist, "coroutine"))
        await threaded.wait()
        for attempt in (1, 2):
            await reached(pool, insisted, TaskStatus.WAITING, attempt)
            clock.advance(5)
        await insisted.wait()
    assert [each[0] for each in seen][:1] == [("play_in_thread", "RUNNING", 1)]
    assert [each[1] for each in seen] == [("insist", "HELD", 0), *(("insist", "RUNNING", n) for n in (1, 2, 3))]
    assert rows(path) == [("play_in_thread", "SUCCESSFUL", 1), ("insist", "FAILED", 3)]


@pytest.mark.parametrize("how", ["a second in line", "a stop"])
async def test_who_stands_in_line_is_written_as_ready_after_a_second_and_at_a_stop(path: Path, how: str) -> None:
    """Who is claimed at once is not: the claim says it."""
    clock = FakeClock()
    plays["a"] = asyncio.Event().wait
    async with Pool(journal=path, clock=clock, workers=1) as pool:
        await promised(pool, (play, "a"))
        await promised(pool, (play, "b"))
        await written(pool)
        assert statuses(path) == ["RUNNING", "HELD"]
        if how == "a second in line":
            clock.advance(1)
            await written(pool)
            assert statuses(path) == ["RUNNING", "READY"]
        await stopped(pool, clock)
    assert statuses(path) == ["READY", "READY"]


async def test_an_origin_that_no_file_can_hold_is_written_as_it_is_escaped(path: Path) -> None:
    async with Pool(journal=path) as pool:
        hold = BackgroundTasks(pool, "GET /\udcff/\u00e9")
        hold.add_task(play, "a")
        await hold.commit()
        hold.release()
    assert rows(path, "origin, status") == [("GET /\\udcff/\u00e9", "SUCCESSFUL")]


# --- a disk that refuses ---


async def test_who_stands_in_line_and_was_refused_is_written_when_there_is_room_again(path: Path, disk: Disk) -> None:
    clock = FakeClock()
    plays["a"] = asyncio.Event().wait
    async with Pool(journal=path, clock=clock, workers=1) as pool:
        await promised(pool, (play, "a"))
        await written(pool)
        disk.is_full = FULL
        pool.enqueue(play, "b")
        cancelled = pool.enqueue(play, "cancelled")
        with pytest.raises(JournalFailed):
            await written(pool)
        disk.is_full = None
        assert rows(path, "status") == ["RUNNING"]
        assert pool.cancel(cancelled.id) is CancelOutcome.CANCELLED
        for expected in ("HELD", "READY"):
            clock.advance(1)
            await written(pool)
            assert statuses(path) == ["RUNNING", expected]
        await stopped(pool, clock)
    assert statuses(path) == ["READY", "READY"]


def said(caplog: pytest.LogCaptureFixture, path: Path) -> list[tuple[str, str]]:
    lines = [(r.levelname, r.getMessage()) for r in caplog.records if r.getMessage().startswith(f"{path} ")]
    return [(level, message.removeprefix(f"{path} ")) for level, message in lines]


async def test_an_outage_is_one_record_and_its_end_is_another(
    path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "minibg.background")
    clock = FakeClock()
    async with Pool(journal=path, clock=clock) as pool:
        for error in (FULL, sqlite3.OperationalError("disk I/O error")):
            disk.refuses = error
            for _ in range(3):
                with pytest.raises(JournalFailed, match=f"could not be written to disk: {error}") as refusal:
                    await promised(pool, (play, "a"))
                assert refusal.value.retry_after == 10
            disk.refuses = None
            await promised(pool, (play, "b"))
            await pool.idle()
    lost = "cannot be written: {}; its tasks are refused, or wait"
    assert said(caplog, path) == [
        ("ERROR", lost.format(FULL)),
        ("INFO", "is written again"),
        ("ERROR", lost.format("disk I/O error")),
        ("INFO", "is written again"),
    ]
    assert calls == ["b", "b"]


async def test_a_full_database_refuses_what_is_new_and_finishes_what_is_old(path: Path) -> None:
    """No fake disk: SQLite's own limit of pages."""
    gate = asyncio.Event()
    plays["old"] = gate.wait
    async with Pool(journal=path, queue_limit=1000) as pool:
        (old,) = await promised(pool, (play, "old"))
        await reached(pool, old, TaskStatus.RUNNING)
        await written(pool)
        database = pool._journal._file._database  # type: ignore[attr-defined]
        database.execute("PRAGMA max_page_count = 1")
        holds = [BackgroundTasks(pool) for _ in range(3)]
        for hold in holds:
            for _ in range(200):
                hold.add_task(note, "x" * 100)
        refusals = await asyncio.gather(*(hold.commit() for hold in holds), return_exceptions=True)
        assert [type(refusal) for refusal in refusals] == [JournalFailed] * 3
        for hold in holds:
            hold.drop()
        assert pool.statistics().places_taken == 0
        gate.set()
        await old.wait()
        database.execute("PRAGMA max_page_count = 100000")
        (new,) = await promised(pool, (note, "new"))
        await new.wait()
    assert rows(path) == [("play", "SUCCESSFUL", 1), ("note", "SUCCESSFUL", 1)]


async def test_a_disk_that_has_room_for_changes_only_claims_and_ends_what_it_has(path: Path, disk: Disk) -> None:
    async with Pool(journal=path) as pool:
        holds = [BackgroundTasks(pool) for _ in range(2)]
        kept, refused = holds[0].add_task(play, "kept"), holds[1].add_task(play, "refused")
        await holds[0].commit()
        async with disk.busy(pool):
            disk.is_full = FULL
            holds[0].release()  # Its release and its claim are in one group with what is refused.
            commit = asyncio.create_task(holds[1].commit())
            await turn()
        with pytest.raises(JournalFailed):
            await commit
        holds[1].drop()
        await kept.wait()
    assert (calls, refused.status, rows(path)) == (["kept"], TaskStatus.DROPPED, [("play", "SUCCESSFUL", 1)])


async def test_all_that_happened_in_an_outage_is_written_after_it(path: Path, disk: Disk) -> None:
    """Retries, ends, cancels: each as if nothing had been."""
    clock, gates = FakeClock(), {name: asyncio.Event() for name in "abc"}

    async def falls() -> None:
        await gates["b"].wait()
        raise ValueError("b fell")

    plays.update(a=gates["a"].wait, b=falls, c=gates["c"].wait)
    async with Pool(journal=path, clock=clock, random=lambda: 0.5) as pool:
        holds = [BackgroundTasks(pool) for _ in range(5)]
        names: list[Any] = [(play, "a"), (insist, "b"), (play, "c"), (play, "d"), (play.using(delay=60), "e")]
        ok, again, cut, cancelled, late = (hold.add_task(*each) for hold, each in zip(holds, names, strict=True))
        for hold in holds:
            await hold.commit()
        for hold in holds[:3]:
            hold.release()
        for result in (ok, again, cut):
            await reached(pool, result, TaskStatus.RUNNING)
        await written(pool)
        disk.refuses = FULL
        for gate in "ab":
            gates[gate].set()
        await ok.wait()
        await reached(pool, again, TaskStatus.WAITING)
        pool.cancel(cut.id)
        await cut.wait()
        pool.cancel(cancelled.id)
        holds[4].release()
        with pytest.raises(JournalFailed):
            await promised(pool, (note, 1))
        assert statuses(path) == ["RUNNING"] * 3 + ["HELD"] * 2
        disk.refuses = None
        await written(pool)
        found = rows(path, "status, attempts, round(due_at - added_at)")
        assert found == [
            ("SUCCESSFUL", 1, None),
            ("WAITING", 1, 5),
            ("CANCELLED", 1, None),
            ("CANCELLED", 0, None),
            ("WAITING", 0, 60),
        ]
        assert late.status is TaskStatus.WAITING
        await stopped(pool, clock)


@pytest.mark.parametrize("how", ["delay", "retry"])
async def test_a_task_that_waits_for_ever_does_not_stop_the_journal(path: Path, how: str) -> None:
    """Infinity is no JSON: a group with it could never be written, nor any after it."""

    async def for_ever() -> None:
        raise RetryLater(after=float("inf"))

    plays["a"], clock = for_ever, FakeClock()
    async with Pool(journal=path, clock=clock) as pool:
        function = play.using(delay=float("inf")) if how == "delay" else insist
        (result,) = await promised(pool, (function, "a"))
        await reached(pool, result, TaskStatus.WAITING)
        (other,) = await promised(pool, (note, 1))
        await other.wait()
        await stopped(pool, clock)
    assert statuses(path) == ["WAITING", "SUCCESSFUL"]
    async with Pool(journal=path, clock=clock) as pool:
        assert (again := pool.get(result.id)) is not None
        assert again.status is TaskStatus.WAITING
        await stopped(pool, clock)


# --- what is read from the file ---


async def test_any_text_may_be_asked_for_as_an_id(path: Path) -> None:
    async with Pool(journal=path) as pool:
        for id in ("", "none", "\ud800", "ä", "a\0b", "'; DROP TABLE runs", "x" * 100_000):
            assert pool.get(id) is None
            assert pool.cancel(id) is CancelOutcome.UNKNOWN


async def test_the_connection_that_reads_cannot_write(path: Path) -> None:
    async with Pool(journal=path) as pool:
        reader = pool._journal._reader  # type: ignore[attr-defined]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute("DELETE FROM runs")


class Moody(list[int]):
    def __iter__(self) -> Any:
        raise KeyError("not today")


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"a": [1, None, "ä"]}, {"a": [1, None, "ä"]}),
        ("x" * 9_998, "x" * 9_998),
        ("x" * 9_999, None),
        (float("nan"), None),
        (b"bytes", None),
        (Moody([1]), None),
    ],
    ids=lambda value: repr(value)[:20] if not isinstance(value, Moody) else "moody",
)
async def test_a_value_is_kept_when_it_is_short_json_and_hurts_nobody_else_otherwise(
    path: Path, value: Any, kept: Any
) -> None:
    async def give() -> Any:
        return value

    plays["a"] = give
    async with Pool(journal=path, workers=1) as pool:
        result, after = await promised(pool, (play, "a"), (note, 1))
        await after.wait()
        assert result.return_value is value
    async with Pool(journal=path) as pool:
        again = pool.get(result.id)
        assert again is not None
        assert again.return_value == kept
        assert (again.status, again.durable, again.attempts) == (TaskStatus.SUCCESSFUL, True, 1)


async def test_errors_of_an_earlier_life_are_read_as_they_were(path: Path) -> None:
    clock = FakeClock()
    plays["a"] = fails
    async with Pool(journal=path, clock=clock, random=lambda: 0.5) as pool:
        (result,) = await promised(pool, (insist, "a"))
        for attempt in (1, 2):
            await reached(pool, result, TaskStatus.WAITING, attempt)
            clock.advance(5)
        await result.wait()
    async with Pool(journal=path, clock=clock) as pool:
        again = pool.get(result.id)
        assert again is not None
        assert again.errors == result.errors
        assert [(error.attempt, error.type, error.message) for error in again.errors] == [
            (n, "ValueError", "no") for n in (1, 2, 3)
        ]
        shown = ("id", "name", "origin", "added_at", "status", "released_at", "started_at", "finished_at")
        assert [getattr(again, name) for name in shown] == [getattr(result, name) for name in shown]


@pytest.mark.parametrize(
    "spoilt",
    [
        "name = 'os.system'",
        "name = 'forge'",
        "payload = 'no JSON'",
        "payload = '7'",
        f"payload = '{'[' * 100_000}'",
        "options = '[]'",
        "options = '{\"timeout\": -1}'",
        "options = '{\"surprise\": 1}'",
        'options = \'{"run_at": "soon"}\'',
        'options = \'{"retry": {"attempts": 0}}\'',
        "errors = '{}' || 'x'",
        "errors = '[7]'",
        "added_at = 1e300",
        "value = 'no JSON'",
    ],
    ids=lambda text: text[:40],
)
async def test_a_row_that_was_tampered_with_is_kept_and_named_and_the_others_run(
    path: Path, caplog: pytest.LogCaptureFixture, spoilt: str
) -> None:
    async with Pool(journal=path, drain_timeout=0) as pool:
        added = [(play.using(delay=1000), name) for name in ("a", "b", "c")]
        _, bad, _ = await promised(pool, *added)
    change(path, "UPDATE runs SET status = 'READY', due_at = NULL")
    change(path, f"UPDATE runs SET {spoilt} WHERE id = ?", bad.id)
    async with Pool(journal=path) as pool:
        await pool.idle()
    assert calls == ["a", "c"]
    assert statuses(path) == ["SUCCESSFUL", "READY", "SUCCESSFUL"]
    (warning,) = [message for level, message in said(caplog, path) if level == "WARNING"]
    assert warning.startswith("keeps what cannot be run: ")
    assert bad.id in warning


# --- the next life ---


async def killed(path: Path, copy_at: Callable[[Pool], Any]) -> Path:
    """A life that ends by a kill, at a moment; the file as it is then."""
    clock = FakeClock()
    async with Pool(journal=path, clock=clock, workers=2) as pool:
        await copy_at(pool)
        await written(pool)
        copy = as_a_kill_leaves_it(path)
        await stopped(pool, clock)
    return copy


async def test_crashes_do_not_count_as_attempts_of_a_retry(path: Path) -> None:
    """Two crashes, three attempts that fail: five in all, and the third failure is the last."""
    plays["a"] = asyncio.Event().wait

    async def begin(pool: Pool) -> None:
        await promised(pool, (insist, "a"))

    async def runs(pool: Pool) -> None:
        (id,) = rows(path, "id")
        result = pool.get(id)
        assert result is not None
        await reached(pool, result, TaskStatus.RUNNING)

    async def begin_and_run(pool: Pool) -> None:
        await begin(pool)
        await runs(pool)

    path = await killed(path, begin_and_run)
    path = await killed(path, runs)
    plays["a"] = fails
    clock = FakeClock()
    async with Pool(journal=path, clock=clock, random=lambda: 0.5) as pool:
        result = pool.get(rows(path, "id")[0])
        assert result is not None
        for attempt in (3, 4):
            await reached(pool, result, TaskStatus.WAITING, attempt)
            clock.advance(5)
        await result.wait()
    assert rows(path, "status, attempts, excused, crashes") == [("FAILED", 5, 2, 2)]
    assert [error.attempt for error in result.errors] == [3, 4, 5]


async def test_a_task_that_dies_with_its_process_a_third_time_fails_and_lets_its_siblings_run(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plays["poison"] = asyncio.Event().wait

    async def take(pool: Pool) -> None:
        if not path.exists() or not rows(path):
            await promised(pool, (play, "poison"), (play, "after"))
        result = pool.get(rows(path, "id")[0])
        assert result is not None
        await reached(pool, result, TaskStatus.RUNNING)

    for _ in range(3):
        path = await killed(path, take)
    assert calls == ["poison"] * 3
    async with Pool(journal=path) as pool:
        result = pool.get(rows(path, "id")[0])
        assert result is not None
        assert (result.status, result.errors[-1].type) == (TaskStatus.FAILED, "WorkerDied")
        assert "worker died" in result.errors[-1].message
        await pool.idle()
    assert calls == ["poison"] * 3 + ["after"]
    assert statuses(path) == ["FAILED", "SUCCESSFUL"]
    assert len([r for r in caplog.records if r.levelno == logging.ERROR and "worker died" in r.getMessage()]) == 1


async def test_the_order_is_that_of_acceptance_and_within_a_response_one_after_another(path: Path) -> None:
    async def fill(pool: Pool) -> None:
        for _ in range(2):
            pool.enqueue(play, "block")
        await turn()
        for response in "abc":
            await promised(pool, *((note, response, n) for n in range(3)))
        late = BackgroundTasks(pool)
        late.add_task(note, "held", 0)
        await late.commit()

    plays["block"] = asyncio.Event().wait
    copy = await killed(path, fill)
    plays.clear()
    calls.clear()
    async with Pool(journal=copy, workers=1) as pool:
        await pool.idle()
    assert calls == ["block", "block", *(((r, n), {}) for r in "abc" for n in range(3)), (("held", 0), {})]


async def test_a_task_that_is_delayed_keeps_nobody_behind_it_in_the_next_life_either(path: Path) -> None:
    async def fill(pool: Pool) -> None:
        for _ in range(2):
            pool.enqueue(play, "block")
        await turn()
        await promised(pool, (note.using(delay=1000), "late"), (note, "now"))

    plays["block"] = asyncio.Event().wait
    copy = await killed(path, fill)
    plays.clear()
    calls.clear()
    clock = FakeClock()
    async with Pool(journal=copy, clock=clock) as pool:
        now = pool.get(rows(copy, "id")[-1])
        assert now is not None
        await asyncio.wait_for(now.wait(), 10)
        await stopped(pool, clock)
    assert [call for call in calls if call != "block"] == [(("now",), {})]
    assert rows(copy, "name, status")[2:] == [("note", "WAITING"), ("note", "SUCCESSFUL")]


async def test_one_line_names_the_file_and_what_it_had(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "minibg.background")
    async with Pool(journal=path, drain_timeout=0) as pool:
        await promised(pool, *[(play.using(delay=100), "a")] * 3)
    caplog.clear()
    async with Pool(journal=path, drain_timeout=0):
        (record,) = caplog.records
        assert record.levelno == logging.INFO
        assert record.getMessage().startswith(f"{path}: 3 unfinished tasks")


async def test_all_options_of_a_call_are_there_in_the_next_life(path: Path) -> None:
    usual = insist.options.retry
    assert usual is not None
    retry = Retry(attempts=2, base=7.0, cap=8.0)
    called = insist.using(timeout=3.5, priority="high", retry=retry, delay=50, key="k")
    async with Pool(journal=path, drain_timeout=0) as pool:
        (result,) = await promised(pool, (called, "a"))
    async with Pool(journal=path, drain_timeout=0) as pool:
        run = pool._journal.unfinished[result.id]
        options = run.options
        assert (options.timeout, options.priority, options.key, options.retry) == (3.5, "high", "k", retry)
        assert (run.function.function, run.result.durable) == (insist.function, True)  # type: ignore[attr-defined]


async def test_a_pool_that_cannot_have_its_file_can_be_opened_when_it_is_free(path: Path) -> None:
    async with Pool(journal=path) as pool:
        other = Pool(journal=path)
        with pytest.raises(JournalUnusable, match="in use by this process"):
            await other.open()
        assert other.is_new
    async with other:
        (result,) = await promised(other, (play, "a"))
        await result.wait()
    assert calls == ["a"]
    assert pool.statistics().by_status[TaskStatus.SUCCESSFUL] == 0


# --- the stop ---


async def test_a_stop_keeps_what_is_unfinished_names_it_and_wakes_who_waits(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("cleanup")

    plays["stubborn"] = stubborn
    async with Pool(journal=path, clock=clock, workers=1) as pool:
        done, running, sibling = await promised(pool, (note, 1), (play, "stubborn"), (play, "sibling"))
        (delayed,) = await promised(pool, (play.using(delay=100), "delayed"))
        held = BackgroundTasks(pool)
        in_response = held.add_task(play, "held")
        await held.commit()
        uncommitted = BackgroundTasks(pool).add_task(play, "uncommitted")
        volatile = pool.enqueue(forget, object())
        await reached(pool, running, TaskStatus.RUNNING)
        waiters = [asyncio.create_task(each.wait()) for each in (running, sibling, delayed, in_response, volatile)]
        idle = asyncio.create_task(pool.idle())
        await turn()
        report = await stopped(pool, clock)
        assert not Path(f"{path}-wal").exists()
        await asyncio.gather(idle, *waiters)
    became = {
        line.id: (line.was.value, line.became.value, "kept for the next start" in str(line))
        for line in report.unfinished
    }
    assert became == {
        running.id: ("RUNNING", "READY", True),
        sibling.id: ("READY", "READY", True),
        delayed.id: ("WAITING", "WAITING", True),
        in_response.id: ("HELD", "HELD", True),
        uncommitted.id: ("HELD", "LOST", False),
        volatile.id: ("READY", "LOST", False),
    }
    counts = pool.statistics().by_status
    assert sum(counts.values()) == 7
    assert {status.value: count for status, count in counts.items() if count} == {
        "SUCCESSFUL": 1,
        "READY": 2,
        "WAITING": 1,
        "HELD": 1,
        "LOST": 2,
    }
    assert rows(path, "id, status, crashes") == [
        (done.id, "SUCCESSFUL", 0),
        (running.id, "READY", 0),
        (sibling.id, "READY", 0),
        (delayed.id, "WAITING", 0),
        (in_response.id, "HELD", 0),
    ]
    assert (volatile.durable, running.durable) == (False, True)


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
    assert Counter(rows(path, "name, status")) <= Counter({("note", "SUCCESSFUL"): 80, ("play", "CANCELLED"): 80})
    assert Counter(rows(path, "name"))["note"] == 80


# --- what is asked for from outside ---


@pytest.mark.parametrize("status", [TaskStatus.READY, TaskStatus.WAITING, TaskStatus.RUNNING])
async def test_what_somebody_else_asks_to_cancel_is_cancelled_at_the_next_tick(path: Path, status: TaskStatus) -> None:
    plays["block"] = plays["a"] = asyncio.Event().wait
    clock = FakeClock()
    async with Pool(journal=path, clock=clock, workers=1) as pool:
        before, function = [], play
        if status is TaskStatus.READY:
            before = await promised(pool, (play, "block"))
        if status is TaskStatus.WAITING:
            function = play.using(delay=1000)
        (result,) = await promised(pool, (function, "a"))
        await reached(pool, result, status)
        await written(pool)
        change(path, ASK, "cancel", result.id)
        clock.advance(1)
        await result.wait()
        assert result.status is TaskStatus.CANCELLED
        for each in before:
            pool.cancel(each.id)
        await pool.idle()
        assert pool.statistics().places_taken == 0
    assert rows(path, "status, asked", f"id = '{result.id}'") == [("CANCELLED", None)]


async def test_what_somebody_else_asks_to_retry_begins_anew_at_the_next_tick(path: Path) -> None:
    plays["a"], clock = fails, FakeClock()
    async with Pool(journal=path, clock=clock) as pool:
        (result,) = await promised(pool, (play, "a"))
        await result.wait()
        await written(pool)
        del plays["a"]
        follower = pool.follow()
        change(path, ASK, "retry", result.id)
        clock.advance(1)
        async for transition in follower:
            if transition.after is TaskStatus.SUCCESSFUL:
                break
        assert (transition.id, transition.attempt) == (result.id, 1)
        assert pool.statistics().places_taken == 0
    assert rows(path) == [("play", "SUCCESSFUL", 1)]
    assert calls == ["a", "a"]


async def test_a_run_that_was_retried_in_the_same_life_is_forgotten_once_and_late(path: Path) -> None:
    """It has ended twice. Forgetting it for each of them killed a worker."""
    plays["a"], clock = fails, FakeClock()
    async with Pool(journal=path, clock=clock, workers=1, keep_finished=2) as pool:
        (result,) = await promised(pool, (play, "a"))
        await result.wait()
        change(path, ASK, "retry", result.id)
        follower = pool.follow()
        clock.advance(1)
        async for transition in follower:
            if (transition.id, transition.after) == (result.id, TaskStatus.FAILED):
                break
        again = pool.get(result.id)
        assert (again is not result, again is not None) == (True, True)
        await pool.enqueue(note, 0).wait()
        assert pool.get(result.id) is again
        for n in (1, 2, 3):
            await asyncio.wait_for(pool.enqueue(note, n).wait(), 10)
    assert rows(path, "status") == ["FAILED", *["SUCCESSFUL"] * 4]


async def test_what_was_asked_for_while_nobody_ran_is_done_at_the_next_start(path: Path) -> None:
    plays["fails"] = fails
    async with Pool(journal=path, drain_timeout=0) as pool:
        failed, delayed = await promised(pool, (play, "fails"), (play.using(delay=100), "delayed"))
        await failed.wait()
    change(path, ASK, "retry", failed.id)
    change(path, ASK, "cancel", delayed.id)
    del plays["fails"]
    async with Pool(journal=path) as pool:
        await pool.idle()
    assert rows(path) == [("play", "SUCCESSFUL", 1), ("play", "CANCELLED", 0)]


async def test_a_failed_run_whose_key_another_has_is_not_retried(path: Path) -> None:
    plays["a"], clock, once = fails, FakeClock(), play.using(key="k")
    async with Pool(journal=path, clock=clock) as pool:
        (failed,) = await promised(pool, (once, "a"))
        await failed.wait()
        (other,) = await promised(pool, (once.using(delay=100), "b"))
        await written(pool)
        change(path, ASK, "retry", failed.id)
        clock.advance(1)
        await written(pool)
        await turn()
        assert rows(path, "status, asked") == [("FAILED", None), ("WAITING", None)]
        pool.cancel(other.id)
        await pool.idle()
    assert calls == ["a"]


async def test_what_was_ended_in_the_file_behind_its_owners_back_does_not_begin(path: Path) -> None:
    async with Pool(journal=path) as pool:
        hold = BackgroundTasks(pool)
        result = hold.add_task(play, "a")
        await hold.commit()
        change(path, "UPDATE runs SET status = 'CANCELLED', finished_at = 1")
        hold.release()
        await result.wait()
        assert (result.status, result.attempts, pool.statistics().places_taken) == (TaskStatus.CANCELLED, 0, 0)
    assert calls == []


# --- any schedule ---

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


class Lives:
    """A journal through several lives of its pool, and what must be true of it in each."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.path = folder / "tasks.db"
        self.clock = FakeClock()
        self.workers = workers
        #: What memory knows of each run that was promised in this life or found by it, by id.
        self.results: dict[str, TaskResult[Any]] = {}
        #: The runs that were promised and neither dropped nor cancelled: id to response and place in it, delayed or not.
        self.owed: dict[str, tuple[int, int, bool]] = {}
        self.names: dict[str, str] = {}
        self.cancelled: set[str] = set()
        #: Those that more than one response has, by their key: they stand in the line of the one that leaves first.
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
        unfinished = self.pool._journal.unfinished
        marks = {id for id, run in unfinished.items() if run.result.name == "mark"}
        found = [run for batch in self.pool._left for run in batch if run.result.id not in marks]
        order = {id: number for number, id in enumerate(before)}
        numbers = [order[run.result.id] for run in found]
        assert sorted(numbers) == [number for id, number in order.items() if id not in failed]
        for batch in self.pool._left:
            inside = [order[run.result.id] for run in batch if run.result.id not in marks]
            assert inside == sorted(inside)
        firsts = [order[batch[0].result.id] for batch in self.pool._left if batch[0].result.id not in marks]
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
            self.owed.update(places)
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
        """The file says what memory says."""
        found = {id: row for id, *row in rows(self.path, "id, status, attempts, excused")}
        for id, result in self.results.items():
            if id not in found:  # It ended before it was written.
                assert result.status in (TaskStatus.CANCELLED, TaskStatus.DROPPED, TaskStatus.LOST)
                continue
            status, attempts, excused = found[id]
            assert status == result.status
            if status in ("SUCCESSFUL", "FAILED", "WAITING"):
                assert attempts == result.attempts
            else:  # A claim may have been written for an attempt that then did not begin.
                assert attempts - excused - 1 <= result.attempts <= attempts
        assert set(self.owed) - self.cancelled <= set(found)

    async def kill(self) -> None:
        await written(self.pool)
        copy = as_a_kill_leaves_it(self.path)
        count = len(calls)
        await stopped(self.pool, self.clock)
        del calls[count:]  # What the corpse still did.
        self.kills += 1
        copy = copy.rename(self.path.with_name(f"life{self.kills}.db"))
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
        """Let everything come to its end, in a last life; what was held runs in it."""
        while self.pool._journal.unfinished:
            self.clock.advance(50)
            await turn()
            await written(self.pool)
        await stopped(self.pool, self.clock)
        self.compare()
        final = dict(rows(self.path, "id, status"))
        for id in set(self.owed) - self.cancelled:
            assert final[id] in ("SUCCESSFUL", "FAILED"), "it was promised"
        assert set(final.values()) <= {"SUCCESSFUL", "FAILED", "CANCELLED", "DROPPED"}
        self.check_the_order()
        self.check_the_counts()

    def check_the_order(self) -> None:
        """Within a response the first attempts come one after another, however often the process ended in between."""
        first = {name: number for number, name in reversed(list(enumerate(calls)))}
        by_response: defaultdict[int, list[int]] = defaultdict(list)
        for id, (response, _, delayed) in sorted(self.owed.items(), key=lambda item: item[1]):
            if not delayed and id not in self.shared and self.names[id] in first:
                by_response[response].append(first[self.names[id]])
        for order in by_response.values():
            assert order == sorted(order)

    def check_the_counts(self) -> None:
        """No attempt without its count, and no count without an attempt: but one that a cancel or a stop met while it was written."""
        counts = Counter(calls)
        for id, attempts, excused in rows(self.path, "id, attempts, excused"):
            if id in self.names and id not in self.cancelled and not self.kills:
                assert attempts - excused <= counts[self.names[id]] <= attempts


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.lists(steps, max_size=14))
@example(1, [("respond", [("ok", None), ("key", None)], then) for then in ("hold", "release")] + [("settle",)])
def test_any_schedule_leaves_a_file_that_says_what_happened(workers: int, schedule: list[Step]) -> None:
    TASKS.update(MINE)
    calls.clear()
    plays.clear()
    logging.disable(logging.ERROR)  # Some thousand tracebacks.
    try:
        with TemporaryDirectory() as folder:
            asyncio.run(Lives(Path(folder), workers).run(schedule))
    finally:
        logging.disable(logging.NOTSET)


def test_a_name_that_was_decorated_for_these_tests_is_the_one_in_the_file() -> None:
    """Else every refusal above would be one of a name."""
    assert {name: TASKS[name] for name in MINE} == MINE
    assert task(name="other")(fails).name == "other"
