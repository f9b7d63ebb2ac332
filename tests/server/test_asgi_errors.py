"""ASGI http 2.5: the application's errors, at every stage of its response.

The specification leaves to the server what happens when an application breaks the contract. Here the client sees a 500 while
nothing has been written, a reset once something has, and a whole response if it was whole; never a well-formed lie and never
a wait. The log has one record, and the next request on the connection, where there is one, is answered.
"""

import asyncio
import logging
import socket
import struct
from typing import Any

import pytest

from minibg.asgi import ASGIApp, ClientDisconnected, Message, Receive, Scope, Send
from tests.server.requirements import answered, mirror, ok, refused, requirement, undated
from tests.server.wire import connected, respond, without_lifespan

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
NEXT_ANSWER = ok(b"GET /next 1.1 []", close=True)
START: Message = {"type": "http.response.start", "status": 200}
MORE: Message = {"type": "http.response.body", "body": b"part", "more_body": True}
LAST: Message = {"type": "http.response.body", "body": b"ok"}
#: What an application may end with: None is a return.
ENDS = [None, ValueError("broken"), asyncio.CancelledError(), SystemExit(3), BaseException("odd"), OSError("disk")]
ends = pytest.mark.parametrize("end", ENDS, ids=lambda end: type(end).__name__)
raises = pytest.mark.parametrize("end", ENDS[1:], ids=lambda end: type(end).__name__)


def ending(end: BaseException | None, *messages: Any) -> ASGIApp:
    """An application that sends these messages, and then returns or raises; but it answers /next."""

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/next":
            await mirror(scope, receive, send)
            return
        for message in messages:
            await send(message)
        if end is not None:
            raise end

    return app


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def record(end: BaseException | None, stage: str) -> str:
    return f"GET '/': the application {'failed' if end else 'returned'} while its response was {stage}"


async def cut(app: ASGIApp) -> bool:
    """Whether the client sees that its response is cut."""
    async with connected(app) as client:
        await client.send(GET)
        return await client.is_reset()


# --- how it ends ---


@requirement(
    "ASGI http, Response Start",
    "chosen",
    "An application that ends before its start message, in whatever way: 500, and one record.",
)
@ends
async def test_an_end_before_the_start(end: BaseException | None, caplog: pytest.LogCaptureFixture) -> None:
    assert await answered(GET + NEXT, ending(end)) == refused(500)
    assert errors(caplog) == [record(end, "waiting")] * 2


@requirement(
    "ASGI http, Response Start",
    "chosen",
    "An application that ends after its start message and before the body: 500, and one record; its own head is not sent.",
)
@ends
async def test_an_end_after_the_start(end: BaseException | None, caplog: pytest.LogCaptureFixture) -> None:
    assert await answered(GET + NEXT, ending(end, START)) == refused(500)
    assert errors(caplog) == [record(end, "started")] * 2


@requirement(
    "ASGI http, Response Body",
    "chosen",
    "An application that ends within its body: the response is cut by a reset, and one record.",
)
@ends
async def test_an_end_within_the_body(end: BaseException | None, caplog: pytest.LogCaptureFixture) -> None:
    assert await cut(ending(end, START, MORE))
    assert errors(caplog) == [record(end, "streaming")]


@requirement(
    "ASGI http, Response Body",
    "chosen",
    "An application that fails after its response: the response is whole, the next request is answered, and one record.",
)
@raises
async def test_a_failure_after_the_end(end: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    assert await answered(GET + NEXT, ending(end, START, LAST)) == ok(b"ok") + NEXT_ANSWER
    assert errors(caplog) == [record(end, "sent")] * 2


@requirement(
    "ASGI http, Response Body", "MUST", "An application that returns after its response has made no error: no record."
)
async def test_a_return_after_the_end(caplog: pytest.LogCaptureFixture) -> None:
    assert await answered(GET + NEXT, ending(None, START, LAST)) == ok(b"ok") + NEXT_ANSWER
    assert errors(caplog) == []


@requirement(
    "ASGI http, Disconnected Client",
    "SHOULD",
    "An application that ends by the ClientDisconnected of its send has made no error: no record.",
)
async def test_an_end_by_the_clients_end(caplog: pytest.LogCaptureFixture) -> None:
    ended = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send(START)
            while True:
                await send({**MORE, "body": b"x" * 65536})
        finally:
            ended.set()

    async with connected(app) as client:
        await client.send(GET)
        await client.reader.readexactly(10)
        client.writer.transport.abort()
        await ended.wait()
    assert errors(caplog) == []


# --- messages that are none ---

BAD_STARTS: dict[str, Any] = {
    "no type": {"status": 200},
    "unknown type": {"type": "http.response.nonsense"},
    "websocket": {"type": "websocket.accept"},
    "push": {"type": "http.response.push", "path": "/", "headers": []},
    "trailers": {"type": "http.response.trailers", "headers": [], "more_trailers": False},
    "body first": LAST,
    "no status": {"type": "http.response.start"},
    "status as str": {"type": "http.response.start", "status": "200"},
    "status as None": {"type": "http.response.start", "status": None},
    "status as float": {"type": "http.response.start", "status": 200.0},
    "status 100": {"type": "http.response.start", "status": 100},
    "status 99": {"type": "http.response.start", "status": 99},
    "status 1000": {"type": "http.response.start", "status": 1000},
    "status True": {"type": "http.response.start", "status": True},
    "no dict": None,
    "a list": [],
}


@requirement(
    "ASGI, Error Handling",
    "SHOULD",
    "A first message that is no http.response.start with a final status is raised out of send: 500, and one record.",
)
@pytest.mark.parametrize("message", BAD_STARTS.values(), ids=BAD_STARTS)
async def test_a_wrong_first_message(message: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert await answered(GET + NEXT, ending(None, message, START, LAST)) == refused(500)
    assert errors(caplog) == [record(ValueError(), "waiting")] * 2


BAD_SECONDS: dict[str, Any] = {
    "start again": START,
    "no type": {"body": b"ok"},
    "unknown type": {"type": "http.response.nonsense"},
    "body as str": {**LAST, "body": "ok"},
    "body as None": {**LAST, "body": None},
    "body as list": {**LAST, "body": [1]},
    "body as int": {**LAST, "body": 3},
}


@requirement(
    "ASGI, Error Handling",
    "SHOULD",
    "A second message that is no http.response.body with bytes is raised out of send: 500, and one record.",
)
@pytest.mark.parametrize("message", BAD_SECONDS.values(), ids=BAD_SECONDS)
async def test_a_wrong_second_message(message: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert await answered(GET + NEXT, ending(None, START, message, LAST)) == refused(500)
    assert errors(caplog) == [record(ValueError(), "started")] * 2


@requirement(
    "ASGI, Error Handling",
    "SHOULD",
    "A wrong message within the body is raised out of send: the response is cut, and one record.",
)
@pytest.mark.parametrize("message", BAD_SECONDS.values(), ids=BAD_SECONDS)
async def test_a_wrong_message_within_the_body(message: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert await cut(ending(None, START, MORE, message, LAST))
    assert errors(caplog) == [record(ValueError(), "streaming")]


BAD_HEADERS: dict[str, Any] = {
    "name as str": [("x", b"y")],
    "value as str": [(b"x", "y")],
    "value as int": [(b"content-length", 2)],
    "value as None": [(b"x", None)],
    "owned value as str": [(b"date", "now")],
    "triples": [(b"x", b"y", b"z")],
    "a dict": {b"x": b"y"},
    "strings": ["x: y"],
    "None": None,
    "a number": 3,
}


@requirement(
    "ASGI, Error Handling",
    "SHOULD",
    "headers that are no pairs of bytes are raised out of the first body message's send: 500, and one record.",
)
@pytest.mark.parametrize("headers", BAD_HEADERS.values(), ids=BAD_HEADERS)
async def test_wrong_headers(headers: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert await answered(GET + NEXT, ending(None, {**START, "headers": headers}, LAST)) == refused(500)
    assert errors(caplog) == [record(ValueError(), "started")] * 2


@requirement(
    "ASGI http, Response Body",
    "chosen",
    "An application that catches the error of its send may go on with the right message, and the response is whole.",
)
@pytest.mark.parametrize("message", BAD_STARTS.values(), ids=BAD_STARTS)
async def test_a_mistake_can_be_mended(message: Any, caplog: pytest.LogCaptureFixture) -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(Exception):  # noqa: B017, PT011 - which error it is does not matter here
            await send(message)
        await respond(send, b"mended")

    assert await answered(GET.replace(b"Host", b"Connection: close\r\nHost"), app) == ok(b"mended", close=True)
    assert errors(caplog) == []


@requirement(
    "ASGI, Applications",
    "chosen",
    "An application that is no coroutine function, or takes other arguments: 500, and one record; the server lives on.",
)
@pytest.mark.parametrize("app", [lambda scope, receive, send: None, lambda: None], ids=["not awaitable", "arguments"])
async def test_an_application_that_is_none(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(app) as client:
        await client.send(GET)
        assert undated(await client.rest()) == refused(500)
    assert errors(caplog) == [record(TypeError(), "waiting")]


@requirement(
    "ASGI http, Disconnected Client",
    "chosen",
    "A fault that an application makes after the ClientDisconnected of its send is its own: one record.",
)
async def test_a_fault_after_the_clients_end_is_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        began.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        try:
            await send(START)
        except ClientDisconnected:
            ended.set()
            raise KeyError("cleanup") from None

    async with connected(app) as client:
        await client.send(GET)
        await began.wait()
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
        await ended.wait()
    assert errors(caplog) == [record(KeyError(), "gone")]
