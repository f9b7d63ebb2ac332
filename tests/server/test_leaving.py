"""Clients that leave, and more clients than there is room for: nothing of what they started outlives them for long.

Every test was red on the server as it was before: it saw the end of a client's bytes only in the next write, and counted a
closed browser tab against ``max_connections`` until then. What is compared is what other clients get, and when.
"""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse as FastAPIStream
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from minibg import App
from minibg import Depends as MiniDepends
from minibg import Request as MiniRequest
from minibg.asgi import ASGIApp, Receive, Scope, Send
from minibg.web.response import StreamingResponse as MiniStream
from tests.server.test_protocol import seen_by
from tests.server.wire import GET, Client, respond, serving, without_lifespan

RESET = b"\1\0\0\0\0\0\0\0"


class Tabs:
    """Waits in each request for an event, as a long poll does, and never asks whether its client is still there."""

    def __init__(self) -> None:
        self.waiting = asyncio.Semaphore(0)
        self.go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["path"] == "/wait":
                self.waiting.release()
                await self.go.wait()
            await respond(send, b"ok")


WAIT = GET.replace(b"/ ", b"/wait ")


async def test_closed_tabs_do_not_count_as_connections() -> None:
    app = Tabs()
    async with serving(app, max_connections=5) as server:
        for _ in range(20):
            tab = await Client.to(server)
            await tab.send(WAIT)
            await app.waiting.acquire()
            tab.writer.close()
            await tab.writer.wait_closed()
        client = await Client.to(server)
        async with asyncio.timeout(1):
            assert (await client.ask(GET))[0] == 200
        client.writer.close()
        app.go.set()


async def test_what_clients_start_that_reset_at_once_is_bounded() -> None:
    app = Tabs()
    async with serving(app, max_connections=5, max_requests_in_progress=10) as server:
        for _ in range(100):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                sock.sendall(WAIT)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert 0 < len(server.service.requests) <= 10
        app.go.set()
        await asyncio.gather(*server.service.requests)
        client = await Client.to(server)
        assert (await client.ask(GET))[0] == 200
        client.writer.close()


async def test_a_half_closed_client_is_told_of_and_still_gets_its_response() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen = [(await receive())["type"] for _ in range(3)]
        await respond(send, json.dumps(seen).encode())

    async with serving(app) as server:
        client = await Client.to(server)
        await client.send(GET)
        client.writer.write_eof()
        status, _, body = await client.response()
        assert (status, json.loads(body)) == (200, ["http.request", "http.disconnect", "http.disconnect"])
        assert await client.rest() == b""
        client.writer.close()


class Streams:
    """Server-sent events without an event. Counts the streams that are open and those whose clean-up has run."""

    def __init__(self) -> None:
        self.open = 0
        self.ended = asyncio.Event()

    async def events(self) -> AsyncIterator[bytes]:
        self.open += 1
        try:
            yield b"data: hello\n\n"
            await asyncio.Event().wait()
        finally:
            self.open -= 1
            self.ended.set()

    async def starlette_handler(self, request: Request) -> Response:
        return StreamingResponse(self.events())

    def starlette(self) -> ASGIApp:
        return Starlette(routes=[Route("/", self.starlette_handler)])

    def with_middleware(self) -> ASGIApp:
        async def dispatch(request: Request, call_next: Any) -> Response:
            response = await call_next(request)
            assert isinstance(response, Response)
            return response

        middleware = [Middleware(BaseHTTPMiddleware, dispatch=dispatch)]
        return Starlette(routes=[Route("/", self.starlette_handler)], middleware=middleware)

    def fastapi(self) -> ASGIApp:
        app = FastAPI()

        async def session() -> AsyncIterator[None]:
            self.open += 1
            try:
                yield
            finally:
                self.open -= 1

        @app.get("/", dependencies=[Depends(session)])
        async def handler() -> FastAPIStream:
            return FastAPIStream(self.events())

        return app

    def app(self) -> ASGIApp:
        app = App()

        async def session() -> AsyncIterator[None]:
            self.open += 1
            try:
                yield
            finally:
                self.open -= 1

        @app.get("/", dependencies=[MiniDepends(session)])
        async def handler() -> MiniStream:
            return MiniStream(self.events())

        return app


@pytest.mark.parametrize("leaves", ["closes", "resets"])
@pytest.mark.parametrize("framework", ["starlette", "with_middleware", "fastapi", "app"])
async def test_an_idle_stream_ends_within_a_second_of_its_client(
    framework: str, leaves: str, caplog: pytest.LogCaptureFixture
) -> None:
    streams = Streams()
    async with serving(getattr(streams, framework)()) as server:
        client = await Client.to(server)
        await client.send(GET)
        await client.reader.readuntil(b"hello\n\n")
        assert streams.open == (2 if framework in {"fastapi", "app"} else 1)
        if leaves == "resets":
            client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.writer.close()
        async with asyncio.timeout(1):
            await streams.ended.wait()
            await asyncio.gather(*server.service.requests)
        assert streams.open == 0
        async with asyncio.timeout(1):
            while server.service.connections:
                await asyncio.sleep(0)  # turns of the loop, not time
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("leaves", ["closes", "resets"])
@pytest.mark.parametrize("size", [1000, 200_000])
async def test_an_idle_stream_of_app_ends_soon_when_its_client_leaves_in_the_middle_of_its_body(
    size: int, leaves: str
) -> None:
    streams, app = Streams(), App()

    @app.post("/")
    async def handler() -> MiniStream:
        return MiniStream(streams.events())

    async with serving(app) as server:
        client = await Client.to(server)
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + bytes(size))
        await client.reader.readuntil(b"hello\n\n")
        if leaves == "resets":
            client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.writer.close()
        async with asyncio.timeout(2):
            await streams.ended.wait()
            await asyncio.gather(*server.service.requests)


async def test_a_stream_of_app_that_goes_on_is_delivered_to_a_client_that_has_only_half_closed() -> None:
    app = App()

    @app.post("/")
    async def upper(request: MiniRequest) -> MiniStream:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"first "
            await asyncio.sleep(0.1)
            yield await request.body()  # The end of the client is awaited beside it, and takes nothing of it.

        return MiniStream(pieces())

    async with serving(app) as server:
        client = await Client.to(server)
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
        client.writer.write_eof()
        assert (await client.response())[2] == b"first body"
        client.writer.close()


@pytest.mark.parametrize("leaves", ["half", "closes", "resets"])
async def test_the_end_of_a_client_is_seen_behind_a_long_pipeline(leaves: str) -> None:
    """Reading is paused, so no read reports the end."""
    told = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/wait":
            while (await receive())["type"] != "http.disconnect":
                pass
            told.set()
            await asyncio.Event().wait()
        await respond(send, b"ok")

    async with serving(app, max_connections=1, keep_alive=0.4, graceful_timeout=0.1) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(sock, WAIT * (300_000 // len(WAIT)))
            await seen_by(server, lambda connection: not connection.transport.is_reading())
            if leaves == "half":
                sock.shutdown(socket.SHUT_WR)
            elif leaves == "resets":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            if leaves != "half":
                sock.close()
            async with asyncio.timeout(2):
                await told.wait()
            client = await Client.to(server)
            assert (await client.ask(GET))[0] == 200
            client.writer.close()


# --- no descriptors ---

OUT_OF_DESCRIPTORS = """
import asyncio, json, logging, os, resource, socket, sys, time
if sys.argv[1] == "uvloop":
    import uvloop
    new_loop = uvloop.new_event_loop
else:
    new_loop = asyncio.new_event_loop
from minibg.server import Server

lines = []
class Count(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage() + (f": {record.exc_info[1]!r}" if record.exc_info else ""))
logging.getLogger().addHandler(Count(logging.WARNING))

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"ok"})

async def main():
    async with Server(app, port=0) as server:
        print(server.port, flush=True)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        await reader.readline()
        print(json.dumps(lines), flush=True)
        await reader.read()

resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
with asyncio.Runner(loop_factory=new_loop) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_server_without_descriptors_says_so_once_a_second_and_recovers_at_once(loop: str) -> None:
    command = [sys.executable, "-c", OUT_OF_DESCRIPTORS, loop]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        half = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]  # idle: each gives way to the next
        for sock in half:
            try:
                sock.sendall(b"GET / HTTP/1.1\r\n")  # not idle any more
            except OSError:
                pass
        more = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        for sock in more:
            sock.sendall(b"GET / HTTP/1.1\r\n")
        time.sleep(1.2)  # the passing of time is what is tested
        for sock in half + more:
            sock.close()
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.settimeout(5)
            sock.sendall(GET)
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - started < 0.5
        process.stdin.write("\n")
        process.stdin.flush()
        lines = json.loads(process.stdout.readline())
        process.stdin.close()
        assert process.wait(10) == 0
    assert {line.partition(":")[0] for line in lines} == {"cannot accept a connection"}, lines
    assert 1 <= len(lines) <= 3
