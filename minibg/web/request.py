"""The request, as a handler sees it: Starlette's names over one ASGI scope.

Everything is read when it is asked for, and at most once. A request that is only routed costs an object with two
references. The body is read by whoever asks first: `body`, `json` and `form` may follow each other, because what they
read is kept; `stream` hands the chunks through and keeps nothing, so after it nothing else can be read, and says so.
`form` does not keep the body either: a form may be larger than memory.

A body that ends early is never taken for a whole one: when the client has gone, reading raises
`minibg.asgi.ClientDisconnected`.

A body that should be JSON and is not is answered with 400: the client's fault must not look like the server's. How
large a body may be is the server's limit, not this file's. What a form may hold is decided in `forms.py`.
"""

import json
from collections.abc import AsyncIterator
from functools import cached_property
from http.cookies import _unquote as unquote_cookie  # what Starlette and Django read quoted values with
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, quote

from minibg.asgi import ClientDisconnected, Receive, Scope
from minibg.web.exceptions import HTTPException
from minibg.web.fields import Headers, MultiDict
from minibg.web.forms import FormData, parse_form
from minibg.web.threads import Threads


class Address(NamedTuple):
    """Where the client connects from."""

    host: str
    port: int


class URL(SplitResult):
    """The parts of a URL (scheme, netloc, path, query, hostname, port); ``str(url)`` is the whole of it."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.geturl()


class State:
    """Values by attribute. They live in the dict it is made of: for a request, the ASGI scope's ``state``."""

    def __init__(self, values: dict[str, Any]) -> None:
        object.__setattr__(self, "__dict__", values)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the state has no {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value


class Request:
    """One request."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        #: What the route's converters made of the path.
        self.path_params: dict[str, Any] = scope.get("path_params", {})
        #: The application that answers, and its threads for what would block the loop.
        self.app: Any = scope["app"]
        self.threads: Threads = scope["minibg.threads"]
        self._receive = receive
        self._streamed = False
        self._body: bytes | None = None

    @property
    def client(self) -> Address | None:
        """None when the client has no address, as on a Unix socket."""
        return Address(*self.scope["client"]) if self.scope.get("client") else None

    @cached_property
    def headers(self) -> Headers:
        """Without case; the first of a repeated one."""
        return Headers(self.scope["headers"])

    @cached_property
    def query_params(self) -> MultiDict[str]:
        """Decoded; the last of a repeated one."""
        query: str = self.scope.get("query_string", b"").decode("latin-1")
        return MultiDict(parse_qsl(query, keep_blank_values=True))

    @cached_property
    def cookies(self) -> dict[str, str]:
        """Leniently, as browsers write them, not as RFC 6265 would have them."""
        pairs = [pair.partition("=") for line in self.headers.getlist("cookie") for pair in line.split(";")]
        return {name.strip(): unquote_cookie(value.strip()) for name, equals, value in pairs if equals}

    @cached_property
    def url(self) -> URL:
        """As the client wrote it, so far as the scope tells. The Host field is the client's word, not a fact."""
        scope = self.scope
        netloc = self.headers.get("host") or ":".join(map(str, scope.get("server") or ["localhost"]))
        query = scope.get("query_string", b"").decode("latin-1")
        return URL(scope.get("scheme", "http"), netloc, quote(scope["path"]), query, "")

    @cached_property
    def state(self) -> State:
        """Values of this request alone, on top of what the lifespan yielded."""
        return State(self.scope.setdefault("state", {}))

    async def stream(self) -> AsyncIterator[bytes]:
        """The body's chunks as they arrive. Raises ClientDisconnected when the client goes before the end."""
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
        """The whole body, kept for whoever asks again."""
        if self._body is None:
            self._body = b"".join([chunk async for chunk in self.stream()])
        return self._body

    async def json(self) -> Any:
        """The body as JSON says it. Raises HTTPException(400) when it is none."""
        try:
            return json.loads(await self.body())
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"The body is not valid JSON: {error}") from error

    async def form(self) -> FormData:
        """The body as a form: text and `UploadFile`s. Raises HTTPException(400 or 413) when it is malformed or too much."""
        if "_form" not in self.__dict__:
            self._form = await parse_form(self.headers.get("content-type", ""), self.stream(), self.threads)
        return self._form
