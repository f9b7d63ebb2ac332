"""One request as the application sees it: messages, mistakes, and what the client and the log get of them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from minibg.asgi import ClientDisconnected, Message, Receive, Scope, Send
from minibg.server.cycle import TRANSITIONS, Stage
from tests.server.wire import GET, GET_CLOSE, Client, Recorder, connected, read_body, respond, serving, without_lifespan

START: Message = {"type": "http.response.start", "status": 200}
MORE: Message = {"type": "http.response.body", "body": b"part", "more_body": True}
LAST: Message = {"type": "http.response.body", "body": b"last"}


def sending(*messages: Any, error: BaseException | None = None) -> Callable[..., Awaitable[None]]:
    """An application that sends these and then returns or raises."""

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        if error is not None:
            raise error

    return app


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_every_stage_stands_in_the_table() -> None:
    assert set(TRANSITIONS) == set(Stage)
    assert set().union(*TRANSITIONS.values()) == set(Stage) - {Stage.WAITING}


async def test_the_scope_is_complete() -> None:
    app = Recorder()
    async with serving(app) as server:
        client = await Client.to(server)
        await client.ask(b"POST /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
        scope = dict(app.scopes[0])
        assert scope.pop("extensions") == {"minibg.stopping": server.stopping}
        assert scope == {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/a",
            "raw_path": b"/a",
            "query_string": b"b",
            "root_path": "",
            "headers": [(b"host", b"a"), (b"content-length", b"1")],
            "client": client.writer.get_extra_info("sockname"),
            "server": ("127.0.0.1", server.port),
            "state": {},
        }
        client.writer.close()


async def test_no_two_requests_share_a_part_of_their_scope() -> None:
    app = Recorder()
    async with connected(app) as client:
        await client.ask(GET)
        await client.ask(GET)
    first, second = app.scopes
    assert all(first[key] is not second[key] for key in ("asgi", "extensions", "headers", "state"))


async def test_the_body_comes_once_and_then_the_end() -> None:
    seen: list[Message] = []
    done = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await receive())
        await respond(send, b"ok")
        seen.extend([await receive(), await receive()])
        done.set()

    async with connected(app) as client:
        await client.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
        await asyncio.wait_for(done.wait(), 5)
    assert seen == [
        {"type": "http.request", "body": b"hi", "more_body": False},
        {"type": "http.disconnect"},
        {"type": "http.disconnect"},
    ]


async def test_a_receive_that_waits_ends_with_the_response() -> None:
    seen: list[Message] = []

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        listeners = [asyncio.ensure_future(receive()) for _ in range(2)]
        listeners[0].cancel()  # one that gives up does not take the others with it
        await asyncio.sleep(0)
        await respond(send, b"ok")
        seen.append(await listeners[1])

    async with connected(app) as client:
        assert (await client.ask(GET))[2] == b"ok"
    assert seen == [{"type": "http.disconnect"}]


async def test_messages_after_a_complete_response_are_ignored() -> None:
    async with connected(sending(START, LAST, LAST, START, {"type": "anything"})) as client:
        assert (await client.ask(GET))[2] == b"last"
        assert (await client.ask(GET))[2] == b"last"


async def test_a_response_in_pieces_is_chunked() -> None:
    async with connected(sending(START, MORE, {**MORE, "body": b""}, {**MORE, "body": b"!"}, LAST)) as client:
        await client.send(GET_CLOSE)
        _, _, body = (await client.rest()).partition(b"\r\n\r\n")
        assert body == b"4\r\npart\r\n1\r\n!\r\n4\r\nlast\r\n0\r\n\r\n"


async def test_a_response_in_pieces_to_http_1_0_ends_with_the_connection() -> None:
    async with connected(sending(START, MORE, LAST)) as client:
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
        assert body == b"partlast"
        assert b"transfer-encoding" not in head
        assert b"connection: close" in head


@pytest.mark.parametrize("status", [204, 304])
async def test_a_response_that_has_no_body_has_none_on_the_wire(status: int) -> None:
    async with connected(sending({**START, "status": status}, MORE, LAST)) as client:
        assert (await client.ask(GET))[::2] == (status, b"")
        await client.send(GET_CLOSE)
        assert (await client.rest()).endswith(b"\r\n\r\n")


async def test_head_has_the_headers_of_get_and_no_body() -> None:
    length = [(b"content-length", b"4")]
    async with connected(sending({**START, "headers": length}, LAST)) as client:
        status, headers, body = await client.ask(GET.replace(b"GET", b"HEAD"), "HEAD")
        assert (status, headers["content-length"], body) == (200, "4", b"")
        assert (await client.ask(GET))[2] == b"last"


# --- mistakes ---

LENGTH_7 = {**START, "headers": [(b"content-length", b"7")]}

#: What the application does -> what its client gets (a status, or None for a cut response) and the log says.
MISTAKES: dict[str, tuple[Any, int | None, str]] = {
    "raises before the start": (sending(error=OSError("x")), 500, "failed while its response was waiting"),
    "raises after the start": (sending(START, error=OSError("x")), 500, "failed while its response was started"),
    "raises in the body": (sending(START, MORE, error=OSError("x")), None, "failed while its response was streaming"),
    "exits": (sending(error=SystemExit(3)), 500, "failed while its response was waiting"),
    "cancels itself": (sending(error=asyncio.CancelledError()), 500, "failed while its response was waiting"),
    "returns before the start": (sending(), 500, "returned while its response was waiting"),
    "returns after the start": (sending(START), 500, "returned while its response was started"),
    "returns in the body": (sending(START, MORE), None, "returned while its response was streaming"),
    "starts with the body": (sending(LAST), 500, "failed while its response was waiting"),
    "starts twice": (sending(START, START), 500, "failed while its response was started"),
    "starts again in the body": (sending(START, MORE, START), None, "failed while its response was streaming"),
    "sends no type": (sending({}), 500, "failed while its response was waiting"),
    "sends an unknown type": (sending({"type": "x"}), 500, "failed while its response was waiting"),
    "sends no status": (sending({"type": "http.response.start"}), 500, "failed while its response was waiting"),
    "sends a text as status": (sending({**START, "status": "200"}), 500, "failed while its response was waiting"),
    "sends an interim status": (sending({**START, "status": 100}), 500, "failed while its response was waiting"),
    "sends a text as body": (sending(START, {**LAST, "body": "x"}), 500, "failed while its response was started"),
    "sends text headers": (
        sending({**START, "headers": [("a", "b")]}, LAST),
        500,
        "failed while its response was started",
    ),
    "splits the response": (
        sending({**START, "headers": [(b"a", b"b\r\nc: d")]}, LAST),
        500,
        "failed while its response was started",
    ),
    "sends less at once": (sending(LENGTH_7, LAST), 500, "failed while its response was started"),
    "sends more at once": (
        sending(LENGTH_7, {**LAST, "body": b"12345678"}),
        500,
        "failed while its response was started",
    ),
    "sends less in pieces": (
        sending(LENGTH_7, MORE, {**LAST, "body": b""}),
        None,
        "failed while its response was streaming",
    ),
    "sends more in pieces": (sending(LENGTH_7, MORE, LAST), None, "failed while its response was streaming"),
    "returns too early": (sending(LENGTH_7, MORE), None, "returned while its response was streaming"),
}


@pytest.mark.parametrize("name", MISTAKES)
async def test_a_mistake_is_a_500_or_a_cut_response_and_one_log_record(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, status, text = MISTAKES[name]
    async with connected(app) as client:
        await client.send(GET + GET)  # the second is not answered: the connection ends
        if status is None:
            assert await client.is_reset()
        else:
            answer = await client.response()
            assert (answer[0], answer[1]["connection"], answer[2]) == (500, "close", b"Internal Server Error\n")
            assert client.left + await client.rest() == b""
    assert errors(caplog) == [f"GET '/': the application {text}"]


async def test_a_mistake_that_the_application_survives_can_be_mended() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for wrong in (LAST, {"type": "x"}, {**START, "status": None}):
            with pytest.raises((RuntimeError, ValueError)):
                await send(wrong)
        await respond(send, b"ok")

    async with connected(app) as client:
        assert (await client.ask(GET))[2] == b"ok"


async def test_a_client_that_has_gone_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    raised = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send(START)
            while True:
                await send({**MORE, "body": bytes(100_000)})
        except ClientDisconnected:
            raised.set()
            raise

    async with connected(app) as client:
        await client.send(GET)
        await client.reader.read(1)
        client.writer.transport.abort()
        await asyncio.wait_for(raised.wait(), 5)
    assert errors(caplog) == []


async def test_a_keyboard_interrupt_is_not_swallowed() -> None:
    from minibg.server.cycle import Cycle
    from minibg.server.writer import UNREAD

    class Stub:
        class server:
            loop = asyncio.get_running_loop()

            @staticmethod
            async def app(*_: Any) -> None:
                raise KeyboardInterrupt

    cycle = Cycle(Stub(), UNREAD, {}, b"", complete=True)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        cycle.run().send(None)


async def test_the_application_may_read_while_it_responds() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            await send({"type": "http.response.body", "body": message["body"], "more_body": more})

    async with connected(app) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")
        assert (await client.reader.readuntil(b"hello\r\n")).endswith(b"5\r\nhello\r\n")
        await client.send(b"world")
        assert (await client.reader.readuntil(b"0\r\n\r\n")) == b"5\r\nworld\r\n0\r\n\r\n"


async def test_expect_is_not_answered_once_the_response_streams() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send(MORE)
        body = await read_body(receive)
        await send({**LAST, "body": body})

    async with connected(app) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        await client.reader.readuntil(b"part\r\n")
        await client.send(b"hi")
        assert (await client.rest()) == b"2\r\nhi\r\n0\r\n\r\n"
