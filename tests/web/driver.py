"""An ASGI server in memory: one request in, every message out.

It does what the specification asks of a server and nothing more, so that a test can compare the exact messages. The
hold is a fake that remembers what was added and whether it was dropped; the real one is tested with the joint.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from minibg.asgi import ASGIApp, ClientDisconnected, Message, Scope


class Hold:
    """What a request's BackgroundTasks looks like from the framework."""

    def __init__(self) -> None:
        self.pool = object()
        self.added: list[tuple[Any, ...]] = []
        self.dropped = False

    def add_task(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        self.added.append((func, *args, *kwargs.items()))

    def drop(self) -> None:
        self.dropped = True


@dataclass
class Answer:
    """What came out."""

    hold: Hold
    messages: list[Message] = field(default_factory=list)
    #: What the application raised.
    error: BaseException | None = None

    @property
    def status(self) -> int:
        status: int = self.messages[0]["status"]
        return status

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def scope_of(method: str, target: str, headers: dict[str, str] | None = None, **more: Any) -> Scope:
    path, _, query = target.partition("?")
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    scope: dict[str, Any] = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.5"}, "http_version": "1.1"}
    scope |= {"method": method, "scheme": "http", "path": path, "raw_path": path.encode(), "root_path": ""}
    scope |= {"query_string": query.encode(), "headers": raw, "client": ("127.0.0.1", 4000), "server": ("test", 80)}
    return {**scope, **more}


async def call(
    app: ASGIApp,
    method: str,
    target: str,
    *,
    headers: dict[str, str] | None = None,
    body: bytes | Iterable[bytes] = b"",
    client_leaves_after: int | None = None,
    **scope: Any,
) -> Answer:
    """Send one request; a body of several chunks arrives in several messages.

    With `client_leaves_after`, the client is gone after so many messages have been sent to it, and the body it sends
    has no end.
    """
    answer = Answer(Hold())
    chunks = [body] if isinstance(body, bytes) else list(body)
    last = len(chunks) - 1 if client_leaves_after is None else None
    incoming = iter(
        [{"type": "http.request", "body": chunk, "more_body": index != last} for index, chunk in enumerate(chunks)]
    )

    async def receive() -> Message:
        return next(incoming, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        if client_leaves_after is not None and len(answer.messages) >= client_leaves_after:
            raise ClientDisconnected("gone")
        answer.messages.append(message)

    full = {"minibg.background": answer.hold, **scope_of(method, target, headers, **scope)}
    try:
        await app({name: value for name, value in full.items() if value is not None}, receive, send)
    except Exception as error:
        answer.error = error
    return answer
