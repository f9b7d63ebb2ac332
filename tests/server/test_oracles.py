"""The same small applications under uvicorn, hypercorn and minibg answer alike, or the difference is listed and explained.

The three servers run this file's `application` in processes of their own. A case is the bytes of a client on one connection;
its answer is everything that comes back, as h11 reads it: statuses, headers in any order, bodies, and how the connection
ended. Left out are Date and Server, whose values are no answer.
The text of a server's own error is its own too, so an error is compared by its status and by the close it announces.

`DIFFERENCES` is the other half of the proof: what a server answers differently from minibg, and why minibg does not. A listed
difference that has gone fails its test as an unlisted one does, so the table stays true for the versions it was made with.
"""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import h11
import pytest

from minibg.asgi import Receive, Scope, Send
from tests.server.wire import respond


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """All applications of this file, one for each path."""
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
    else:
        await PATHS.get(scope["path"], show)(scope, receive, send)


async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    scope["state"]["from"] = "startup"
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def body_of(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


async def show(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what it was given."""
    keys = ("type", "http_version", "method", "scheme", "path", "root_path")
    shown: dict[str, Any] = {key: scope[key] for key in keys}
    shown["raw_path"], shown["query"] = scope["raw_path"].decode(), scope["query_string"].decode()
    shown["headers"] = [f"{name.decode()}: {value.decode('latin-1')}" for name, value in scope["headers"]]
    shown["state"], shown["body"] = scope["state"], (await body_of(receive)).decode("latin-1")
    body = json.dumps(shown, indent=1).encode()
    await respond(send, body, 200, [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")])


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-pieces", b"3")]})
    for piece in (b"one ", b"", b"two "):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"three"})


async def counted_stream(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]})
    await send({"type": "http.response.body", "body": b"one ", "more_body": True})
    await send({"type": "http.response.body", "body": b"two"})


async def cookies(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, b"ok", 200, [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"content-length", b"2")])


async def short(scope: Scope, receive: Receive, send: Send) -> None:
    """No Content-Length: the server frames it."""
    await respond(send, b"short")


async def created(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, b"", 201, [(b"location", b"/1"), (b"content-length", b"0")])


async def no_content(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, b"", 204)


async def not_modified(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, b"", 304, [(b"etag", b'"1"')])


async def closing(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, b"bye", 200, [(b"connection", b"close"), (b"content-length", b"3")])


async def unread(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without a look at the body."""
    await respond(send, b"no", 403, [(b"content-length", b"2")])


async def fails(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("before the response")


async def fails_within(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
    await send({"type": "http.response.body", "body": b"part", "more_body": True})
    raise ValueError("within the response")


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await body_of(receive)
    await respond(send, body, 200, [(b"content-length", b"%d" % len(body))])


async def target(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what it takes for path and host."""
    host = dict(scope["headers"])[b"host"]
    body = b"%b at %b" % (scope["path"].encode(), host)
    await respond(send, body, 200, [(b"content-length", b"%d" % len(body))])


async def returns(scope: Scope, receive: Receive, send: Send) -> None:
    """No response at all."""


PATHS = {
    "/stream": stream,
    "/counted": counted_stream,
    "/cookies": cookies,
    "/short": short,
    "/created": created,
    "/204": no_content,
    "/304": not_modified,
    "/closing": closing,
    "/unread": unread,
    "/fails": fails,
    "/within": fails_within,
    "/returns": returns,
    "/echo": echo,
    "/target": target,
    "http://b/target": target,
    "a:443": cookies,
}


def request(line: str, *fields: str, body: bytes = b"") -> bytes:
    """A request that asks to close, so that the end of its answer is seen."""
    return "\r\n".join([f"{line} HTTP/1.1", "Host: a", *fields, "Connection: close", "", ""]).encode("latin-1") + body


def kept(line: str, *fields: str, body: bytes = b"") -> bytes:
    """One that does not."""
    return request(line, *fields, body=body).replace(b"Connection: close\r\n", b"")


CHUNKS = b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: x\r\n\r\n"

#: What a client sends on one connection.
CASES: dict[str, bytes] = {
    "get": request("GET /a/b?c=d&e"),
    "get with headers": request("GET /", "Accept: */*", "X-Twice: 1", "x-twice: 2", "X-Empty:", "X-Latin: \xe9"),
    "percent-encoded path": request("GET /a%20b%2Fc/%C3%A9?q=%20"),
    "empty query": request("GET /?"),
    "delete": request("DELETE /x"),
    "own method": request("BREW /pot"),
    "options *": request("OPTIONS *"),
    "absolute-form": request("GET http://b/target?q"),
    "head": request("HEAD /x"),
    "head of a stream": request("HEAD /stream"),
    "http/1.0": b"GET /x HTTP/1.0\r\n\r\n",
    "http/1.0 stream": b"GET /stream HTTP/1.0\r\n\r\n",
    "http/1.0 keep-alive": b"GET /cookies HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "post": request("POST /x", "Content-Length: 5", body=b"hello"),
    "post of nothing": request("POST /x", "Content-Length: 0"),
    "post in chunks": request("POST /x", "Transfer-Encoding: chunked", body=CHUNKS),
    "expect": request("POST /echo", "Content-Length: 5", "Expect: 100-continue", body=b"hello"),
    "unread body": kept("POST /unread", "Content-Length: 5", body=b"hello") + request("GET /cookies"),
    "unread chunks": kept("POST /unread", "Transfer-Encoding: chunked", body=CHUNKS) + request("GET /cookies"),
    "stream": request("GET /stream"),
    "counted stream": request("GET /counted"),
    "same header twice": request("GET /cookies"),
    "no length": request("GET /short"),
    "no length, head": request("HEAD /short"),
    "created": request("POST /created", "Content-Length: 0"),
    "204": request("GET /204"),
    "304": request("GET /304"),
    "application closes": kept("GET /closing") + kept("GET /cookies"),
    "fails": request("GET /fails"),
    "fails within": request("GET /within"),
    "returns": request("GET /returns"),
    "three in a row": kept("GET /1") + kept("POST /2", "Content-Length: 2", body=b"ab") + request("GET /3"),
    "close, then more": request("GET /cookies") + kept("GET /cookies"),
    "then garbage": kept("GET /cookies") + b"\x01\x02\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
    "two hosts": request("GET /cookies", "Host: b"),
    "bad host": b"GET /cookies HTTP/1.1\r\nHost: a/b\r\nConnection: close\r\n\r\n",
    "length and chunks": request("POST /cookies", "Content-Length: 5", "Transfer-Encoding: chunked", body=CHUNKS),
    "two lengths": request("POST /cookies", "Content-Length: 5", "Content-Length: 6", body=b"hello"),
    "bad length": request("POST /cookies", "Content-Length: five"),
    "coding without chunks": request("POST /cookies", "Transfer-Encoding: gzip"),
    "unknown coding": request("POST /cookies", "Transfer-Encoding: gzip, chunked"),
    "bare line feeds": request("GET /cookies").replace(b"\r\n", b"\n"),
    "folded header": request("GET /cookies", "X-Folded: a", " b"),
    "control byte": request("GET /cookies", "X-Control: \x01"),
    "space before colon": request("GET /cookies", "X-Space : a"),
    "blank line first": b"\r\n" + request("GET /cookies"),
    "http/2.0": request("GET /cookies").replace(b"1.1", b"2.0"),
    "http/1.2": request("GET /cookies").replace(b"1.1", b"1.2"),
    "connect": b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nConnection: close\r\n\r\n",
    "garbage": b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
}

COOKIES = "200, connection: close, content-length: 2, set-cookie: a=1, set-cookie: b=2 | ok"
BOTH = ("uvicorn", "hypercorn")


class Difference(NamedTuple):
    """The answer of other servers where it is not minibg's, and why minibg's is another."""

    servers: tuple[str, ...]
    answer: list[str]
    why: str


DIFFERENCES: dict[str, list[Difference]] = {
    "absolute-form": [
        Difference(
            BOTH,
            ["200, connection: close, content-length: 20 | http://b/target at a", "closed"],
            "RFC 9112 section 3.2.2: the host of the target replaces the Host field; an ASGI path is a path",
        )
    ],
    "head of a stream": [
        Difference(
            BOTH,
            ["200, connection: close, transfer-encoding: chunked, x-pieces: 3 | ", "closed"],
            "RFC 9112 section 6.1 allows the framing of a GET in the answer to a HEAD; there is nothing to frame",
        )
    ],
    "no length": [
        Difference(
            BOTH,
            ["200, connection: close, transfer-encoding: chunked | short", "closed"],
            "RFC 9110 section 8.6: a server that knows the length SHOULD say it, and one message is the whole body",
        )
    ],
    "no length, head": [
        Difference(
            BOTH,
            ["200, connection: close, transfer-encoding: chunked | ", "closed"],
            "as for the head of a stream; and what the application leaves out at a HEAD is not a length",
        )
    ],
    "expect": [
        Difference(
            BOTH,
            ["100 | 200, connection: close, content-length: 5 | hello", "closed"],
            "RFC 9110 section 10.1.1: a server MAY omit 100 if it has already received some of the content",
        )
    ],
    "fails within": [
        Difference(
            BOTH,
            ["200, connection: close, content-length: 10 | cut after b'part'", "closed"],
            "a reset, because an orderly end would be a lie where the end of the connection ends the body",
        )
    ],
    "close, then more": [
        Difference(
            ("hypercorn",),
            ["400, connection: close", "closed"],
            "RFC 9112 section 9.6: the client gets the answer to the request that asked for the close",
        )
    ],
    "bad host": [Difference(BOTH, [COOKIES, "closed"], "RFC 9112 section 3.2: MUST respond with a 400")],
    "length and chunks": [
        Difference(
            BOTH, [COOKIES, "closed"], "RFC 9112 section 6.3: a smuggling attempt, ought to be handled as an error"
        )
    ],
    "bare line feeds": [
        Difference(BOTH, [COOKIES, "closed"], "RFC 9112 section 2.2 allows both; two parsers that differ hide requests")
    ],
    "folded header": [
        Difference(BOTH, [COOKIES, "closed"], "RFC 9112 section 5.2: MUST reject, or replace by a space")
    ],
    "control byte": [Difference(BOTH, [COOKIES, "closed"], "RFC 9110 section 5.5: invalid and dangerous")],
    "unknown coding": [
        Difference(("uvicorn",), ["400, connection: close", "closed"], "RFC 9112 section 6.1: SHOULD respond with 501")
    ],
    "coding without chunks": [
        Difference(
            ("hypercorn",), ["501, connection: close", "closed"], "RFC 9112 section 6.3: the MUST of 400 comes first"
        )
    ],
    "blank line first": [
        Difference(BOTH, ["400, connection: close", "closed"], "RFC 9112 section 2.2: SHOULD ignore at least one")
    ],
    "http/2.0": [Difference(BOTH, [COOKIES, "closed"], "RFC 9110 section 15.6.6: another major version is 505")],
    "connect": [
        Difference(
            BOTH,
            [COOKIES.removesuffix("ok"), "closed"],
            "RFC 9110 section 9.3.6: any 2xx means that a tunnel has begun, and this is not a proxy",
        )
    ],
}

RUNS = {
    "minibg": "from minibg import run; run(app, fd=0, access_log=False)",
    "uvicorn": "import uvicorn; uvicorn.Server(uvicorn.Config(app, http='h11', access_log=False))"
    ".run(sockets=[socket.socket(fileno=0)])",
    "hypercorn": "import asyncio, hypercorn.asyncio, hypercorn.config; config = hypercorn.config.Config();"
    "config.bind = ['fd://0']; asyncio.run(hypercorn.asyncio.serve(app, config))",
}


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """Return each server's port. The sockets listen before the servers run, so an early client waits."""
    with ExitStack() as stack:
        ports = {}
        for name, run in RUNS.items():
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            code = f"import socket; from {__name__} import application as app; {run}"
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", code], stdin=listener.fileno(), stderr=subprocess.DEVNULL)
            )
            stack.callback(process.terminate)
            ports[name] = listener.getsockname()[1]
        yield ports


def answer(port: int, case: bytes) -> list[str]:
    """What comes back, a line for each response, and how the connection ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(case)
        data, end = b"", "closed"
        try:
            while piece := client.recv(65536):
                data += piece
        except ConnectionResetError:
            end = "reset"
        except TimeoutError:
            end = "left open"
    methods = [line.split(b" ")[0] for line in case.splitlines() if b" HTTP/" in line]
    return [*responses(data, methods), end]


def responses(data: bytes, methods: list[bytes]) -> Iterator[str]:
    for method in [*methods, b"GET"]:
        if not data:
            return
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
        parser.send(h11.EndOfMessage())
        parser.receive_data(data)
        parser.receive_data(b"")
        head, *body = one_response(parser)
        if head[:1] in "45" and "connection: close" in head and not head.startswith("403"):  # the server's own
            head, body = f"{head[:3]}, connection: close", []
        yield " | ".join([head, *body])
        data = parser.trailing_data[0]


def one_response(parser: h11.Connection) -> Iterator[str]:
    body = b""
    while True:
        try:
            event = parser.next_event()
        except h11.RemoteProtocolError:
            yield f"cut after {body!r}"
            return
        if isinstance(event, h11.InformationalResponse):
            yield f"{event.status_code}"
        elif isinstance(event, h11.Response):
            fields = [b"%b: %b" % field for field in event.headers if field[0] not in (b"date", b"server")]
            yield ", ".join([f"{event.status_code}", *sorted(field.decode("latin-1") for field in fields)])
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        else:
            yield body.decode("latin-1")
            return


@pytest.mark.parametrize("case", CASES)
def test_the_servers_answer_alike_but_for_what_is_listed(ports: dict[str, int], case: str) -> None:
    answers = {name: answer(port, CASES[case]) for name, port in ports.items()}
    expected = dict.fromkeys(answers, answers["minibg"])
    for difference in DIFFERENCES.get(case, []):
        expected |= dict.fromkeys(difference.servers, difference.answer)
        assert difference.answer != answers["minibg"], difference.why
    assert answers == expected


def test_every_difference_has_a_case() -> None:
    assert DIFFERENCES.keys() <= CASES.keys()
