"""Some seconds of clients that behave as badly as they can, and then: is anything left?

Every client draws what it does from a generator with a fixed seed: it asks and reads, or leaves at a random moment by a
close, a reset or half a close, within a head, a body, a pipeline or a response, while the application reads, streams,
beats, fails or goes on after its response. Rounds of the same load follow each other, and after each, with the server still
running, there must be none of its connections, no request, no task, no open file descriptor and none of the server's objects
more than before; and between the later rounds the memory that Python has allocated must not grow.
"""

import asyncio
import gc
import logging
import os
import random
import socket
import struct
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from minibg.asgi import Receive, Scope, Send
from minibg.server import Server
from minibg.server.cycle import Cycle
from minibg.server.protocol import Connection
from tests.server.wire import GET, respond, serving, without_lifespan

ROUNDS, CLIENTS, AT_ONCE = 4, 250, 40
#: Bytes that a later round may leave behind: caches of the interpreter and of asyncio, not of a client each (1 KB or more).
SLACK = 64 * 1024


class Failure(Exception):
    """What the application raises on purpose."""


@without_lifespan
async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Does what the path says."""
    kind = scope["path"][1:]
    if kind in ("echo", "fails"):
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            more = message["more_body"]
        if kind == "fails":
            raise Failure
        await respond(send, b"ok")
    elif kind == "stream":
        await send({"type": "http.response.start", "status": 200})
        for _ in range(20):
            await send({"type": "http.response.body", "body": bytes(20_000), "more_body": True})
        await send({"type": "http.response.body"})
    elif kind == "events":
        await events(receive, send)
    elif kind == "after":
        await respond(send, b"ok")
        await asyncio.sleep(0)
        await receive()
        raise Failure
    else:
        await respond(send, b"unread")


async def events(receive: Receive, send: Send) -> None:
    """An endless stream. Its beats find out a client that has closed: over TCP that looks like half a close at first."""
    await send({"type": "http.response.start", "status": 200})
    while True:
        await send({"type": "http.response.body", "body": b"beat", "more_body": True})
        try:
            async with asyncio.timeout(0.02):
                while (await receive())["type"] != "http.disconnect":
                    pass
            return
        except TimeoutError:
            pass


def request(draw: random.Random) -> bytes:
    kind = draw.choice(["echo", "echo", "fails", "stream", "events", "after", "unread"])
    body = bytes(draw.choice([0, 1, 1000, 100_000]))
    if draw.random() < 0.5:
        return f"POST /{kind} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    head = f"POST /{kind} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"


async def client(port: int, draw: random.Random) -> None:
    """One connection: some bytes, some reading, and an end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b"".join(request(draw) for _ in range(draw.choice([1, 1, 1, 3, 10])))
    if draw.random() < 0.5:
        data = data[: draw.randrange(1, len(data))]
    if draw.random() < 0.1:
        data = draw.randbytes(draw.randrange(1, 200))
    try:
        for _ in range(draw.choice([1, 1, 2, 5])):
            size = draw.randrange(1, len(data) + 1)
            writer.write(data[:size])
            data = data[size:] or GET
            for _ in range(draw.randrange(3)):
                await asyncio.sleep(0)
        if draw.random() < 0.5:
            await asyncio.wait_for(reader.read(draw.choice([1, 100, 100_000])), 0.05)
    except (TimeoutError, ConnectionError):
        pass
    await draw.choice([close, close, reset, half_close])(reader, writer)


async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def half_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 0.05)
    except (TimeoutError, OSError, RuntimeError):
        pass
    writer.close()


async def load(port: int, seed: int) -> None:
    """One round of clients."""
    numbers = iter(range(CLIENTS))

    async def one_after_the_other() -> None:
        for number in numbers:
            await client(port, random.Random(seed * CLIENTS + number))

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(one_after_the_other())


async def empty(server: Server) -> None:
    """Wait for the last connection and the last request to end; the server sets an event then."""
    while server.service.connections or server.service.requests:
        server.service.empty.clear()
        await server.service.empty.wait()


def left_behind() -> dict[str, int]:
    """What there is of each thing that a client could leave."""
    gc.collect()
    kinds = [type(thing) for thing in gc.get_objects()]
    return {
        "tasks": len(asyncio.all_tasks()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "connections": kinds.count(Connection),
        "cycles": kinds.count(Cycle),
    }


class Failures(logging.Filter):
    """The kinds of what is logged with a traceback. The records end here: pytest would keep them, and all they passed."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: set[Any] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info:
            self.kinds.add(record.exc_info[0])
        return False


@pytest.fixture
def failures() -> Iterator[Failures]:
    logger, failures = logging.getLogger("minibg.server"), Failures()
    logger.addFilter(failures)
    yield failures
    logger.removeFilter(failures)


async def test_random_disconnects_under_load_leave_nothing_behind(failures: Failures) -> None:
    limits: dict[str, Any] = {"header_timeout": 0.5, "body_timeout": 0.5, "write_timeout": 0.5, "keep_alive": 0.5}
    others = left_behind()  # What reports of earlier tests still refer to.
    async with serving(application, access_log=False, **limits) as server:
        await load(server.port, seed=0)
        await empty(server)
        before = left_behind()
        tracemalloc.start()
        try:
            sizes = []
            for seed in range(1, ROUNDS):
                await load(server.port, seed)
                await empty(server)
                assert left_behind() == before
                sizes.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    assert before["connections"] <= others["connections"]
    assert before["cycles"] <= others["cycles"]
    assert failures.kinds == {Failure}
    assert sizes[-1] - sizes[0] < SLACK
