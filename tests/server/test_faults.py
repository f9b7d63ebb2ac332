"""Faults of other servers that must not exist here, each seen from outside, byte by byte.

Every test is a conversation over a socket that some widely used ASGI server gets wrong; the names in the comments say
which (uvicorn 0.54, hypercorn 0.18, granian 2, daphne 4, measured). What is compared is what the client sees, because that
is where the fault was: a lost response, a request made of somebody's body, a client that waits for ever.

The second half is about clients that want to do harm, against small limits, and about memory: a server in a process of
its own streams 200 MB each way, and the kernel says how large it became at most.
"""

import asyncio
import errno
import logging
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from minibg.asgi import ClientDisconnected, Receive, Scope, Send
from minibg.server.protocol import Connection
from tests.server.test_properties import Wire
from tests.server.test_protocol import seen_by
from tests.server.wire import (
    GET,
    GET_CLOSE,
    Client,
    Recorder,
    connected,
    echo,
    read_body,
    respond,
    serving,
    without_lifespan,
)

POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
MEGABYTE = 1_000_000


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- one connection, several requests ---


async def test_a_late_exception_does_not_cut_the_next_response(caplog: pytest.LogCaptureFixture) -> None:
    """uvicorn closes the connection under the response that is being sent."""
    answered, failed = asyncio.Event(), asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/fails":
            await respond(send, b"first")
            await answered.wait()
            failed.set()
            raise ValueError("late")
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"sec", "more_body": True})
        answered.set()
        await failed.wait()
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"ond"})

    async with connected(app) as client:
        await client.send(GET.replace(b"/ ", b"/fails ") + GET)
        assert [(await client.response())[2] for _ in range(2)] == [b"first", b"second"]
        assert (await client.ask(GET))[2] == b"second"
    assert errors(caplog) == ["GET '/fails': the application failed while its response was sent"]


async def test_a_final_answer_without_100_continue_never_eats_the_next_request_as_a_body() -> None:
    """uvicorn keeps the connection and waits for a body that will not come."""
    app = Recorder()

    @without_lifespan
    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await respond(send, b"no", 417)
        else:
            await app(scope, receive, send)

    async with connected(refusing) as client:
        await client.send(POST + b"Expect: 100-continue\r\nContent-Length: 26\r\n\r\n")
        status, headers, body = await client.response("POST")
        assert (status, headers["connection"], body) == (417, "close", b"no")
        await client.send(GET)
        assert await client.rest() == b""
    assert app.scopes == []


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 50000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n2faf080\r\n"]
)
async def test_answering_without_reading_a_large_body_returns_from_the_last_send(framing: bytes) -> None:
    """hypercorn's last `send` never returns."""
    returned = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"no", 413)
        returned.set()

    async with connected(app) as client:
        await client.send(POST + framing + bytes(200_000))
        await asyncio.wait_for(returned.wait(), 5)
        assert (await client.response("POST"))[::2] == (413, b"no")


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01", b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 100_000]
)
async def test_garbage_after_a_valid_request_does_not_lose_its_response(garbage: bytes) -> None:
    """hypercorn sends only the error."""
    go = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await respond(send, b"valid")

    async with connected(app) as client:
        await client.send(GET + garbage)
        go.set()
        assert (await client.response())[::2] == (200, b"valid")
        status, headers, _ = await client.response()
        assert status in (400, 414, 505)
        assert headers["connection"] == "close"
        assert await client.rest() == b""


async def test_a_request_after_connection_close_is_not_answered() -> None:
    """uvicorn answered it, or lost the first answer."""
    app = Recorder()
    async with connected(app) as client:
        await client.send(GET_CLOSE + GET.replace(b"/ ", b"/second "))
        assert (await client.response())[2] == b"ok"
        assert await client.rest() == b""
    assert [scope["path"] for scope in app.scopes] == ["/"]


async def test_a_half_closed_client_gets_its_response() -> None:
    """uvicorn, granian and daphne drop the response of a client that says it will send no more."""
    go = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": body})

    async with connected(app) as client:
        await client.send(POST + b"Content-Length: 4\r\n\r\nhalf")
        client.writer.write_eof()
        go.set()
        assert (await client.response("POST"))[::2] == (200, b"halfhalf")
        assert await client.rest() == b""


@pytest.mark.parametrize(
    "unfinished", [b"GET / HTTP/1.1\r\nHo", POST + b"Content-Length: 4\r\n\r\nha"], ids=["head", "body"]
)
async def test_the_unfinished_request_of_a_half_closed_client_is_refused_after_the_responses_before_it(
    unfinished: bytes,
) -> None:
    """Found by a mutation: the end had come while the first response was due, and was forgotten."""
    go = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await receive()
        await respond(send, b"first")

    async with serving(app) as server:
        client = await Client.to(server)
        await client.send(GET + unfinished)
        client.writer.write_eof()
        await seen_by(server, lambda connection: connection._half_closed)
        go.set()
        assert (await client.response())[::2] == (200, b"first")
        status, headers, _ = await client.response()
        assert (status, headers["connection"]) == (400, "close")
        assert await client.rest() == b""
        client.writer.close()


class Broken(Wire):
    """asyncio's transport to a client whose reset has arrived but has not been read yet."""

    def write_eof(self) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")


@pytest.mark.parametrize("path", [b"/", b"/fails"])
async def test_a_client_that_resets_at_the_moment_of_its_last_response_leaves_nothing_behind(path: bytes) -> None:
    """Found by the soak: the failure to close by half ended the cycle before it was struck from the list of requests."""
    returned: list[str] = []

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/":
            await respond(send, b"ok")
            returned.append("from the last send")
        else:
            raise ValueError("no response")

    async with serving(app) as server:
        wire, connection = Broken(), Connection(server.service)
        wire.connect(connection)
        connection.data_received(GET_CLOSE.replace(b"/ ", path + b" "))
        await asyncio.wait_for(asyncio.gather(*server.service.requests), 5)
        assert server.service.requests == set()
        assert returned == ["from the last send"][: path == b"/"]
        wire.close()


# --- the scope and the head ---


async def test_http_1_0_is_named_1_0_and_ports_are_numbers() -> None:
    """granian says "1" and gives ports as text."""
    app = Recorder()
    async with serving(app) as server:
        client = await Client.to(server)
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        await client.rest()
        here = client.writer.get_extra_info("sockname")
        client.writer.close()
    scope = app.scopes[0]
    assert (scope["http_version"], scope["client"], scope["server"]) == ("1.0", here, ("127.0.0.1", server.port))
    assert [type(scope[side][1]) for side in ("client", "server")] == [int, int]


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (200, [(b"date", b"then")], {b"date": b"then", b"content-length": b"2"}),
        (200, [(b"Date", b"then"), (b"DATE", b"now")], {b"date": b"now", b"content-length": b"2"}),
        (204, [(b"transfer-encoding", b"chunked")], {}),
        (204, [(b"content-length", b"2")], {}),
        (200, [(b"transfer-encoding", b"chunked")], {b"content-length": b"2"}),
        (200, [(b"Transfer-Encoding", b"gzip, chunked"), (b"content-length", b"2")], {b"content-length": b"2"}),
    ],
    ids=["date", "two dates", "204 chunked", "204 length", "own coding", "coding and length"],
)
async def test_one_date_one_framing_and_none_on_a_204(
    status: int, headers: list[tuple[bytes, bytes]], expected: dict[bytes, bytes]
) -> None:
    """Two Date lines, Transfer-Encoding on a 204, a body that is chunked twice: several servers each."""

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"ok", status, headers)

    async with connected(app) as client:
        await client.send(GET_CLOSE)
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
    lines = [line.partition(b": ")[::2] for line in head.split(b"\r\n")[1:]]
    names = [name.lower() for name, _ in lines]
    assert sorted(set(names)) == sorted(names)
    seen = {name.lower(): value for name, value in lines}
    assert {name: seen.get(name) for name in expected} == expected
    framing = {b"transfer-encoding", b"content-length"}
    assert framing & seen.keys() == framing & expected.keys()
    assert body == (b"" if status == 204 else b"ok")


async def test_connect_is_refused_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """uvicorn and hypercorn log one, and the client waits."""
    app = Recorder()
    async with connected(app) as client:
        status, headers, _ = await client.ask(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n")
        assert (status, headers["connection"]) == (405, "close")
        assert await client.rest() == b""
    assert app.scopes == []
    assert errors(caplog) == []


@pytest.mark.parametrize("pieces", [[b"abc"], [b"a", b"bc"], [b"abcdefg"], [b"abcd", b"efg"], [b"abcde", b"f"], []])
async def test_a_broken_content_length_of_the_application_never_leaves_the_client_waiting(pieces: list[bytes]) -> None:
    """granian's client waits for the rest of a body that was too short."""

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": piece is not pieces[-1]})

    async with connected(app) as client:
        await client.send(GET)
        received = b""
        try:
            async with asyncio.timeout(5):
                while data := await client.reader.read(65536):
                    received += data
            cut = False
        except ConnectionResetError:
            cut = True
    head, _, body = received.partition(b"\r\n\r\n")
    # An error of the server's own, or a response that is cut. What came after its fifth byte nobody could know before.
    assert head.startswith(b"HTTP/1.1 500 ") or (cut and b"abcde".startswith(body))


async def test_silent_and_half_sent_connections_do_not_block_the_stop() -> None:
    """Silent and half-sent connections hold uvicorn's stop up to its deadline, and granian's without one."""

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        await respond(send, b"ok")

    async with serving(app, graceful_timeout=60) as server:
        clients = [await Client.to(server) for _ in range(4)]
        await clients[1].send(b"G")
        await clients[2].send(POST)
        assert (await clients[3].ask(GET))[2] == b"ok"
        await clients[3].send(b"GET / HTTP/1.1\r\n")
        async with asyncio.timeout(5):
            await server.stop()
        for client in clients:
            await client.is_reset()  # or closed: a reset tells of bytes that nobody will read
            client.writer.close()
        assert server.service.connections == set()


# --- deadlines, against clients that take their time ---


async def test_a_head_that_trickles_in_is_cut_at_an_absolute_deadline() -> None:
    """A byte now and then renews nothing."""
    app = Recorder()
    async with connected(app, header_timeout=0.2) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
        answered = asyncio.ensure_future(client.response())
        trickled = 0
        while not answered.done():
            await client.send(b"x")
            trickled += 1
            await asyncio.wait([answered], timeout=0.02)  # the pace of the client is what is tested
        status, headers, _ = answered.result()
        assert (status, headers["connection"]) == (408, "close")
    assert app.scopes == []
    assert 2 < trickled < 50


async def test_a_client_that_never_sends_and_one_that_never_sends_again_are_closed() -> None:
    async with serving(echo, header_timeout=0.1, keep_alive=0.1) as server:
        silent, idle = await Client.to(server), await Client.to(server)
        await idle.ask(GET)
        assert [await client.rest() for client in (silent, idle)] == [b"", b""]
        for client in (silent, idle):
            client.writer.close()


async def test_a_client_that_never_reads_is_cut_and_the_application_told() -> None:
    told: list[Any] = []
    done = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
        except ClientDisconnected:
            told.append(await receive())
            done.set()
            raise

    async with serving(app, write_timeout=0.2) as server:
        client = await Client.to(server, limit=1024)
        await client.send(GET)
        await asyncio.wait_for(done.wait(), 10)
        assert await client.is_reset()
    assert told == [{"type": "http.disconnect"}]


async def test_a_body_that_trickles_in_is_cut() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async with connected(app, body_timeout=0.2) as client:
        await client.send(POST + b"Content-Length: 100000\r\n\r\n")
        answered = asyncio.ensure_future(client.response("POST"))
        while not answered.done():
            await client.send(b"x")
            await asyncio.wait([answered], timeout=0.02)  # the pace of the client is what is tested
        assert answered.result()[0] == 408


# --- floods, and memory ---


@without_lifespan
async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
    """POST: count the body. GET /N: send N megabytes, HEAD /N: hold as many at once."""
    size, more = 0, scope["method"] == "POST"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    megabytes = int(scope["path"][1:] or 0)
    if scope["method"] == "HEAD":
        await send({"type": "http.response.body", "body": b"x" * (megabytes * MEGABYTE)})
        return
    piece = bytes(MEGABYTE)
    for _ in range(megabytes):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": str(size).encode()})


class Process:
    """minibg's command in a process of its own, and how large it is."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.port = port
        self._memory = Path(f"/proc/{process.pid}")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def _kilobytes(self, field: str) -> int:
        found = re.search(rf"{field}:\s+(\d+) kB", (self._memory / "status").read_text())
        assert found is not None
        return int(found[1])

    @contextmanager
    def grows_at_most(self, megabytes: int) -> Iterator[None]:
        """The peak of its memory in the block, over what it had before."""
        (self._memory / "clear_refs").write_text("5")  # proc(5): reset the peak to what there is now
        before = self._kilobytes("VmRSS")
        yield
        assert self._kilobytes("VmHWM") - before <= megabytes * 1000


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def process(request: pytest.FixtureRequest) -> Iterator[Process]:
    command = [sys.executable, "-m", "minibg", f"{__name__}:streaming", "--port", "0", "--loop", request.param]
    command += ["--max-body", "300000000", "--no-access-log"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        assert started.stdout is not None
        try:
            port = next(
                found[1] for line in started.stdout if (found := re.search(r"listening on .* port (\d+)", line))
            )
            server = Process(started, int(port))
            for path in (b"1", b"1"):  # what every process needs once
                with server.connect() as client:
                    client.sendall(b"GET /%b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path)
                    assert len(rest(client)) > MEGABYTE
            yield server
        finally:
            started.terminate()
            output = started.stdout.read()
        assert "Traceback" not in output, output


def rest(client: socket.socket) -> bytes:
    """What comes up to the end of the connection, reset or not."""
    data = b""
    try:
        while piece := client.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def flood(client: socket.socket, beginning: bytes, piece: bytes, megabytes: int) -> bytes:
    """Send as much as is taken, then read the answer."""
    try:
        client.sendall(beginning)
        for _ in range(megabytes * MEGABYTE // len(piece)):
            client.sendall(piece)
    except (BrokenPipeError, ConnectionResetError):
        pass
    return rest(client)


def test_the_measure_sees_megabytes_that_are_held(process: Process) -> None:
    """The control of the tests below."""
    with process.connect() as client, pytest.raises(AssertionError), process.grows_at_most(16):
        client.sendall(b"HEAD /40 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert rest(client).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_200_megabytes_are_received_within_16_megabytes_of_memory(process: Process, framing: str) -> None:
    with process.connect() as client, process.grows_at_most(16):
        piece = bytes(MEGABYTE)
        if framing == "length":
            client.sendall(POST + b"Connection: close\r\nContent-Length: 200000000\r\n\r\n")
        else:
            client.sendall(POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
            piece = b"f4240\r\n" + piece + b"\r\n"
        for _ in range(200):
            client.sendall(piece)
        if framing == "chunked":
            client.sendall(b"0\r\n\r\n")
        assert rest(client).endswith(b"\r\n\r\n200000000")


def test_200_megabytes_are_sent_within_16_megabytes_of_memory(process: Process) -> None:
    with process.connect() as client, process.grows_at_most(16):
        client.sendall(b"GET /200 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        buffer, received = bytearray(1 << 18), 0
        while count := client.recv_into(buffer):
            received += count
        assert 200 * MEGABYTE < received < 201 * MEGABYTE


FLOODS = {
    "a header without end": (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"x" * 65536, b"431"),
    "headers without end": (b"GET / HTTP/1.1\r\nHost: a\r\n", b"X: x\r\n" * 10_000, b"431"),
    "a target without end": (b"GET /", b"x" * 65536, b"414"),
    "a method without end": (b"", b"G" * 65536, b"414"),
    "a trailer without end": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"x" * 65536, b"431"),
    "trailers without end": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: x\r\n" * 10_000, b"431"),
    "a chunk extension without end": (POST + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 65536, b"400"),
}


@pytest.mark.parametrize("name", FLOODS)
def test_24_megabytes_of_one_head_are_refused_and_not_kept(process: Process, name: str) -> None:
    beginning, piece, status = FLOODS[name]
    with process.connect() as client, process.grows_at_most(4):
        answer = flood(client, beginning, piece, 24)
    # The kernel may destroy the answer to a client that goes on sending (RFC 9112 section 9.6), but no other comes.
    assert answer[:13] in (b"HTTP/1.1 " + status + b" ", b"")
    with process.connect() as client:
        client.sendall(GET_CLOSE)
        assert rest(client).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_that_stops_at_the_limit_reads_its_refusal(process: Process, name: str) -> None:
    beginning, piece, status = FLOODS[name]
    with process.connect() as client:
        client.sendall(beginning + piece)
        client.shutdown(socket.SHUT_WR)
        assert rest(client)[:13] == b"HTTP/1.1 " + status + b" "
