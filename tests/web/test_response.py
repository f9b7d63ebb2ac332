"""Responses, message by message."""

import asyncio
import dataclasses
import enum
import os
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import pytest

from minibg.asgi import ClientDisconnected
from minibg.serving import serve
from minibg.web.app import App
from minibg.web.request import Request
from minibg.web.response import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from tests.web.driver import Answer, call


async def sent(response: Response, method: str = "GET", **options: Any) -> Answer:
    """What a handler that returns this response sends."""
    app = App()
    app.route("/", methods=["GET", "POST"])(lambda: response)
    return await call(app, method, "/", **options)


@pytest.mark.parametrize(
    ("response", "content_type", "body"),
    [
        (Response(), None, b""),
        (Response(b"\xff"), None, b"\xff"),
        (Response("ä", media_type="text/csv"), "text/csv; charset=utf-8", "ä".encode()),
        (Response("x", headers={"Content-Type": "a/b"}, media_type="c/d"), "a/b", b"x"),
        (HTMLResponse("<p>"), "text/html; charset=utf-8", b"<p>"),
        (PlainTextResponse("x", media_type="text/x; charset=latin-1"), "text/x; charset=latin-1", b"x"),
        (JSONResponse({"a": ["ä", None]}), "application/json", '{"a":["ä",null]}'.encode()),
    ],
)
async def test_a_response_says_its_type_and_its_length(
    response: Response, content_type: str | None, body: bytes
) -> None:
    answer = await sent(response)
    assert (answer.status, answer.body) == (200, body)
    assert answer.headers == {
        **({"content-type": content_type} if content_type else {}),
        "content-length": str(len(body)),
    }
    assert answer.messages == [
        {"type": "http.response.start", "status": 200, "headers": response.raw_headers},
        {"type": "http.response.body", "body": body},
    ]


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_content_has_no_length(status: int) -> None:
    assert (await sent(Response(None, status))).headers == {}


def test_a_length_that_is_given_is_kept() -> None:
    assert Response(b"", headers={"Content-Length": "5"}).raw_headers == [(b"content-length", b"5")]


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass(slots=True)
class Point:
    x: int
    when: date
    _secret: int = 0


async def test_json_knows_what_services_answer_with() -> None:
    content = [
        Point(1, date(2026, 1, 2)),
        datetime(2026, 1, 2, 3, tzinfo=UTC),
        UUID(int=1),
        Color.RED,
        {1},
        (2,),
        frozenset([3]),
        PurePosixPath("/a"),
    ]
    assert (await sent(JSONResponse(content))).json == [
        {"x": 1, "when": "2026-01-02"},
        "2026-01-02T03:00:00+00:00",
        "00000000-0000-0000-0000-000000000001",
        "red",
        [1],
        [2],
        [3],
        "/a",
    ]


def test_what_json_cannot_say_is_an_error() -> None:
    with pytest.raises(TypeError, match="object cannot be rendered as JSON"):
        JSONResponse(object())
    with pytest.raises(TypeError, match="type cannot be rendered as JSON"):
        JSONResponse(Point)
    with pytest.raises(ValueError, match="not JSON compliant"):
        JSONResponse(float("nan"))


async def test_a_redirect_keeps_the_method_and_quotes_its_target() -> None:
    answer = await sent(RedirectResponse("https://example.org/ä b?x=1#y"))
    assert (answer.status, answer.headers["location"]) == (307, "https://example.org/%C3%A4%20b?x=1#y")
    assert (await sent(RedirectResponse("/a", 303, {"x": "y"}))).headers == {
        "x": "y",
        "content-length": "0",
        "location": "/a",
    }


@pytest.mark.parametrize("value", ["a\r\nset-cookie: b=1", "a\n", "a\r", "a\0", "a\x1b", "\x7f", "\u20ac"])
def test_a_header_value_that_would_split_the_response_is_refused_where_it_is_set(value: str) -> None:
    """Not every server checks: under one that does not, the client would read a second head."""
    response = Response()
    with pytest.raises(ValueError):
        Response(headers={"x": value})
    with pytest.raises(ValueError):
        PlainTextResponse("", media_type=value)
    with pytest.raises(ValueError):
        response.headers["x"] = value
    with pytest.raises(ValueError):
        response.headers.append("x", value)
    assert response.raw_headers == [(b"content-length", b"0")]


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "\xe4"])
def test_a_header_name_is_a_token(name: str) -> None:
    for write in (lambda: Response(headers={name: "x"}), lambda: Response().headers.append(name, "x")):
        with pytest.raises(ValueError):
            write()


def test_a_tab_and_latin_1_may_be_in_a_value() -> None:
    assert Response(headers={"x": "a\tb \xe4"}).raw_headers[0] == (b"x", b"a\tb \xe4")


@pytest.mark.parametrize("text", ["/\r\nx: y", "/; Domain=evil.example", "\0"])
@pytest.mark.parametrize("option", ["path", "domain", "samesite", "expires", "max_age"])
def test_an_option_of_a_cookie_is_never_read_as_another_one(option: str, text: str) -> None:
    response = Response()
    with pytest.raises(ValueError):
        response.set_cookie("a", "b", **{option: text})
    with pytest.raises(ValueError):
        response.delete_cookie("a", path=text)
    assert response.headers.getlist("set-cookie") == []


@pytest.mark.parametrize("key", ["", "a b", "a;b", "a\r\nb", "path", "\u20ac"])
def test_the_name_of_a_cookie_is_a_token_and_no_option(key: str) -> None:
    with pytest.raises(ValueError):
        Response().set_cookie(key)


@pytest.mark.parametrize("value", ["a; b", "a\r\nb", 'a"b\\', "\xe4", "a,b"])
async def test_the_value_of_a_cookie_is_quoted_and_read_again(value: str) -> None:
    response = Response()
    response.set_cookie("a", value)
    written = response.headers["set-cookie"]
    assert not set("\r\n") & set(written)
    seen: list[dict[str, str]] = []
    app = App()

    @app.get("/")
    async def handler(request: Request) -> None:
        seen.append(request.cookies)

    await call(app, "GET", "/", headers={"Cookie": written.rpartition("; Path")[0]})
    assert seen == [{"a": value}]


async def test_a_bad_header_of_a_handler_becomes_a_500_without_it() -> None:
    app = App()

    @app.get("/")
    async def handler(name: str) -> Response:
        return Response(headers={"x-name": name})

    answer = await call(app, "GET", "/?name=a%0d%0aset-cookie:%20b=1")
    assert (answer.status, type(answer.error)) == (500, ValueError)
    assert "x-name" not in answer.headers


def test_cookies_are_set_and_deleted() -> None:
    response = Response()
    response.set_cookie("a", "b c")
    response.set_cookie("d", max_age=60, expires=datetime(2026, 1, 2, tzinfo=UTC), path=None, domain="example.org")
    response.set_cookie("e", secure=True, httponly=True, samesite="strict")
    response.delete_cookie("f", path="/x")
    cookies = response.headers.getlist("set-cookie")
    assert cookies[:3] == [
        'a="b c"; Path=/; SameSite=lax',
        'd=""; Domain=example.org; expires=Fri, 02 Jan 2026 00:00:00 GMT; Max-Age=60; SameSite=lax',
        'e=""; HttpOnly; Path=/; SameSite=strict; Secure',
    ]
    assert cookies[3].startswith('f=""; expires=') and cookies[3].endswith(" GMT; Max-Age=0; Path=/x; SameSite=lax")


# Streams.


class Steps:
    """An async iterator that is no generator."""

    def __init__(self) -> None:
        self.left = 2

    def __aiter__(self) -> "Steps":
        return self

    async def __anext__(self) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise StopAsyncIteration
        return b"x"


async def test_a_stream_is_sent_piece_by_piece_from_any_iterator() -> None:
    async def asynchronous() -> AsyncIterator[str | bytes]:
        yield "ä"
        yield b"b"

    def synchronous() -> Iterator[str]:
        yield threading.current_thread().name

    for content, pieces in (
        (asynchronous(), ["ä".encode(), b"b"]),
        (synchronous(), [b"minibg-handler-1"]),
        (["a", b"b"], [b"a", b"b"]),
        (Steps(), [b"x", b"x"]),
        ([], []),
    ):
        response = StreamingResponse(content, 201, {"x": "y"}, "text/plain")
        assert (await sent(response)).messages == [
            {
                "type": "http.response.start",
                "status": 201,
                "headers": [(b"x", b"y"), (b"content-type", b"text/plain; charset=utf-8")],
            },
            *[{"type": "http.response.body", "body": piece, "more_body": True} for piece in pieces],
            {"type": "http.response.body", "body": b""},
        ]


async def test_to_head_a_stream_gives_only_its_head() -> None:
    steps = Steps()
    assert [m["type"] for m in (await sent(StreamingResponse(steps), "HEAD")).messages] == [
        "http.response.start",
        "http.response.body",
    ]
    assert steps.left == 2


@pytest.mark.parametrize("leaves_after", [0, 1, 2])
@pytest.mark.parametrize("is_sync", [True, False])
async def test_a_stream_is_closed_when_the_client_leaves_and_its_tasks_are_not_dropped(
    leaves_after: int, is_sync: bool
) -> None:
    log: list[str] = []

    def synchronous() -> Iterator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            log.append("closed")

    async def asynchronous() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            log.append("closed")

    response = StreamingResponse(synchronous() if is_sync else asynchronous())
    answer = await sent(response, client_leaves_after=leaves_after)
    assert (type(answer.error), len(answer.messages), answer.hold.dropped) == (ClientDisconnected, leaves_after, False)
    assert log == (["closed"] if leaves_after else [])


async def test_a_stream_that_fails_is_left_unfinished() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"x"
        raise KeyError("y")

    answer = await sent(StreamingResponse(failing()))
    assert (type(answer.error), answer.messages[-1].get("more_body")) == (KeyError, True)
    assert not answer.hold.dropped  # Its head has left.


# Files.


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.txt"
    path.write_bytes(b"0123456789")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


MODIFIED = "Sun, 09 Sep 2001 01:46:40 GMT"


async def test_a_file_is_sent_with_all_that_is_known_of_it(file: Path) -> None:
    answer = await sent(FileResponse(file, filename="ä.txt"))
    etag = answer.headers["etag"]
    assert answer.headers == {
        "accept-ranges": "bytes",
        "content-type": "text/plain; charset=utf-8",
        "content-disposition": "attachment; filename*=utf-8''%C3%A4.txt",
        "last-modified": MODIFIED,
        "etag": etag,
        "content-length": "10",
    }
    assert (answer.status, answer.body) == (200, b"0123456789")
    os.utime(file, (1, 1))
    assert (await sent(FileResponse(file))).headers["etag"] != etag


async def test_a_large_file_is_sent_in_chunks(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(200_000))
    answer = await sent(FileResponse(str(path)))
    assert [len(m["body"]) for m in answer.messages[1:]] == [65536, 65536, 65536, 3392, 0]
    assert (answer.headers["content-type"], answer.body) == ("application/octet-stream", path.read_bytes())


async def test_to_head_a_file_gives_its_head(file: Path) -> None:
    answer = await sent(FileResponse(file), "HEAD", headers={"Range": "bytes=0-1"})
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "10", b"")


@pytest.mark.parametrize(
    ("asked", "status", "body", "shown"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=7-99", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=4-2", 416, b"", "bytes */10"),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("lines=0-1", 200, b"0123456789", None),
        ("bytes=x", 200, b"0123456789", None),
        ("bytes=" + "9" * 30 + "-", 200, b"0123456789", None),
    ],
)
async def test_one_range_of_a_file(file: Path, asked: str, status: int, body: bytes, shown: str | None) -> None:
    answer = await sent(FileResponse(file), headers={"Range": asked})
    assert (answer.status, answer.body, answer.headers.get("content-range")) == (status, body, shown)
    assert answer.headers["content-length"] == str(len(body))


async def test_a_file_the_client_has_is_not_sent_again(file: Path) -> None:
    etag = (await sent(FileResponse(file))).headers["etag"]
    for headers, status in (
        ({"If-None-Match": etag}, 304),
        ({"If-None-Match": f'"x", W/{etag}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"x"', "If-Modified-Since": MODIFIED}, 200),
        ({"If-Modified-Since": MODIFIED}, 304),
        ({"If-Modified-Since": "Sun, 09 Sep 2001 01:46:39 GMT"}, 200),
        ({"Range": "bytes=0-1", "If-Range": etag}, 206),
        ({"Range": "bytes=0-1", "If-Range": MODIFIED}, 206),
        ({"Range": "bytes=0-1", "If-Range": '"x"'}, 200),
    ):
        answer = await sent(FileResponse(file), headers=headers)
        assert (headers, answer.status) == (headers, status)
        assert ("content-length" in answer.headers, answer.body == b"") == (status != 304, status == 304)


async def test_a_response_may_be_sent_twice(file: Path) -> None:
    response = FileResponse(file)
    assert (await sent(response, headers={"Range": "bytes=0-1"})).headers["content-range"] == "bytes 0-1/10"
    assert "content-range" not in (await sent(response)).headers


async def test_conditions_are_for_a_plain_get(file: Path) -> None:
    asked = {"If-None-Match": "*", "Range": "bytes=0-1"}
    assert (await sent(FileResponse(file), "POST", headers=asked)).status == 200
    assert (await sent(FileResponse(file, 404), headers=asked)).status == 404


@pytest.mark.parametrize("name", ["none", "folder", "fifo", "n" * 300, "a\0", "data.txt/x"])
@pytest.mark.parametrize("has_root", [True, False])
async def test_a_file_that_is_missing_or_no_file_is_not_found(file: Path, name: str, has_root: bool) -> None:
    """Opening a fifo would block a thread until a writer comes."""
    (file.parent / "folder").mkdir()
    os.mkfifo(file.parent / "fifo")
    response = FileResponse(name, root=file.parent) if has_root else FileResponse(f"{file.parent}/{name}")
    answer = await sent(response)
    assert (answer.status, answer.json, answer.error) == (404, {"detail": "Not Found"}, None)


@pytest.fixture
def root(file: Path) -> Path:
    """A folder beside the file, with links in it."""
    root = file.parent / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.txt").write_text("inside")
    (root / "in").symlink_to(root / "sub" / "a.txt")
    (root / "out").symlink_to(file)
    (root / "up").symlink_to(file.parent)
    (root / "loop").symlink_to(root / "loop")
    (root / "device").symlink_to("/dev/zero")
    (file.parent / "root-beside").write_text("secret")
    return root


@pytest.mark.parametrize("name", ["sub/a.txt", "in", "./sub//a.txt", "sub/../in", "../root/in"])
async def test_a_file_below_the_root_is_served(root: Path, name: str) -> None:
    assert (await sent(FileResponse(name, root=root))).body == b"inside"
    assert (await sent(FileResponse(root / name, root=str(root)))).body == b"inside"


ESCAPES = [
    *("../data.txt", "sub/../../data.txt", "../root-beside", "out", "up/data.txt", "loop", "device", ""),
    *("/etc/passwd", "//etc/passwd", "/dev/zero", "/dev/stdin", "..", "~/.profile", "%2e%2e/data.txt", "..\\data.txt"),
    *("sub/a.txt\0", "\0", "in/../../data.txt", "..\u2215data.txt", "\udc80"),
]


@pytest.mark.parametrize("name", ESCAPES)
async def test_a_path_that_leaves_the_root_is_not_found(root: Path, name: str) -> None:
    answer = await sent(FileResponse(name, root=root))
    assert (answer.status, answer.json, answer.error) == (404, {"detail": "Not Found"}, None)


@pytest.mark.parametrize(
    "target", ["/%2e%2e/data.txt", "/..%2fdata.txt", "/%252e%252e/data.txt", "//etc/passwd", "/a%00"]
)
async def test_no_way_to_write_a_path_leads_out_of_the_root(root: Path, target: str) -> None:
    """Through the real server, which decodes the path."""
    app = App()

    @app.get("/files/{name:path}")
    async def handler(name: str) -> FileResponse:
        return FileResponse(name, root=root)

    async with serve(app, port=0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for path in ("/sub/a.txt", target):
            writer.write(f"GET /files{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        writer.write_eof()
        answer = await reader.read()
        writer.close()
    assert (answer.count(b" 200 OK"), answer.count(b" 404 Not Found"), b"inside" in answer) == (1, 1, True)


async def test_a_file_that_shrinks_while_it_is_sent_breaks_the_response(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 200_000)
    response = FileResponse(path)

    class Shrinking:
        """Middleware that cuts the file when its head passes by."""

        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def cutting(message: Any) -> None:
                if message["type"] == "http.response.start":
                    os.truncate(path, 10)
                await send(message)

            await self.app(scope, receive, cutting)

    app = App()
    app.get("/")(lambda: response)
    app.add_middleware(Shrinking)
    answer = await call(app, "GET", "/")
    assert (answer.body, str(answer.error)) == (b"x" * 10, f"{path} became shorter while it was sent")
