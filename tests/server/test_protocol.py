"""One client: requests in order, flow control, half-closing, deadlines, ends. Real sockets."""

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from minibg.asgi import ClientDisconnected, Message, Receive, Scope, Send
from minibg.server import Server
from minibg.server.protocol import BUFFER, DISCARD, Connection

from tests.server.wire import (
    GET,
    GET_CLOSE,
    Client,
    Recorder,
    connected,
    connections,
    echo,
    read_body,
    respond,
    serving,
    without_lifespan,
)

POST = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nt: v\r\n\r\n"


async def seen_by(server: Server, what: Callable[[Connection], bool]) -> None:
    """Wait until something is true of the server's only connection: what a client did has arrived."""
    async with asyncio.timeout(5):
        while not any(map(what, connections(server))):
            await asyncio.sleep(0)  # turns of the loop, not time: the bytes are on their way


# --- requests in order ---


async def test_requests_follow_each_other_on_one_connection() -> None:
    async with connected(echo) as client:
        assert (await client.ask(GET))[2] == b"GET / "
        assert (await client.ask(POST))[2] == b"POST /p hello"
        assert (await client.ask(CHUNKED))[2] == b"POST /c hello world"
        assert (await client.ask(GET))[2] == b"GET / "


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with connected(echo) as client:
        await client.send(GET + POST + CHUNKED + GET + GET_CLOSE)
        bodies = [(await client.response())[2] for _ in range(5)]
        assert bodies == [b"GET / ", b"POST /p hello", b"POST /c hello world", b"GET / ", b"GET / "]
        assert client.left + await client.rest() == b""


async def test_bytes_that_come_one_by_one_make_the_same_requests() -> None:
    async with connected(echo) as client:
        client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in GET + POST + CHUNKED + GET_CLOSE:
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert [(await client.response())[2] for _ in range(4)] == [
            b"GET / ",
            b"POST /p hello",
            b"POST /c hello world",
            b"GET / ",
        ]


@pytest.mark.parametrize("cut", [1, 2, 3, 1000])
@pytest.mark.parametrize(("lines", "status"), [(32, 200), (33, 400)])
async def test_blank_lines_before_a_request_are_bounded_however_they_are_cut(cut: int, lines: int, status: int) -> None:
    data = b"\r\n" * lines + GET
    async with connected(echo) as client:
        for start in range(0, len(data), cut):
            await client.send(data[start : start + cut])
        assert (await client.response())[0] == status


async def test_a_blank_line_before_a_request_is_forgiven() -> None:
    async with connected(echo) as client:
        assert (await client.ask(b"\r\n" + GET))[0] == 200
        await client.send(b"\r")
        assert (await client.ask(b"\n" + GET))[0] == 200


async def test_the_next_request_does_not_wait_for_the_application_of_the_last() -> None:
    finish = asyncio.Event()

    @without_lifespan
    async def lingering(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"ok")
        await finish.wait()

    async with connected(lingering) as client:
        assert (await client.ask(GET + GET))[2] == b"ok"
        assert (await client.response())[2] == b"ok"
        finish.set()


async def test_a_failure_after_the_response_touches_nothing(caplog: pytest.LogCaptureFixture) -> None:
    second = asyncio.Event()
    failed = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/second":
            second.set()
            await failed.wait()
            await respond(send, b"second")
        else:
            await respond(send, b"first")
            await second.wait()
            failed.set()
            raise RuntimeError("the task failed")

    async with connected(app) as client:
        assert (await client.ask(GET))[2] == b"first"
        assert (await client.ask(GET.replace(b"/ ", b"/second ")))[2] == b"second"
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        "GET '/': the application failed while its response was sent"
    ]


async def test_no_request_sees_the_context_of_another() -> None:
    from contextvars import ContextVar

    variable: ContextVar[str] = ContextVar("variable", default="untouched")
    seen: list[str] = []

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(variable.get())
        variable.set("leaked")
        await read_body(receive)
        await respond(send, b"ok")

    async with connected(app) as client:
        await client.send(GET + GET)  # the second is started from the first one's send
        await client.response()
        await client.response()
        large = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000000)
        await client.ask(large)  # reading is resumed from the application
        await client.ask(GET)
    assert seen == ["untouched"] * 4


# --- bodies and flow control ---


async def test_a_small_body_is_there_before_the_application_runs() -> None:
    app = Recorder()
    async with connected(app) as client:
        await client.ask(POST)
    assert app.messages == [{"type": "http.request", "body": b"hello", "more_body": False}]


async def test_a_large_body_arrives_in_pieces_and_reading_pauses_while_nobody_takes_it() -> None:
    size = 20 * 1024 * 1024
    go = asyncio.Event()
    pieces: list[int] = []

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        more = True
        while more:
            message = await receive()
            pieces.append(len(message["body"]))
            more = message["more_body"]
        await respond(send, b"ok")

    async with connected(app, max_body=size) as client:
        client.writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        with pytest.raises(TimeoutError):  # the kernels are full, and the server does not take more
            await asyncio.wait_for(client.writer.drain(), 0.3)
        go.set()
        assert (await client.response())[2] == b"ok"
    assert sum(pieces) == size
    assert max(pieces) <= BUFFER + 256 * 1024  # one read more than the bound


async def test_send_waits_for_a_client_that_reads_slowly() -> None:
    size = 50 * 1024 * 1024
    sent = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, bytes(size))
        sent.set()

    async with serving(app) as server:
        client = await Client.to(server, limit=1024)
        await client.send(GET)
        received = len(await client.reader.readexactly(10 * 1024 * 1024))
        while received < size:  # far more than all buffers between lies ahead, so send cannot have returned
            if size - received > 20 * 1024 * 1024:
                assert not sent.is_set()
            received += len(await client.reader.read(1024 * 1024))
        await asyncio.wait_for(sent.wait(), 5)
        client.writer.close()


async def test_100_continue_is_sent_when_the_application_asks_for_the_body() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, await read_body(receive))

    async with connected(app) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await client.ask(b"hello"))[2] == b"hello"
        assert (await client.ask(GET))[0] == 200


async def test_a_final_answer_instead_of_100_continue_closes() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"no", 403)

    async with connected(app) as client:
        status, headers, body = await client.ask(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
        assert (status, headers["connection"], body) == (403, "close", b"no")
        assert await client.rest() == b""


async def test_the_unread_rest_of_a_body_is_thrown_away() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"early")

    async with connected(app) as client:
        size = DISCARD // 2
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
        assert (await client.ask(head))[2] == b"early"
        assert (await client.ask(bytes(size) + GET))[2] == b"early"


async def test_a_long_unread_rest_ends_the_connection_but_not_the_response() -> None:
    ended = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"early")
        ended.set()

    async with connected(app) as client:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (50 * 1024 * 1024)
        await client.send(head + bytes(DISCARD))
        status, headers, body = await client.response()
        assert (status, headers["connection"], body) == (200, "close", b"early")
        await asyncio.wait_for(ended.wait(), 5)


async def test_a_chunked_rest_that_is_too_long_ends_the_connection() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"early")

    async with connected(app) as client:
        assert (await client.ask(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"))[0] == 200
        await client.send((b"8000\r\n" + bytes(0x8000) + b"\r\n") * (2 * DISCARD // 0x8000))
        assert await client.rest() == b""


async def test_garbage_in_an_unwanted_body_does_not_destroy_the_response() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"early")

    async with connected(app) as client:
        await client.ask(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        await client.send(b"garbage\r\n")
        assert await client.rest() == b""


async def test_a_pipeline_is_not_read_without_bound() -> None:
    go = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await respond(send, b"ok")

    requests = 400_000
    async with connected(app) as client:
        client.writer.write(GET * requests)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.writer.drain(), 0.3)
        go.set()
        assert (await client.response())[2] == b"ok"
        client.writer.transport.abort()


async def test_a_long_pipeline_is_answered_to_its_end() -> None:
    async with connected(echo) as client:
        client.writer.write(GET * 10_000 + GET_CLOSE)
        assert (await client.rest()).count(b"GET / ") == 10_001


async def test_a_transport_may_say_late_that_it_is_empty_and_forget_its_socket() -> None:
    class Forgetful(asyncio.Transport):
        aborted = False

        def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
            pass

        def abort(self) -> None:
            self.aborted = True

    async with serving(echo) as server:
        connection, transport = Connection(server.service), Forgetful()
        connection.connection_made(transport)
        connection.resume_writing()
        connection.reset()
        connection.connection_lost(None)
        assert transport.aborted


# --- clients that go ---


async def test_a_half_closed_client_gets_its_responses() -> None:
    go = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await respond(send, b"ok")

    async with serving(app) as server:
        client = await Client.to(server)
        await client.send(GET)
        await seen_by(server, lambda connection: bool(connection._cycle))
        await client.send(GET)  # while the first is answered
        client.writer.write_eof()
        await seen_by(server, lambda connection: connection._half_closed)
        go.set()
        assert [(await client.response())[2] for _ in range(2)] == [b"ok", b"ok"]
        assert await client.rest() == b""
        client.writer.close()


async def test_a_half_closed_client_gets_the_rest_of_a_response_to_an_unfinished_request() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, bytes(20_000_000))

    async with serving(app) as server:
        client = await Client.to(server, limit=1024)
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
        await client.reader.readuntil(b"\r\n\r\n")
        client.writer.write_eof()
        await seen_by(server, lambda connection: connection._half_closed)
        assert len(await client.rest()) == 20_000_000
        client.writer.close()


async def test_a_half_closed_client_that_is_really_gone_is_found_out(tmp_path: Path) -> None:
    seen: list[Message] = []
    done = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        seen.append(await receive())
        done.set()

    async with serving(app, uds=f"{tmp_path}/s", keep_alive=0.2) as server:
        _, writer = await asyncio.open_unix_connection(f"{tmp_path}/s")
        writer.write(GET)
        await seen_by(server, lambda connection: bool(connection._cycle))
        writer.write_eof()
        await seen_by(server, lambda connection: connection._half_closed)
        for connection in connections(server):
            connection.check_deadlines()  # not yet: it still reads
        assert seen == []
        writer.close()
        await asyncio.wait_for(done.wait(), 5)
    assert seen == [{"type": "http.disconnect"}]


async def test_a_client_that_half_closes_while_idle_is_closed() -> None:
    async with connected(echo) as client:
        await client.ask(GET)
        client.writer.write_eof()
        assert await client.rest() == b""


@pytest.mark.parametrize(
    "data", [b"GET / HT", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel"], ids=["head", "body"]
)
async def test_a_request_that_ends_early_is_answered_with_400(data: bytes) -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        with pytest.raises(ClientDisconnected):
            await respond(send, b"nobody")

    async with connected(app) as client:
        await client.send(data)
        client.writer.write_eof()
        assert (await client.response())[0] == 400


async def test_send_raises_and_receive_disconnects_when_the_client_has_gone() -> None:
    seen: list[Message] = []
    raised: list[type] = []
    done = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await read_body(receive)
            await send({"type": "http.response.start", "status": 200})
            while True:
                try:
                    await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
                except ClientDisconnected as error:
                    raised.append(type(error))
                    break
            seen.append(await receive())
            seen.append(await receive())
            await send({"type": "http.response.body", "body": b""})
        finally:
            done.set()

    async with connected(app) as client:
        await client.send(GET)
        await client.reader.readexactly(1000)
        client.writer.transport.abort()
        await asyncio.wait_for(done.wait(), 5)
    assert raised == [ClientDisconnected]
    assert seen == [{"type": "http.disconnect"}] * 2


async def test_a_client_that_resets_while_the_application_waits_is_seen() -> None:
    seen: list[Message] = []
    done = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        seen.append(await receive())
        done.set()

    async with connected(app) as client:
        await client.send(GET)
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.writer.transport.abort()
        await asyncio.wait_for(done.wait(), 5)
    assert seen == [{"type": "http.disconnect"}]


# --- deadlines ---


async def test_a_head_that_trickles_is_answered_with_408() -> None:
    async with connected(echo, header_timeout=0.2) as client:
        await client.send(b"GET / HTTP/1.1\r\n")
        status, headers, _ = await client.response()
        assert (status, headers["connection"]) == (408, "close")
        assert await client.rest() == b""


async def test_a_client_that_never_speaks_is_closed() -> None:
    async with connected(echo, header_timeout=0.2) as client:
        assert await client.rest() == b""


async def test_an_idle_connection_is_closed_after_keep_alive() -> None:
    async with connected(echo, keep_alive=0.2) as client:
        await client.ask(GET)
        assert await client.rest() == b""


async def test_a_body_that_stalls_is_answered_with_408() -> None:
    async with connected(echo, body_timeout=0.2) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel")
        assert (await client.response())[0] == 408
        assert await client.rest() == b""


async def test_a_body_that_makes_progress_is_given_time() -> None:
    async with connected(echo, body_timeout=0.6) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n")
        for _ in range(10):
            await client.send(bytes(20_000))
            await asyncio.sleep(0.15)  # the passing of time is what is tested
        assert (await client.response())[0] == 200


async def test_an_unwanted_body_that_stalls_ends_the_connection() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"early")

    async with connected(app, body_timeout=0.2) as client:
        assert (await client.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel"))[2] == b"early"
        assert await client.rest() == b""


async def test_a_client_that_does_not_read_is_cut() -> None:
    raised = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await respond(send, bytes(50 * 1024 * 1024))
        except ClientDisconnected:
            raised.set()

    async with serving(app, write_timeout=0.2) as server:
        client = await Client.to(server, limit=1024)
        await client.send(GET)
        await asyncio.wait_for(raised.wait(), 10)
        assert await client.is_reset()


async def test_a_client_that_reads_slowly_but_steadily_is_served() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, bytes(30 * 1024 * 1024))

    async with serving(app, write_timeout=0.6) as server:
        client = await Client.to(server, limit=1024)
        await client.send(GET)
        received = 0
        for _ in range(10):
            await asyncio.sleep(0.1)  # the passing of time is what is tested
            received += len(await client.reader.readexactly(2 * 1024 * 1024))
        received += len(await client.reader.readexactly(10 * 1024 * 1024))
        assert received == 30 * 1024 * 1024
        client.writer.close()


async def test_a_client_that_does_not_close_its_half_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minibg.server.protocol.LINGER", 0.2)
    async with serving(echo, keep_alive=0.2) as server:
        client = await Client.to(server)
        await client.ask(GET_CLOSE)
        assert await client.rest() == b""
        [connection] = connections(server)
        lost = asyncio.Event()
        tell = connection.connection_lost

        def heard(reason: Exception | None) -> None:
            tell(reason)
            lost.set()

        monkeypatch.setattr(connection, "connection_lost", heard)
        await asyncio.wait_for(lost.wait(), 10)
        assert not server.service.connections
        client.writer.close()


# --- limits ---


@without_lifespan
async def until_the_client_leaves(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with "ok" when the client has closed its half: a request that is in progress until then."""
    while (await receive())["type"] != "http.disconnect":
        pass
    await respond(send, b"ok")


async def test_too_many_connections_are_answered_with_503() -> None:
    async with serving(until_the_client_leaves, max_connections=1, max_requests_in_progress=1) as server:
        first = await Client.to(server)
        await first.send(GET)
        await seen_by(server, lambda connection: bool(connection._cycle))
        clients = [await Client.to(server) for _ in range(2)]
        for client in clients:
            status, headers, _ = await client.response()
            assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        clients.append(await Client.to(server))  # not even an answer, while the others linger
        assert await clients[-1].rest() == b""
        first.writer.write_eof()
        assert (await first.response())[2] == b"ok"
        for client in (first, *clients):
            client.writer.close()


async def test_refused_connections_keep_no_client_out() -> None:
    async with serving(until_the_client_leaves, max_connections=1) as server:
        first = await Client.to(server)
        await first.send(GET)
        await seen_by(server, lambda connection: bool(connection._cycle))
        refused = await Client.to(server)
        assert (await refused.response())[0] == 503
        first.writer.write_eof()
        assert (await first.response())[0] == 200
        second = await Client.to(server)
        await second.send(GET)
        second.writer.write_eof()
        assert (await second.response())[0] == 200
        for client in (first, refused, second):
            client.writer.close()


async def test_the_connection_that_is_idle_longest_gives_way_to_a_new_one() -> None:
    async with serving(echo, max_connections=3) as server:
        clients = [await Client.to(server) for _ in range(3)]
        for client in (clients[1], clients[0], clients[2], clients[1]):
            assert (await client.ask(GET))[0] == 200
        clients.append(await Client.to(server))
        assert (await clients[-1].ask(GET))[0] == 200
        assert await clients[0].rest() == b""
        for client in clients[1:]:
            assert (await client.ask(GET))[0] == 200
        for client in clients:
            client.writer.close()


async def test_too_many_requests_in_progress_are_answered_with_503_until_a_handler_has_ended() -> None:
    go = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"ok")
        await go.wait()

    async with serving(app, max_requests_in_progress=2) as server:
        first = await Client.to(server)
        assert [(await first.ask(GET))[0] for _ in range(2)] == [200, 200]  # their handlers are at work
        second = await Client.to(server)
        status, headers, _ = await second.ask(GET)
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        handlers = tuple(server.service.requests)
        go.set()
        await asyncio.gather(*handlers)
        assert (await first.ask(GET))[0] == 200
        for client in (first, second):
            client.writer.close()


async def test_a_chunked_body_beyond_the_limit_is_answered_with_413() -> None:
    async with connected(echo, max_body=1000) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        await client.send(b"3e8\r\n" + bytes(1000) + b"\r\n")
        await client.send(b"1\r\n")
        assert (await client.response())[0] == 413


async def test_a_body_that_breaks_within_its_response_cuts_the_response() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        await receive()

    async with connected(app) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        await client.reader.readuntil(b"part\r\n")
        await client.send(b"garbage\r\n")
        assert await client.is_reset()
