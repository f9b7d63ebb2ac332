"""The joint, in memory: an application, a server made of two functions, and the exact messages between them.

`Exchange` is one request. It keeps every message the server would get, with the statuses the tasks had at that moment,
so a test reads what happened in which order. `Life` is the lifespan conversation, step by step. No sockets here: with
them, see `tests/test_path.py`.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from minibg.after_response import AfterResponse
from minibg.asgi import ASGIApp, ClientDisconnected, Message, Receive, Scope, Send
from minibg.background import BackgroundTasks, JournalFailed, Pool, PoolStopped, QueueFull, TaskResult, TaskStatus, task
from minibg.background.run import Run

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
LAST: Message = {"type": "http.response.body", "body": b"ok"}
MORE: Message = {"type": "http.response.body", "body": b"..", "more_body": True}

HELD, READY, DROPPED, SUCCESSFUL = TaskStatus.HELD, TaskStatus.READY, TaskStatus.DROPPED, TaskStatus.SUCCESSFUL


async def work(*_: object) -> None:
    """A task."""


always = task(work).using(always=True)


class Exchange:
    """One request to an application, and what came of it."""

    def __init__(self, *, leaves_after: int | None = None) -> None:
        self.results: list[TaskResult[Any]] = []
        #: Each message's type, and the statuses of the tasks when the server got it.
        self.seen: list[tuple[str, list[TaskStatus]]] = []
        self.messages: list[Message] = []
        self.error: BaseException | None = None
        self._leaves_after = leaves_after

    async def run(self, app: ASGIApp, **scope: Any) -> "Exchange":
        try:
            await app({"type": "http", "method": "GET", "path": "/x", **scope}, self._receive, self._send)
        except Exception as error:
            self.error = error
        return self

    @property
    def statuses(self) -> list[TaskStatus]:
        return [result.status for result in self.results]

    async def _receive(self) -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def _send(self, message: Message) -> None:
        if self._leaves_after is not None and len(self.messages) >= self._leaves_after:
            raise ClientDisconnected("gone")
        self.messages.append(message)
        self.seen.append((message["type"], self.statuses))


def hold_of(scope: Scope) -> BackgroundTasks:
    hold = scope["minibg.background"]
    assert isinstance(hold, BackgroundTasks)
    return hold


def adding(exchange: Exchange, *functions: Callable[..., Any], then: ASGIApp) -> ASGIApp:
    """An application that adds tasks and goes on as ``then``."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange.results += [hold_of(scope).add_task(function) for function in functions]
        await then(scope, receive, send)

    return app


async def answers(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    await send(LAST)


async def raises(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("no answer")


async def raises_within(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    await send(MORE)
    raise RuntimeError("half an answer")


async def raises_after_the_head(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    raise RuntimeError("a head alone")


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that returns without a response."""


def watched_commits(pool: Pool, monkeypatch: pytest.MonkeyPatch, exchange: Exchange) -> list[tuple[int, int]]:
    """Record each commit: the number of its runs, and of the messages that the server had by then."""
    commits: list[tuple[int, int]] = []
    commit = pool.admission.commit

    async def watched(runs: Sequence[Run]) -> None:
        commits.append((len(runs), len(exchange.messages)))
        await commit(runs)

    monkeypatch.setattr(pool.admission, "commit", watched)
    return commits


def refuse_commits(pool: Pool, monkeypatch: pytest.MonkeyPatch, *, after: int = 0) -> None:
    """Make the disk full after so many commits."""
    left = [after]

    async def refuse(runs: Sequence[Run]) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise JournalFailed("the disk is full", retry_after=10)

    monkeypatch.setattr(pool.admission, "commit", refuse)


def refusal(exchange: Exchange) -> tuple[int, dict[str, str], bytes]:
    """The 503 that the joint has sent, and nothing else."""
    start, body = exchange.messages
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert [start["type"], body["type"]] == ["http.response.start", "http.response.body"]
    return start["status"], headers, body["body"]


# --- one response ---


async def test_tasks_are_held_until_the_application_has_returned() -> None:
    async with Pool() as pool:
        exchange = Exchange()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await answers(scope, receive, send)
            assert exchange.statuses == [HELD, HELD]

        await exchange.run(AfterResponse(adding(exchange, work, work, then=app), pool))
        assert exchange.seen == [("http.response.start", [HELD, HELD]), ("http.response.body", [HELD, HELD])]
        assert exchange.statuses == [READY, READY]
        await pool.idle()
        assert exchange.statuses == [SUCCESSFUL, SUCCESSFUL]
        assert [result.origin for result in exchange.results] == ["GET /x", "GET /x"]


async def test_the_messages_of_the_application_pass_unchanged() -> None:
    async with Pool() as pool:
        exchange = await Exchange().run(AfterResponse(answers, pool))
        assert [id(message) for message in exchange.messages] == [id(START), id(LAST)]


async def test_tasks_are_committed_before_the_response_head_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Pool() as pool:
        exchange = Exchange()
        commits = watched_commits(pool, monkeypatch, exchange)
        await exchange.run(AfterResponse(adding(exchange, work, then=answers), pool))
        assert commits == [(1, 0)]
        assert exchange.messages == [START, LAST]


async def test_tasks_that_are_added_while_the_body_streams_are_committed_before_its_last_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Pool() as pool:
        exchange = Exchange()
        commits = watched_commits(pool, monkeypatch, exchange)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send(START)
            exchange.results += [hold_of(scope).add_task(work)]
            await send(MORE)
            await send(LAST)

        await exchange.run(AfterResponse(adding(exchange, work, then=app), pool))
        assert commits == [(1, 0), (2, 2)]  # The second one after START and MORE.
        await pool.idle()
        assert exchange.statuses == [SUCCESSFUL, SUCCESSFUL]


async def test_tasks_that_are_added_after_the_last_message_run_too() -> None:
    async with Pool() as pool:
        exchange = Exchange()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await answers(scope, receive, send)
            exchange.results += [hold_of(scope).add_task(work)]

        await exchange.run(AfterResponse(app, pool))
        await pool.idle()
        assert exchange.statuses == [SUCCESSFUL]


async def test_a_message_before_the_head_is_no_promise() -> None:
    """An early hint, of Hypercorn for example. The tasks that come after it are committed with the head."""

    async def hints(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.early_hint", "links": []})
        raise RuntimeError("no answer")

    exchange = Exchange()
    async with Pool() as pool:
        await exchange.run(AfterResponse(adding(exchange, work, then=hints), pool))
    assert (exchange.statuses, len(exchange.messages)) == ([DROPPED], 1)


async def test_an_application_that_returns_without_a_response_has_its_tasks_dropped() -> None:
    """No head has left: nothing was promised."""
    async with Pool() as pool:
        exchange = Exchange()
        await exchange.run(AfterResponse(adding(exchange, work, always, then=silent), pool))
        await pool.idle()
        assert (exchange.messages, exchange.statuses) == ([], [DROPPED, SUCCESSFUL])


#: The scope of minibg's server, which keeps the head back until the first message of the body.
HOLDS_BACK: dict[str, Any] = {"extensions": {"minibg.stopping": {}}}


@pytest.mark.parametrize(
    ("then", "scope", "status"),
    [
        (raises, {}, DROPPED),
        (raises_after_the_head, {}, SUCCESSFUL),
        (raises_after_the_head, HOLDS_BACK, DROPPED),
        (raises_within, {}, SUCCESSFUL),
        (raises_within, HOLDS_BACK, SUCCESSFUL),
    ],
)
async def test_an_exception_drops_the_tasks_unless_the_head_has_left(
    then: ASGIApp, scope: dict[str, Any], status: TaskStatus
) -> None:
    async with Pool() as pool:
        exchange = Exchange()
        await exchange.run(AfterResponse(adding(exchange, work, always, work, then=then), pool), **scope)
        await pool.idle()
        assert isinstance(exchange.error, RuntimeError)
        assert exchange.statuses == [status, SUCCESSFUL, status]
        assert pool.statistics().slots_taken == 0


async def test_an_application_that_returns_after_its_head_alone_keeps_its_tasks() -> None:
    """Starlette ends a stream so when its client has gone before the first part of the body."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)

    async with Pool() as pool:
        exchange = Exchange()
        await exchange.run(AfterResponse(adding(exchange, work, then=app), pool), **HOLDS_BACK)
        await pool.idle()
        assert exchange.statuses == [SUCCESSFUL]


async def test_a_response_that_is_cancelled_after_its_head_keeps_its_tasks() -> None:
    """The stop cancels responses that take too long; a client has the head of this one."""
    async with Pool() as pool:
        exchange, entered = Exchange(), asyncio.Event()

        async def hangs(scope: Scope, receive: Receive, send: Send) -> None:
            await send(START)
            await send(MORE)
            entered.set()
            await asyncio.get_running_loop().create_future()

        request = asyncio.create_task(exchange.run(AfterResponse(adding(exchange, work, then=hangs), pool)))
        await entered.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await pool.idle()
        assert exchange.statuses == [SUCCESSFUL]


async def test_a_cancelled_request_drops_its_tasks() -> None:
    async with Pool() as pool:
        exchange, entered = Exchange(), asyncio.Event()

        async def hangs(scope: Scope, receive: Receive, send: Send) -> None:
            entered.set()
            await asyncio.get_running_loop().create_future()

        request = asyncio.create_task(exchange.run(AfterResponse(adding(exchange, work, then=hangs), pool)))
        await entered.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert exchange.statuses == [DROPPED]


async def test_a_response_that_is_cancelled_while_its_head_waits_for_the_kernel_keeps_its_tasks() -> None:
    """On minibg's server the head is written with the first part of the body, and `send` waits for the kernel then."""
    async with Pool() as pool:
        exchange, written = Exchange(), asyncio.Event()

        async def slow(message: Message) -> None:
            if message["type"] == "http.response.body":
                written.set()
                await asyncio.get_running_loop().create_future()

        app = AfterResponse(adding(exchange, work, then=answers), pool)
        scope = {"type": "http", "method": "GET", "path": "/x", **HOLDS_BACK}
        request = asyncio.ensure_future(app(scope, exchange._receive, slow))
        await written.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await pool.idle()
        assert exchange.statuses == [SUCCESSFUL]


@pytest.mark.parametrize("leaves_after", [0, 1])
async def test_the_tasks_run_when_the_client_has_gone(leaves_after: int) -> None:
    async with Pool() as pool:
        exchange = Exchange(leaves_after=leaves_after)
        await exchange.run(AfterResponse(adding(exchange, work, then=answers), pool))
        await pool.idle()
        assert isinstance(exchange.error, ClientDisconnected)
        assert exchange.statuses == [SUCCESSFUL]


async def test_a_dropped_hold_takes_tasks_again() -> None:
    """An exception handler of the application may want a task of its own."""
    async with Pool() as pool:
        exchange = Exchange()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            hold_of(scope).drop()
            exchange.results += [hold_of(scope).add_task(work)]
            await answers(scope, receive, send)

        await exchange.run(AfterResponse(adding(exchange, work, then=app), pool))
        await pool.idle()
        assert exchange.statuses == [DROPPED, SUCCESSFUL]


async def test_each_request_has_a_hold_of_its_own_and_the_servers_scope_stays_as_it_was() -> None:
    holds: list[BackgroundTasks] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        holds.append(hold_of(scope))

    async with Pool() as pool:
        joint, scope = AfterResponse(app, pool), {"type": "http", "method": "GET", "path": "/x"}
        exchange = Exchange()
        for _ in range(2):
            await joint(scope, exchange._receive, exchange._send)
    assert holds[0] is not holds[1]
    assert "minibg.background" not in scope


async def test_a_websocket_has_a_hold_too() -> None:
    async with Pool() as pool:
        exchange = Exchange()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            exchange.results += [hold_of(scope).add_task(work)]
            await send({"type": "websocket.accept"})
            assert exchange.statuses == [HELD]

        await exchange.run(AfterResponse(app, pool), type="websocket", method=None)
        await pool.idle()
        assert exchange.seen == [("websocket.accept", [HELD])]
        assert exchange.statuses == [SUCCESSFUL]


# --- no slot, no disk ---


async def test_a_full_queue_that_nobody_catches_is_a_503_with_retry_after() -> None:
    async with Pool(queue_limit=2) as pool:
        exchange = Exchange()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            for _ in range(3):
                exchange.results += [hold_of(scope).add_task(work)]

        await exchange.run(AfterResponse(app, pool))
        status, headers, body = refusal(exchange)
        assert (status, headers["retry-after"], headers["content-length"]) == (503, "1", str(len(body)))
        assert body == b"no slot is free for another task: the queue's limit is 2\n"
        assert exchange.error is None
        assert exchange.statuses == [DROPPED, DROPPED]
        assert pool.statistics().slots_taken == 0


async def test_a_full_queue_that_a_framework_answers_with_500_is_a_503_too() -> None:
    """Starlette and FastAPI send a 500 for every exception and raise it again."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            for _ in range(2):
                exchange.results += [hold_of(scope).add_task(work)]
        except Exception:
            await send({**START, "status": 500})
            await send(LAST)
            raise

    async with Pool(queue_limit=1) as pool:
        exchange = Exchange()
        await exchange.run(AfterResponse(app, pool))
        assert (refusal(exchange)[0], exchange.error, exchange.statuses) == (503, None, [DROPPED])


async def test_a_full_queue_within_the_response_is_an_exception_like_any_other() -> None:
    """The client has the head, so the task that was accepted with it runs."""
    async with Pool(queue_limit=1) as pool:
        exchange = Exchange()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send(START)
            hold_of(scope).add_task(work)

        await exchange.run(AfterResponse(adding(exchange, work, then=app), pool))
        await pool.idle()
        assert isinstance(exchange.error, QueueFull)
        assert exchange.messages == [START]
        assert exchange.statuses == [SUCCESSFUL]


async def test_an_application_that_catches_the_full_queue_answers_itself() -> None:
    async with Pool(queue_limit=1) as pool:
        exchange = Exchange()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            with pytest.raises(QueueFull) as caught:
                hold_of(scope).add_task(work)
            assert (caught.value.limit, caught.value.retry_after) == (1, 1)
            await answers(scope, receive, send)

        await exchange.run(AfterResponse(adding(exchange, work, then=app), pool))
        await pool.idle()
        assert exchange.messages == [START, LAST]
        assert exchange.statuses == [SUCCESSFUL]


async def test_a_commit_that_is_refused_is_a_503_in_place_of_the_response(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application goes on as if it had answered, adds a task and fails: no task runs but those that run always."""
    async with Pool() as pool:
        refuse_commits(pool, monkeypatch)
        exchange = Exchange()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await answers(scope, receive, send)
            exchange.results += [hold_of(scope).add_task(work)]
            await raises(scope, receive, send)

        await exchange.run(AfterResponse(adding(exchange, work, always, then=app), pool))
        status, headers, body = refusal(exchange)
        assert (status, headers["retry-after"], body) == (503, "10", b"the disk is full\n")
        assert isinstance(exchange.error, RuntimeError)
        await pool.idle()
        assert exchange.statuses == [DROPPED, SUCCESSFUL, DROPPED]
        assert pool.statistics().slots_taken == 0


@pytest.mark.parametrize("when", ["before the last message", "after it"])
async def test_a_task_that_is_added_too_late_and_refused_is_dropped_alone(
    when: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The response and the tasks that were committed with its head are not touched."""
    async with Pool() as pool:
        refuse_commits(pool, monkeypatch, after=1)
        exchange = Exchange()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send(START)
            if when == "after it":
                await send(LAST)
            exchange.results += [hold_of(scope).add_task(work)]
            if when != "after it":
                await send(LAST)

        with caplog.at_level(logging.WARNING, logger="minibg.background"):
            await exchange.run(AfterResponse(adding(exchange, work, then=app), pool))
            await pool.idle()
    assert (exchange.error, exchange.messages) == (None, [START, LAST])
    assert exchange.statuses == [SUCCESSFUL, DROPPED]
    reason = "because it was added after the response head: the disk is full: "
    assert [message for message in caplog.messages if reason in message] == caplog.messages
    assert len(caplog.messages) == 1


async def test_a_handler_reserves_slots_and_the_commit_frees_the_unused_ones() -> None:
    async with Pool(queue_limit=3) as pool:
        exchange, taken = Exchange(), list[int]()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await hold_of(scope).reserve(3)
            exchange.results += [hold_of(scope).add_task(work)]
            taken.append(pool.statistics().slots_taken)
            await send(START)
            taken.append(pool.statistics().slots_taken)
            await send(LAST)

        await exchange.run(AfterResponse(app, pool))
        await pool.idle()
        assert (taken, exchange.statuses, pool.statistics().slots_taken) == ([3, 1], [SUCCESSFUL], 0)


async def test_a_reservation_that_times_out_is_a_503_unless_it_is_caught() -> None:
    async with Pool(queue_limit=1) as pool:
        exchange = Exchange()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await hold_of(scope).reserve(1, timeout=0.0)

        await exchange.run(AfterResponse(adding(exchange, work, then=app), pool))
        assert refusal(exchange)[0] == 503
        assert exchange.statuses == [DROPPED]


async def test_tasks_for_a_pool_that_has_stopped_are_a_503() -> None:
    pool = Pool()
    async with pool:
        pass
    exchange = await Exchange().run(AfterResponse(adding(Exchange(), work, then=answers), pool))
    assert refusal(exchange)[2] == b"the pool has stopped and accepts no tasks\n"
    with pytest.raises(PoolStopped):
        BackgroundTasks(pool).add_task(work)


# --- lifespan ---


class Life:
    """A lifespan conversation; the test says when the server speaks."""

    def __init__(self, app: ASGIApp) -> None:
        self.told: asyncio.Queue[Message] = asyncio.Queue()
        self.answers: asyncio.Queue[Message] = asyncio.Queue()
        self.task = asyncio.ensure_future(app({"type": "lifespan"}, self.told.get, self.answers.put))

    async def tell(self, part: str) -> Message:
        self.told.put_nowait({"type": f"lifespan.{part}"})
        return await self.answers.get()


class Speaking:
    """An application that speaks lifespan and notes what it hears, and how its pool is then."""

    def __init__(self) -> None:
        self.notes: list[Any] = []
        self.result: TaskResult[Any] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hold = hold_of(scope)
        message = await receive()
        self.result = hold.add_task(self.note, "task")
        self.notes.append((message["type"], hold.pool.is_new, self.result.status))
        await send({"type": "lifespan.startup.complete"})
        message = await receive()
        self.notes.append((message["type"], self.result.status))
        await send({"type": "lifespan.shutdown.complete"})

    async def note(self, what: str) -> None:
        self.notes.append(what)


async def answers_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    for part in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{part}.complete"})


async def test_the_pool_is_open_during_startup_works_after_it_and_is_drained_before_the_shutdown() -> None:
    app = Speaking()
    joint = AfterResponse(app, workers=1)
    life = Life(joint)
    assert await life.tell("startup") == {"type": "lifespan.startup.complete"}
    assert await life.tell("shutdown") == {"type": "lifespan.shutdown.complete"}
    await life.task
    assert app.notes == [("lifespan.startup", False, HELD), "task", ("lifespan.shutdown", SUCCESSFUL)]
    with pytest.raises(PoolStopped):
        joint.pool.enqueue(work)


async def test_tasks_that_are_enqueued_during_startup_start_when_it_is_complete() -> None:
    notes: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        result = scope["minibg.background"].pool.enqueue(notes.append, "task")
        await asyncio.sleep(0)
        notes.append(result.status)
        await send({"type": "lifespan.startup.complete"})
        await result.wait()
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    life = Life(AfterResponse(app))
    await life.tell("startup")
    await life.tell("shutdown")
    await life.task
    assert notes == [READY, "task"]


async def test_a_pool_that_is_open_already_is_left_to_its_owner() -> None:
    app = Speaking()
    async with Pool() as pool:
        life = Life(AfterResponse(app, pool))
        await life.tell("startup")
        await pool.idle()
        await life.tell("shutdown")
        await life.task
        assert app.result is not None and app.result.status is SUCCESSFUL
        result = await pool.enqueue(work).wait()
        assert result.status is SUCCESSFUL


@pytest.mark.parametrize("app", [raises, silent])
async def test_lifespan_is_spoken_for_an_application_that_does_not(app: ASGIApp) -> None:
    joint = AfterResponse(app)
    life = Life(joint)
    assert await life.tell("startup") == {"type": "lifespan.startup.complete"}
    finished = joint.pool.enqueue(work)
    assert await life.tell("shutdown") == {"type": "lifespan.shutdown.complete"}
    await life.task
    assert finished.status is SUCCESSFUL


async def test_lifespan_is_ended_for_an_application_that_returns_after_its_startup() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})

    joint = AfterResponse(app)
    life = Life(joint)
    await life.tell("startup")
    finished = joint.pool.enqueue(work)
    assert await life.tell("shutdown") == {"type": "lifespan.shutdown.complete"}
    await life.task
    assert finished.status is SUCCESSFUL


async def test_a_startup_that_fails_stops_the_pool_and_drops_what_was_added() -> None:
    results: list[TaskResult[Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        results.append(hold_of(scope).add_task(work))
        hold_of(scope).drop()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    joint = AfterResponse(app)
    life = Life(joint)
    assert await life.tell("startup") == {"type": "lifespan.startup.failed", "message": "no database"}
    await life.task
    assert results[0].status is DROPPED
    with pytest.raises(PoolStopped):
        joint.pool.enqueue(work)


async def test_an_application_that_fails_after_its_startup_takes_the_pool_with_it() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await raises(scope, receive, send)

    joint = AfterResponse(app)
    life = Life(joint)
    assert await life.tell("startup") == {"type": "lifespan.startup.complete"}
    with pytest.raises(RuntimeError, match="no answer"):
        await life.task
    with pytest.raises(PoolStopped):
        joint.pool.enqueue(work)


async def test_a_pool_that_cannot_open_fails_the_startup() -> None:
    class Unopenable(Pool):
        async def open(self) -> None:
            raise OSError("the disk is full")

    life = Life(AfterResponse(answers, Unopenable()))
    assert await life.tell("startup") == {
        "type": "lifespan.startup.failed",
        "message": "the pool cannot open: the disk is full",
    }
    with pytest.raises(OSError, match="the disk is full"):
        await life.task


async def test_without_a_lifespan_the_first_request_starts_the_pool_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exchange = Exchange()
    joint = AfterResponse(adding(exchange, work, then=answers))
    with caplog.at_level(logging.WARNING, logger="minibg.background"):
        await exchange.run(joint)
        await exchange.run(joint)
    await joint.pool.idle()
    assert exchange.statuses == [SUCCESSFUL, SUCCESSFUL]
    assert caplog.messages == ["no lifespan was run: the pool starts with this request, and will not be drained"]
    await joint.pool.stop()


def test_options_next_to_a_pool_are_refused() -> None:
    with pytest.raises(TypeError, match=r"\(queue_limit, workers\) next to a pool"):
        AfterResponse(answers, Pool(), workers=1, queue_limit=2)


async def test_a_pool_that_was_made_here_is_made_anew_for_each_lifespan() -> None:
    joint = AfterResponse(answers_lifespan)
    for _ in range(2):
        life = Life(joint)
        assert await life.tell("startup") == {"type": "lifespan.startup.complete"}
        finished = joint.pool.enqueue(work)
        assert await life.tell("shutdown") == {"type": "lifespan.shutdown.complete"}
        await life.task
        assert finished.status is SUCCESSFUL


async def test_two_lifespans_at_a_time_share_the_pool_and_the_first_one_stops_it() -> None:
    """One application behind two servers: a port and a Unix socket."""
    joint = AfterResponse(answers_lifespan)
    lives = [Life(joint), Life(joint)]
    for life in lives:
        assert await life.tell("startup") == {"type": "lifespan.startup.complete"}
    for life in reversed(lives):
        assert (await joint.pool.enqueue(work).wait()).status is SUCCESSFUL
        assert await life.tell("shutdown") == {"type": "lifespan.shutdown.complete"}
        await life.task


async def test_a_lifespan_that_begins_while_an_earlier_one_drains_has_a_pool_of_its_own() -> None:
    gate = asyncio.Event()
    joint = AfterResponse(answers_lifespan)
    first, second = Life(joint), Life(joint)
    await first.tell("startup")
    last = joint.pool.enqueue(gate.wait)
    ends = asyncio.create_task(first.tell("shutdown"))
    while not joint.pool.is_draining:
        await asyncio.sleep(0)
    await second.tell("startup")
    gate.set()
    await ends
    assert (await joint.pool.enqueue(work).wait()).status is SUCCESSFUL
    await second.tell("shutdown")
    await asyncio.gather(first.task, second.task)
    assert last.status is SUCCESSFUL


async def test_a_pool_that_was_given_and_has_stopped_fails_the_startup() -> None:
    async with Pool() as pool:
        pass
    life = Life(AfterResponse(answers_lifespan, pool))
    assert await life.tell("startup") == {
        "type": "lifespan.startup.failed",
        "message": "the pool cannot open: it was given to AfterResponse and has stopped: a pool that is given lives once",
    }
    with pytest.raises(RuntimeError):
        await life.task


def test_an_application_without_a_lifespan_works_in_one_event_loop_after_the_other() -> None:
    """A test client that makes a loop for each test: the tasks of the second loop run too."""
    exchange = Exchange()
    joint = AfterResponse(adding(exchange, work, then=answers))

    async def one_loop() -> None:
        await exchange.run(joint)
        await joint.pool.idle()

    for _ in range(2):
        asyncio.run(one_loop())
    assert exchange.statuses == [SUCCESSFUL, SUCCESSFUL]
