"""ASGI http 2.5: the scope key by key, and the messages one by one.

An application of each test looks at what it is given; what it has seen is compared after the client has its answer. "Where"
names the section of the specification ("HTTP Connection Scope", "Request", "Response Start", "Response Body", "Disconnect").
"""

import asyncio
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from minibg.asgi import ASGIApp, ClientDisconnected, Message, Receive, Scope, Send
from tests.server.requirements import answered, ok, requirement, undated, understood
from tests.server.wire import Client, Recorder, connected, respond, serving, without_lifespan

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
END = b"Host: a\r\nConnection: close\r\n\r\n"
GET_CLOSE = b"GET / HTTP/1.1\r\n" + END
START: Message = {"type": "http.response.start", "status": 200}
LAST: Message = {"type": "http.response.body", "body": b"ok"}


async def scope_of(data: bytes, **settings: Any) -> Scope:
    [(scope, _)] = await understood(data, **settings)
    return scope


def sending(*messages: Any) -> ASGIApp:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


def reset(client: Client) -> None:
    """End the client's connection by a reset, which the server cannot take for a half-close."""
    sock = client.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()


# --- HTTP Connection Scope ---


@requirement("ASGI http, Scope", "MUST", "The scope has every key of the specification, and no other.")
async def test_the_scope_has_every_key() -> None:
    assert set(await scope_of(GET_CLOSE)) == {
        *("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string"),
        *("root_path", "headers", "client", "server", "state", "extensions"),
    }


@requirement("ASGI http, Scope", "MUST", "type, asgi and scheme: http, versions 3.0 and 2.3, http.")
async def test_type_versions_and_scheme() -> None:
    scope = await scope_of(GET_CLOSE)
    assert (scope["type"], scope["scheme"]) == ("http", "http")
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.3"}


@requirement("ASGI http, Scope", "MUST", "http_version is 1.0 or 1.1.")
@pytest.mark.parametrize(("sent", "seen"), [(b"1.0", "1.0"), (b"1.1", "1.1"), (b"1.2", "1.1")])
async def test_http_version(sent: bytes, seen: str) -> None:
    assert (await scope_of(GET_CLOSE.replace(b"1.1", sent)))["http_version"] == seen


@requirement("ASGI http, Scope", "MUST", "method is a string in upper case.")
@pytest.mark.parametrize(
    ("sent", "seen"), [(b"GET", "GET"), (b"get", "GET"), (b"Patch", "PATCH"), (b"M-Search", "M-SEARCH")]
)
async def test_method_is_in_upper_case(sent: bytes, seen: str) -> None:
    assert (await scope_of(GET_CLOSE.replace(b"GET", sent)))["method"] == seen


@requirement(
    "ASGI http, Scope",
    "MUST",
    "path is decoded: percent sequences and UTF-8; raw_path is as it came, without the query.",
)
@pytest.mark.parametrize(
    ("raw_path", "path"),
    [
        (b"/", "/"),
        (b"/a%20b", "/a b"),
        (b"/%C3%A4%e2%82%ac", "/ä€"),
        (b"/a%2Fb", "/a/b"),
        (b"/%3Fa%23", "/?a#"),
        (b"/a+b", "/a+b"),
        (b"/%25%32%35", "/%25"),
        (b"/%", "/%"),
        (b"/%zz%4", "/%zz%4"),
        (b"/%ff", "/\ufffd"),
        (b"/%00", "/\x00"),
        (b"//a/../b/.", "//a/../b/."),
    ],
    ids=repr,
)
async def test_path_is_decoded_and_raw_path_is_not(raw_path: bytes, path: str) -> None:
    scope = await scope_of(b"GET " + raw_path + b"?%20 HTTP/1.1\r\n" + END)
    assert (scope["path"], scope["raw_path"]) == (path, raw_path)


@requirement(
    "ASGI http, Scope",
    "MUST",
    "query_string is bytes, percent-encoded as it came, without the question mark; empty if there is none.",
)
@pytest.mark.parametrize(
    ("target", "query"),
    [
        (b"/", b""),
        (b"/?", b""),
        (b"/?a=b", b"a=b"),
        (b"/?a=%20+%C3%A4&a", b"a=%20+%C3%A4&a"),
        (b"/??", b"?"),
        (b"/?/a", b"/a"),
    ],
    ids=repr,
)
async def test_query_string_is_as_it_came(target: bytes, query: bytes) -> None:
    assert (await scope_of(b"GET " + target + b" HTTP/1.1\r\n" + END))["query_string"] == query


@requirement("ASGI http, Scope", "chosen", "With a root_path, path begins with it, and raw_path too.")
@pytest.mark.parametrize(
    ("root_path", "path", "raw_path"), [("", "/a b", b"/a%20b"), ("/api", "/api/a b", b"/api/a%20b")]
)
async def test_root_path_comes_first(root_path: str, path: str, raw_path: bytes) -> None:
    scope = await scope_of(b"GET /a%20b HTTP/1.1\r\n" + END, root_path=root_path)
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == (root_path, path, raw_path)


@requirement(
    "ASGI http, Scope",
    "MUST",
    "headers are pairs of bytes, names in lower case (SHOULD), in the order they came, doubled ones kept apart.",
)
async def test_headers_are_pairs_of_bytes() -> None:
    scope = await scope_of(b"GET / HTTP/1.1\r\nX-A: 1\r\nCOOKIE: a=1\r\nx-a:  Two \r\ncookie: b=2\r\nE:\r\n" + END)
    fields = [(b"x-a", b"1"), (b"cookie", b"a=1"), (b"x-a", b"Two"), (b"cookie", b"b=2"), (b"e", b"")]
    assert list(scope["headers"]) == [*fields, (b"host", b"a"), (b"connection", b"close")]


@requirement(
    "ASGI http, Scope", "MUST", "client and server are pairs of a string and a number, as the socket has them."
)
async def test_client_and_server_are_addresses() -> None:
    app = Recorder()
    async with serving(app) as server:
        client = await Client.to(server)
        await client.ask(GET)
        [scope] = app.scopes
        assert tuple(scope["client"]) == client.writer.get_extra_info("sockname")
        assert tuple(scope["server"]) == ("127.0.0.1", server.port)
        assert [type(part) for part in (*scope["client"], *scope["server"])] == [str, int, str, int]
        client.writer.close()


@requirement("ASGI http, Scope", "MAY", "On a Unix socket client is None, and server is its path and None.")
async def test_addresses_of_a_unix_socket(tmp_path: Path) -> None:
    app, path = Recorder(), f"{tmp_path}/s"
    async with serving(app, uds=path):
        client = Client(*await asyncio.open_unix_connection(path))
        assert (await client.ask(GET))[0] == 200
        client.writer.close()
    assert (app.scopes[0]["client"], tuple(app.scopes[0]["server"])) == (None, (path, None))


@requirement(
    "ASGI http, Scope",
    "MUST",
    "state is a shallow copy for each request: its keys are the request's own, the objects in it are shared.",
)
async def test_state_is_a_shallow_copy() -> None:
    shared: list[int] = []
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            scope["state"]["shared"] = shared
            for _ in range(2):
                await send({"type": f"{(await receive())['type']}.complete"})
            return
        seen.append(dict(scope["state"]))
        scope["state"]["own"] = True
        scope["state"]["shared"].append(1)
        await respond(send, b"ok")

    async with connected(app) as client:
        await client.ask(GET)
        await client.ask(GET)
    assert seen == [{"shared": shared}] * 2
    assert seen[0]["shared"] is shared
    assert shared == [1, 1]


@requirement(
    "ASGI http, Scope",
    "MUST",
    "Each request of a connection has a scope of its own: what an application changes is seen by nobody else.",
)
async def test_a_scope_is_fresh() -> None:
    seen: list[Scope] = []

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(
            {
                **scope,
                "headers": list(scope["headers"]),
                "extensions": dict(scope["extensions"]),
                "asgi": dict(scope["asgi"]),
            }
        )
        scope["headers"].append((b"x", b"y"))
        scope["extensions"]["x"] = scope["asgi"]["x"] = scope["state"]["x"] = scope["x"] = "y"
        await respond(send, b"ok")

    async with connected(app) as client:
        await client.ask(GET)
        await client.ask(GET)
    assert seen[0] == seen[1]


@requirement(
    "ASGI, Extensions",
    "MUST",
    "extensions is a dictionary of what the server offers, and each value is a dictionary. It offers minibg.stopping, whose event is set when the stop begins.",
)
async def test_extensions() -> None:
    app = Recorder()
    async with serving(app) as server:
        client = await Client.to(server)
        await client.ask(GET)
        client.writer.close()
        assert app.scopes[0]["extensions"] == {"minibg.stopping": {"event": server.service.stopping}}


# --- Request and Disconnect: receive ---


@requirement(
    "ASGI http, Request", "MUST", "A request without a body is one http.request with empty body and more_body False."
)
async def test_an_empty_body_is_one_message() -> None:
    app = Recorder()
    await answered(GET_CLOSE, app)
    assert app.messages == [{"type": "http.request", "body": b"", "more_body": False}] * 2


@requirement(
    "ASGI http, Request",
    "MUST",
    "The bodies of all http.request messages make the body; more_body is True on all but the last.",
)
async def test_a_body_comes_in_messages() -> None:
    first, app = asyncio.Event(), Recorder()

    @without_lifespan
    async def telling(scope: Scope, receive: Receive, send: Send) -> None:
        async def told() -> Message:
            message = await receive()
            first.set()
            return message

        await app(scope, told, send)

    async with connected(telling) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel")
        await first.wait()
        assert (await client.ask(b"lo"))[2] == b"ok"
    assert app.messages == [
        {"type": "http.request", "body": b"hel", "more_body": True},
        {"type": "http.request", "body": b"lo", "more_body": False},
    ]


@requirement(
    "ASGI http, Request", "MUST", "A chunked body is decoded: no size, extension or trailer reaches the application."
)
async def test_a_chunked_body_is_decoded() -> None:
    data = b"POST / HTTP/1.1\r\n" + END.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    [(_, body)] = await understood(data + b"2;x\r\nab\r\n1\r\nc\r\n0\r\nt: v\r\n\r\n")
    assert body == b"abc"


@requirement(
    "ASGI http, Disconnect", "MUST", "After the response is complete receive gives http.disconnect, on every call."
)
async def test_receive_after_the_response_disconnects() -> None:
    seen: list[Message] = []
    done = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"ok")
        for _ in range(3):
            seen.append(await receive())
        done.set()

    async with connected(app) as client:
        await client.ask(GET)
        await done.wait()
    assert seen == [{"type": "http.disconnect"}] * 3


@requirement(
    "ASGI http, Disconnect",
    "MUST",
    "receive after the whole body waits, and gives http.disconnect when the client goes, on every call.",
)
async def test_receive_after_the_client_has_gone_disconnects() -> None:
    seen: list[Message] = []
    body, done = asyncio.Event(), asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await receive())
        body.set()
        for _ in range(3):
            seen.append(await receive())
        done.set()

    async with connected(app) as client:
        await client.send(GET)
        await body.wait()
        assert len(seen) == 1
        reset(client)
        await done.wait()
    assert seen == [{"type": "http.request", "body": b"", "more_body": False}, *[{"type": "http.disconnect"}] * 3]


# --- Response Start and Response Body: send ---


@requirement("ASGI http, Response Start", "MUST", "headers may be left out, and may be any iterable of pairs of bytes.")
@pytest.mark.parametrize(
    "headers", [{}, {"headers": []}, {"headers": ()}, {"headers": iter(())}], ids=["none", "list", "tuple", "iterator"]
)
async def test_headers_may_be_left_out(headers: dict[str, Any]) -> None:
    async with connected(sending({**START, **headers}, LAST)) as client:
        await client.send(GET_CLOSE)
        assert undated(await client.rest()) == ok(b"ok", close=True)


@requirement("ASGI http, Response Start", "MAY", "Header pairs may be lists, and generators of pairs are read once.")
async def test_headers_may_be_generated() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({**START, "headers": ([b"x", b"%d" % i] for i in range(2))})
        await send(LAST)

    assert b"\r\nx: 0\r\nx: 1\r\n" in await answered(GET_CLOSE, app)


@requirement("ASGI http, Response Start", "MAY", "The start is not written before the first body message.")
async def test_the_start_is_held_until_the_body() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({**START, "status": 201})
        raise ValueError("after the start")

    assert (await answered(GET, app)).startswith(b"HTTP/1.1 500 ")


@requirement("ASGI http, Response Start", "MUST", "The application's Transfer-Encoding is ignored.")
async def test_the_applications_transfer_encoding_is_ignored() -> None:
    app = sending({**START, "headers": [(b"transfer-encoding", b"chunked")]}, LAST)
    assert await answered(GET_CLOSE, app) == ok(b"ok", close=True)


@requirement("ASGI http, Response Body", "MUST", "body and more_body may be left out: they are empty and False.")
async def test_body_and_more_body_have_defaults() -> None:
    assert await answered(GET_CLOSE, sending(START, {"type": "http.response.body"})) == ok(b"", close=True)
    pieces = ({"type": "http.response.body", "more_body": True}, LAST)
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ndate: D\r\nserver: minibg\r\nconnection: close\r\n\r\n"
    assert await answered(GET_CLOSE, sending(START, *pieces)) == head + b"2\r\nok\r\n0\r\n\r\n"


@requirement(
    "ASGI http, Response Body",
    "MUST",
    "A piece of the body is on its way when its send returns, and not held for the next.",
)
async def test_a_piece_is_written_at_once() -> None:
    more = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await more.wait()
        await send({"type": "http.response.body", "body": b"b"})

    async with connected(app) as client:
        await client.send(GET_CLOSE)
        assert (await client.reader.readuntil(b"1\r\na\r\n")).endswith(b"\r\n\r\n1\r\na\r\n")
        more.set()
        assert await client.rest() == b"1\r\nb\r\n0\r\n\r\n"


@requirement("ASGI http, Response Body", "MUST", "Messages after the end of the response are ignored.")
async def test_messages_after_the_end_are_ignored() -> None:
    more = {"type": "http.response.body", "body": b"more", "more_body": True}
    app = sending(START, LAST, LAST, more, START, {"type": "http.nonsense"})
    assert await answered(GET + GET_CLOSE, app) == ok(b"ok") + ok(b"ok", close=True)


@requirement(
    "ASGI, Extensions",
    "chosen",
    "Trailers are an extension that is not offered: the key is unknown, and a trailers message comes after the end.",
)
async def test_trailers_are_not_offered() -> None:
    assert "http.response.trailers" not in (await scope_of(GET_CLOSE))["extensions"]
    app = sending({**START, "trailers": True}, LAST, {"type": "http.response.trailers", "headers": [(b"a", b"b")]})
    assert await answered(GET + GET_CLOSE, app) == ok(b"ok") + ok(b"ok", close=True)


@requirement(
    "ASGI http, Response Body",
    "chosen",
    "A body may be another buffer than bytes, as Starlette sends it: a memoryview.",
)
@pytest.mark.parametrize("kind", [memoryview, bytearray])
async def test_a_body_may_be_a_buffer(kind: Any) -> None:
    more = {"type": "http.response.body", "body": kind(b"o"), "more_body": True}
    app = sending({**START, "headers": [(b"content-length", b"2")]}, more, {**LAST, "body": kind(b"k")})
    assert await answered(GET_CLOSE, app) == ok(b"ok", close=True)
    assert await answered(GET_CLOSE, sending(START, {**LAST, "body": kind(b"ok")})) == ok(b"ok", close=True)


@requirement("ASGI, Error Handling", "SHOULD", "Keys the server does not know are ignored, in both messages.")
async def test_unknown_keys_are_ignored() -> None:
    app = sending({**START, "trailers": False, "x": object()}, {**LAST, "x": object()})
    assert await answered(GET_CLOSE, app) == ok(b"ok", close=True)


@requirement(
    "ASGI http, Disconnected Client", "SHOULD", "send after the client has gone raises an OSError, on every call."
)
async def test_send_after_the_client_has_gone_raises() -> None:
    seen: list[BaseException] = []
    began, done = asyncio.Event(), asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        began.set()
        seen.append(ValueError((await receive())["type"]))
        for message in (START, LAST, LAST):
            try:
                await send(message)
            except OSError as error:
                seen.append(error)
        done.set()

    async with connected(app) as client:
        await client.send(GET)
        await began.wait()
        reset(client)
        await done.wait()
    assert [type(error) for error in seen] == [ValueError, *[ClientDisconnected] * 3]


@requirement(
    "ASGI http, Disconnect",
    "MUST",
    "A send or receive that outlives its call of the application keeps its meaning: nothing, and http.disconnect.",
)
async def test_the_callables_outlive_the_call() -> None:
    kept: list[Any] = []

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kept[:] = [receive, send]
        await respond(send, b"ok")

    async with connected(app) as client:
        await client.ask(GET)
        receive, send = kept
        assert await receive() == {"type": "http.disconnect"}
        await send(LAST)
        await client.send(GET_CLOSE)
        assert undated(await client.rest()) == ok(b"ok", close=True)


@requirement(
    "ASGI, Specification Versions",
    "MUST",
    "The application is called once a request, as a coroutine with scope, receive and send.",
)
async def test_the_application_is_called_once_a_request() -> None:
    calls: list[str] = []

    class Callable:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                calls.append(scope["path"])
                await respond(send, b"ok")

    await answered(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n" + GET_CLOSE, Callable())
    assert calls == ["/1", "/"] * 2
