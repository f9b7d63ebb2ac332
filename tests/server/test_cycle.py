"""One request as the application sees it, and what it asks of its connection. In memory: no server, no socket."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import pytest

from minibg.asgi import ASGIApp, ClientDisconnected, Message, Receive, Scope, Send
from minibg.server.cycle import NEXT_STAGES, Conversation, Cycle, Stage
from minibg.server.forwarded import TrustedProxies
from minibg.server.head import RequestHead
from minibg.server.limits import Limits
from minibg.server.service import Service
from minibg.server.writer import NO_REQUEST
from tests.server.wire import read_body, respond

START: Message = {"type": "http.response.start", "status": 200}
MORE: Message = {"type": "http.response.body", "body": b"part", "more_body": True}
LAST: Message = {"type": "http.response.body", "body": b"last"}
END: Message = {"type": "http.disconnect"}

GET = NO_REQUEST._replace(method=b"GET", target=b"/", keep_alive=True)
#: What the server adds to a head.
OWN = b"date: D\r\nserver: minibg\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n" + OWN + b"\r\nlast"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n" + OWN + b"\r\n"


class Wireless:
    """A connection without a socket. It does at once what a cycle asks of it, and remembers the order."""

    def __init__(
        self, app: ASGIApp, request: RequestHead = GET, *, arrived: bytes = b"", complete: bool = True
    ) -> None:
        self.paused = False
        #: The connection ends after the response.
        self.closes = False
        #: The next write finds that the client has gone.
        self.lost = False
        #: The kernel takes nothing until `take` is called.
        self.slow = False
        self.calls: list[Any] = []
        self.service = Service(
            app=app, limits=Limits(), trusted=TrustedProxies(), root_path="", access_log=False, state={}
        )
        self.service.date = b"D"
        scope = {"type": "http", "method": "GET", "path": "/", "client": None}
        conversation: Conversation = self
        self.cycle = Cycle(conversation, self.service, request, scope, arrived=arrived, complete=complete)

    def write(self, data: bytes) -> None:
        self.calls.append(data)
        self.paused = self.slow
        if self.lost:
            self.cycle.end(Stage.GONE)

    def must_close(self) -> bool:
        return self.closes

    def body_taken(self) -> None:
        self.calls.append("body taken")

    def response_taken(self) -> None:
        self.calls.append("response taken")
        self.cycle.end(Stage.SENT)

    def refuse(self, status: HTTPStatus) -> None:
        self.calls.append(status.value)
        self.cycle.refused(status, 0)

    def reset(self) -> None:
        self.calls.append("reset")
        self.cycle.end(Stage.GONE)

    def take(self) -> None:
        """Let the kernel take everything, as `Connection.resume_writing` does."""
        self.calls.append("taken")
        self.paused = False
        self.cycle.wake()
        if self.cycle.stage is Stage.WRITTEN:
            self.response_taken()

    async def run(self) -> list[Any]:
        """Run the application to its end. Return its calls of the connection."""
        self.cycle.start()
        await asyncio.wait_for(asyncio.gather(*self.service.requests), 5)
        assert not self.service.requests
        return self.calls


def sending(*messages: Any, error: BaseException | None = None) -> Callable[..., Awaitable[None]]:
    """An application that sends these and then returns or raises."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        if error is not None:
            raise error

    return app


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_every_stage_stands_in_the_table() -> None:
    assert set(NEXT_STAGES) == set(Stage)
    assert set().union(*NEXT_STAGES.values()) == set(Stage) - {Stage.WAITING}


# --- receive ---


async def test_the_body_comes_once_and_then_the_end() -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await receive())
        await respond(send, b"last")
        seen.extend([await receive(), await receive()])

    assert await Wireless(app, arrived=b"hi").run() == ["body taken", WHOLE, "response taken"]
    assert seen == [{"type": "http.request", "body": b"hi", "more_body": False}, END, END]


async def test_a_body_that_arrives_later_is_waited_for() -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(3):
            seen.append(await receive())
            if len(seen) == 1:
                assert connection.cycle.feed(b"b", complete=False) == 1
                assert connection.cycle.feed(b"c", complete=False) == 2
            else:
                asyncio.get_running_loop().call_soon(lambda: connection.cycle.feed(b"", complete=True))
        await respond(send, b"last")

    connection = Wireless(app, arrived=b"a", complete=False)
    assert await connection.run() == ["body taken"] * 3 + [WHOLE, "response taken"]
    assert [(message["body"], message["more_body"]) for message in seen] == [(b"a", True), (b"bc", True), (b"", False)]


async def test_a_receive_that_waits_ends_with_the_response() -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        listeners = [asyncio.ensure_future(receive()) for _ in range(2)]
        listeners[0].cancel()  # one that gives up does not take the others with it
        await asyncio.sleep(0)
        await respond(send, b"last")
        seen.append(await listeners[1])

    assert await Wireless(app).run() == ["body taken", WHOLE, "response taken"]
    assert seen == [END]


EXPECTING = GET._replace(length=2, expects_continue=True)


async def test_100_continue_is_sent_once_and_when_the_body_is_asked_for() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        connection.calls.append("runs")
        asyncio.get_running_loop().call_soon(lambda: connection.cycle.feed(b"hi", complete=True))
        assert await read_body(receive) == b"hi"

    connection = Wireless(app, EXPECTING, complete=False)
    assert await connection.run() == ["runs", b"HTTP/1.1 100 Continue\r\n\r\n", "body taken", 500]


async def test_100_continue_is_not_sent_once_the_response_streams() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send(MORE)
        asyncio.get_running_loop().call_soon(lambda: connection.cycle.feed(b"hi", complete=True))
        await send({**LAST, "body": await read_body(receive)})

    connection = Wireless(app, EXPECTING, complete=False)
    assert await connection.run() == [
        CHUNKED + b"4\r\npart\r\n",
        "body taken",
        b"2\r\nhi\r\n0\r\n\r\n",
        "response taken",
    ]


# --- send ---


async def test_messages_after_a_complete_response_are_ignored() -> None:
    app = sending(START, LAST, LAST, START, {"type": "anything"})
    assert await Wireless(app).run() == [WHOLE, "response taken"]


async def test_a_response_in_pieces_is_chunked() -> None:
    app = sending(START, MORE, {**MORE, "body": b""}, {**MORE, "body": b"!"}, LAST)
    assert await Wireless(app).run() == [
        CHUNKED + b"4\r\npart\r\n",
        b"1\r\n!\r\n",
        b"4\r\nlast\r\n0\r\n\r\n",
        "response taken",
    ]


async def test_a_response_in_pieces_to_http_1_0_ends_with_the_connection() -> None:
    connection = Wireless(sending(START, MORE, LAST), GET._replace(http10=True))
    head = b"HTTP/1.1 200 OK\r\n" + OWN + b"connection: close\r\n\r\n"
    assert await connection.run() == [head + b"part", b"last", "response taken"]
    assert connection.cycle.close


async def test_the_end_of_the_connection_is_announced() -> None:
    connection = Wireless(sending(START, LAST))
    connection.closes = True
    assert await connection.run() == [WHOLE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), "response taken"]


@pytest.mark.parametrize("status", [204, 304])
async def test_a_response_that_has_no_body_has_none_on_the_wire(status: int) -> None:
    [head, taken] = await Wireless(sending({**START, "status": status}, MORE, LAST)).run()
    assert (head.endswith(b"\r\n\r\n"), taken) == (True, "response taken")


async def test_head_has_the_headers_of_get_and_no_body() -> None:
    app = sending({**START, "headers": [(b"content-length", b"4")]}, LAST)
    head = GET._replace(method=b"HEAD")
    assert await Wireless(app, head).run() == [WHOLE.removesuffix(b"last"), "response taken"]


async def test_the_last_send_returns_when_the_kernel_has_taken_everything() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        for message in (MORE, LAST):
            asyncio.get_running_loop().call_soon(connection.take)
            await send(message)
            connection.calls.append("returned")

    connection = Wireless(app)
    connection.slow = True
    assert await connection.run() == [
        CHUNKED + b"4\r\npart\r\n",
        "taken",
        "returned",
        b"4\r\nlast\r\n0\r\n\r\n",
        "taken",
        "response taken",
        "returned",
    ]


@pytest.mark.parametrize("slow", [False, True], ids=["while it writes", "while it waits"])
async def test_a_client_that_has_gone_ends_send_and_receive_and_is_no_error(
    slow: bool, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        connection.lost, connection.slow = not slow, slow
        if slow:
            asyncio.get_running_loop().call_soon(connection.cycle.end, Stage.GONE)
        for message in (MORE, LAST):
            with pytest.raises(ClientDisconnected):
                await send(message)
        seen.append(await receive())
        await send(LAST)

    connection = Wireless(app)
    assert await connection.run() == [CHUNKED + b"4\r\npart\r\n"]
    assert seen == [END]
    assert errors(caplog) == []


# --- mistakes ---

LENGTH_7 = {**START, "headers": [(b"content-length", b"7")]}
WAITING, STARTED, STREAMING = (f"while its response was {stage}" for stage in ("waiting", "started", "streaming"))

#: What the application does -> how its client hears of it (a refusal, or a reset), and what the log says.
MISTAKES: dict[str, tuple[Any, int | str, str]] = {
    "raises before the start": (sending(error=OSError("x")), 500, f"failed {WAITING}"),
    "raises after the start": (sending(START, error=OSError("x")), 500, f"failed {STARTED}"),
    "raises in the body": (sending(START, MORE, error=OSError("x")), "reset", f"failed {STREAMING}"),
    "exits": (sending(error=SystemExit(3)), 500, f"failed {WAITING}"),
    "cancels itself": (sending(error=asyncio.CancelledError()), 500, f"failed {WAITING}"),
    "returns before the start": (sending(), 500, f"returned {WAITING}"),
    "returns after the start": (sending(START), 500, f"returned {STARTED}"),
    "returns in the body": (sending(START, MORE), "reset", f"returned {STREAMING}"),
    "starts with the body": (sending(LAST), 500, f"failed {WAITING}"),
    "starts twice": (sending(START, START), 500, f"failed {STARTED}"),
    "starts again in the body": (sending(START, MORE, START), "reset", f"failed {STREAMING}"),
    "sends no type": (sending({}), 500, f"failed {WAITING}"),
    "sends an unknown type": (sending({"type": "x"}), 500, f"failed {WAITING}"),
    "sends no status": (sending({"type": "http.response.start"}), 500, f"failed {WAITING}"),
    "sends a text as status": (sending({**START, "status": "200"}), 500, f"failed {WAITING}"),
    "sends an interim status": (sending({**START, "status": 100}), 500, f"failed {WAITING}"),
    "sends a text as body": (sending(START, {**LAST, "body": "x"}), 500, f"failed {STARTED}"),
    "sends text headers": (sending({**START, "headers": [("a", "b")]}, LAST), 500, f"failed {STARTED}"),
    "splits the response": (sending({**START, "headers": [(b"a", b"b\r\nc: d")]}, LAST), 500, f"failed {STARTED}"),
    "sends less at once": (sending(LENGTH_7, LAST), 500, f"failed {STARTED}"),
    "sends more at once": (sending(LENGTH_7, {**LAST, "body": b"12345678"}), 500, f"failed {STARTED}"),
    "sends less in pieces": (sending(LENGTH_7, MORE, {**LAST, "body": b""}), "reset", f"failed {STREAMING}"),
    "sends more in pieces": (sending(LENGTH_7, MORE, LAST), "reset", f"failed {STREAMING}"),
    "returns too early": (sending(LENGTH_7, MORE), "reset", f"returned {STREAMING}"),
}


@pytest.mark.parametrize("name", MISTAKES)
async def test_a_mistake_is_a_500_or_a_reset_and_one_log_record(name: str, caplog: pytest.LogCaptureFixture) -> None:
    app, end, text = MISTAKES[name]
    connection = Wireless(app)
    written = [call for call in await connection.run() if isinstance(call, bytes)]
    assert connection.calls == [*written, end]
    assert len(written) == (end == "reset")
    assert errors(caplog) == [f"GET '/': the application {text}"]


async def test_a_mistake_that_the_application_survives_can_be_mended() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for wrong in (LAST, {"type": "x"}, {**START, "status": None}):
            with pytest.raises((RuntimeError, ValueError)):
                await send(wrong)
        await respond(send, b"last")

    assert await Wireless(app).run() == [WHOLE, "response taken"]


async def test_a_failure_after_the_response_is_logged_and_touches_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert await Wireless(sending(START, LAST, error=OSError("x"))).run() == [WHOLE, "response taken"]
    assert errors(caplog) == ["GET '/': the application failed while its response was sent"]


async def test_the_cancellation_by_a_stop_is_no_fault_of_the_application(caplog: pytest.LogCaptureFixture) -> None:
    connection = Wireless(sending(START, MORE, error=asyncio.CancelledError()))
    connection.service.stopping.set()
    assert await connection.run() == [CHUNKED + b"4\r\npart\r\n", "reset"]
    assert errors(caplog) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit(), SystemExit(3)], ids=repr)
async def test_no_exception_of_the_application_ends_the_server(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    assert await Wireless(sending(error=error)).run() == [500]
    assert errors(caplog) == [f"GET '/': the application failed {WAITING}"]


async def test_a_cycle_that_is_closed_with_its_loop_asks_for_nothing() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    connection = Wireless(app)
    run = connection.cycle.run()
    run.send(None)
    run.close()
    assert connection.calls == []


# --- clients that leave ---


async def test_the_disconnect_comes_after_the_body_and_the_response_still_leaves() -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([await receive() for _ in range(3)])
        await respond(send, b"last")

    connection = Wireless(app, arrived=b"hi")
    connection.cycle.disconnect()
    assert await connection.run() == ["body taken", WHOLE, "response taken"]
    assert seen == [{"type": "http.request", "body": b"hi", "more_body": False}, END, END]


async def test_a_receive_that_waits_ends_with_the_client() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        asyncio.get_running_loop().call_soon(connection.cycle.disconnect)
        assert await receive() == END
        await respond(send, b"last")

    connection = Wireless(app)
    assert await connection.run() == ["body taken", WHOLE, "response taken"]


@pytest.mark.parametrize("error", [None, ClientDisconnected("x")], ids=repr)
@pytest.mark.parametrize("sent", [[], [START], [START, MORE]], ids=["waiting", "started", "streaming"])
async def test_an_application_that_leaves_with_its_client_is_no_error(
    sent: list[Message], error: BaseException | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        assert await receive() == END
        await sending(*sent, error=error)(scope, receive, send)

    connection = Wireless(app)
    connection.cycle.disconnect()
    assert [call for call in await connection.run() if not isinstance(call, bytes)] == ["body taken", "reset"]
    assert errors(caplog) == []


async def test_an_application_that_was_not_told_answers_for_its_mistake(caplog: pytest.LogCaptureFixture) -> None:
    connection = Wireless(sending())
    connection.cycle.disconnect()
    assert await connection.run() == [500]
    assert errors(caplog) == [f"GET '/': the application returned {WAITING}"]
