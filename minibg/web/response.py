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
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from datetime import date, datetime, time
from email.utils import format_datetime, formatdate
from enum import Enum
from http.cookies import SimpleCookie
from mimetypes import guess_type
from pathlib import Path, PurePath
from re import fullmatch
from typing import Any, ClassVar
from urllib.parse import quote
from uuid import UUID

from minibg.asgi import Receive, Scope, Send
from minibg.web.fields import Headers, MutableHeaders

#: Bytes read from a file at a time, as in Starlette.
CHUNK = 64 * 1024

Fields = Mapping[str, str] | None


class Response:
    """A body known whole."""

    media_type: ClassVar[str | None] = None

    def __init__(
        self, content: Any = None, status_code: int = 200, headers: Fields = None, media_type: str | None = None
    ) -> None:
        self.status_code = status_code
        # RFC 9110 §8.6, §15.3.5, §15.4.5: these have no content, no length of it, and so no type.
        has_content = status_code >= 200 and status_code not in {204, 304}
        self.content, self.body = content, self.render(content) if has_content else b""
        fields = {name.lower(): value for name, value in (headers or {}).items()}
        media_type = media_type or self.media_type
        if media_type is not None and has_content:
            charset = "; charset=utf-8" if media_type.startswith("text/") and "charset=" not in media_type else ""
            fields.setdefault("content-type", media_type + charset)
        if self.body is not None and has_content:
            fields.setdefault("content-length", str(len(self.body)))
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]

    @property
    def headers(self) -> MutableHeaders:
        """The fields of the head, to read and to set."""
        return MutableHeaders(self.raw_headers)

    def render(self, content: Any) -> bytes | None:
        """The body; None when it is not known yet."""
        return content.encode() if isinstance(content, str) else bytes(content or b"")

    def set_cookie(self, key: str, value: str = "", **options: str | float | datetime | None) -> None:
        """Ask the client to keep a cookie.

        The options are `max_age` (seconds), `expires` (a datetime in UTC, or seconds from now), `path`, `domain`,
        `secure`, `httponly` and `samesite`. Without them: ``path="/"``, ``samesite="lax"``.
        """
        cookie = SimpleCookie({key: value})[key]
        for name, option in {"path": "/", "samesite": "lax", **options}.items():
            if option is not None:
                said = format_datetime(option, usegmt=True) if isinstance(option, datetime) else option
                cookie[name.replace("_", "-")] = said
        self.headers.append("set-cookie", cookie.OutputString())

    def delete_cookie(self, key: str, **options: str | float | datetime | None) -> None:
        """Ask the client to forget a cookie. Its path and domain are those it was set with."""
        self.set_cookie(key, "", **{**options, "max_age": 0, "expires": 0})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
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
        case date() | time():
            return value.isoformat()
        case UUID() | PurePath():
            return str(value)
        case Enum():
            return value.value
        case set() | frozenset():
            return list(value)
    raise TypeError(f"{type(value).__name__} cannot be said in JSON")


class JSONResponse(Response):
    """JSON."""

    media_type = "application/json"
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_jsonable).encode

    def render(self, content: Any) -> bytes:
        """The body's bytes."""
        return self.encode(content).encode()


class RedirectResponse(Response):
    """Go there: 307, so that the method stays."""

    def __init__(self, url: object, status_code: int = 307, headers: Fields = None) -> None:
        super().__init__(None, status_code, headers)
        self.headers["location"] = quote(str(url), safe=":/%#?=@[]!$&'()*+,;")


class StreamingResponse(Response):
    """A body sent piece by piece, as an iterator gives it: of str or bytes, sync or async."""

    def render(self, _: Any) -> None:
        """Nothing yet."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send it. To HEAD only the head is owed, and the iterator is not asked for anything."""
        content = self.content
        chunks = content if isinstance(content, AsyncIterable) else scope["minibg.threads"].iterate(content)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                async for chunk in chunks:
                    body = chunk.encode() if isinstance(chunk, str) else chunk
                    await send({"type": "http.response.body", "body": body, "more_body": True})
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
        await send({"type": "http.response.body", "body": b""})


class FileResponse(Response):
    """A file, or the part of it that is asked for, or word that the client has it already."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        status_code: int = 200,
        headers: Fields = None,
        media_type: str | None = None,
        filename: str | None = None,
    ) -> None:
        media_type = media_type or guess_type(filename or path)[0] or "application/octet-stream"
        super().__init__(Path(path), status_code, {"accept-ranges": "bytes", **(headers or {})}, media_type)
        if filename is not None:  # RFC 6266 §4.3: names beyond ASCII travel encoded
            self.headers.setdefault("content-disposition", f"attachment; filename*=utf-8''{quote(filename, safe='')}")

    def render(self, _: Any) -> None:
        """Nothing yet."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send it, read in threads."""
        run = scope["minibg.threads"].run
        file = await run(self.content.open, "rb")
        try:
            stat = await run(os.fstat, file.fileno())
            headers = MutableHeaders([*self.raw_headers])  # a copy: a response may be sent twice
            headers.setdefault("last-modified", formatdate(stat.st_mtime, usegmt=True))
            headers.setdefault("etag", f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"')
            status, start, stop = self._selection(scope, headers, stat.st_size)
            if status != 304:
                headers["content-length"] = str(stop - start)
            await send({"type": "http.response.start", "status": status, "headers": headers.raw})
            await run(file.seek, start)
            while start < stop and scope["method"] != "HEAD":
                chunk = await run(file.read, min(CHUNK, stop - start))
                if not chunk:
                    raise RuntimeError(f"{self.content} became shorter while it was sent")
                start += len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await run(file.close)

    def _selection(self, scope: Scope, headers: MutableHeaders, size: int) -> tuple[int, int, int]:
        """Status, first byte, and the byte after the last: the order of RFC 9110 §13.2.2."""
        asked, method = Headers(scope["headers"]), scope["method"]
        etag, modified = headers["etag"], headers["last-modified"]
        if self.status_code != 200 or method not in {"GET", "HEAD"}:
            return self.status_code, 0, size
        if "if-none-match" in asked:  # §13.1.2: compared weakly, and If-Modified-Since is ignored
            known = [tag.strip().removeprefix("W/") for tag in asked["if-none-match"].split(",")]
            if etag in known or "*" in known:
                return 304, 0, 0
        elif asked.get("if-modified-since") == modified:  # §13.1.3 would take later dates too; browsers repeat ours
            return 304, 0, 0
        found = fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", asked.get("range", ""))
        # §14.2: Range is for GET, and may be ignored. §13.1.5: If-Range is compared strongly.
        if method != "GET" or found is None or asked.get("if-range", etag) not in {etag, modified}:
            return 200, 0, size
        first, last = found.groups()
        start = int(first) if first else max(0, size - int(last or 0))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= stop:
            headers["content-range"] = f"bytes */{size}"
            return 416, 0, 0
        headers["content-range"] = f"bytes {start}-{stop - 1}/{size}"
        return 206, start, stop
