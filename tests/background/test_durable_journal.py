"""The durable journal inside one process: what it takes on, what it gives back, and what it does when the disk refuses."""

import asyncio
import functools
import logging
import sqlite3
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from minibg import AfterResponse, BackgroundTasks, Pool, QueueFull, Retry, TaskStatus
from minibg.asgi import Message, Receive, Scope, Send
from minibg.background import CancelOutcome, JournalFailed
from minibg.background.sqlite import File
from minibg.background.task import TASKS
from tests.background.durable_tasks import (
    FULL,
    Disk,
    as_a_kill_leaves_it,
    calls,
    disk as disk,
    durable_tasks as durable_tasks,
    forget,
    insist,
    note,
    path as path,
    play,
    play_in_thread,
    plays,
    promised,
    rows,
)
from tests.background.fake_clock import FakeClock
from tests.background.recording import reached


# What it takes on.


def local(what: int) -> None: ...


ANYTHING: Any = object()
CIRCULAR: list[Any] = []
CIRCULAR.append(CIRCULAR)


@pytest.mark.parametrize(
    ("function", "arguments", "culprit"),
    [
        (local, (1,), "tests.background.test_durable_journal.local"),
        (lambda: None, (), "<lambda>"),
        ([].append, (1,), "list.append"),
        (note, ((1, 2),), "argument what of note"),
        (note, ({1},), "argument what of note"),
        (note, (float("nan"),), "argument what of note"),
        (note, ({1: 2},), "argument what of note"),
        (note, (CIRCULAR,), "argument what of note"),
        (play, (b"bytes",), "argument name of play is not JSON: b'bytes'"),
        (play, (datetime(2026, 1, 1),), "argument name of play"),
        (functools.partial(play, ANYTHING), (), "argument name of play"),
    ],
)
async def test_what_cannot_be_kept_is_refused_by_name(
    path: Path, function: Callable[..., Any], arguments: tuple[Any, ...], culprit: str
) -> None:
    async with Pool(journal=path) as pool:
        hold = BackgroundTasks(pool)
        with pytest.raises(TypeError) as refused:
            hold.add_task(function, *arguments)
        assert culprit in str(refused.value)
        assert len(hold) == 0
    assert rows(path, "name, status") == []


async def test_a_task_that_is_not_durable_takes_anything_and_says_so(path: Path) -> None:
    async with Pool(journal=path) as pool:
        loose = pool.enqueue(forget, object())
        chosen = pool.enqueue(play.using(durable=False), "a")
        kept = pool.enqueue(play, "b")
        assert (loose.durable, chosen.durable, kept.durable) == (False, False, True)
        await pool.idle()
    assert rows(path, "name, status") == [("play", "SUCCESSFUL")]


async def test_the_task_gets_what_the_file_has_whatever_becomes_of_the_arguments(path: Path) -> None:
    async with Pool(journal=path) as pool:
        wish = {"to": ["a"]}
        hold = BackgroundTasks(pool)
        hold.add_task(functools.partial(note, 1), wish, key="k")
        wish["to"].append("b")
        await hold.commit()
        hold.release()
        await pool.idle()
    assert calls == [((1, {"to": ["a"]}), {"key": "k"})]


async def test_a_retry_with_other_exceptions_than_the_tasks_own_is_refused(path: Path) -> None:
    async with Pool(journal=path) as pool:
        with pytest.raises(TypeError, match="a file cannot hold classes"):
            pool.enqueue(insist.using(retry=Retry(on=(KeyError,))), "a")
        with pytest.raises(TypeError, match="no text that a file can hold"):
            pool.enqueue(play.using(key="\ud800"), "a")


@pytest.mark.parametrize("options", [{"journal": ""}, {"journal": "x", "durability": "luck"}])
def test_options_that_make_no_sense_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match="journal= is the path of a file"):
        Pool(**options)


# What it promises.


async def test_a_commit_is_on_disk_before_it_returns_and_in_one_transaction(path: Path, disk: Disk) -> None:
    async with Pool(journal=path) as pool:
        hold = BackgroundTasks(pool, "POST /register")
        for name in "abc":
            hold.add_task(play, name)
        assert rows(path, "name, status") == []
        await hold.commit()
        assert rows(path, "name, status, origin, response") == [("play", "HELD", "POST /register", 1)] * 3
        hold.release()
        await pool.idle()
    assert disk.entered == [3]
    assert rows(path, "name, status, attempts") == [("play", "SUCCESSFUL", 1)] * 3


async def test_who_waits_together_shares_one_flush(path: Path, disk: Disk) -> None:
    async with Pool(journal=path) as pool:
        await asyncio.gather(*(promised(pool, (play, str(number))) for number in range(64)))
        await pool.idle()
    assert disk.entered == [64]


async def test_a_disk_that_refuses_leaves_nothing_half_accepted(
    path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "minibg.background")
    async with Pool(journal=path, queue_limit=2) as pool:
        disk.refuses = FULL
        for _ in range(3):  # The places are given back each time.
            hold = BackgroundTasks(pool)
            results = [hold.add_task(play, name) for name in "ab"]
            with pytest.raises(JournalFailed, match="database or disk is full") as refused:
                await hold.commit()
            assert refused.value.retry_after > 0
            hold.drop()
            assert [result.status for result in results] == [TaskStatus.DROPPED] * 2
        disk.refuses = None
        await promised(pool, (play, "c"))
        await pool.idle()
    assert calls == ["c"]
    assert rows(path, "name, status") == [("play", "SUCCESSFUL")]
    said = [record.levelname for record in caplog.records if "written" in record.getMessage()]
    assert said == ["ERROR", "INFO"]


async def test_an_attempt_that_cannot_be_counted_waits_for_the_disk(path: Path, disk: Disk) -> None:
    async with Pool(journal=path) as pool:
        hold = BackgroundTasks(pool)
        result = hold.add_task(play, "a")
        await hold.commit()
        disk.refuses = FULL
        hold.release()
        while not any(group.failed for group in disk.groups):
            await asyncio.sleep(0)
        assert (result.status, calls) == (TaskStatus.READY, [])
        disk.refuses = None
        await result.wait(30)
        assert (result.status, calls) == (TaskStatus.SUCCESSFUL, ["a"])
    assert rows(path, "status, attempts") == [("SUCCESSFUL", 1)]


async def test_an_end_that_could_not_be_written_is_written_later(path: Path, disk: Disk) -> None:
    async with Pool(journal=path) as pool:

        async def fill_the_disk() -> None:
            disk.refuses = FULL

        plays["a"] = fill_the_disk
        (result,) = await promised(pool, (play, "a"))
        await result.wait()
        assert rows(path, "name, status") == [("play", "RUNNING")]
        disk.refuses = None
    assert rows(path, "name, status") == [("play", "SUCCESSFUL")]


# A new life.


async def test_what_was_running_runs_again_and_the_order_is_kept(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "minibg.background")
    started = asyncio.Event()

    async def hang() -> None:
        started.set()
        await asyncio.Event().wait()

    plays["a1"] = hang
    async with Pool(journal=path, workers=1, drain_timeout=0) as pool:
        await promised(pool, (play, "a1"), (play, "a2"))
        await promised(pool, (play, "b1"), (play.using(delay=86400), "later"), (play, "b2"))
        hold = BackgroundTasks(pool)
        hold.add_task(play, "held")
        await hold.commit()
        await started.wait()
        killed = as_a_kill_leaves_it(path)
    calls.clear()
    plays.clear()
    async with Pool(journal=killed, workers=1, drain_timeout=0) as pool:
        while pool.statistics().by_status[TaskStatus.SUCCESSFUL] < 5:
            await asyncio.sleep(0)
        assert pool.statistics().waiting == 1
    assert calls == ["a1", "a2", "b1", "b2", "held"]
    assert rows(killed, "attempts, excused, crashes, status") == [
        (2, 1, 1, "SUCCESSFUL"),
        (1, 0, 0, "SUCCESSFUL"),
        (1, 0, 0, "SUCCESSFUL"),
        (0, 0, 0, "WAITING"),
        (1, 0, 0, "SUCCESSFUL"),
        (1, 0, 0, "SUCCESSFUL"),
    ]
    found = f"{killed}: 6 unfinished tasks of an earlier life, 1 were interrupted"
    assert found in [record.getMessage() for record in caplog.records]


async def test_a_stop_puts_back_without_a_crash_and_without_eating_attempts(path: Path) -> None:
    for life in range(5):
        started = asyncio.Event()

        async def hang(started: asyncio.Event = started) -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                raise RuntimeError("the cleanup fails")

        plays["a"] = hang
        async with Pool(journal=path, drain_timeout=0) as pool:
            if life == 0:
                await promised(pool, (insist, "a"))
            await started.wait()
            report = await pool.stop()
            assert [str(line).split("was ")[1] for line in report.unfinished] == [
                "RUNNING: READY, kept for the next start"
            ]
    assert rows(path, "status, attempts, excused, crashes") == [("READY", 5, 5, 0)]

    async def fail() -> None:
        raise ConnectionError

    plays["a"] = fail
    clock = FakeClock()
    async with Pool(journal=path, clock=clock) as pool:
        (run,) = pool._journal.unfinished.values()
        for attempt in (6, 7):
            await reached(pool, run.result, TaskStatus.WAITING, attempt)
            clock.advance(10.0)
        await run.result.wait()
        assert (run.result.status, run.result.attempts) == (TaskStatus.FAILED, 8)


async def test_a_retry_keeps_its_due_time_and_its_siblings_behind_it(path: Path) -> None:
    async def fail() -> None:
        raise ConnectionError("no line")

    clock = FakeClock()
    plays["a"] = fail
    async with Pool(journal=path, clock=clock, drain_timeout=0, random=lambda: 0.9) as pool:
        first, second = await promised(pool, (insist, "a"), (play, "b"))
        await reached(pool, first, TaskStatus.WAITING)
    plays.clear()
    calls.clear()
    clock.advance(4.0)
    async with Pool(journal=path, clock=clock) as pool:
        before = pool.get(first.id)
        assert before is not None
        assert [(error.type, error.message) for error in before.errors] == [("ConnectionError", "no line")]
        assert (before.status, before.attempts) == (TaskStatus.WAITING, 1)
        clock.advance(4.9)
        await asyncio.sleep(0)
        assert (before.status, calls) == (TaskStatus.WAITING, [])
        clock.advance(0.2)
        await pool.idle()
    assert calls == ["a", "b"]
    assert second.id == rows(path, "id")[1]


async def test_a_clock_that_was_set_back_lets_nobody_wait_longer_than_was_said(path: Path) -> None:
    clock = FakeClock()
    async with Pool(journal=path, clock=clock, drain_timeout=0) as pool:
        pool.enqueue(play.using(delay=60), "a")
    clock.jump(-86400.0)
    async with Pool(journal=path, clock=clock) as pool:
        clock.advance(61.0)
        await pool.idle()
    assert calls == ["a"]


async def test_a_name_that_nobody_knows_is_kept_reported_and_runs_when_it_is_known(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Pool(journal=path, drain_timeout=0) as pool:
        result = pool.enqueue(play.using(delay=0.0), "a")
        pool.enqueue(note, "b")
    del TASKS["play"]
    async with Pool(journal=path) as pool:
        await pool.idle()
        assert pool.cancel(result.id) is CancelOutcome.UNKNOWN
        assert (known := pool.get(result.id)) is not None
        assert not known.is_finished
    assert calls == [(("b",), {})]
    assert f"keeps what cannot be run: play {result.id}" in caplog.text
    TASKS["play"] = play
    async with Pool(journal=path) as pool:
        await pool.idle()
    assert calls == [(("b",), {}), "a"]


async def test_a_finished_run_of_an_earlier_life_is_read_from_the_file(path: Path) -> None:
    async with Pool(journal=path) as pool:
        short = await pool.enqueue(note, 1, {"a": [None, True, "é"]}).wait()

        async def long() -> str:
            return "x" * 100_000

        plays["long"] = long
        long_one = await pool.enqueue(play, "long").wait()
        assert len(long_one.return_value or "") == 100_000
    async with Pool(journal=path) as pool:
        again = pool.get(short.id)
        assert again is not None
        assert (again.status, again.return_value, again.attempts, again.durable) == (
            TaskStatus.SUCCESSFUL,
            [1, {"a": [None, True, "é"]}],
            1,
            True,
        )
        assert again.added_at == short.added_at
        assert again.finished_at == short.finished_at
        assert await again.wait() is again
        assert (cut := pool.get(long_one.id)) is not None
        assert cut.return_value is None
        assert pool.get("0" * 32) is None
        assert pool.cancel(short.id) is CancelOutcome.FINISHED


async def test_a_stuck_thread_is_put_back(path: Path) -> None:
    stuck, gone = threading.Event(), threading.Event()

    def hang() -> None:
        stuck.set()
        gone.wait()

    plays["a"] = hang
    async with Pool(journal=path, drain_timeout=0) as pool:
        pool.enqueue(play_in_thread, "a")
        await asyncio.to_thread(stuck.wait)
        report = await pool.stop()
        assert [line.in_thread for line in report.unfinished] == [True]
    gone.set()
    assert rows(path, "status, crashes") == [("READY", 0)]


async def test_runs_of_a_schedule_are_not_kept(path: Path) -> None:
    clock = FakeClock()
    async with Pool(journal=path, clock=clock) as pool:
        pool.every(functools.partial(play, "a"), seconds=1)
        clock.advance(1.0)
        await pool.idle()
    assert calls == ["a"]
    assert rows(path, "name, status") == []


async def test_a_key_gives_the_same_run_also_over_a_restart(path: Path) -> None:
    async with Pool(journal=path, drain_timeout=0) as pool:
        once = play.using(key="order 1", delay=3600)
        (first,) = await promised(pool, (once, "a"))
        (second,) = await promised(pool, (once, "a"))
        assert second is first
    async with Pool(journal=path, drain_timeout=0) as pool:
        (third,) = await promised(pool, (once, "a"))
        assert third.id == first.id
        assert pool.cancel(first.id) is CancelOutcome.CANCELLED
        (fourth,) = await promised(pool, (once, "a"))
        assert fourth.id != first.id
    assert rows(path, "status, key") == [("CANCELLED", "order 1"), ("WAITING", "order 1")]


async def test_what_is_left_beyond_a_lower_limit_is_owed_and_nothing_new_is_accepted(path: Path) -> None:
    async with Pool(journal=path, drain_timeout=0) as pool:
        await promised(pool, *((play.using(delay=3600), str(number)) for number in range(5)))
    async with Pool(journal=path, drain_timeout=0, queue_limit=3) as pool:
        assert (pool.statistics().waiting, pool.statistics().places_taken) == (5, 5)
        with pytest.raises(QueueFull):
            pool.enqueue(play, "new")


async def test_a_value_that_is_not_json_is_for_this_life_only(path: Path) -> None:
    class Thing: ...

    async def make() -> Thing:
        return Thing()

    plays["a"] = make
    async with Pool(journal=path) as pool:
        result = await pool.enqueue(play, "a").wait()
        assert isinstance(result.return_value, Thing)
    async with Pool(journal=path) as pool:
        assert (again := pool.get(result.id)) is not None
        assert (again.status, again.return_value) == (TaskStatus.SUCCESSFUL, None)


async def test_an_enqueue_that_the_disk_refused_is_written_with_its_claim(path: Path, disk: Disk) -> None:
    async with Pool(journal=path) as pool:
        disk.refuses = FULL
        result = pool.enqueue(play, "a")
        while not any(group.failed for group in disk.groups):
            await asyncio.sleep(0)
        disk.refuses = None
        await result.wait(30)
    assert calls == ["a"]
    assert rows(path, "status, attempts") == [("SUCCESSFUL", 1)]


async def test_a_file_that_cannot_be_closed_in_order_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: File) -> None:
        self.release()
        raise sqlite3.OperationalError("disk I/O error")

    async with Pool(journal=path) as pool:
        await pool.enqueue(play, "a").wait()
        monkeypatch.setattr(File, "close", fail)
    assert "was not closed in order; the next start counts what ran as a crash" in caplog.text


async def test_two_first_requests_start_one_pool(path: Path) -> None:
    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        scope["minibg.background"].add_task(play, "a")

    async def send(message: Message) -> None: ...

    async def receive() -> Message:
        return {}

    app = AfterResponse(handle, journal=path)
    scope = {"type": "http", "method": "POST", "path": "/x"}
    await asyncio.gather(app(scope, receive, send), app(scope, receive, send))
    await app.pool.idle()
    await app.pool.stop()
    assert calls == ["a", "a"]
