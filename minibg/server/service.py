"""The state that the connections of one server share: application, clock, open requests.

A `Service` is made when a server starts, because it needs the event loop. The server owns it, and
passes it to every connection and every cycle. So imports run downwards (server, protocol, cycle,
service), and a test of a cycle needs neither a server nor a socket.

**The tick.** Once a second, one callback sets the clock and the Date value, and lets every
connection check its deadlines. A timer for each connection would be created and cancelled with each
request; two comparisons a second for each connection cost a hundredth of that. The price is
precision: a deadline is never early, but up to two ticks late. A limit below two seconds shortens
the tick, so that the limit keeps its meaning.

**A pause of the server does not count against a client.** If a tick is more than one interval late,
the process was paused or its event loop was blocked. The clock of the deadlines does not advance by
that time, so no client is ended for a time in which the server could not read its bytes.

**The context.** Every request starts in a copy of the context in which the server was started. A
request can start inside the ``send`` of another request (the next request of a pipeline), or in a
callback that another request has registered. Without the copy it would see the context variables of
that request (CPython issue 140947; uvicorn has a flag for it).

**Room.** A connection counts against ``max_connections`` as long as its client can send a request.
A connection whose client has closed its half does not count, but the number of requests in progress
bounds it. A connection that the server is closing does not count either, but it ends within
seconds. When there is no room, the connection that has been idle longest is closed for the new one.
When no connection is idle, the new one gets a 503.

**The version of ASGI** in the scope is 2.3, for the sake of streams. Starlette and FastAPI read the
version. From 2.4 on, their streaming responses notice a lost client only when ``send`` raises, but
a stream that waits for its next event does not send. Below 2.4 they listen for "http.disconnect"
beside the stream, and cancel it. So with "2.5" an idle stream would outlive its client for ever;
with "2.3" it ends at once. ``send`` still raises `ClientDisconnected`, as 2.4 requires:
applications written for 2.4 need the exception, and none depends on its absence.

A `Deadline` is one moment on this clock. `PROGRESS` bytes renew it; a single byte does not, or a
client that sends one byte a second would keep its connection for ever.

Rejected: to pass the server itself to its connections. They would have access to the listening
sockets and the stop, and server and connection would import each other.
"""

import asyncio
import contextvars
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from math import inf
from typing import Any, Protocol

from minibg.asgi import ASGIApp
from minibg.server.forwarded import TrustedProxies
from minibg.server.head import RequestHead, RequestRefused, scope_of
from minibg.server.limits import PROGRESS, Limits
from minibg.server.listen import descriptor_limit

#: Seconds between two ticks, however short a limit is: less would only keep the processor busy.
TICK_AT_LEAST = 0.01


class Connected(Protocol):
    """The interface of a connection that its server uses."""

    def check_deadlines(self) -> None:
        """End the connection if one of its deadlines has passed."""

    def shutdown(self) -> None:
        """Begin no further request, and close the connection unless a request is in progress."""

    def reset(self) -> None:
        """End the connection now."""


@dataclass(eq=False, kw_only=True)
class Service:
    """The settings of a started server, its clock, its open connections and its requests."""

    app: ASGIApp
    limits: Limits
    #: The proxies whose X-Forwarded headers are believed.
    trusted: TrustedProxies
    #: The path under which a proxy has mounted the application.
    root_path: str
    access_log: bool
    #: The lifespan state (ASGI lifespan 2.0); each request gets a shallow copy.
    state: dict[str, Any]
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    #: The context of the server's start; each request runs in a copy of it.
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    #: Set when the stop begins. In the scope it is ``extensions["minibg.stopping"]["event"]``.
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    #: All open connections, those included that are closing.
    connections: set[Connected] = field(default_factory=set)
    #: The connections that count: their clients can still send a request.
    clients: set[Connected] = field(default_factory=set)
    #: The idle connections, the longest idle first.
    idle: dict[Connected, None] = field(default_factory=dict)
    #: The running applications, those included whose response has left.
    requests: set[asyncio.Task[None]] = field(default_factory=set)
    #: Set during the stop when the last connection and the last request have ended.
    empty: asyncio.Event = field(default_factory=asyncio.Event)
    #: The value of Date for the current second (RFC 9110 §5.6.7).
    date: bytes = field(default=b"", init=False)
    #: The clock of the deadlines at the last tick, and the loop's time at that moment.
    now: float = field(default=0.0, init=False)
    _ticked_at: float = field(default=0.0, init=False)
    #: The clock of the deadlines at the next tick.
    next_tick: float = field(default=0.0, init=False)
    #: Seconds between two ticks.
    interval: float = field(default=1.0, init=False)
    #: The limit of connections, lowered to three quarters of the process's descriptors: the rest is
    #: for the application.
    max_connections: int = field(default=0, init=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        limits = self.limits
        shortest = min(limits.header_timeout, limits.body_timeout, limits.write_timeout, limits.keep_alive)
        self.interval = max(TICK_AT_LEAST, min(1.0, shortest / 2))
        self._ticked_at = self.loop.time()
        self.max_connections = min(limits.max_connections, descriptor_limit() * 3 // 4)

    def tick(self) -> None:
        """Set the clock and the date, check every connection's deadlines, schedule the next tick."""
        self._timer = self.loop.call_later(self.interval, self.tick)
        before, self._ticked_at = self._ticked_at, self.loop.time()
        passed = self._ticked_at - before
        if passed < 2 * self.interval:  # Otherwise the server was paused.
            self.now += passed
        self.next_tick = self.now + self.interval
        self.date = formatdate(usegmt=True).encode()
        for connection in tuple(self.connections):
            connection.check_deadlines()

    def close(self) -> None:
        """End the tick."""
        if self._timer is not None:
            self._timer.cancel()

    # --- room for connections ---

    def admit(self, connection: Connected) -> bool:
        """Count a new connection, and close an idle one if needed. Return False if there is no room."""
        if len(self.clients) >= self.max_connections and not self.close_idle():
            return False
        self.clients.add(connection)
        self.idle[connection] = None
        return True

    def close_idle(self) -> bool:
        """Close the connection that has been idle longest. Return whether there was one."""
        connection = next(iter(self.idle), None)
        if connection is None:
            return False
        self.leave(connection)
        connection.shutdown()
        return True

    def leave(self, connection: Connected) -> None:
        """Stop counting a connection, because it gets no further request."""
        self.clients.discard(connection)
        self.idle.pop(connection, None)

    def lose(self, connection: Connected) -> None:
        """Remove a connection that has ended."""
        self.connections.discard(connection)
        self.leave(connection)
        self.check_empty()

    def is_full(self) -> bool:
        """Return whether so many connections are closing that not even a 503 can be sent."""
        return len(self.connections) >= 2 * self.max_connections + self.limits.max_requests_in_progress

    # --- requests ---

    def constant_scope(self, transport: asyncio.BaseTransport, peer: Any) -> dict[str, Any]:
        """Return the part of the scope that all requests of a connection have in common.

        ``peer`` is the client's address from accept; a transport whose client has gone may not have
        it.
        """
        peer, here = peer or transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        return {
            "type": "http",
            "scheme": "http" if transport.get_extra_info("sslcontext") is None else "https",
            "client": (peer[0], peer[1]) if isinstance(peer, tuple) else None,
            "server": (here[0], here[1]) if isinstance(here, tuple) else (here, None),
            "root_path": self.root_path,
        }

    def scope_of(self, request: RequestHead, constant: dict[str, Any]) -> dict[str, Any]:
        """Return the scope of a request; ``constant`` is its connection's part.

        Raises `RequestRefused` for an https URI on a plain connection.
        """
        scope = scope_of(request, constant)
        scope["asgi"] = {"version": "3.0", "spec_version": "2.3"}
        scope["state"] = self.state.copy()
        scope["extensions"] = {"minibg.stopping": {"event": self.stopping}}
        if self.trusted:
            scope["client"], scope["scheme"] = self.trusted.client_and_scheme(scope)
        target = request.target
        if target[:1] != b"/" and target[:6].lower() == b"https:" and scope["scheme"] == "http":  # RFC 9110 §7.4
            raise RequestRefused(HTTPStatus.MISDIRECTED_REQUEST, "https over a plain connection")
        return scope

    def check_empty(self) -> None:
        """Set ``empty`` if nothing is open, after a connection or an application has ended."""
        if not self.connections and not self.requests:
            self.empty.set()


class Deadline:
    """A moment by which a client has to send or take bytes; `PROGRESS` bytes renew it.

    Progress is the difference of two positions. A position is a count of bytes that only grows,
    such as the bytes of a body that have been read.
    """

    __slots__ = ("_position", "_service", "moment")

    def __init__(self, service: Service) -> None:
        self._service = service
        #: The moment on the clock of the service; ``inf`` means that the deadline is not set.
        self.moment = inf
        self._position = 0

    def set(self, seconds: float, position: int = 0) -> None:
        """Set the deadline to ``seconds`` from the next tick, because the clock is up to one tick
        behind.
        """
        self.moment = self._service.next_tick + seconds
        self._position = position

    def clear(self) -> None:
        """Unset the deadline."""
        self.moment = inf

    def has_passed(self) -> bool:
        """Return whether the deadline has passed."""
        return self.moment <= self._service.now

    def renew(self, seconds: float, position: int) -> bool:
        """Set the deadline anew if there was progress since it was set. Return whether there was."""
        if position - self._position < PROGRESS:
            return False
        self.set(seconds, position)
        return True
