"""RFC 9112: connection management.

How long a connection lasts, in which order its requests are answered, and how it ends.
"""

import asyncio
import os
import socket
import ssl
from pathlib import Path

import pytest
import trustme

from minibg.asgi import Receive, Scope, Send
from tests.server.requirements import answered, mirror, ok, refused, requirement, undated
from tests.server.wire import Client, Recorder, connected, respond, serving, without_lifespan

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
KEPT, CLOSED = ok(b"GET / 1.1 []"), ok(b"GET / 1.1 []", close=True)


# --- §9.3 persistence ---


@requirement("RFC 9112 §9.3", "SHOULD", "A connection of HTTP/1.1 persists until one side says close.")
async def test_a_connection_persists() -> None:
    assert await answered(GET + GET + GET_CLOSE) == KEPT + KEPT + CLOSED


@requirement(
    "RFC 9112 §9.3",
    "MUST",
    "A connection that persists is read to the end of the request body, also if the application does not want it.",
)
@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
    ids=["length", "chunks"],
)
async def test_an_unwanted_body_is_read_to_its_end(framing: bytes) -> None:
    @without_lifespan
    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, scope["method"].encode())

    posts = (b"POST / HTTP/1.1\r\nHost: a\r\n" + framing) * 2
    assert await answered(posts + GET_CLOSE, deaf) == ok(b"POST") * 2 + ok(b"GET", close=True)


@requirement("RFC 9112 §9.3", "MUST", "A connection of HTTP/1.0 ends after the response.")
async def test_a_connection_of_http_1_0_ends() -> None:
    assert await answered(b"GET / HTTP/1.0\r\n\r\n" + GET) == ok(b"GET / 1.0 []", close=True)


@requirement(
    "RFC 9112 §9.3", "chosen", "keep-alive of HTTP/1.0 is not honoured: the connection ends, and the response says so."
)
@pytest.mark.parametrize(
    "fields", [b"Connection: keep-alive\r\n", b"Connection: Keep-Alive\r\nKeep-Alive: timeout=5\r\n"], ids=repr
)
async def test_keep_alive_of_http_1_0_is_not_honoured(fields: bytes) -> None:
    assert await answered(b"GET / HTTP/1.0\r\n" + fields + b"\r\n" + GET) == ok(b"GET / 1.0 []", close=True)


# --- §9.3.2 pipelining ---


@requirement("RFC 9112 §9.3.2", "MUST", "Pipelined requests are answered in the order in which they came.")
async def test_pipelined_requests_are_answered_in_order() -> None:
    data = b"".join(b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n%d" % (i, i) for i in range(9))
    answers = b"".join(ok(b"POST /%d 1.1 [%d]" % (i, i)) for i in range(9))
    assert await answered(data + GET_CLOSE) == answers + CLOSED


@requirement(
    "RFC 9112 §9.3.2", "MUST", "A slow response is not overtaken by that of a later request, which is not even begun."
)
async def test_a_slow_response_is_not_overtaken() -> None:
    begun: list[str] = []
    release, slow = asyncio.Event(), asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.append(scope["path"])
        if scope["path"] == "/slow":
            slow.set()
            await release.wait()
        await mirror(scope, receive, send)

    async with connected(app) as client:
        await client.send(GET.replace(b"/ ", b"/slow ") + GET_CLOSE)
        await slow.wait()
        assert begun == ["/slow"]
        release.set()
        assert undated(await client.rest()) == ok(b"GET /slow 1.1 []") + CLOSED


@requirement(
    "RFC 9112 §9.3.2",
    "chosen",
    "What is refused in a pipeline is answered after the requests before it, and ends the connection.",
)
@pytest.mark.parametrize("second", [b"GET / HTTP/1.1\r\n\r\n", b"\x00\x01", b"GET  / HTTP/1.1\r\n\r\n"], ids=repr)
async def test_a_refusal_keeps_its_place_in_the_pipeline(second: bytes) -> None:
    assert await answered(GET + second + GET) == KEPT + refused(400)


# --- §9.6 tear-down ---


@requirement(
    "RFC 9112 §9.6",
    "MUST",
    "After a response to a request with close the connection ends, and the response says close (SHOULD).",
)
@pytest.mark.parametrize(
    "value", [b"close", b"Close", b"keep-alive, close", b"close,x", b"x\r\nConnection: close"], ids=repr
)
async def test_close_ends_the_connection(value: bytes) -> None:
    assert await answered(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: " + value + b"\r\n\r\n") == CLOSED


@requirement("RFC 9110 §5.6.1.2", "MUST", "Empty elements in the list of connection options are ignored.")
@pytest.mark.parametrize("value", [b", close", b"close,", b" , close ,", b",,\t,close, ,"], ids=repr)
async def test_empty_options_are_ignored(value: bytes) -> None:
    assert await answered(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: " + value + b"\r\n\r\n") == CLOSED


@requirement("RFC 9112 §9.6", "MUST", "No request that comes after one with close is processed.")
async def test_nothing_after_close_is_processed() -> None:
    app = Recorder()
    assert await answered(GET_CLOSE + GET + GET, app) == ok(b"ok", close=True)
    assert len(app.scopes) == 2  # one for each way to cut


@requirement("RFC 9112 §9.3", "SHOULD", "An option that only looks like close does not end the connection.")
@pytest.mark.parametrize("value", [b"keep-alive", b"closed", b"x-close", b"close;x", b"clo se", b""], ids=repr)
async def test_other_options_do_not_close(value: bytes) -> None:
    data = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: " + value + b"\r\n\r\n"
    assert await answered(data + GET_CLOSE) == KEPT + CLOSED


@requirement(
    "RFC 9112 §9.6", "MUST", "The application's close is sent, and then the connection ends; nothing more is answered."
)
@pytest.mark.parametrize("values", [[b"close"], [b"x, Close"], [b"close", b"keep-alive"]], ids=repr)
async def test_the_application_may_close(values: list[bytes]) -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"bye", headers=[(b"Connection", value) for value in values])

    assert await answered(GET + GET, app) == ok(b"bye", close=True)


@requirement(
    "RFC 9112 §9.6",
    "chosen",
    "The application's other options of Connection, and its Keep-Alive, are not sent: they are the server's.",
)
async def test_the_connection_is_the_servers() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"ok", headers=[(b"connection", b"keep-alive, un-close"), (b"keep-alive", b"timeout=9")])

    assert await answered(GET + GET_CLOSE, app) == ok(b"ok") + ok(b"ok", close=True)


@requirement(
    "RFC 9112 §9.6",
    "chosen",
    "The connection closes in stages: a response arrives whole though the client goes on sending, and its end is orderly.",
)
@pytest.mark.parametrize("first", [GET_CLOSE, b"BROKEN\r\n\r\n"], ids=["close", "refused"])
async def test_a_response_survives_what_was_not_read(first: bytes) -> None:
    async with connected(mirror) as client:
        await client.send(first)
        await client.send(b"x" * 300_000)
        assert undated(await client.rest()) == (CLOSED if first == GET_CLOSE else refused(400))


@requirement(
    "RFC 9112 §9.6",
    "chosen",
    "A client that closes its sending half gets the responses to all it has asked; then the connection ends.",
)
async def test_a_half_closed_client_is_answered() -> None:
    async with connected(mirror) as client:
        await client.send(GET + GET)
        client.writer.write_eof()
        assert undated(await client.rest()) == KEPT + KEPT


@requirement(
    "RFC 9112 §9.5", "SHOULD", "An idle connection is ended by an orderly close, and not in the middle of a response."
)
async def test_an_idle_connection_is_closed() -> None:
    async with connected(mirror, keep_alive=0.1) as client:
        await client.send(GET)
        assert undated(await client.rest()) == KEPT


@requirement(
    "RFC 9112 §9.5", "SHOULD", "A client that closes at any time is noticed, and the connections of the others stay."
)
async def test_a_client_that_leaves_takes_nobody_with_it() -> None:
    async with serving(mirror) as server:
        leaving, staying = await Client.to(server), await Client.to(server)
        await leaving.send(GET)
        await leaving.response()
        leaving.writer.transport.abort()
        await staying.send(GET_CLOSE)
        assert undated(await staying.rest()) == CLOSED
        staying.writer.close()


@requirement("RFC 9112 §9.4", "chosen", "Requests on different connections are answered each on its own, concurrently.")
async def test_connections_are_independent() -> None:
    both, arrived = asyncio.Event(), []

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        arrived.append(scope["path"])
        if len(arrived) == 2:
            both.set()
        await both.wait()
        await mirror(scope, receive, send)

    async with serving(app) as server:
        clients = [await Client.to(server) for _ in range(2)]
        for number, client in enumerate(clients):
            await client.send(GET_CLOSE.replace(b"/ ", b"/%d " % number))
        answers = [undated(await client.rest()) for client in clients]
        for client in clients:
            client.writer.close()
    assert answers == [ok(b"GET /0 1.1 []", close=True), ok(b"GET /1 1.1 []", close=True)]


@requirement(
    "RFC 9112 §9.7",
    "chosen",
    "A TLS client on a plain port is refused with 400 and an orderly close, at its first byte.",
)
async def test_tls_on_a_plain_port_is_refused() -> None:
    assert await answered(b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(32)) == refused(400)


@requirement(
    "RFC 9112 §11.2",
    "chosen",
    "Two requests in one packet, of which the first is ambiguous, reach the application not at all.",
)
@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 30\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding:\x0bchunked",
        b"Transfer-Encoding\r\n : chunked",
        b"X: y\nTransfer-Encoding: chunked",
        b"Content-Length: 0\r\nContent-Length: 30",
        b"Content_Length: 0\r\nContent-Length: 3 0",
    ],
    ids=repr,
)
async def test_smuggled_requests_are_not_seen(fields: bytes) -> None:
    app = Recorder()
    assert await answered(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n\r\n0\r\n\r\n" + GET, app) == refused(400)
    assert app.scopes == []


# --- §9.7, §9.8 TLS ---


@pytest.fixture
def tls(tmp_path: Path) -> tuple[dict[str, str], ssl.SSLContext]:
    """The server's settings, and the client's context, in which the end of the connection without an alert is an error."""
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "all.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return {"ssl_certfile": os.fspath(tmp_path / "all.pem")}, context


def over_tls(context: ssl.SSLContext, port: int, data: bytes) -> bytes:
    """What comes back up to the closure alert. Raises ssl.SSLEOFError if there is none."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as client:
            client.sendall(data)
            answer = b""
            while piece := client.recv(65536):
                answer += piece
    return undated(answer)


@requirement("RFC 9112 §9.7", "MUST", "Over TLS the connection persists, and requests are answered as on a plain one.")
async def test_a_tls_connection_persists(tls: tuple[dict[str, str], ssl.SSLContext]) -> None:
    settings, context = tls
    async with serving(mirror, **settings) as server:
        assert await asyncio.to_thread(over_tls, context, server.port, GET + GET + GET_CLOSE) == KEPT + KEPT + CLOSED


@requirement(
    "RFC 9112 §9.8",
    "MUST",
    "The server sends a closure alert before it closes: after a response, a refusal, in idleness.",
)
@pytest.mark.parametrize(
    ("data", "answer"),
    [(GET_CLOSE, CLOSED), (b"nonsense\r\n\r\n", refused(400)), (GET, KEPT), (b"", b"")],
    ids=["close", "refused", "idle", "silent"],
)
async def test_a_closure_alert_ends_a_tls_connection(
    data: bytes, answer: bytes, tls: tuple[dict[str, str], ssl.SSLContext]
) -> None:
    settings, context = tls
    async with serving(mirror, **settings, keep_alive=0.1, header_timeout=0.4) as server:
        assert await asyncio.to_thread(over_tls, context, server.port, data) == answer


@requirement("RFC 9112 §9.8", "SHOULD", "A TLS client that leaves without a closure alert does no harm.")
async def test_an_incomplete_close_does_no_harm(
    tls: tuple[dict[str, str], ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    settings, context = tls

    def leave(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            client = context.wrap_socket(plain, server_hostname="localhost")
            client.sendall(GET)
            client.recv(1)
            os.close(client.detach())

    async with serving(mirror, **settings) as server:
        await asyncio.to_thread(leave, server.port)
        assert await asyncio.to_thread(over_tls, context, server.port, GET_CLOSE) == CLOSED
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
