"""The requirements of RFC 9112, RFC 9110 and ASGI, each with the test that shows it; and the conversation they are shown in.

A test of a requirement says which one::

    @requirement("RFC 9112 §3.2", "MUST", "A request without Host is answered with 400.")
    async def test_a_request_without_host_is_refused() -> None:
        assert await answered(b"GET / HTTP/1.1\\r\\n\\r\\n") == refused(400)

and ``python -m tests.server.requirements`` writes README.md from the files of `FILES`, in the order in which they stand there.

Why the verdict can be believed. A row exists because a test of that name exists: `rows` imports the files and reads the
tests, and refuses a test that is skipped, expected to fail or without a requirement. The suite fails if the committed table
is not the one that the tests would write (`test_rfc_table`), and it fails if one of the tests does. So where the suite passes,
every row holds. A requirement that is not met has no row and no test: it is a fault, and is mended.

The level is the word of the specification: MUST, SHOULD, MAY, compared with the texts. "chosen" stands where the text leaves
the server the choice, or only warns, or where this server differs; then the sentence says what it does. What only has a
grammar is told by two general sentences: what matches it is understood as it is meant (RFC 9110 §2.4, MUST), and what does
not is answered with 400 (RFC 9112 §2.2, SHOULD). ASGI has few such words: what it describes is a MUST here.

The conversation is with a real server over a real socket. `answered` has it twice, with the bytes in one piece and with each
byte alone, and asserts that what comes back is the same: the answer does not depend on how the network cuts the request.
Tests without it are about a moment (a client that leaves, a body that is late), which they bring about themselves. Only the Date is replaced, by ``D``; all other bytes are compared.

Rejected: a verdict written from the results of a run. It would be as old as the run; this one is as old as the last test.
"""

import asyncio
import importlib
import re
import socket
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from minibg.asgi import ASGIApp, Receive, Scope, Send
from tests.server.wire import Client, connected, read_body, respond, without_lifespan

Test = TypeVar("Test", bound=Callable[..., Any])

README = Path(__file__).with_name("README.md")
#: The files with requirements, in reading order.
FILES = (
    "test_rfc9112_head",
    "test_rfc9112_body",
    "test_rfc9112_connection",
    "test_rfc9110",
    "test_asgi_http",
    "test_asgi_errors",
    "test_asgi_lifespan",
)
_DATE = re.compile(rb"date: [A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT\r\n")
_BEFORE = """\
# What HTTP/1.1 and ASGI ask of a server, and the tests that show it

Written by `python -m tests.server.requirements` from the tests themselves: a row stands here because the test it names exists,
and the suite fails if this file is not what the tests would write. How it is done is told in [requirements.py](requirements.py).

Every test talks to a server over a socket and compares whole answers. Requests whose answer is a matter of their bytes alone
are sent twice, in one piece and byte by byte, and are answered alike. The level is the specification's word (ASGI has few:
MUST stands for what it describes); "chosen" is where it leaves the server the choice, or where this server differs, and says so.
What the server does beyond the specifications (deadlines, limits, stopping) is in the other tests of this folder.
"""


# --- the table ---


def requirement(where: str, level: str, what: str) -> Callable[[Test], Test]:
    """Say which requirement a test shows: its section, its level, and what it asks."""

    def mark(test: Test) -> Test:
        setattr(test, "requirement", (where, level, what))  # noqa: B010 - a function has no such attribute to a type checker
        return test

    return mark


class Row(NamedTuple):
    """One requirement of the table."""

    where: str
    level: str
    what: str
    file: str
    test: str


def rows() -> list[Row]:
    """A row for each test in the files. Raises ValueError for a test that would not be run, or shows nothing."""
    found = []
    for file in FILES:
        for name, test in vars(importlib.import_module(f"tests.server.{file}")).items():
            if not name.startswith("test_"):
                continue
            marks = {mark.name for mark in getattr(test, "pytestmark", ())}
            if not hasattr(test, "requirement") or marks & {"skip", "skipif", "xfail"}:
                raise ValueError(f"{file}.{name} shows no requirement, or may not be run")
            where, level, what = test.requirement
            found.append(Row(where, level, what, file, name))
    return found


def table() -> str:
    """The text of README.md."""
    parts, known = [_BEFORE], rows()
    for file in FILES:
        title = (importlib.import_module(f"tests.server.{file}").__doc__ or "").partition("\n")[0].rstrip(".")
        parts.append(f"\n## {title}\n\n| Where | Level | What | Verdict | Test |\n|---|---|---|---|---|\n")
        for row in known:
            if row.file == file:
                what = row.what.replace("|", "\\|")
                parts.append(f"| {row.where} | {row.level} | {what} | holds | [`{row.test}`]({file}.py) |\n")
    return "".join(parts)


# --- the conversation ---


@without_lifespan
async def mirror(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the request as it was understood."""
    body = await read_body(receive)
    target = scope["path"].encode() + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    await respond(send, b"%b %b %b [%b]" % (scope["method"].encode(), target, scope["http_version"].encode(), body))


async def answered(data: bytes, app: ASGIApp = mirror, **settings: Any) -> bytes:
    """All that comes back until the connection ends, the same however the bytes are cut."""
    whole = await _conversation([data], app, settings)
    one_by_one = await _conversation([data[i : i + 1] for i in range(len(data))], app, settings)
    assert one_by_one == whole
    return whole


async def _conversation(pieces: Iterable[bytes], app: ASGIApp, settings: dict[str, Any]) -> bytes:
    async with connected(app, **settings) as client:
        await send_in_pieces(client, pieces)
        return undated(await client.rest())


async def send_in_pieces(client: Client, pieces: Iterable[bytes]) -> None:
    """Each piece in a packet of its own; the server, which runs in this loop too, reads before the next."""
    client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces:
        await client.send(piece)
        await asyncio.sleep(0)


async def understood(data: bytes, **settings: Any) -> list[tuple[Scope, bytes]]:
    """The scopes and bodies that the application gets, the same however the bytes are cut."""
    runs = []
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        run: list[tuple[Scope, bytes]] = []
        await _conversation(pieces, _keeping(run), settings)
        runs.append(run)
    whole, one_by_one = (
        [({**scope, "client": None, "server": None, "extensions": None}, body) for scope, body in run] for run in runs
    )
    assert one_by_one == whole
    return runs[0]


def _keeping(run: list[tuple[Scope, bytes]]) -> ASGIApp:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        run.append((scope, await read_body(receive)))
        await respond(send, b"ok")

    return app


def undated(answer: bytes) -> bytes:
    """The answer with each valid Date replaced by D."""
    return _DATE.sub(b"date: D\r\n", answer)


def ok(body: bytes, *, close: bool = False, status: bytes = b"200 OK", content: bytes | None = None) -> bytes:
    """The answer of the mirror, and of others that give a body in one message; ``content`` if other bytes than the body come."""
    end = b"connection: close\r\n\r\n" if close else b"\r\n"
    head = b"HTTP/1.1 %b\r\ncontent-length: %d\r\ndate: D\r\nserver: minibg\r\n%b" % (status, len(body), end)
    return head + (body if content is None else content)


def refused(code: int, *fields: bytes, body: bool = True, more: str = "") -> bytes:
    """The server's own answer, whose text is the phrase and ``more``. It ends the connection."""
    status = HTTPStatus(code)
    text = f"{status.phrase}{more}\n".encode()
    lines = [f"HTTP/1.1 {code} {status.phrase}".encode(), b"content-type: text/plain; charset=utf-8", *fields]
    lines += [b"content-length: %d" % len(text)] if body else []
    lines += [b"date: D", b"server: minibg", b"connection: close", b"", b""]
    return b"\r\n".join(lines) + (text if body else b"")


if __name__ == "__main__":
    README.write_text(table())
