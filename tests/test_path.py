"""The whole path over real sockets: a client's bytes, the server, the framework, the joint, the queue, the workers.

Each test is one sentence of what minibg promises about tasks. Nothing is measured and nothing sleeps: a test that shows
that something has *not* happened lets something else happen first that could not have overtaken it.

At the end stands the run condition: how a request can end, under which server, in whose framework, and which of its
tasks run. Every combination is a test.
"""

import asyncio
import contextvars
import json
import logging
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import fastapi
import hypercorn.asyncio
import hypercorn.config
import pytest
import starlette.applications
import starlette.exceptions
import starlette.middleware
import starlette.requests
import starlette.responses
import starlette.routing
import uvicorn
from starlette.middleware.base import BaseHTTPMiddleware

import minibg
from minibg import AfterResponse, App, BackgroundTasks, Depends, HTTPException, Pool, QueueFull, Request
from minibg import JSONResponse, StreamingResponse, TaskResult, TaskStatus, serve, task
from minibg.asgi import ASGIApp, Message, Receive, Scope, Send
from minibg.background import Transition
from minibg.serving import TaskServer

from tests.background.recording import reached
from tests.server.wire import GET, Client, connections, respond

MEGABYTE = 1 << 20


@asynccontextmanager
async def serving(app: ASGIApp, **options: Any) -> AsyncIterator[TaskServer]:
    """A server on a free port, for thirty seconds at most."""
    async with asyncio.timeout(30), serve(app, port=0, **options) as server:
        yield server


@asynccontextmanager
async def connected(app: ASGIApp, **options: Any) -> AsyncIterator[tuple[Client, TaskServer]]:
    async with serving(app, **options) as server:
        client = await Client.to(server)
        yield client, server
        client.writer.close()


def get(path: str = "/") -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode()


def break_off(client: Client) -> None:
    """Leave at once: the kernel sends a reset, as it does for a process that dies with unread bytes."""
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()


async def finished(result: TaskResult[Any]) -> TaskStatus:
    return (await result.wait(timeout=20)).status


# --- order ---

STEPS = ("mail", "audit", "cache")


def registrations(step: Callable[[str], Awaitable[None]]) -> App:
    """``GET /{name}`` adds the three steps of a registration."""
    app = App()

    @app.get("/{name}")
    async def register(name: str, background_tasks: BackgroundTasks) -> str:
        for each in STEPS:
            background_tasks.add_task(step, f"{name} {each}")
        return "welcome"

    return app


async def test_with_one_worker_nine_tasks_run_in_the_order_of_their_responses() -> None:
    ran: list[str] = []
    answered = asyncio.Event()

    async def step(name: str) -> None:
        await answered.wait()
        ran.append(name)

    async with serving(registrations(step), task_workers=1) as server:
        for name in "abc":
            client = await Client.to(server)
            assert (await client.ask(get(f"/{name}")))[0] == 200
            client.writer.close()
        assert ran == []
        answered.set()
        await server.pool.idle()
    assert ran == [f"{name} {each}" for name in "abc" for each in STEPS]


async def test_with_eight_workers_three_responses_overlap_and_each_keeps_its_own_order() -> None:
    ran: list[str] = []
    together = asyncio.Barrier(3)

    async def step(name: str) -> None:
        async with together:  # Nobody gets further than the others: only an overlap gets through at all.
            ran.append(name)

    async with connected(registrations(step), task_workers=8) as (client, server):
        for name in "abc":
            assert (await client.ask(get(f"/{name}")))[0] == 200
        await server.pool.idle()
    assert [sorted(ran[start : start + 3]) for start in (0, 3, 6)] == [[f"{n} {each}" for n in "abc"] for each in STEPS]


# --- the moment ---


class Large:
    """An application that answers ``/large`` with 50 MB, and everything else with two bytes; each with a task."""

    size = 50 * MEGABYTE

    def __init__(self) -> None:
        self.written = asyncio.Event()
        self.results: dict[str, TaskResult[Any]] = {}
        self.server: TaskServer | None = None
        #: Bytes that wait in user space, on all connections, when the task of the large response starts.
        self.unsent: list[int] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        path = scope["path"]
        self.results[path] = scope["minibg.background"].add_task(self.look if path == "/large" else self.nothing)
        if path == "/large":
            self.written.set()
        await respond(send, bytes(self.size) if path == "/large" else b"ok")

    async def look(self) -> None:
        assert self.server is not None
        self.unsent += [connection.transport.get_write_buffer_size() for connection in connections(self.server)]

    async def nothing(self) -> None:
        pass


@asynccontextmanager
async def slow_reader(server: TaskServer) -> AsyncIterator[Client]:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
    client = Client(*await asyncio.open_connection(sock=sock, limit=64 * 1024))
    yield client
    client.writer.close()


async def another_task_runs(server: TaskServer, app: Large) -> None:
    client = await Client.to(server)
    assert (await client.ask(get("/small")))[0] == 200
    client.writer.close()
    assert await finished(app.results["/small"]) is TaskStatus.SUCCESSFUL


async def test_when_the_kernel_had_taken_the_last_byte_the_hold_is_released() -> None:
    app = Large()
    async with serving(app, access_log=False) as server, slow_reader(server) as client:
        app.server = server
        await client.send(get("/large"))
        await app.written.wait()
        # The client has read nothing, or half of it, which is more than kernels keep. Others' tasks run meanwhile.
        for part in (0, app.size // 2):
            async with asyncio.timeout(20):
                await client.reader.readexactly(part)
            await another_task_runs(server, app)
            assert app.results["/large"].status is TaskStatus.HELD
        async with asyncio.timeout(20):
            while app.results["/large"].status is TaskStatus.HELD:
                assert await client.reader.read(MEGABYTE)
        assert await finished(app.results["/large"]) is TaskStatus.SUCCESSFUL
        assert app.unsent == [0]


async def test_the_client_went_away_the_handler_had_answered_and_its_tasks_run() -> None:
    app = Large()
    async with serving(app) as server, slow_reader(server) as client:
        app.server = server
        await client.send(get("/large"))
        await client.reader.readexactly(MEGABYTE)
        assert app.results["/large"].status is TaskStatus.HELD
        break_off(client)
        assert await finished(app.results["/large"]) is TaskStatus.SUCCESSFUL


class Afterwards(BaseHTTPMiddleware):
    """A middleware of Starlette's kind: it runs the application in a task of its own, and has something to do afterwards."""

    async def dispatch(self, request: starlette.requests.Request, call_next: Any) -> starlette.responses.Response:
        response: starlette.responses.Response = await call_next(request)
        await asyncio.sleep(0)
        return response


def in_starlette(large: Large) -> ASGIApp:
    async def handler(request: starlette.requests.Request) -> starlette.responses.Response:
        await large(request.scope, request.receive, none_sent)
        return starlette.responses.Response(bytes(large.size if request.url.path == "/large" else 2))

    middleware = [starlette.middleware.Middleware(Afterwards)] * 2
    routes = [starlette.routing.Route("/{path}", handler)]
    return starlette.applications.Starlette(routes=routes, middleware=middleware)


async def none_sent(message: Message) -> None:
    """What the application would send, its middleware's response replaces."""


async def test_after_the_response_the_kernel_has_taken_its_last_byte_whatever_middleware_is_between() -> None:
    app = Large()
    async with serving(in_starlette(app), access_log=False) as server, slow_reader(server) as client:
        app.server = server
        await client.send(get("/large"))
        await app.written.wait()
        await another_task_runs(server, app)
        assert app.results["/large"].status == "HELD"
        async with asyncio.timeout(20):
            while app.results["/large"].status is TaskStatus.HELD:
                assert await client.reader.read(MEGABYTE)
        assert await finished(app.results["/large"]) is TaskStatus.SUCCESSFUL
        assert app.unsent == [0]


async def test_one_per_request_handlers_and_dependencies_share_it() -> None:
    seen: list[BackgroundTasks] = []
    ran: list[str] = []
    app = App()

    def inner(background_tasks: BackgroundTasks) -> None:
        seen.append(background_tasks)
        background_tasks.add_task(ran.append, "inner")

    async def outer(inner: Annotated[None, Depends(inner)], background_tasks: BackgroundTasks) -> None:
        seen.append(background_tasks)
        background_tasks.add_task(ran.append, "outer")

    @app.get("/", dependencies=[Depends(outer)])
    async def handler(background_tasks: BackgroundTasks) -> None:
        seen.append(background_tasks)
        background_tasks.add_task(ran.append, "handler")

    async with connected(app, task_workers=1) as (client, server):
        for _ in range(2):
            assert (await client.ask(GET))[0] == 200
            await server.pool.idle()
    assert [each is seen[0] for each in seen] == [True] * 3 + [False] * 3
    assert [each is seen[3] for each in seen] == [False] * 3 + [True] * 3
    assert ran == ["inner", "outer", "handler"] * 2


async def test_the_generator_dependencies_are_closed_and_only_then_the_first_task_starts() -> None:
    story: list[str] = []
    app = App()

    async def session() -> AsyncIterator[str]:
        story.append("opened")
        yield "session"
        story.append("closed")

    def transaction(session: Annotated[str, Depends(session)]) -> Iterator[None]:
        story.append("begun")
        yield
        story.append("committed")

    @app.get("/", dependencies=[Depends(transaction)])
    async def handler(background_tasks: BackgroundTasks) -> None:
        background_tasks.add_task(story.append, "task")
        story.append("handled")

    async with connected(app) as (client, server):
        assert (await client.ask(GET))[0] == 200
        await server.pool.idle()
    assert story == ["opened", "begun", "handled", "committed", "closed", "task"]


# --- nobody stands in anybody's way ---


async def test_one_tasks_failure_is_one_tasks(caplog: pytest.LogCaptureFixture) -> None:
    ran: list[str] = []
    results: list[TaskResult[Any]] = []
    app = App()

    async def fails() -> None:
        raise ValueError("no such address")

    @app.get("/")
    async def handler(background_tasks: BackgroundTasks) -> str:
        background_tasks.add_task(ran.append, "before")
        results.append(background_tasks.add_task(fails))
        background_tasks.add_task(ran.append, "after")
        return "ok"

    async with connected(app) as (client, server):
        assert (await client.ask(GET))[0] == 200
        await server.pool.idle()
        assert (await client.ask(get("/missing")))[0] == 404
    assert ran == ["before", "after"]
    assert results[0].status is TaskStatus.FAILED
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage().startswith(f"{results[0].name} {results[0].id} of GET /: FAILED after ")
    assert record.exc_info is not None and str(record.exc_info[1]) == "no such address"


async def test_the_next_requests_of_a_connection_are_served_while_a_task_runs() -> None:
    finish = asyncio.Event()
    results: list[TaskResult[Any]] = []
    app = App()

    @app.get("/")
    async def handler(background_tasks: BackgroundTasks) -> str:
        results.append(background_tasks.add_task(finish.wait))
        return "ok"

    async with connected(app, task_workers=1) as (client, server):
        await client.send(GET + GET)
        assert [(await client.response())[0] for _ in range(2)] == [200, 200]
        assert (await client.ask(GET))[0] == 200
        await reached(server.pool, results[0], TaskStatus.RUNNING)
        assert [result.status for result in results] == ["RUNNING", "READY", "READY"]
        finish.set()


async def test_an_exception_after_a_response_does_not_touch_the_next_one(caplog: pytest.LogCaptureFixture) -> None:
    results: list[TaskResult[Any]] = []

    async def nothing() -> None:
        pass

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            results.append(scope["minibg.background"].add_task(nothing))
            await respond(send, b"ok")
            if scope["path"] == "/fails":
                raise RuntimeError("too late")

    async with connected(app) as (client, server):
        await client.send(get("/fails") + GET)
        assert [(await client.response())[2] for _ in range(2)] == [b"ok", b"ok"]
        await server.pool.idle()
    assert [result.status for result in results] == ["SUCCESSFUL", "SUCCESSFUL"]  # Both heads had left.
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert errors == ["GET '/fails': the application failed while its response was sent"]


async def test_no_number_of_blocked_tasks_delays_a_handler() -> None:
    finish = threading.Event()
    results: list[TaskResult[Any]] = []
    app = App()

    @app.get("/block")
    async def block(background_tasks: BackgroundTasks) -> None:
        results.append(background_tasks.add_task(finish.wait))

    @app.get("/")
    def handler() -> str:
        return threading.current_thread().name

    async with connected(app, task_workers=40, access_log=False) as (client, server):
        for _ in range(40):
            assert (await client.ask(get("/block")))[0] == 200
        for result in results:
            await reached(server.pool, result, TaskStatus.RUNNING)
        assert (await client.ask(GET))[2].startswith(b'"minibg-handler-')
        assert server.pool.statistics().running == 40
        finish.set()


request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")


@pytest.mark.parametrize("path", ["/async", "/sync"])
async def test_a_request_id_that_middleware_set_is_seen_by_the_task_and_by_nobody_else(path: str) -> None:
    seen: list[str] = []
    app = App()

    class RequestId:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["query_string"]:
                request_id.set(scope["query_string"].decode())
            await self.app(scope, receive, send)

    def plain() -> None:
        seen.append(f"plain {request_id.get()}")

    async def coroutine() -> None:
        seen.append(f"coroutine {request_id.get()}")
        request_id.set("a task's own")

    def add(background_tasks: BackgroundTasks) -> str:
        for function in (coroutine, plain):
            background_tasks.add_task(function)
        return request_id.get()

    app.add_middleware(RequestId)
    app.get("/sync")(add)

    @app.get("/async")
    async def handler(background_tasks: BackgroundTasks) -> str:
        return add(background_tasks)

    async with connected(app, task_workers=1) as (client, server):
        for query in ("?one", "?two", ""):
            expected = query[1:] or "none"
            assert json.loads((await client.ask(get(path + query)))[2]) == expected
            await server.pool.idle()
        await server.pool.enqueue(plain).wait()
        assert request_id.get() == "none"
    both = [f"{kind} {id}" for id in ("one", "two", "none") for kind in ("coroutine", "plain")]
    assert seen == [*both, "plain none"]


# --- full ---


def adds(number: int) -> App:
    """``GET /`` adds so many tasks; ``GET /catch`` does too and catches QueueFull; ``GET /open`` lets them go."""
    app, gate = App(), asyncio.Event()

    @app.get("/")
    async def handler(background_tasks: BackgroundTasks) -> None:
        for _ in range(number):
            background_tasks.add_task(gate.wait)

    @app.get("/catch")
    async def catching(background_tasks: BackgroundTasks) -> Any:
        try:
            await handler(background_tasks)
        except QueueFull as full:
            return JSONResponse({"limit": full.limit, "accepted": len(background_tasks)}, 202)

    @app.get("/open")
    async def release() -> None:
        gate.set()

    return app


async def test_unless_it_is_caught_one_responses_tasks_are_all_accepted_or_none() -> None:
    async with connected(adds(3), queue_limit=2) as (client, server):
        status, headers, body = await client.ask(GET)
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(body) == {"detail": "no slot is free for another task: the queue's limit is 2"}
        statistics = server.pool.statistics()
        assert statistics.by_status[TaskStatus.DROPPED] == 2
        assert statistics.slots_taken == 0


async def test_a_handler_can_catch_the_full_queue_and_keep_what_was_accepted() -> None:
    async with connected(adds(3), queue_limit=2) as (client, server):
        status, _, body = await client.ask(get("/catch"))
        assert (status, json.loads(body)) == (202, {"limit": 2, "accepted": 2})
        assert (await client.ask(get("/open")))[0] == 200
        await server.pool.idle()
        assert server.pool.statistics().by_status[TaskStatus.SUCCESSFUL] == 2


WAITING_FOR_A_WORKER = (TaskStatus.HELD, TaskStatus.READY, TaskStatus.WAITING)


async def collected(pool: Pool) -> list[Transition]:
    return [transition async for transition in pool.follow()]


@pytest.mark.parametrize("reserves", [False, True])
async def test_64_clients_lose_no_accepted_task_run_no_refused_one_and_never_exceed_the_limit(reserves: bool) -> None:
    """No task ends before a client was refused, so the queue is surely full."""
    limit, ran = 10, list[str]()
    app, overflown = App(), asyncio.Event()

    async def note(id: str) -> None:
        await overflown.wait()
        ran.append(id)

    @app.get("/{client}/{request}")
    async def handler(client: str, request: int, background_tasks: BackgroundTasks) -> None:
        if reserves:
            await background_tasks.reserve(request % 3 + 1, timeout=0.05)
        for number in range(request % 3 + 1):
            background_tasks.add_task(note, f"/{client}/{request} {number}")

    async def one_client(server: TaskServer, name: int) -> list[tuple[str, int, str | None]]:
        client, answers = await Client.to(server), []
        for request in range(6):
            path = f"/{name}/{request}"
            status, headers, _ = await client.ask(get(path))
            answers.append((path, status, headers.get("retry-after")))
            if status == 503:
                overflown.set()
        client.writer.close()
        return answers

    async with serving(app, access_log=False, queue_limit=limit, task_workers=2) as server:
        following = asyncio.create_task(collected(server.pool))
        answers = sum(await asyncio.gather(*(one_client(server, name) for name in range(64))), [])
        await server.pool.idle()
        assert server.pool.statistics().slots_taken == 0
    transitions = await following

    accepted = [(path, int(path[-1]) % 3 + 1) for path, status, _ in answers if status == 200]
    refused = [after for _, status, after in answers if status == 503]
    assert len(accepted) + len(refused) == 64 * 6
    assert sorted(ran) == sorted(f"{path} {number}" for path, tasks in accepted for number in range(tasks))
    assert all(after is not None and 1 <= int(after) <= 60 for after in refused)
    assert len(accepted) >= limit // 3 and refused
    unstarted, most = 0, 0
    for transition in transitions:
        assert transition.missed == 0
        unstarted += (transition.after in WAITING_FOR_A_WORKER) - (transition.before in WAITING_FOR_A_WORKER)
        most = max(most, unstarted)
    assert (unstarted, most <= limit) == (0, True)


# --- what FastAPI's users write ---

FOR_FASTAPI = """
from minibg import App as FastAPI, BackgroundTasks, Depends
app = FastAPI()

def write_log(message: str):
    with open("log.txt", "a") as f:
        f.write(f"{message}\\n")

@app.post("/log")
async def log_operation(background_tasks: BackgroundTasks):
    background_tasks.add_task(write_log, "someone called /log")
    return {"message": "recorded"}

@app.post("/register")
async def register(email: str, background_tasks: BackgroundTasks):
    background_tasks.add_task(send_welcome_email, email)
    background_tasks.add_task(write_log, "registered")
    background_tasks.add_task(refresh_cache, email)
    return {"msg": "welcome, the mail follows"}

def audit(background_tasks: BackgroundTasks):
    background_tasks.add_task(write_log, "audit")

@app.get("/data")
async def get_data(dep=Depends(audit)):
    return {"msg": "data"}
"""


async def test_what_was_written_for_fastapi_runs_with_another_import_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    calls: list[tuple[str, ...]] = []

    def send_welcome_email(email: str) -> None:
        calls.append(("mail", email))

    async def refresh_cache(email: str) -> None:
        calls.append(("cache", email, Path("log.txt").read_text()))

    names: dict[str, Any] = {"send_welcome_email": send_welcome_email, "refresh_cache": refresh_cache}
    exec(FOR_FASTAPI, names)
    async with connected(names["app"], task_workers=1) as (client, server):
        answers = []
        for line in (b"POST /log", b"POST /register?email=a@example.org", b"GET /data"):
            status, _, body = await client.ask(line + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            answers.append((status, json.loads(body)))
        await server.pool.idle()
    assert answers == [
        (200, {"message": "recorded"}),
        (200, {"msg": "welcome, the mail follows"}),
        (200, {"msg": "data"}),
    ]
    assert calls == [("mail", "a@example.org"), ("cache", "a@example.org", "someone called /log\nregistered\n")]
    assert (tmp_path / "log.txt").read_text() == "someone called /log\nregistered\naudit\n"


# --- the run condition ---


class Ending(NamedTuple):
    """A way for a request to end."""

    name: str
    #: Whether the tasks run that do not run always.
    tasks_run: bool
    #: ... when the framework is not minibg's.
    elsewhere: bool
    #: The status the client sees; None when it does not stay for one.
    status: int | None


ENDINGS = [
    Ending("returns 200", True, True, 200),
    Ending("returns 500", True, True, 500),
    # Starlette and FastAPI make a response of it further in: what reaches the joint is a 409 like any other.
    Ending("raises HTTPException", False, True, 409),
    Ending("raises", False, False, 500),
    Ending("client gone before the body", True, True, None),
    Ending("client gone during the body", True, True, None),
    Ending("client gone after the body", True, True, 200),
]


async def nothing() -> None:
    pass


class Scene:
    """What an application of the table does, apart from the framework it is written in."""

    def __init__(self, ending: Ending) -> None:
        self.ending = ending.name
        self.results: list[TaskResult[Any]] = []
        self.added, self.gone = asyncio.Event(), asyncio.Event()

    def add_tasks(self, hold: BackgroundTasks) -> None:
        self.results += [hold.add_task(nothing), hold.add_task(task(nothing).using(always=True))]
        self.added.set()

    async def stream(self, scope: Scope) -> AsyncIterator[bytes]:
        yield b"first "
        await self.disconnect(scope)
        yield b"second"

    async def disconnect(self, scope: Scope) -> None:
        """Until the server knows that the client has gone."""
        while (await scope["test.receive"]())["type"] != "http.disconnect":
            pass

    async def respond(self, scope: Scope, raising: Callable[[], Exception], stream: Any, plain: Any) -> Any:
        self.add_tasks(scope["minibg.background"])
        match self.ending:
            case "raises HTTPException":
                raise raising()
            case "raises":
                raise RuntimeError("handler failed")
            case "client gone before the body":
                await self.disconnect(scope)
            case "client gone during the body":
                return stream(self.stream(scope))
        return plain("body", 500 if self.ending == "returns 500" else 200)

    def around(self, app: Any) -> ASGIApp:
        """The application, still there when the client leaves after the body; and its ``receive``, for the handler."""

        async def around(scope: Scope, receive: Receive, send: Send) -> None:
            scope["test.receive"] = receive
            await app(scope, receive, send)
            if scope["type"] == "http" and self.ending == "client gone after the body":
                await self.gone.wait()

        return around


def of_minibg(scene: Scene) -> ASGIApp:
    app = App()

    @app.get("/")
    async def handler(request: Request) -> Any:
        failure = HTTPException(409)
        return await scene.respond(request.scope, lambda: failure, StreamingResponse, minibg.PlainTextResponse)

    return app


async def _starlette(scene: Scene, scope: Scope) -> Any:
    responses = starlette.responses
    failure = starlette.exceptions.HTTPException(409)
    return await scene.respond(scope, lambda: failure, responses.StreamingResponse, responses.PlainTextResponse)


def of_starlette(scene: Scene) -> ASGIApp:
    async def handler(request: starlette.requests.Request) -> Any:
        return await _starlette(scene, request.scope)

    return starlette.applications.Starlette(routes=[starlette.routing.Route("/", handler)])


def of_fastapi(scene: Scene) -> ASGIApp:
    app = fastapi.FastAPI()

    @app.get("/")
    async def handler(request: fastapi.Request) -> Any:
        return await _starlette(scene, request.scope)

    return app


class Uvicorn(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def under_uvicorn(app: ASGIApp, sock: socket.socket) -> AsyncIterator[None]:
    server = Uvicorn(uvicorn.Config(app, http="h11", ws="none", lifespan="on", log_config=None, access_log=False))
    running = asyncio.create_task(server.serve([sock]))
    yield
    server.should_exit = True
    await running


@asynccontextmanager
async def under_hypercorn(app: Any, sock: socket.socket) -> AsyncIterator[None]:
    config, stop = hypercorn.config.Config(), asyncio.Event()
    config.bind = [f"fd://{os.dup(sock.fileno())}"]
    running = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait))
    yield
    stop.set()
    await running


@asynccontextmanager
async def under_minibg(app: ASGIApp, sock: socket.socket) -> AsyncIterator[None]:
    async with serve(app, fd=os.dup(sock.fileno()), access_log=False):
        yield


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.name)
@pytest.mark.parametrize("framework", [of_minibg, of_starlette, of_fastapi])
@pytest.mark.parametrize("server", [under_minibg, under_uvicorn, under_hypercorn])
async def test_if_the_application_raises_the_hold_is_dropped_but_for_tasks_that_run_always(
    server: Any, framework: Any, ending: Ending
) -> None:
    """One request, one task that runs if the handler has not failed, and one that runs always."""
    scene = Scene(ending)
    app = AfterResponse(scene.around(framework(scene)))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with asyncio.timeout(30), server(app, sock):
            client = Client(*await asyncio.open_connection("127.0.0.1", sock.getsockname()[1]))
            await client.send(GET)
            await scene.added.wait()
            if ending.status is not None:
                assert (await client.response())[0] == ending.status
            elif ending.name == "client gone during the body":
                await client.reader.readuntil(b"first ")
            break_off(client)
            scene.gone.set()
            statuses = [await finished(result) for result in scene.results]
    runs = ending.tasks_run if framework is of_minibg else ending.elsewhere
    assert statuses == [TaskStatus.SUCCESSFUL if runs else TaskStatus.DROPPED, TaskStatus.SUCCESSFUL]
