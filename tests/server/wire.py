"""A client that speaks bytes, and small applications, for the tests of the server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import h11

from minibg.asgi import ASGIApp, Message, Receive, Scope, Send
from minibg.server import Limits, Server
from minibg.server.protocol import Connection

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class Client:
    """One connection. Whatever is read from it comes within ten seconds, or the test fails."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.left = b""

    @classmethod
    async def to(cls, server: Server, **options: Any) -> Self:
        return cls(*await asyncio.open_connection("127.0.0.1", server.port, **options))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        async with asyncio.timeout(10):
            return await self.reader.read()

    async def response(self, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """The next response as h11 reads it: status, headers, body."""
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
        parser.send(h11.EndOfMessage())
        parser.receive_data(self.left) if self.left else None
        head, body = None, b""
        async with asyncio.timeout(10):
            while True:
                event = parser.next_event()
                if event is h11.NEED_DATA:
                    parser.receive_data(await self.reader.read(65536))
                elif isinstance(event, h11.Response):
                    head = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    assert isinstance(event, h11.InformationalResponse), event
        self.left = parser.trailing_data[0]
        assert head is not None
        return head.status_code, {n.decode(): v.decode("latin-1") for n, v in head.headers}, body

    async def ask(self, data: bytes, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        await self.send(data)
        return await self.response(method)

    async def is_reset(self) -> bool:
        """Whether the connection ends by a reset; what is read before it is not looked at."""
        try:
            await self.rest()
        except ConnectionResetError:
            return True
        return False


@asynccontextmanager
async def serving(app: ASGIApp, **settings: Any) -> AsyncIterator[Server]:
    """A server on a free port; keywords that are limits go there."""
    names = Limits.__dataclass_fields__
    limits = Limits(**{name: settings.pop(name) for name in list(settings) if name in names})
    async with asyncio.timeout(30), Server(app, **{"port": 0, "limits": limits, **settings}) as server:
        yield server


@asynccontextmanager
async def connected(app: ASGIApp, **settings: Any) -> AsyncIterator[Client]:
    """A client of a server of its own."""
    async with serving(app, **settings) as server:
        client = await Client.to(server)
        yield client
        client.writer.close()


def connections(server: Server) -> list[Connection]:
    """The open connections of a server."""
    return [connection for connection in server.service.connections if isinstance(connection, Connection)]


def without_lifespan(app: ASGIApp) -> ASGIApp:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await app(scope, receive, send)

    return inner


async def read_body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request", message
        body, more = body + message["body"], message["more_body"]
    return body


async def respond(send: Send, body: bytes = b"", status: int = 200, headers: Any = ()) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


@without_lifespan
async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the request line it saw and the body."""
    body = await read_body(receive)
    await respond(send, f"{scope['method']} {scope['path']} ".encode() + body)


class Recorder:
    """An application that remembers what it was given and answers with "ok"."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.messages: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        self.scopes.append(scope)
        while True:
            message = await receive()
            self.messages.append(message)
            if not message.get("more_body"):
                break
        await respond(send, b"ok")
