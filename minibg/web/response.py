"""Responses: ASGI callables that a handler returns. Names and signatures are Starlette's.

A response is made on the event loop or in a handler's thread, and sent by calling it. Its whole
interface is that it is an ASGI callable: middleware can send one as well as a handler can return
one.

The rules of this file:

- A response whose body is known states its length. One whose body is produced later leaves the
  framing to the server.
- Calls that block run in the application's threads: reading files, and iterators that are not
  asynchronous.
- A stream whose client has left ends within `IDLE` seconds of its last piece: a stream that waits
  for its next event does not send, and learns of the end only from "http.disconnect".
- After the client has gone, ``send`` raises `minibg.asgi.ClientDisconnected`, which passes through
  here. Iterators and files are closed on the way. Whether the response's tasks then run is decided
  elsewhere (`minibg.after_response`).
- Header fields and cookies are checked when they are set, so the ValueError is raised in the
  handler, and no server has to be trusted with the check (`fields.py`).
- There is no ``background=``. Tasks belong to the request, and two places to add them would need an
  order.

JSON is the standard library's: compact, in UTF-8, and without NaN, which JSON does not have. It
renders the types that services answer with as well: dataclasses (without the fields whose name
begins with an underscore), dates, UUIDs, enums, sets and paths.
"""

import asyncio
import dataclasses
import json
import os
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from contextlib import suppress
from datetime import date, datetime, time
from email.utils import format_datetime, formatdate
from enum import Enum
from http.cookies import CookieError, SimpleCookie
from mimetypes import guess_type
from pathlib import Path, PurePath
from typing import Any, BinaryIO, ClassVar
from urllib.parse import quote
from uuid import UUID

from minibg.asgi import ClientDisconnected, Receive, Scope, Send
from minibg.web.exceptions import HTTPException
from minibg.web.fields import MutableHeaders, field
from minibg.web.files import select
from minibg.web.incoming import Incoming

#: Bytes read from a file at a time, as in Starlette.
CHUNK = 64 * 1024
#: Seconds for the next piece of a stream whose client has left. A client that has closed only its
#: sending half still reads, so a stream that goes on is delivered to it.
IDLE = 0.5

Fields = Mapping[str, str] | None


class Response:
    """A response whose whole body is known: ``content`` as str (sent as UTF-8), bytes, or None for
    an empty body.

    ``headers`` are its header fields. Content-Length is added, and Content-Type if there is a
    ``media_type``, both unless ``headers`` has them. Raises ValueError for a header field that
    cannot be sent.
    """

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
        self.raw_headers = [field(name, value) for name, value in fields.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the response. Raises ClientDisconnected when the client has gone."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})

    def render(self, content: Any) -> bytes | None:
        """Return the body of ``content``, or None when it is produced while it is sent."""
        return content.encode() if isinstance(content, str) else bytes(content or b"")

    @property
    def headers(self) -> MutableHeaders:
        """The header fields, to read and to set until the response is sent."""
        return MutableHeaders(self.raw_headers)

    def set_cookie(self, key: str, value: str = "", **options: str | float | datetime | None) -> None:
        """Add a Set-Cookie field.

        The options are ``max_age`` (seconds), ``expires`` (a datetime in UTC, or seconds from now),
        ``path``, ``domain``, ``secure``, ``httponly`` and ``samesite``. Unset, ``path`` is "/" and
        ``samesite`` is "lax"; None leaves one out. Raises ValueError for a name or an option that
        would be read as more than itself.
        """
        try:
            cookie = SimpleCookie({key: value})[key]
            for name, option in {"path": "/", "samesite": "lax", **options}.items():
                if ";" in str(option):
                    raise ValueError(f"the {name} of a cookie cannot hold a semicolon: {option!r}")
                if option is not None:
                    text = format_datetime(option, usegmt=True) if isinstance(option, datetime) else option
                    cookie[name.replace("_", "-")] = text
        except CookieError as error:
            raise ValueError(f"the cookie {key!r} cannot be set: {error}") from error
        self.headers.append("set-cookie", cookie.OutputString())

    def delete_cookie(self, key: str, **options: str | float | datetime | None) -> None:
        """Add a Set-Cookie field that makes the client forget the cookie.

        Path and domain are those it was set with.
        """
        self.set_cookie(key, "", **{**options, "max_age": 0, "expires": 0})


class HTMLResponse(Response):
    """A response of ``text/html``; its parameters are those of `Response`."""

    media_type = "text/html"


class PlainTextResponse(Response):
    """A response of ``text/plain``; its parameters are those of `Response`."""

    media_type = "text/plain"


#: How a value is rendered that the standard library's encoder does not know, by the nearest class.
RENDERED: dict[type, Any] = {UUID: str, PurePath: str, set: list, frozenset: list, Enum: lambda value: value.value}
RENDERED |= dict.fromkeys([date, time], lambda value: value.isoformat())


def _jsonable(value: Any) -> Any:
    """Return what the standard library's encoder renders in place of a value that it cannot."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if each.name[0] != "_"}
    for kind in type(value).__mro__:
        if kind in RENDERED:
            return RENDERED[kind](value)
    raise TypeError(f"{type(value).__name__} cannot be rendered as JSON: write it as a str, a number or a dict")


JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_jsonable)


class JSONResponse(Response):
    """A response of ``application/json``, of any ``content`` that JSON or the essay above names.

    Raises TypeError for another type, and ValueError for NaN and the infinities; the message has
    the JSON before the value. Else the parameters are `Response`'s.
    """

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return ``content`` as JSON in UTF-8."""
        try:
            return JSON.encode(content).encode()
        except (TypeError, ValueError) as error:
            begun: list[str] = []
            with suppress(TypeError, ValueError):
                begun.extend(JSON.iterencode(content))
            error.args = (f"{error}; it follows {''.join(begun)[-60:]!r}",)
            raise


class RedirectResponse(Response):
    """A redirect to ``url``, a str or a `URL`.

    The default status of 307 keeps the method and the body.
    """

    def __init__(self, url: object, status_code: int = 307, headers: Fields = None) -> None:
        super().__init__(None, status_code, headers)
        self.headers["location"] = quote(str(url), safe=":/%#?=@[]!$&'()*+,;")


class StreamingResponse(Response):
    """A response whose body is sent piece by piece. ``content`` is an iterable of str or bytes,
    sync or async.

    A sync iterator runs in threads. A generator is closed when the client leaves. The other
    parameters are `Response`'s.
    """

    def render(self, _: Any) -> None:
        """Return None: the body is produced while it is sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head, then each piece as it comes. Raises ClientDisconnected.

        For HEAD, only the head: the iterator is not started.
        """
        is_async = isinstance(self.content, AsyncIterable)
        chunks = self.content if is_async else scope["minibg.threads"].iterate(self.content)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                await self._send_all(chunks, receive if isinstance(receive, Incoming) else Incoming(receive), send)
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
        await send({"type": "http.response.body", "body": b""})

    async def _send_all(self, chunks: AsyncIterable[str | bytes], incoming: Incoming, send: Send) -> None:
        left = asyncio.create_task(incoming.left())
        try:
            async with asyncio.timeout(None) as patience:
                left.add_done_callback(lambda _: _limit(patience, left))
                async for chunk in chunks:
                    _limit(patience, None)  # `send` has a deadline of its own.
                    body = chunk.encode() if isinstance(chunk, str) else chunk
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                    _limit(patience, left)
        except TimeoutError as error:
            if patience.expired():
                raise ClientDisconnected("the client went away, and its stream was idle") from error
            raise
        finally:
            left.cancel()


def _limit(patience: asyncio.Timeout, left: asyncio.Task[bool] | None) -> None:
    """Give the next piece of a stream `IDLE` seconds if its client has left; without ``left`` all time."""
    with suppress(RuntimeError):  # The stream has ended, or is being cancelled.
        if left is None:
            patience.reschedule(None)
        elif left.done() and not left.cancelled() and not left.exception() and left.result():
            patience.reschedule(asyncio.get_running_loop().time() + IDLE)


class FileResponse(Response):
    """A response of the file at ``path``, or of the part that the client asks for (`files.py`).

    **Without a ``root`` the path is trusted**: a path that holds text of the client, such as a
    parameter of the route, serves any file that the process can read. With one, ``path`` is
    relative to the folder ``root``, and a file outside of it does not exist: whether by ``..``, by
    an absolute path, or by a symbolic link. The links are followed before the file is opened, so
    the folder has to be one that only trusted programs write to.

    ``media_type`` is guessed from the name unless it is given. With a ``filename`` browsers offer
    to save the file under that name. The file is opened when the response is sent; where none is
    found, or a folder or a device, HTTPException(404) is raised then.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        status_code: int = 200,
        headers: Fields = None,
        media_type: str | None = None,
        filename: str | None = None,
        *,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        self.root = None if root is None else Path(root)
        media_type = media_type or guess_type(filename or path)[0] or "application/octet-stream"
        super().__init__(Path(path), status_code, {"accept-ranges": "bytes", **(headers or {})}, media_type)
        if filename is not None:  # RFC 6266 §4.3: names beyond ASCII travel encoded.
            self.headers.setdefault("content-disposition", f"attachment; filename*=utf-8''{quote(filename, safe='')}")

    def render(self, _: Any) -> None:
        """Return None: the body is read while it is sent."""

    def open(self) -> BinaryIO:
        """Open the file. Raises HTTPException(404) where none may be served, and OSError."""
        path: Path = self.content
        with suppress(ValueError):  # Of a path with a NUL.
            if self.root is not None:
                path = Path(os.path.realpath(self.root / path))
                path.relative_to(os.path.realpath(self.root))  # Raises ValueError for a path outside.
            if os.path.isfile(path):  # noqa: PTH113 - Path's raises OSError for a name that is too long.
                return path.open("rb")
        raise HTTPException(404)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the file, read in threads.

        Raises what `open` does, and RuntimeError when the file shrinks.
        """
        run = scope["minibg.threads"].run
        file = await run(self.open)
        try:
            stat = await run(os.fstat, file.fileno())
            # A copy: a response may be sent twice, to clients that ask for different parts.
            headers = MutableHeaders([*self.raw_headers])
            headers.setdefault("last-modified", formatdate(stat.st_mtime, usegmt=True))
            headers.setdefault("etag", f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"')
            status, start, stop = self.status_code, 0, stat.st_size
            if status == 200 and scope["method"] in {"GET", "HEAD"}:
                status, start, stop = select(scope, headers, stat.st_size)
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
