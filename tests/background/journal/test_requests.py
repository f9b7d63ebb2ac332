"""Requests of ``minibg tasks`` to a pool: pulled at a tick, answered with a sentence, and the same verbs in the pool."""

import asyncio
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from minibg.background import Pool, TaskStatus
from minibg.background.journal.schema import REQUEST
from minibg.background.task import TASKS
from tests.background.fake_clock import FakeClock
from tests.background.journal.files import change, insert_by_hand, rows
from tests.background.journal.tasks import (
    FULL,
    Disk,
    calls,
    committed,
    fails,
    forever,
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


async def request(pool: Pool, clock: FakeClock, path: Path, action: str, id: str) -> str | None:
    """Request something as another process does, and return the refusal."""
    await written(pool)
    change(path, REQUEST, action, id)
    async with asyncio.timeout(10):
        while rows(path, "request", f"id = '{id}'") != [None]:
            clock.advance(1)
            await written(pool)
            await turn()
    (refusal,) = rows(path, "refusal", f"id = '{id}'")
    assert refusal is None or isinstance(refusal, str)
    return refusal


# --- cancel ---


@pytest.mark.parametrize("status", [TaskStatus.HELD, TaskStatus.READY, TaskStatus.WAITING, TaskStatus.RUNNING])
async def test_an_unfinished_run_is_cancelled_at_the_next_tick(path: Path, status: TaskStatus) -> None:
    plays["block"] = plays["a"] = forever
    clock = FakeClock()
    async with Pool(journal=path, clock=clock, workers=1) as pool:
        others = await responded(pool, (play, "block")) if status is TaskStatus.READY else []
        function = play.using(delay=1000) if status is TaskStatus.WAITING else play
        hold, (result,) = await committed(pool, (function, "a"))
        if status is not TaskStatus.HELD:
            hold.release()
        await reached(pool, result, status)
        assert await request(pool, clock, path, "cancel", result.id) is None
        await result.wait()
        assert result.status is TaskStatus.CANCELLED
        for each in others:
            pool.cancel(each.id)
        await pool.idle()
        assert pool.statistics().slots_taken == 0
    assert rows(path, "status, request", f"id = '{result.id}'") == [("CANCELLED", None)]


async def test_a_run_that_only_the_file_knows_is_cancelled_in_the_file(path: Path) -> None:
    """Its task is not registered in this process."""
    async with Pool(journal=path, drain_timeout=0) as pool:
        (result,) = await responded(pool, (play.using(delay=100), "a"))
    del TASKS["play"]
    clock = FakeClock()
    async with Pool(journal=path, clock=clock) as pool:
        assert await request(pool, clock, path, "cancel", result.id) is None
    assert rows(path, "status") == ["CANCELLED"]


# --- retry ---


@pytest.mark.parametrize("how", ["minibg tasks", "Pool.retry"])
async def test_a_failed_run_begins_anew_with_all_its_attempts(path: Path, how: str) -> None:
    """Also once more, in one process: its record has ended twice, and is forgotten once."""
    plays["a"], clock = fails, FakeClock()
    async with Pool(journal=path, clock=clock, workers=1, keep_finished=2) as pool:
        (failed,) = await responded(pool, (play, "a"))
        await failed.wait()
        for attempt in (2, 3):
            if how == "Pool.retry":
                again = await pool.retry(failed.id)
            else:
                assert await request(pool, clock, path, "retry", failed.id) is None
                again = pool.get(failed.id)  # type: ignore[assignment]
            assert again is not failed
            await again.wait(10)
            assert (again.status, again.attempts, len(again.errors)) == (TaskStatus.FAILED, 1, attempt)
        del plays["a"]
        await (await pool.retry(failed.id)).wait(10)
        for n in (1, 2, 3):
            await asyncio.wait_for(pool.enqueue(note, n).wait(), 10)
        assert pool.statistics().slots_taken == 0
    assert rows(path)[0] == ("play", "SUCCESSFUL", 1)
    assert calls[:4] == ["a"] * 4


async def test_a_run_of_an_earlier_process_is_retried(path: Path) -> None:
    plays["a"] = fails
    async with Pool(journal=path) as pool:
        (failed,) = await responded(pool, (play.using(delay=0.01), "a"))
        await failed.wait()
    del plays["a"]
    async with Pool(journal=path) as pool:
        again = await pool.retry(failed.id)
        assert again.added_at == failed.added_at
        await again.wait(10)
    assert (rows(path), calls) == ([("play", "SUCCESSFUL", 1)], ["a", "a"])


@pytest.mark.parametrize("other", ["held", "waiting"])
async def test_a_run_is_not_retried_while_an_unfinished_run_has_its_key(path: Path, other: str) -> None:
    """On the old code the HELD one was not looked at: two ran at once, and then the file refused the group."""
    plays["a"], clock, once = fails, FakeClock(), play.using(key="k")
    async with Pool(journal=path, clock=clock) as pool:
        (failed,) = await responded(pool, (once, "a"))
        await failed.wait()
        hold, (second,) = await committed(pool, (once.using(delay=100), "b"))
        if other == "waiting":
            hold.release()
        refusal = await request(pool, clock, path, "retry", failed.id)
        assert refusal is not None
        assert "an unfinished run has its key 'k'" in refusal
        with pytest.raises(LookupError, match="an unfinished run has its key 'k'"):
            await pool.retry(failed.id)
        assert rows(path, "status, request")[0] == ("FAILED", None)
        pool.cancel(second.id)
        await pool.idle()
    assert calls == ["a"]


async def test_a_run_is_not_retried_while_its_thread_is_still_at_work(path: Path) -> None:
    """On the old code two attempts ran at once, and a worker died."""
    clock, leave = FakeClock(), threading.Event()
    plays["a"] = lambda: leave.wait(60)
    async with Pool(journal=path, clock=clock) as pool:
        (failed,) = await responded(pool, (play_in_thread.using(timeout=5), "a"))
        while not calls:
            await asyncio.sleep(0)
        clock.advance(5)
        await failed.wait()
        assert failed.status is TaskStatus.FAILED
        refusal = await request(pool, clock, path, "retry", failed.id)
        assert refusal is not None
        assert "its last attempt is still in progress" in refusal
        leave.set()
        while pool.statistics().overrunning_threads:
            await asyncio.sleep(0)
        assert await request(pool, clock, path, "retry", failed.id) is None
        await pool.idle()
    assert (calls, rows(path, "status")) == (["a", "a"], ["SUCCESSFUL"])


async def test_of_two_retries_at_once_one_is_refused(path: Path) -> None:
    plays["a"] = fails
    async with Pool(journal=path) as pool:
        (failed,) = await responded(pool, (play, "a"))
        await failed.wait()
        plays["a"] = asyncio.Event().wait
        outcomes = await asyncio.gather(pool.retry(failed.id), pool.retry(failed.id), return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["LookupError", "TaskResult"]
        pool.cancel(failed.id)
        await stopped(pool)
    assert pool.statistics().slots_taken == 0


@pytest.mark.parametrize("reason", ["unknown id", "SUCCESSFUL", "not registered", "edited by hand"])
async def test_a_run_that_cannot_be_retried_is_refused_with_the_reason(path: Path, reason: str) -> None:
    plays["a"] = fails
    async with Pool(journal=path) as pool:
        failed, done = await responded(pool, (play, "a"), (note, 1))
        await done.wait()
        await written(pool)
        expected = {"unknown id": "there is no run", "SUCCESSFUL": "cannot be retried: it is SUCCESSFUL"}.get(
            reason, "cannot be retried in this process"
        )
        if reason == "not registered":
            del TASKS["play"]
        if reason == "edited by hand":
            change(path, "UPDATE runs SET arguments = '{'")
        id = {"unknown id": "0" * 32, "SUCCESSFUL": done.id}.get(reason, failed.id)
        with pytest.raises(LookupError, match=expected):
            await pool.retry(id)
    assert rows(path, "status") == ["FAILED", "SUCCESSFUL"]


async def test_a_retry_that_the_disk_refuses_leaves_the_run_failed(path: Path, disk: Disk) -> None:
    plays["a"] = fails
    async with Pool(journal=path) as pool:
        (failed,) = await responded(pool, (play, "a"))
        await failed.wait()
        await written(pool)
        disk.refuses = FULL
        with pytest.raises(Exception, match="could not be written to disk"):
            await pool.retry(failed.id)
        assert pool.statistics().slots_taken == 0
        disk.refuses = None
        await written(pool)
    assert (rows(path, "status"), calls) == (["FAILED"], ["a"])


async def test_requests_that_came_while_no_pool_ran_are_answered_at_the_start(path: Path) -> None:
    plays["fails"] = fails
    async with Pool(journal=path, drain_timeout=0) as pool:
        failed, delayed = await responded(pool, (play, "fails"), (play.using(delay=100), "delayed"))
        await failed.wait()
    change(path, REQUEST, "retry", failed.id)
    change(path, REQUEST, "cancel", delayed.id)
    del plays["fails"]
    async with Pool(journal=path) as pool:
        await pool.idle()
    assert rows(path) == [("play", "SUCCESSFUL", 1), ("play", "CANCELLED", 0)]


async def test_an_answer_that_the_disk_refuses_is_written_later_and_the_request_is_served_once(
    path: Path, disk: Disk
) -> None:
    clock, served = FakeClock(), list[Any]()
    plays["a"] = forever
    async with Pool(journal=path, clock=clock) as pool:
        (result,) = await responded(pool, (play.using(delay=1000), "a"))
        await written(pool)
        apply = pool._apply

        async def watched(request: Any) -> str | None:
            served.append(request.id)
            disk.refuses = FULL
            return await apply(request)

        pool._apply = watched  # type: ignore[method-assign]
        change(path, REQUEST, "cancel", result.id)
        clock.advance(1)
        await result.wait(10)
        for _ in range(3):
            clock.advance(1)
            await turn()
        assert rows(path, "status, request") == [("WAITING", "cancel")]
        disk.refuses = None
        await written(pool)
        clock.advance(1)
        await written(pool)
        assert rows(path, "status, request") == [("CANCELLED", None)]
    assert served == [result.id]


async def test_a_row_that_cannot_be_read_refuses_its_own_request_and_no_other(path: Path) -> None:
    async with Pool(journal=path):
        pass
    insert_by_hand(path, id="edited", name="unknown", status="READY", errors="no JSON")
    clock = FakeClock()
    async with Pool(journal=path, clock=clock) as pool:
        (result,) = await responded(pool, (play.using(delay=1000), "a"))
        assert await request(pool, clock, path, "cancel", "edited") is not None
        assert await request(pool, clock, path, "cancel", result.id) is None
        assert result.status is TaskStatus.CANCELLED


async def test_a_retry_whose_caller_is_cancelled_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the run would be DROPPED, and could never be retried again."""
    committed, gate = asyncio.Event(), asyncio.Event()
    plays["a"] = fails
    async with Pool(journal=path) as pool:
        (result,) = await responded(pool, (play, "a"))
        await result.wait()
        commit = pool.admission.commit

        async def slow(runs: Any) -> None:
            await commit(runs)
            committed.set()
            await gate.wait()

        monkeypatch.setattr(pool.admission, "commit", slow)
        retrying = asyncio.create_task(pool.retry(result.id))
        await committed.wait()
        retrying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await retrying
        gate.set()
        await pool.idle()
        assert calls == ["a", "a"]
    assert rows(path, "status") == ["FAILED"]


async def test_a_retry_beside_a_run_that_was_told_to_end_and_still_has_its_key_in_the_file_runs(path: Path) -> None:
    go, begun = asyncio.Event(), asyncio.Event()

    async def swallows() -> None:
        begun.set()
        while not go.is_set():
            with suppress(asyncio.CancelledError):
                await go.wait()

    plays["a"], plays["b"] = fails, swallows
    async with Pool(journal=path) as pool:
        (failed,) = await responded(pool, (play.using(key="k"), "a"))
        await failed.wait()
        (stubborn,) = await responded(pool, (play.using(key="k"), "b"))
        await reached(pool, stubborn, TaskStatus.RUNNING)
        await turn()
        pool.cancel(stubborn.id)
        del plays["a"]
        retried = await (await pool.retry(failed.id)).wait(10)
        go.set()
        assert retried.status is TaskStatus.SUCCESSFUL
    assert rows(path, "status") == ["SUCCESSFUL", "SUCCESSFUL"]
