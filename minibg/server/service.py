"""What all connections of one server share: its application, its clock, and the set of what is open.

A `Service` is made when a server starts, because it needs the event loop. The server owns it; every
connection and every cycle gets it as an argument. So imports run downwards (server, protocol, cycle,
service), and a test of a cycle needs neither a server nor a socket.

**The tick.** Once a second one callback sets the clock and the Date line, and lets every connection
look at its deadlines. A timer for each connection would be created and cancelled with each request;
to compare two numbers a second for each connection costs a hundredth of that. The price is
precision: a deadline is never early, and it is up to two ticks late. Limits below two seconds make
the tick shorter, so that they keep their meaning.

**The context.** Every request starts in a copy of the context in which the server was started.
Without it a request that starts inside another one's ``send`` (the next of a pipeline), or in a
callback that the other one has registered, would see the other one's context variables (CPython
issue 140947; uvicorn has a flag for it).

A `Deadline` is one moment on this clock. It is absolute: a single byte does not renew it, or a
client that sends one byte a second would keep its connection for ever. `PROGRESS` bytes renew it.

Rejected: to hand the server itself to its connections. They would know the listening sockets and the
stop, and server and connection would import each other.
"""

import asyncio
import contextvars
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from math import inf
from typing import Any, Protocol

from minibg.asgi import ASGIApp
from minibg.server.forwarded import Trust
from minibg.server.head import Refused, Request, scope_of
from minibg.server.limits import PROGRESS, Limits


class Connected(Protocol):
    """A connection, as far as its server has to know it."""

    def check_deadlines(self) -> None:
        """End the connection if one of its deadlines has passed."""

    def shutdown(self) -> None:
        """Begin no further request; close if none has begun."""

    def reset(self) -> None:
        """End the connection now."""


@dataclass(eq=False, kw_only=True)
class Service:
    """The settings of a server that has started, its clock, and what is open in it."""

    app: ASGIApp
    limits: Limits
    #: The proxies whose X-Forwarded headers are believed.
    trusted: Trust
    #: The path under which a proxy has mounted the application.
    root_path: str
    access_log: bool
    #: The lifespan state (ASGI lifespan 2.0); each request gets a shallow copy.
    state: dict[str, Any]
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    #: Each request runs in a copy of it.
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    #: Set when the stop begins. In the scope it is the extension "minibg.stopping".
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    connections: set[Connected] = field(default_factory=set)
    #: The connections that were one too many. They linger until their 503 has arrived.
    refused: set[Connected] = field(default_factory=set)
    #: The applications at work, those included whose response has left.
    requests: set[asyncio.Task[None]] = field(default_factory=set)
    #: Set during the stop when there are neither connections nor requests any more.
    empty: asyncio.Event = field(default_factory=asyncio.Event)
    #: The Date line of the current second (RFC 9110 §5.6.7).
    date: bytes = field(default=b"", init=False)
    #: The clock of the deadlines, as of the last tick.
    now: float = field(default=0.0, init=False)
    #: Seconds between two ticks.
    interval: float = field(default=1.0, init=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        limits = self.limits
        shortest = min(limits.header_timeout, limits.body_timeout, limits.write_timeout, limits.keep_alive)
        self.interval = min(1.0, shortest / 2)

    def tick(self) -> None:
        """Set the clock and the date, let every connection look at its deadlines, and come back."""
        self._timer = self.loop.call_later(self.interval, self.tick)
        self.now = self.loop.time()
        self.date = formatdate(usegmt=True).encode()
        for connection in tuple(self.connections):
            connection.check_deadlines()

    def scope_of(self, request: Request, constant: dict[str, Any]) -> dict[str, Any]:
        """Return the whole scope of a request; ``constant`` is the connection's part.

        Raises `Refused` for a URI whose scheme is not that of its connection.
        """
        scope = scope_of(request, constant)
        scope["asgi"] = {"version": "3.0", "spec_version": "2.5"}
        scope["state"] = self.state.copy()
        scope["extensions"] = {"minibg.stopping": self.stopping}
        if self.trusted:
            scope["client"], scope["scheme"] = self.trusted.client_and_scheme(scope)
        if scope["scheme"] == "http" and request.target[:6].lower() == b"https:":  # RFC 9110 §7.4
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "https over a plain connection")
        return scope

    def close(self) -> None:
        """End the tick."""
        if self._timer is not None:
            self._timer.cancel()

    def check_empty(self) -> None:
        """Set ``empty`` if nothing is open; called when a connection or an application has ended."""
        if not self.connections and not self.requests:
            self.empty.set()


class Deadline:
    """A moment by which something has to happen; `PROGRESS` bytes renew it.

    Progress is the difference of two positions. A position is a count of bytes that only grows, such as
    the bytes of a body that have been read.
    """

    __slots__ = ("_position", "_service", "moment")

    def __init__(self, service: Service) -> None:
        self._service = service
        #: On the clock of the service; ``inf`` means that nothing is expected.
        self.moment = inf
        self._position = 0

    def set(self, seconds: float, position: int = 0) -> None:
        """Expect it in ``seconds``. The clock is up to one tick behind, so one tick is added."""
        self.moment = self._service.now + self._service.interval + seconds
        self._position = position

    def clear(self) -> None:
        """Expect nothing."""
        self.moment = inf

    def has_passed(self) -> bool:
        """Return whether the moment has come."""
        return self.moment <= self._service.now

    def renew(self, seconds: float, position: int) -> bool:
        """Set the deadline anew if there was progress since it was set. Return whether there was."""
        if position - self._position < PROGRESS:
            return False
        self.set(seconds, position)
        return True
