"""The joint with a journal on disk: what is written before which message, and what the client gets when the disk refuses."""

import asyncio
import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from minibg.after_response import AfterResponse
from minibg.asgi import Message, Receive, Scope, Send
from minibg.background import BackgroundTasks, JournalFailed, Pool, TaskStatus
from minibg.background.sqlite import File, Group
from tests.background.durable_tasks import (
    FULL,
    Disk,
    as_a_kill_leaves_it,
    calls,
    disk as disk,
    durable_tasks as durable_tasks,
    fails,
    forget,
    note,
    path as path,
    play,
    plays,
    rows,
)
from tests.background.fake_clock import FakeClock

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
MORE: Message = {"type": "http.response.body", "body": b"..", "more_body": True}
LAST: Message = {"type": "http.response.body", "body": b"ok"}


class Exchange:
    """One request, and the rows that stood in the file when the server got each message."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[tuple[str, list[Any]]] = []
        self.messages: list[Message] = []

    async def run(self, app: Any) -> "Exchange":
        await app({"type": "http", "method": "POST", "path": "/x"}, self._receive, self._send)
        return self

    async def _receive(self) -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def _send(self, message: Message) -> None:
        self.messages.append(message)
        self.seen.append((message["type"].removeprefix("http.response."), rows(self.path, "name, status")))

    @property
    def answer(self) -> tuple[int, dict[bytes, bytes], bytes]:
        start, body = self.messages
        return start["status"], dict(start["headers"]), body["body"]


def hold_of(scope: Scope) -> BackgroundTasks:
    hold = scope["minibg.background"]
    assert isinstance(hold, BackgroundTasks)
    return hold


async def test_all_tasks_of_a_response_are_in_the_file_before_its_head_leaves_in_one_transaction(
    path: Path, disk: Disk
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for n in range(3):
            hold_of(scope).add_task(note, n)
        hold_of(scope).add_task(forget, object())
        assert rows(path) == []
        await send(START)
        await send(LAST)

    async with Pool(journal=path) as pool:
        exchange = await Exchange(path).run(AfterResponse(app, pool))
        await pool.idle()
    held = [("note", "HELD")] * 3
    assert exchange.seen == [("start", held), ("body", held)]
    assert disk.entered == [3]
    assert rows(path) == [("note", "SUCCESSFUL", 1)] * 3
    assert len(calls) == 4


async def test_when_the_disk_refuses_the_answer_is_503_and_nothing_is_half_accepted(path: Path, disk: Disk) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        results.extend(hold_of(scope).add_task(function, 1) for function in (note, forget))
        await send(START)
        await send(LAST)

    results: list[Any] = []
    async with Pool(journal=path) as pool:
        disk.is_full = FULL
        exchange = await Exchange(path).run(AfterResponse(app, pool))
        status, headers, body = exchange.answer
        assert (status, headers[b"retry-after"]) == (503, b"10")
        assert body == b"the tasks could not be written to disk: database or disk is full\n"
        assert [result.status for result in results] == [TaskStatus.DROPPED] * 2
        assert pool.statistics().places_taken == 0
        disk.is_full = None
        exchange = await Exchange(path).run(AfterResponse(app, pool))
        assert exchange.messages == [START, LAST]
        await pool.idle()
    assert rows(path) == [("note", "SUCCESSFUL", 1)]
    assert len(calls) == 2


async def test_an_application_that_sends_on_after_the_503_is_not_heard(path: Path, disk: Disk) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        hold_of(scope).add_task(note, 1)
        for message in (START, MORE, MORE, LAST):
            await send(message)
            hold_of(scope).add_task(note, "late")

    async with Pool(journal=path) as pool:
        disk.is_full = FULL
        exchange = await Exchange(path).run(AfterResponse(app, pool))
        assert exchange.answer[0] == 503
        disk.is_full = None


async def test_what_is_added_while_the_body_streams_is_in_the_file_before_its_last_message(
    path: Path, disk: Disk
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        hold_of(scope).add_task(note, "before")
        await send(START)
        hold_of(scope).add_task(note, "between")
        await send(MORE)
        hold_of(scope).add_task(note, "late")
        await send(LAST)

    async with Pool(journal=path, workers=1) as pool:
        exchange = await Exchange(path).run(AfterResponse(app, pool))
        await pool.idle()
    one, three = [("note", "HELD")], [("note", "HELD")] * 3
    assert exchange.seen == [("start", one), ("body", one), ("body", three)]
    assert disk.entered == [1, 2]
    assert rows(path, "response") == [1, 1, 1]
    assert calls == [((what,), {}) for what in ("before", "between", "late")]


async def test_a_stream_whose_late_tasks_the_disk_refuses_ends_in_the_middle_and_nothing_of_it_runs(
    path: Path, disk: Disk
) -> None:
    """The head has left, so there is no 503 any more. The client sees that the body is not whole."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        hold_of(scope).add_task(note, "before")
        await send(START)
        await send(MORE)
        disk.is_full = FULL
        hold_of(scope).add_task(note, "late")
        await send(LAST)

    async with Pool(journal=path) as pool:
        exchange = Exchange(path)
        with pytest.raises(JournalFailed):
            await exchange.run(AfterResponse(app, pool))
        assert exchange.messages == [START, MORE]
        await pool.idle()
        assert pool.statistics().places_taken == 0
    assert (calls, rows(path)) == ([], [("note", "DROPPED", 0)])


async def test_a_handler_that_raises_after_its_head_has_left_drops_its_tasks_in_the_file_too(path: Path) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        hold_of(scope).add_task(note, 1)
        hold_of(scope).add_task(note.using(always=True), 2)
        await send(START)
        raise RuntimeError("half an answer")

    async with Pool(journal=path) as pool:
        with pytest.raises(RuntimeError, match="half an answer"):
            await Exchange(path).run(AfterResponse(app, pool))
        await pool.idle()
    assert rows(path) == [("note", "DROPPED", 0), ("note", "SUCCESSFUL", 1)]


async def test_a_handler_that_raises_before_its_head_has_written_nothing(path: Path) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        hold_of(scope).add_task(note, 1)
        raise RuntimeError("no answer")

    async with Pool(journal=path) as pool:
        with pytest.raises(RuntimeError, match="no answer"):
            await Exchange(path).run(AfterResponse(app, pool))
    assert (calls, rows(path)) == ([], [])


async def test_what_cannot_be_kept_is_refused_in_the_handler_where_the_answer_can_still_be_another(path: Path) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(TypeError, match="argument name of play is not JSON"):
            hold_of(scope).add_task(play, object())  # type: ignore[call-overload]
        await send({**START, "status": 400})
        await send(LAST)

    async with Pool(journal=path) as pool:
        exchange = await Exchange(path).run(AfterResponse(app, pool))
    assert exchange.answer[0] == 400


async def test_a_kill_between_the_head_and_the_last_byte_loses_no_task(path: Path) -> None:
    copies = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        hold_of(scope).add_task(note, "a")
        hold_of(scope).add_task(note, "b")
        await send(START)
        copies.append(as_a_kill_leaves_it(path))
        await send(LAST)

    async with Pool(journal=path) as pool:
        await Exchange(path).run(AfterResponse(app, pool))
        await pool.idle()
    calls.clear()
    async with Pool(journal=copies[0]) as pool:
        await pool.idle()
    assert calls == [(("a",), {}), (("b",), {})]


async def test_the_lifespan_says_that_a_journal_cannot_be_opened(path: Path, tmp_path: Path) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("it is not started")

    async with Pool(journal=path):
        with pytest.raises(Exception, match="in use by this process"):
            await AfterResponse(app, journal=path)({"type": "lifespan"}, receive, send)
    (failed,) = sent
    assert failed["type"] == "lifespan.startup.failed"
    assert str(path) in failed["message"]


async def test_tasks_of_an_earlier_life_run_when_the_application_is_up(path: Path) -> None:
    clock = FakeClock()
    async with Pool(journal=path, drain_timeout=0) as pool:
        hold = BackgroundTasks(pool)
        hold.add_task(note, "left")
        await hold.commit()
    to_app: asyncio.Queue[Message] = asyncio.Queue()
    sent: list[str] = []
    up = asyncio.Event()

    async def send(message: Message) -> None:
        sent.append(message["type"])
        if message["type"] == "lifespan.startup.complete":
            up.set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for _ in range(20):
            await asyncio.sleep(0)
        assert calls == []  # It could use something that is not there yet.
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    joint = AfterResponse(app, journal=path, clock=clock)
    to_app.put_nowait({"type": "lifespan.startup"})
    life = asyncio.create_task(joint({"type": "lifespan"}, to_app.get, send))
    await up.wait()
    await joint.pool.idle()
    to_app.put_nowait({"type": "lifespan.shutdown"})
    await life
    assert (calls, rows(path)) == ([(("left",), {})], [("note", "SUCCESSFUL", 1)])
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_client_that_repeats_its_request_with_a_key_gets_the_same_run(path: Path) -> None:
    begun = asyncio.Event()

    async def order() -> None:
        begun.set()
        await asyncio.Event().wait()

    plays["order"] = order
    ids: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        ids.append(hold_of(scope).add_task(play.using(key="order 7"), "order").id)
        await send(START)
        await send(LAST)

    async with Pool(journal=path) as pool:
        joint = AfterResponse(app, pool)
        for _ in range(2):
            await Exchange(path).run(joint)
        assert ids[0] == ids[1]
        await begun.wait()
        pool.cancel(ids[0])
        await pool.idle()
    assert (calls, rows(path)) == (["order"], [("play", "CANCELLED", 1)])


async def test_a_task_that_fails_after_its_answer_is_in_the_file_with_where_it_came_from(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plays["a"] = fails

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        hold_of(scope).add_task(play, "a")
        await send(START)
        await send(LAST)

    async with Pool(journal=path) as pool:
        await Exchange(path).run(AfterResponse(app, pool))
        await pool.idle()
    assert rows(path, "origin, status") == [("POST /x", "FAILED")]
    assert [record.levelno for record in caplog.records if "failed" in record.getMessage()] == [logging.ERROR]
