"""The joint with a journal on disk: what is written before which message, and the client's answer when the disk refuses."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minibg.after_response import AfterResponse
from minibg.asgi import Message, Receive, Scope, Send
from minibg.background import BackgroundTasks, Pool, TaskStatus
from minibg.background.task import TASKS
from tests.background.fake_clock import FakeClock
from tests.background.journal.files import as_a_kill_leaves_it, rows
from tests.background.journal.tasks import FULL, TASKS_HERE, Disk, calls, fails, forget, note, play, plays


@pytest.fixture(autouse=True)
def registered_tasks(no_task_name_outlives_its_test: None) -> Iterator[None]:
    TASKS.update(TASKS_HERE)
    yield
    calls.clear()
    plays.clear()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


START: Message = {"type": "http.response.start", "status": 200, "headers": []}
MORE: Message = {"type": "http.response.body", "body": b"..", "more_body": True}
LAST: Message = {"type": "http.response.body", "body": b"ok"}


class Exchange:
    """One request, and the rows of the file at each message that the server got."""

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
    assert disk.inserted == [3]
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
        assert pool.statistics().slots_taken == 0
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
    assert disk.inserted == [1, 2]
    assert rows(path, "batch") == [1, 1, 1]
    assert calls == [((what,), {}) for what in ("before", "between", "late")]


async def test_a_late_task_that_the_disk_refuses_is_dropped_and_the_committed_ones_run(
    path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """The head has left: there is no 503 any more, and the promise of the head is kept."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        hold_of(scope).add_task(note, "before")
        await send(START)
        await send(MORE)
        disk.is_full = FULL
        hold_of(scope).add_task(note, "late")
        await send(LAST)

    async with Pool(journal=path) as pool:
        exchange = await Exchange(path).run(AfterResponse(app, pool))
        assert exchange.messages == [START, MORE, LAST]
        await pool.idle()
        assert pool.statistics().slots_taken == 0
    assert (calls, rows(path)) == ([(("before",), {})], [("note", "SUCCESSFUL", 1)])
    assert "because it was added after the response head: the tasks could not be written" in caplog.text


async def test_tasks_of_a_handler_that_raises_after_its_head_are_committed_in_one_batch_and_run(path: Path) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        hold_of(scope).add_task(note, 1)
        await send(START)
        hold_of(scope).add_task(note, 2)
        raise RuntimeError("half an answer")

    async with Pool(journal=path) as pool:
        with pytest.raises(RuntimeError, match="half an answer"):
            await Exchange(path).run(AfterResponse(app, pool))
        await pool.idle()
    assert rows(path, "batch, status") == [(1, "SUCCESSFUL")] * 2


async def test_a_handler_that_raises_before_its_head_has_written_nothing(path: Path) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        hold_of(scope).add_task(note, 1)
        raise RuntimeError("no answer")

    async with Pool(journal=path) as pool:
        with pytest.raises(RuntimeError, match="no answer"):
            await Exchange(path).run(AfterResponse(app, pool))
    assert (calls, rows(path)) == ([], [])


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


async def test_tasks_of_an_earlier_process_run_when_the_application_is_up(path: Path) -> None:
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
        assert calls == []  # They could use something that is not there yet.
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
    assert [record.levelno for record in caplog.records if "FAILED" in record.getMessage()] == [logging.ERROR]


async def test_a_start_that_is_cancelled_leaves_the_file_to_the_next_one(path: Path) -> None:
    """A server gives up an application that starts slowly, and the program starts another one."""
    starting = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        hold_of(scope).add_task(note)
        starting.set()
        await asyncio.Event().wait()

    told, answers = asyncio.Queue[Message](), asyncio.Queue[Message]()
    told.put_nowait({"type": "lifespan.startup"})
    life = asyncio.create_task(AfterResponse(slow, journal=path)({"type": "lifespan"}, told.get, answers.put))
    await starting.wait()
    life.cancel()
    with pytest.raises(asyncio.CancelledError):
        await life
    async with Pool(journal=path) as pool:
        assert pool.statistics().by_status[TaskStatus.HELD] == 0
