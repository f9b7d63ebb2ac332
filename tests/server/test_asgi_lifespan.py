"""ASGI lifespan 2.0: startup, shutdown, failure, and applications without it.

The server is told "listening" only after the application has started, and the application is told "shutdown" only after
the last response has left.
"""

import asyncio
import logging
from typing import Any

import pytest

from minibg.asgi import Message, Receive, Scope, Send
from minibg.server import Server, StartupFailed
from tests.server.requirements import ok, requirement, undated
from tests.server.wire import GET_CLOSE, Client, connected, respond, serving


class Lifespan:
    """An application that notes its conversation, and answers it with ``answers``; requests are answered with ok."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.seen: list[Any] = []
        self.scope: Scope = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.seen.append("request")
            await respond(send, b"ok")
            return
        self.scope = scope
        for answer in self.answers:
            self.seen.append(await receive())
            if isinstance(answer, Exception):
                raise answer
            await send(answer)


UP: Message = {"type": "lifespan.startup.complete"}
DOWN: Message = {"type": "lifespan.shutdown.complete"}
STARTUP, SHUTDOWN = {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}


async def is_served(app: Any) -> bool:
    async with connected(app) as client:
        await client.send(GET_CLOSE)
        return undated(await client.rest()) == ok(b"ok", close=True)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@requirement(
    "ASGI lifespan, Scope",
    "MUST",
    "The scope has type, asgi with both versions, and state; there is one of it, and extensions.",
)
async def test_the_lifespan_scope() -> None:
    app = Lifespan(UP, DOWN)
    async with serving(app) as server:
        pass
    assert app.scope == {
        "type": "lifespan",
        "asgi": {"version": "3.0", "spec_version": "2.0"},
        "state": {},
        "extensions": {"minibg.addresses": {"addresses": [("127.0.0.1", server.port)]}},
    }


@requirement(
    "ASGI lifespan, Startup", "MUST", "startup comes first, shutdown last, each once, and every request between them."
)
async def test_startup_requests_shutdown() -> None:
    app = Lifespan(UP, DOWN)
    assert await is_served(app)
    assert app.seen == [STARTUP, "request", SHUTDOWN]


@requirement("ASGI lifespan, Startup", "MUST", "No connection is accepted before startup.complete.")
async def test_nobody_is_accepted_before_the_startup() -> None:
    starting, go = asyncio.Event(), asyncio.Event()
    order: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            order.append("request")
            await respond(send, b"ok")
            return
        await receive()
        starting.set()
        await go.wait()
        order.append("started")
        await send(UP)
        await receive()
        await send(DOWN)

    server = Server(app, port=0)
    start = asyncio.create_task(server.start())
    await starting.wait()
    with pytest.raises(ConnectionRefusedError):
        await Client.to(server)
    go.set()
    await start
    client = await Client.to(server)
    await client.send(GET_CLOSE)
    assert undated(await client.rest()) == ok(b"ok", close=True)
    client.writer.close()
    await server.stop()
    assert order == ["started", "request"]


@requirement(
    "ASGI lifespan, Startup Failed",
    "SHOULD",
    "startup.failed ends the start with the application's message, or without one; nothing is bound.",
)
@pytest.mark.parametrize(
    ("message", "told"),
    [({"message": "no database"}, "no database"), ({}, "did not say why"), ({"message": ""}, "did not say why")],
)
async def test_startup_failed(message: dict[str, str], told: str) -> None:
    server = Server(Lifespan({"type": "lifespan.startup.failed", **message}), port=0)
    with pytest.raises(StartupFailed, match=told):
        await server.start()
    with pytest.raises(ConnectionRefusedError):
        await Client.to(server)


@requirement(
    "ASGI lifespan, Scope",
    "MUST",
    "An application that raises before it answers the startup is served without lifespan.",
)
@pytest.mark.parametrize(
    "error",
    [NotImplementedError(), KeyError("path"), AssertionError(), TypeError()],
    ids=lambda error: type(error).__name__,
)
async def test_an_application_that_raises_is_served(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    app = Lifespan(error)
    assert await is_served(app)
    assert app.seen == [STARTUP, "request"]
    assert errors(caplog) == []


@requirement(
    "ASGI lifespan, Scope",
    "chosen",
    "An application that returns before it answers the startup is served without lifespan.",
)
async def test_an_application_that_returns_is_served(caplog: pytest.LogCaptureFixture) -> None:
    app = Lifespan()
    assert await is_served(app)
    assert app.seen == ["request"]
    assert errors(caplog) == []


@requirement(
    "ASGI lifespan, Startup",
    "chosen",
    "An application that returns after startup.complete is served, and gets no shutdown.",
)
async def test_an_application_that_has_returned_gets_no_shutdown() -> None:
    app = Lifespan(UP)
    assert await is_served(app)
    assert app.seen == [STARTUP, "request"]


@requirement(
    "ASGI lifespan, Startup",
    "chosen",
    "An application whose lifespan fails after startup.complete is served on; one record.",
)
async def test_a_lifespan_that_fails_later_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await respond(send, b"ok")
            return
        await receive()
        await send(UP)
        raise ValueError("late")

    assert await is_served(app)
    assert errors(caplog) == ["the lifespan of the application failed"]


@requirement(
    "ASGI, Error Handling",
    "SHOULD",
    "An answer that does not fit is raised out of send; before the startup is answered, the application counts as one without lifespan.",
)
@pytest.mark.parametrize(
    "answer",
    [
        DOWN,
        {"type": "lifespan.shutdown.failed"},
        {"type": "lifespan.nonsense"},
        {"type": "http.response.start", "status": 200},
        {},
    ],
    ids=repr,
)
async def test_a_wrong_answer_to_the_startup(answer: Message) -> None:
    app = Lifespan(answer, DOWN)
    assert await is_served(app)
    assert app.seen == [STARTUP, "request"]


@requirement(
    "ASGI lifespan, Shutdown",
    "MUST",
    "The stop waits for shutdown.complete, and shutdown comes after the last response.",
)
async def test_the_stop_waits_for_the_shutdown() -> None:
    order: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await respond(send, b"ok")
            order.append("response")
            return
        await receive()
        await send(UP)
        await receive()
        for _ in range(10):
            await asyncio.sleep(0)
        order.append("cleaned up")
        await send(DOWN)

    assert await is_served(app)
    order.append("stopped")
    assert order == ["response", "cleaned up", "stopped"]


@requirement(
    "ASGI lifespan, Shutdown Failed",
    "SHOULD",
    "shutdown.failed is logged with its message, and the stop ends all the same.",
)
@pytest.mark.parametrize("message", [{"message": "disk full"}, {}])
async def test_shutdown_failed(message: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    assert await is_served(Lifespan(UP, {"type": "lifespan.shutdown.failed", **message}))
    assert errors(caplog) == [f"the application failed to shut down: {message.get('message', '')}"]


@requirement(
    "ASGI lifespan, Startup Failed",
    "chosen",
    "An application that says failed and raises, as Starlette does, has failed once: what it says is told, what it raises is not.",
)
async def test_a_failure_that_is_also_raised_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await respond(send, b"ok")
            return
        await receive()
        if fails == "startup":
            await send({"type": "lifespan.startup.failed", "message": "no database"})
            raise ValueError("no database")
        await send(UP)
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "disk full"})
        raise ValueError("disk full")

    fails = "startup"
    with pytest.raises(StartupFailed, match="no database"):
        await Server(app, port=0).start()
    assert errors(caplog) == []
    fails = "shutdown"
    assert await is_served(app)
    assert errors(caplog) == ["the application failed to shut down: disk full"]


@requirement(
    "ASGI lifespan, Shutdown",
    "chosen",
    "An application that raises at its shutdown is logged, and the stop ends all the same.",
)
async def test_an_application_that_raises_at_its_shutdown(caplog: pytest.LogCaptureFixture) -> None:
    assert await is_served(Lifespan(UP, ValueError("late")))
    assert errors(caplog) == ["the lifespan of the application failed"]


@requirement(
    "ASGI lifespan, Lifespan State",
    "MUST",
    "What the startup puts into state each request gets; what a request puts there no other gets.",
)
async def test_the_state_reaches_each_request() -> None:
    shared, seen = object(), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            seen.append(dict(scope["state"]))
            scope["state"]["own"] = 1
            await respond(send, b"ok")
            return
        await receive()
        scope["state"]["shared"] = shared
        await send(UP)
        await receive()
        seen.append(dict(scope["state"]))
        await send(DOWN)

    async with serving(app) as server:
        for _ in range(2):
            client = await Client.to(server)
            await client.send(GET_CLOSE)
            await client.rest()
            client.writer.close()
    assert seen == [{"shared": shared}] * 3


@requirement(
    "ASGI lifespan, Lifespan State", "chosen", "An application without lifespan has a state too, an empty one."
)
async def test_the_state_without_lifespan_is_empty() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        seen.append(scope["state"])
        await respond(send, b"ok")

    assert await is_served(app)
    assert seen == [{}]
