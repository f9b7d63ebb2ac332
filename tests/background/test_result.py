"""The statuses of a run, and the record it leaves."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from minibg.background import (
    TRANSITIONS,
    BackgroundTasks,
    Event,
    Pool,
    Retry,
    RetryLater,
    TaskError,
    TaskResult,
    TaskStatus,
    task,
)
from minibg.background.result import ERRORS_KEPT, TRACEBACK_KEPT

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()


def record() -> TaskResult[Any]:
    return TaskResult("id", "name", "", NOON)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_every_status_has_a_row_and_every_event_but_add_happens_somewhere() -> None:
    assert set(TRANSITIONS) == set(TaskStatus)
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event) - {Event.ADD}


def test_every_status_can_be_reached_and_a_final_one_from_each() -> None:
    def reachable(start: TaskStatus) -> set[TaskStatus]:
        found, open_ends = {start}, [start]
        while open_ends:
            fresh = set(TRANSITIONS[open_ends.pop()].values()) - found
            found |= fresh
            open_ends += fresh
        return found

    assert reachable(TaskStatus.HELD) == set(TaskStatus)
    assert all(any(end.is_final for end in reachable(status)) for status in TaskStatus)


def test_five_statuses_are_final() -> None:
    final = {status for status in TaskStatus if status.is_final}
    assert final == {
        TaskStatus.SUCCESSFUL,
        TaskStatus.FAILED,
        TaskStatus.CANCELLED,
        TaskStatus.DROPPED,
        TaskStatus.LOST,
    }


def test_an_error_is_kept_as_text() -> None:
    error = TaskError.of(raised(ValueError("no such user")), 2, NOON)
    assert (error.attempt, error.type, error.message, error.at.timestamp()) == (2, "ValueError", "no such user", NOON)
    assert error.traceback.startswith("Traceback (most recent call last):")
    assert error.traceback.endswith("ValueError: no such user\n")


def test_the_class_of_an_error_has_its_module() -> None:
    assert TaskError.of(asyncio.CancelledError(), 1, NOON).type == "asyncio.exceptions.CancelledError"


def test_an_exception_that_cannot_be_printed_is_kept_too() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    error = TaskError.of(raised(Mute()), 1, NOON)
    assert error.type.endswith("Mute")
    assert "str() failed" in error.message


def test_of_a_long_traceback_the_end_is_kept() -> None:
    error = TaskError.of(raised(ValueError("x" * 2 * TRACEBACK_KEPT)), 1, NOON)
    assert len(error.traceback) == TRACEBACK_KEPT
    assert error.traceback.endswith("xxx\n")


async def test_the_newest_twenty_errors_are_kept() -> None:
    async def fails() -> None:
        raise RetryLater(after=0)

    async with Pool() as pool:
        result = await pool.enqueue(task(retry=Retry(attempts=30))(fails)).wait()
    assert [error.attempt for error in result.errors] == list(range(31 - ERRORS_KEPT, 31))


async def test_wait_returns_the_same_record_when_the_run_has_ended() -> None:
    async def answer() -> int:
        return 42

    async with Pool() as pool:
        result = pool.enqueue(answer)
        assert await result.wait() is result
        assert await result.wait(timeout=0) is await result
        assert (result.status, result.return_value, result.is_finished) == (TaskStatus.SUCCESSFUL, 42, True)


async def test_wait_raises_timeout_error_and_the_run_goes_on() -> None:
    go = asyncio.Event()

    async with Pool() as pool:
        result = pool.enqueue(go.wait)
        with pytest.raises(TimeoutError):
            await result.wait(timeout=0)
        assert not result.is_finished
        go.set()
        await result.wait()
        assert result.return_value is True


async def test_many_callers_may_wait_and_one_of_them_may_be_cancelled() -> None:
    go = asyncio.Event()

    async with Pool() as pool:
        result = pool.enqueue(go.wait)
        waiters = [asyncio.create_task(result.wait()) for _ in range(3)]
        impatient = asyncio.create_task(result.wait(timeout=0))
        assert isinstance((await asyncio.gather(impatient, return_exceptions=True))[0], TimeoutError)
        waiters[0].cancel()
        go.set()
        assert await asyncio.gather(*waiters[1:]) == [result, result]


async def test_a_caller_that_is_cancelled_in_the_moment_the_run_ends_is_cancelled() -> None:
    async with Pool() as pool:
        result = BackgroundTasks(pool).add_task(print)
        waiter = asyncio.create_task(result.wait())
        await asyncio.sleep(0)
        waiter.cancel()
        pool.cancel(result.id)
        await asyncio.wait([waiter])
        assert waiter.cancelled()


async def test_a_caller_that_waits_again_and_again_leaves_nothing_behind() -> None:
    result = record()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await result.wait(timeout=0)
    assert result._waiters == []


async def test_the_times_of_a_record_are_in_order() -> None:
    async with Pool() as pool:
        result = await pool.enqueue(print, end="").wait()
    assert result.added_at.tzinfo is UTC
    assert result.released_at is not None
    assert result.started_at is not None
    assert result.finished_at is not None
    assert result.added_at <= result.released_at <= result.started_at <= result.finished_at
    assert (len(result.id), result.name, result.origin, result.attempts) == (32, "builtins.print", "", 1)
