"""Responses: ASGI callables that a handler returns. Starlette's names and signatures.

A response is made on the loop and sent by calling it. That it is an ASGI callable is the whole interface: whatever
has ``(scope, receive, send)`` can send one, middleware too.

The rules of this file:

- A response that is known whole says its length; one that is not leaves the framing to the server.
- What blocks runs in the application's threads: files, and iterators that are not asynchronous.
- When the client has gone, `send` raises `minibg.asgi.ClientDisconnected` and it passes through here. Iterators and
  files are closed on the way. Whether the response's tasks then run is not decided here.
- There is no ``background=``: tasks belong to the request, and two places to add them would need an order.

JSON is the standard library's, compact, in UTF-8, and never NaN, which JSON does not have. It knows what services
answer with: dataclasses (without the fields whose name begins with an underscore), dates, UUIDs, enums, sets, paths.
`FileResponse` answers conditional requests and one range (RFC 9110 §13, §14); several ranges at once are answered
with the whole file, which §14.2 allows.
"""

import dataclasses
import json
import os
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from datetime import date, datetime, time
from email.utils import format_datetime, formatdate, parsedate_to_datetime
from enum import Enum
from http.cookies import SimpleCookie
from mimetypes import guess_type
from pathlib import Path, PurePath
from re import fullmatch
from typing import Any, BinaryIO, ClassVar, Literal
from urllib.parse import quote
from uuid import UUID

from minibg.asgi import Receive, Scope, Send
from minibg.web.fields import Headers, MutableHeaders, RawHeaders

#: Bytes read from a file at a time: what Starlette reads, and half of what a socket usually takes.
CHUNK = 64 * 1024


class Response:
    """A body known whole."""

    media_type: ClassVar[str | None] = None

    def __init__(
        self,
        content: Any = None,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
    ) -> None:
        self.status_code = status_code
        self.body = self.render(content)
        self.raw_headers = self._raw_headers(headers, media_type)
        # RFC 9110 §8.6: neither 1xx nor 204 may have a Content-Length; in a 304 it would be that of the 200.
        if status_code >= 200 and status_code not in {204, 304} and "content-length" not in self.headers:
            self.raw_headers.append((b"content-length", b"%d" % len(self.body)))

    def _raw_headers(self, headers: Mapping[str, str] | None, media_type: str | None) -> RawHeaders:
        raw = (
            [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
            if headers
            else []
        )
        content_type = media_type or self.media_type
        if content_type is not None and not any(name == b"content-type" for name, _ in raw):
            if content_type.startswith("text/") and "charset=" not in content_type.lower():
                content_type += "; charset=utf-8"
            raw.append((b"content-type", content_type.encode("latin-1")))
        return raw

    def render(self, content: Any) -> bytes:
        """The body's bytes."""
        if content is None:
            return b""
        return content.encode() if isinstance(content, str) else bytes(content)

    @property
    def headers(self) -> MutableHeaders:
        """The head's fields, to read and to set."""
        return MutableHeaders(self.raw_headers)

    def set_cookie(
        self,
        key: str,
        value: str = "",
        max_age: int | None = None,
        expires: datetime | str | int | None = None,
        path: str | None = "/",
        domain: str | None = None,
        secure: bool = False,
        httponly: bool = False,
        samesite: Literal["lax", "strict", "none"] | None = "lax",
    ) -> None:
        """Ask the client to keep a cookie: for `max_age` seconds, until `expires` (seconds from now when a number)."""
        cookie = SimpleCookie({key: value})
        when = format_datetime(expires, usegmt=True) if isinstance(expires, datetime) else expires
        options = {"max-age": max_age, "expires": when, "path": path, "domain": domain, "samesite": samesite}
        cookie[key].update({name: option for name, option in options.items() if option is not None})
        cookie[key].update({"secure": secure, "httponly": httponly})
        self.raw_headers.append((b"set-cookie", cookie[key].OutputString().encode("latin-1")))

    def delete_cookie(self, key: str, path: str = "/", domain: str | None = None, **options: Any) -> None:
        """Ask the client to forget a cookie; path and domain are those it was set with, `options` as in set_cookie."""
        self.set_cookie(key, max_age=0, expires=0, path=path, domain=domain, **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})


class HTMLResponse(Response):
    """A page."""

    media_type = "text/html"


class PlainTextResponse(Response):
    """Text."""

    media_type = "text/plain"


def _jsonable(value: Any) -> Any:
    """What the standard library's encoder cannot say, in words it can."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if not field.name.startswith("_")]
        return {name: getattr(value, name) for name in names}
    match value:
        case datetime() | date() | time():
            return value.isoformat()
        case UUID() | PurePath():
            return str(value)
        case Enum():
            return value.value
        case set() | frozenset():
            return list(value)
    raise TypeError(
        f"{type(value).__name__} is not JSON: return a dict, a list or a dataclass of what JSON can say"
    )


class JSONResponse(Response):
    """JSON."""

    media_type = "application/json"
    encode = json.JSONEncoder(
        ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_jsonable
    ).encode

    def render(self, content: Any) -> bytes:
        """The body's bytes."""
        return self.encode(content).encode()


class RedirectResponse(Response):
    """Go there: 307, so that the method stays."""

    def __init__(self, url: object, status_code: int = 307, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(None, status_code, headers)
        self.headers["location"] = quote(str(url), safe=":/%#?=@[]!$&'()*+,;")


class StreamingResponse(Response):
    """A body sent piece by piece, as the iterator gives it."""

    def __init__(
        self,
        content: AsyncIterable[str | bytes] | Iterable[str | bytes],
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
    ) -> None:
        self.content = content
        self.status_code = status_code
        self.raw_headers = self._raw_headers(headers, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. To HEAD only the head is owed, and the iterator is not asked for anything."""
        content = self.content
        chunks = content if isinstance(content, AsyncIterable) else scope["minibg.threads"].iterate(content)
        try:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            if scope["method"] != "HEAD":
                async for chunk in chunks:
                    body = chunk.encode() if isinstance(chunk, str) else chunk
                    await send({"type": "http.response.body", "body": body, "more_body": True})
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
        await send({"type": "http.response.body", "body": b""})


class FileResponse(Response):
    """A file."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        filename: str | None = None,
        content_disposition_type: str = "attachment",
    ) -> None:
        self.path = Path(path)
        self.status_code = status_code
        guessed = guess_type(filename or self.path)[0] or "application/octet-stream"
        self.raw_headers = self._raw_headers(headers, media_type or guessed)
        self.headers.setdefault("accept-ranges", "bytes")
        if filename is not None:
            quoted = quote(filename)  # RFC 6266 §4.3: names beyond ASCII travel encoded
            name = f'filename="{filename}"' if quoted == filename else f"filename*=utf-8''{quoted}"
            self.headers.setdefault("content-disposition", f"{content_disposition_type}; {name}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, or the part of it that was asked for, or word that the client has it already."""
        run = scope["minibg.threads"].run
        file: BinaryIO = await run(self.path.open, "rb")
        try:
            stat = await run(os.fstat, file.fileno())
            headers = self.headers
            headers.setdefault("last-modified", formatdate(stat.st_mtime, usegmt=True))
            headers.setdefault("etag", f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"')
            status, start, stop = self._selection(scope, stat.st_size)
            if status != 304:
                headers["content-length"] = str(stop - start)
            if status in {206, 416}:
                shown = "*" if status == 416 else f"{start}-{stop - 1}"
                headers["content-range"] = f"bytes {shown}/{stat.st_size}"
            await send({"type": "http.response.start", "status": status, "headers": self.raw_headers})
            if scope["method"] != "HEAD" and start < stop:
                await run(file.seek, start)
                while start < stop:
                    chunk = await run(file.read, min(CHUNK, stop - start))
                    if not chunk:
                        raise RuntimeError(f"{self.path} became shorter while it was sent")
                    start += len(chunk)
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await run(file.close)

    def _selection(self, scope: Scope, size: int) -> tuple[int, int, int]:
        """Status, first byte and the byte after the last, as RFC 9110 §13.2.2 orders the conditions."""
        asked = Headers(scope["headers"])
        whole = (self.status_code, 0, size)
        if self.status_code != 200 or scope["method"] not in {"GET", "HEAD"}:
            return whole
        if self._client_has_it(asked):
            return 304, 0, 0
        # §14.2: Range is for GET. §13.1.5: If-Range compares strongly, and a date only when it is the very same.
        if scope["method"] != "GET" or asked.get("if-range", self.headers["etag"]) not in (
            self.headers["etag"],
            self.headers["last-modified"],
        ):
            return whole
        return _one_range(asked.get("range", ""), size) or whole

    def _client_has_it(self, asked: Headers) -> bool:
        if "if-none-match" in asked:  # §13.1.2: compared weakly; If-Modified-Since is then ignored
            known = [
                tag.strip().removeprefix("W/") for tag in ",".join(asked.getlist("if-none-match")).split(",")
            ]
            return "*" in known or self.headers["etag"].removeprefix("W/") in known
        try:
            since = parsedate_to_datetime(asked["if-modified-since"])
            return parsedate_to_datetime(self.headers["last-modified"]) <= since
        except (KeyError, ValueError, TypeError):  # absent, or §13.1.3: not a date, so to be ignored
            return False


def _one_range(text: str, size: int) -> tuple[int, int, int] | None:
    """The bytes that one ``Range: bytes=...`` asks for; None when it is to be ignored (RFC 9110 §14.1.2, §14.2)."""
    asked = fullmatch(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*", text)
    if asked is None or asked[0].strip().endswith("=-"):
        return None
    first, last = asked[1], asked[2]
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < int(first):
            return None
    return (206, start, stop) if start < stop else (416, 0, 0)
