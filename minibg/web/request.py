"""The request, as a handler sees it: Starlette's names over one ASGI scope.

Each property is computed when it is first read, so a request that is only routed costs one small
object. The body is read by the first of `body`, `json` and `form` that is called. They may follow
each other, because what they read is kept. `stream` passes the chunks through and keeps nothing:
after it nothing else can be read, and that raises. `form` does not keep the body either: a form may
be larger than memory.

- A body that ends early is never taken for a whole one: when the client has gone, reading raises
  `minibg.asgi.ClientDisconnected`.
- A task that reads the body after the response would wait for a client that has got its answer.
  That is an error which says so. What the handler has read stays readable.
- A malformed body is answered with 400: the client's fault must not look like the server's.
- **No request blocks the event loop for long.** Within the server's default limits each property
  takes well under 20 ms. JSON is bounded for that reason (`MAX_JSON`): `json.loads` is one call
  into C that keeps the interpreter's lock, up to 50 ms per MiB, and would block the loop from a
  thread as well. The largest body is the server's limit.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, quote

from minibg.asgi import ClientDisconnected, Message, Receive, Scope
from minibg.threads import Threads
from minibg.web.exceptions import HTTPException, caller
from minibg.web.fields import Headers, MultiDict
from minibg.web.forms import FormData, parse_form

#: Bytes of a body that `Request.json` parses unless told otherwise: 13 ms for the worst (nested
#: lists, measured).
MAX_JSON = 256 * 1024
#: The escapes in a quoted cookie, as the standard library writes them. Its own reader takes
#: quadratic time in older patch releases (CVE-2024-7592): 1.7 s for 31 KB.
ESCAPE = re.compile(r"\\(?:([0-3][0-7][0-7])|(.))")


class Address(NamedTuple):
    """The address that the client connects from."""

    host: str
    port: int


class URL(SplitResult):
    """The parts of a URL (scheme, netloc, path, query, hostname, port).

    ``str(url)`` is the whole of it.
    """

    def __str__(self) -> str:
        return self.geturl()


class State:
    """Values by attribute, kept in the dict it is made of: for a request, the scope's ``state``."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__ = values


class Request:
    """One request."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        #: ``_receive`` raises RuntimeError after the response.
        self.scope, self._receive = scope, receive
        self.method: str = scope["method"]
        #: The parameters of the path, converted.
        self.path_params: dict[str, Any] = scope.setdefault("path_params", {})
        #: The `App` that answers, and its threads for calls that would block the loop.
        self.app: Any = scope["app"]
        self.threads: Threads = scope["minibg.threads"]
        self._streamed = False
        self._body: bytes | None = None
        self._form: FormData | None = None

    @property
    def client(self) -> Address | None:
        """The client's address; None when it has none, as on a Unix socket."""
        return Address(*self.scope["client"]) if self.scope.get("client") else None

    @cached_property
    def headers(self) -> Headers:
        """The header fields, by name without case. ``headers[name]`` is the first of that name."""
        return Headers(self.scope["headers"])

    @cached_property
    def query_params(self) -> MultiDict[str]:
        """The decoded pairs of the query. ``query_params[name]`` is the last of that name."""
        return MultiDict(parse_qsl(str(self.scope.get("query_string", b""), "latin-1"), keep_blank_values=True))

    @cached_property
    def cookies(self) -> dict[str, str]:
        """The values of the cookies by name, read as leniently as browsers write them (RFC 6265 §5
        is stricter).
        """
        pairs = [pair.partition("=") for line in self.headers.getlist("cookie") for pair in line.split(";")]
        return {name.strip(): _unquote(value.strip()) for name, equals, value in pairs if equals}

    @cached_property
    def url(self) -> URL:
        """The URL that the client asked for, as far as the scope tells.

        Its host is the client's claim, not a fact.
        """
        scope = self.scope
        netloc = self.headers.get("host") or ":".join(map(str, scope.get("server") or ["localhost"]))
        query = scope.get("query_string", b"").decode("latin-1")
        return URL(scope.get("scheme", "http"), netloc, quote(scope["path"]), query, "")

    @cached_property
    def state(self) -> Any:  # A `State`, whose attributes are the application's.
        """The values of this request alone, on top of those that the lifespan yielded."""
        return State(self.scope.setdefault("state", {}))

    @cached_property
    def stopping(self) -> asyncio.Event:
        """An event that is set when the server begins to stop: an endless stream ends then.

        Under a server without the extension ``minibg.stopping`` it is never set.
        """
        found = (self.scope.get("extensions") or {}).get("minibg.stopping") or asyncio.Event()
        event: asyncio.Event = found["event"] if isinstance(found, Mapping) else found
        return event

    def end(self) -> None:
        """Refuse to read more of the body, with an error that says so: the response has left."""
        self._receive = _read_too_late

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the body's chunks as they arrive.

        Raises ClientDisconnected when the client leaves before the end, RuntimeError when the body
        was streamed before, or when the response has left.
        """
        if self._body is not None:
            yield self._body
            return
        if self._streamed:
            raise RuntimeError("the body was read already, and not kept")
        self._streamed = more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected("the client went away before the end of its request")
            more = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]

    async def body(self) -> bytes:
        """Return the whole body, and keep it. Raises what `stream` raises."""
        if self._body is None:
            chunks = [chunk async for chunk in self.stream()]
            # In a thread: it takes 44 ms for 100 MiB.
            self._body = b"".join(chunks) if len(chunks) < 2 else await self.threads.run(b"".join, chunks)
        return self._body

    async def json(self, limit: int = MAX_JSON) -> Any:
        """Return the body, parsed as JSON. Raises HTTPException: 400 when it is malformed, 413 over
        ``limit`` bytes.

        The event loop is blocked while JSON is parsed: a higher limit is a choice between long
        bodies and latency.
        """
        body = await self.body()
        if len(body) > limit:
            raise HTTPException(413, f"The body has more than {limit} bytes of JSON")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"The body is not valid JSON: {error}") from error

    async def form(self) -> FormData:
        """Return the body's form: text and `UploadFile`s.

        Raises HTTPException: 400 when malformed, 413 over a bound.
        """
        if self._form is None:
            self._form = await parse_form(self.headers.get("content-type", ""), self.stream(), self.threads)
        return self._form


async def _read_too_late() -> Message:
    raise RuntimeError(f"{caller()} reads a body after the response: write `add_task(f, await request.body())`")


def _unquote(value: str) -> str:
    if len(value) < 2 or not value[0] == value[-1] == '"':
        return value
    return ESCAPE.sub(lambda found: chr(int(found[1], 8)) if found[1] else found[2], value[1:-1])
