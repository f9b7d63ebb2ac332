"""One access line a request, at its end, and nothing in it that a client could forge."""

import asyncio
import logging
import re

import pytest

from minibg.asgi import Receive, Scope, Send
from minibg.server.access import escaped
from tests.server.wire import GET, Client, connected, echo, respond, serving, without_lifespan


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.name == "minibg.access"]
    return [re.sub(r"^127.0.0.1:\d+|\d\.\d{3}$", "*", re.sub(r"\d\.\d{3}$", "*", line)) for line in found]


async def test_a_line_has_client_request_status_bytes_and_seconds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with connected(echo) as client:
        await client.send(GET + b'POST /a%0a" HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi')
        size = len(await client.rest())
    found = lines(caplog)
    sizes = [int(line.split()[-2]) for line in found]
    assert [line.replace(f" {n} ", " N ") for line, n in zip(found, sizes, strict=True)] == [
        '* "GET / HTTP/1.1" 200 N *',
        '* "POST /a%0a\\" HTTP/1.0" 200 N *',
    ]
    assert sum(sizes) == size


async def test_an_answer_of_the_server_itself_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with connected(echo) as client:
        await client.send(b"GET /\x1b HTTP/1.1\r\n\r\n")
        size = len(await client.rest())
    assert lines(caplog) == [f'* "GET /\\x1b HTTP/1.1" 400 {size} *']


async def test_a_request_whose_client_has_gone_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    gone = asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with connected(app) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
        client.writer.get_extra_info("socket").setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER: a reset
        client.writer.transport.abort()
        await asyncio.wait_for(gone.wait(), 5)
    assert lines(caplog) in (['* "POST / HTTP/1.1" 499 0 *'], ['* "POST / HTTP/1.1" 400 0 *'])


async def test_a_failed_application_has_its_500(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError

    async with connected(app) as client:
        await client.send(GET)
        size = len(await client.rest())
    assert lines(caplog) == [f'* "GET / HTTP/1.1" 500 {size} *']


async def test_without_an_access_log_there_is_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with connected(echo, access_log=False) as client:
        await client.ask(GET)
        await client.send(b"nonsense\r\n\r\n")
        await client.rest()
    assert lines(caplog) == []


@pytest.mark.parametrize(
    ("raw", "shown"), [(b"GET / x", "GET / x"), (b'"\\', '\\"\\\\'), (b"\r\n\t\0\x1b\xff", r"\r\n\t\x00\x1b\xff")]
)
def test_bytes_of_the_client_are_escaped(raw: bytes, shown: str) -> None:
    assert escaped(raw) == shown


async def test_a_unix_client_has_no_name(caplog: pytest.LogCaptureFixture, tmp_path: object) -> None:
    caplog.set_level(logging.INFO)

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"ok")

    async with serving(app, uds=f"{tmp_path}/s"):
        reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/s")
        await Client(reader, writer).ask(GET)
        writer.close()
    assert lines(caplog)[0].startswith('- "GET / HTTP/1.1" 200 ')
