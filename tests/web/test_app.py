"""The whole way of a request through the application."""

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import httpx
import pytest

from minibg.asgi import ASGIApp, ClientDisconnected, Message, Receive, Scope, Send
from minibg.background import BackgroundTasks, Pool, QueueFull
from minibg.serving import serve
from minibg.web.app import App
from minibg.web.exceptions import HTTPException, RequestValidationError
from minibg.web.request import Request
from minibg.web.response import HTMLResponse, JSONResponse, PlainTextResponse, Response
from tests.web.driver import call


@dataclasses.dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("result", "body"),
    [
        ({"a": 1}, b'{"a":1}'),
        ([1], b"[1]"),
        ("text", b'"text"'),
        (None, b"null"),
        (Point(1), b'{"x":1}'),
        (True, b"true"),
    ],
)
@pytest.mark.parametrize("is_sync", [True, False])
async def test_what_a_handler_returns_becomes_json(result: Any, body: bytes, is_sync: bool) -> None:
    async def handler() -> Any:
        return result

    app = App()
    app.get("/")((lambda: result) if is_sync else handler)
    answer = await call(app, "GET", "/")
    assert answer.messages == [
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        },
        {"type": "http.response.body", "body": body},
    ]


async def test_a_route_says_what_its_answers_are() -> None:
    app = App()
    app.get("/html", response_class=HTMLResponse)(lambda: "<p>")
    app.post("/made", status_code=201)(lambda: {"id": 1})
    app.delete("/gone", status_code=204)(lambda: None)
    app.get("/own", status_code=201)(lambda: Response("x", 202))
    answers = [
        await call(app, method, path)
        for method, path in (("GET", "/html"), ("POST", "/made"), ("DELETE", "/gone"), ("GET", "/own"))
    ]
    assert [(a.status, a.headers.get("content-type"), a.body) for a in answers] == [
        (200, "text/html; charset=utf-8", b"<p>"),
        (201, "application/json", b'{"id":1}'),
        (204, None, b""),
        (202, None, b"x"),
    ]


async def test_sync_handlers_run_in_threads_of_their_own_with_the_context_of_the_request() -> None:
    word: ContextVar[str] = ContextVar("word")

    class Setting:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            word.set("set")
            await self.app(scope, receive, send)

    app = App()
    app.get("/")(lambda: [threading.current_thread().name, word.get()])
    app.add_middleware(Setting)
    assert (await call(app, "GET", "/")).json == ["minibg-handler-1", "set"]


# Exceptions.


async def test_a_raised_http_exception_is_answered_and_drops_the_tasks() -> None:
    async def handler(tasks: BackgroundTasks) -> None:
        tasks.add_task(print)
        raise HTTPException(404, {"no": "such"}, {"X-Why": "because"})

    app = App()
    app.get("/")(handler)
    answer = await call(app, "GET", "/")
    assert (answer.status, answer.json, answer.headers["x-why"]) == (404, {"detail": {"no": "such"}}, "because")
    assert (answer.error, answer.hold.dropped) == (None, True)


async def test_a_returned_error_keeps_the_tasks() -> None:
    async def handler(tasks: BackgroundTasks) -> Response:
        return JSONResponse({"detail": "no"}, 404)

    app = App()
    app.get("/")(handler)
    answer = await call(app, "GET", "/")
    assert (answer.status, answer.hold.dropped) == (404, False)


def test_an_http_exception_says_its_status_in_words() -> None:
    assert (HTTPException(404).detail, str(HTTPException(404))) == ("Not Found", "404: Not Found")


async def test_a_raised_304_has_no_body() -> None:
    async def handler() -> None:
        raise HTTPException(304, headers={"etag": '"x"'})

    app = App()
    app.get("/")(handler)
    answer = await call(app, "GET", "/")
    assert (answer.status, answer.headers, answer.body) == (304, {"etag": '"x"'}, b"")


async def test_a_full_queue_is_answered_with_503_and_can_be_caught() -> None:
    async def uncaught() -> None:
        raise QueueFull(2, retry_after=7)

    async def caught() -> str:
        try:
            raise QueueFull(2)
        except QueueFull as full:
            return f"limit {full.limit}"

    app = App()
    app.get("/uncaught")(uncaught)
    app.get("/caught")(caught)
    answer = await call(app, "GET", "/uncaught")
    assert (answer.status, answer.headers["retry-after"], answer.hold.dropped) == (503, "7", True)
    assert answer.json == {"detail": "no slot is free for another task: the queue's limit is 2"}
    assert (await call(app, "GET", "/caught")).json == "limit 2"


async def test_an_unhandled_exception_is_answered_with_500_and_raised_for_the_servers_log() -> None:
    def handler() -> None:
        raise KeyError("secret")

    for app, shown in ((App(), False), (App(debug=True), True)):
        app.get("/")(handler)
        answer = await call(app, "GET", "/")
        assert (answer.status, type(answer.error), answer.hold.dropped) == (500, KeyError, True)
        assert (answer.body == b"Internal Server Error", b"KeyError: 'secret'" in answer.body) == (not shown, shown)


async def test_a_client_that_leaves_gets_no_500() -> None:
    async def handler() -> None:
        raise ClientDisconnected("gone")

    app = App(exception_handlers={OSError: lambda request, error: Response("never")})
    app.get("/")(handler)
    answer = await call(app, "GET", "/")
    assert (answer.messages, type(answer.error)) == ([], ClientDisconnected)


async def test_exception_handlers_are_found_by_status_and_by_the_most_particular_class() -> None:
    class Base(Exception): ...

    class Derived(Base): ...

    app = App(exception_handlers={LookupError: lambda request, error: PlainTextResponse(f"lookup {error!r}")})

    @app.exception_handler(404)
    async def by_status(request: Request, error: HTTPException) -> Response:
        return PlainTextResponse(f"{request.method} {error.detail}", 404)

    @app.exception_handler(Base)
    async def by_base(request: Request, error: Base) -> Response:
        return PlainTextResponse("base", 400)

    @app.exception_handler(RequestValidationError)
    def by_validation(request: Request, error: RequestValidationError) -> Response:
        return PlainTextResponse(f"{error.errors()[0]['loc']}", 400)

    @app.get("/{which}")
    def handler(which: str, n: int = 0) -> None:
        raise {"base": Base(), "derived": Derived(), "key": KeyError(1), "http": HTTPException(404, "x")}[which]

    answers = [await call(app, "GET", path) for path in ("/base", "/derived", "/key", "/http", "/", "/http?n=x")]
    assert [(a.status, a.body, a.hold.dropped, a.error) for a in answers] == [
        (400, b"base", True, None),
        (400, b"base", True, None),
        (200, b"lookup KeyError(1)", True, None),
        (404, b"GET x", True, None),
        (404, b"GET Not Found", True, None),
        (400, b"('query', 'n')", True, None),
    ]


@pytest.mark.parametrize("kind", [500, Exception])
async def test_the_handler_of_last_resort_answers_and_the_exception_is_still_raised(kind: Any) -> None:
    app = App(exception_handlers={kind: lambda request, error: PlainTextResponse("sorry", 500)})

    @app.get("/")
    def handler() -> None:
        raise KeyError("x")

    answer = await call(app, "GET", "/")
    assert (answer.body, type(answer.error)) == (b"sorry", KeyError)


async def test_an_exception_of_the_middleware_is_answered_with_500_too() -> None:
    class Failing:
        def __init__(self, app: ASGIApp) -> None: ...

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            raise HTTPException(404)

    app = App()
    app.add_middleware(Failing)
    answer = await call(app, "GET", "/")
    assert (answer.status, type(answer.error)) == (500, HTTPException)


# Middleware and lifespan.


class Naming:
    def __init__(self, app: ASGIApp, name: str, log: list[str]) -> None:
        self.app, self.name, self.log = app, name, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.log.append(f"{self.name} before {scope['type']}")
        await self.app(scope, receive, send)
        self.log.append(f"{self.name} after {scope['type']}")


async def test_the_last_middleware_added_is_the_outermost_and_none_is_added_after_the_start() -> None:
    log: list[str] = []
    app = App()
    app.get("/")(lambda: log.append("handler"))
    app.add_middleware(Naming, name="inner", log=log)
    app.add_middleware(Naming, name="outer", log=log)
    await call(app, "GET", "/")
    assert log == ["outer before http", "inner before http", "handler", "inner after http", "outer after http"]
    with pytest.raises(RuntimeError, match="before the application starts"):
        app.add_middleware(Naming, name="late", log=log)


async def live(app: ASGIApp, **scope: Any) -> tuple[list[Message], BaseException | None]:
    """One lifespan, from startup to shutdown."""
    incoming = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[Message] = []

    async def receive() -> Message:
        return next(incoming)

    async def send(message: Message) -> None:
        sent.append(message)

    try:
        await app({"type": "lifespan", **scope}, receive, send)
    except Exception as error:
        return sent, error
    return sent, None


DONE = [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]


async def test_a_lifespan_surrounds_the_requests_and_gives_them_state() -> None:
    log: list[Any] = []

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[dict[str, Any]]:
        app.state.ready = True
        log.append("up")
        yield {"pool": 7}
        log.append("down")

    app = App(lifespan=lifespan)
    app.add_middleware(Naming, name="middleware", log=log)
    app.get("/")(lambda: None)
    state: dict[str, Any] = {}
    assert await live(app, state=state) == (DONE, None)
    assert log == ["middleware before lifespan", "up", "down", "middleware after lifespan"]
    assert (state, app.state.ready) == ({"pool": 7}, True)


async def test_a_lifespan_gets_the_pool_and_so_does_the_application() -> None:
    seen: list[Any] = []

    @asynccontextmanager
    async def with_pool(app: App, pool: Pool) -> AsyncIterator[None]:
        seen.extend([pool, app.state.pool])
        yield

    @asynccontextmanager
    async def without(app: App, name: str = "default") -> AsyncIterator[None]:
        seen.extend([name, app.state.pool])
        yield

    async with serve(App(lifespan=with_pool), port=0) as server:
        assert seen == [server.pool, server.pool]
    async with serve(App(lifespan=without), port=0) as server:
        assert seen[2:] == ["default", server.pool]
    assert (await live(App(lifespan=without)), seen[4:]) == ((DONE, None), ["default", None])
    _, error = await live(App(lifespan=with_pool))
    assert "wrap it in AfterResponse" in str(error)


async def test_an_application_without_a_lifespan_function_lives_as_well() -> None:
    assert await live(App()) == (DONE, None)


@pytest.mark.parametrize("part", ["startup", "shutdown"])
async def test_a_lifespan_that_fails_says_in_which_part_and_why(part: str) -> None:
    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        if part == "startup":
            raise KeyError("database")
        yield
        raise KeyError("database")

    sent, error = await live(App(lifespan=lifespan))
    assert (sent[-1]["type"], type(error)) == (f"lifespan.{part}.failed", KeyError)
    assert sent[-1]["message"].endswith("KeyError: 'database'\n")


async def test_the_threads_go_with_the_lifespan() -> None:
    app = App()
    app.get("/")(lambda: threading.get_ident())
    ident = (await call(app, "GET", "/")).json
    thread = next(thread for thread in threading.enumerate() if thread.ident == ident)
    await live(app)
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()


async def test_another_kind_of_scope_is_refused() -> None:
    answer = await call(App(), "GET", "/", type="websocket")
    assert str(answer.error) == "minibg speaks http and lifespan, not websocket"


# With the real thing.


async def test_tasks_added_in_a_handler_and_in_a_sync_handler_run_after_the_response() -> None:
    from minibg.after_response import AfterResponse

    ran: list[str] = []
    app = App()

    @app.get("/async")
    async def asynchronous(tasks: BackgroundTasks, pool: Pool) -> str:
        result = tasks.add_task(ran.append, "async")
        return result.status

    @app.get("/sync")
    def synchronous(tasks: BackgroundTasks) -> str:
        return tasks.add_task(ran.append, "sync").status

    @app.get("/fails")
    def failing(tasks: BackgroundTasks) -> None:
        tasks.add_task(ran.append, "never")
        raise HTTPException(400)

    async with Pool(workers=1) as pool:
        joint = AfterResponse(app, pool)
        answers = [await call(joint, "GET", path) for path in ("/async", "/sync", "/fails")]
        await pool.idle()
    assert [(a.status, a.json) for a in answers] == [(200, "HELD"), (200, "HELD"), (400, {"detail": "Bad Request"})]
    assert ran == ["async", "sync"]


async def test_forty_blocked_tasks_do_not_delay_a_sync_handler() -> None:
    from minibg.after_response import AfterResponse

    gate = threading.Event()
    app = App()

    @app.get("/")
    def handler(tasks: BackgroundTasks) -> str:
        for _ in range(40):
            tasks.add_task(gate.wait)
        return "quick"

    async with Pool(workers=8) as pool:
        joint = AfterResponse(app, pool)
        assert [(await call(joint, "GET", "/")).json for _ in range(2)] == ["quick", "quick"]
        gate.set()
        await pool.idle()


async def test_a_periodic_function_is_enqueued_while_the_application_lives() -> None:
    app = App()
    ran = asyncio.Event()

    @app.every(seconds=0.001)
    async def refresh() -> None:
        ran.set()

    async with serve(app, port=0):
        await asyncio.wait_for(ran.wait(), 10)


async def test_a_periodic_function_needs_somebody_who_runs_tasks() -> None:
    app = App()
    app.every(seconds=1)(print)
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(RuntimeError, match="nothing runs background tasks here"):
        await app({"type": "lifespan"}, receive, send)
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]


async def test_an_exception_handler_may_add_a_task_of_its_own() -> None:
    app = App()
    log: list[str] = []

    @app.get("/")
    async def fail(background_tasks: BackgroundTasks) -> None:
        background_tasks.add_task(log.append, "of the handler")
        raise ValueError

    @app.exception_handler(ValueError)
    async def answer(request: Request, _: ValueError) -> Response:
        request.scope["minibg.background"].add_task(log.append, "of the exception handler")
        return PlainTextResponse("sorry", 418)

    async with serve(app, port=0) as server:
        async with httpx.AsyncClient() as client:
            response = await client.get(f"http://127.0.0.1:{server.port}/")
        await server.pool.idle()
    assert (response.status_code, log) == (418, ["of the exception handler"])
