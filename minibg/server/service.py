"""All that the connections of one server share: its application, its clock, its open requests.

A `Service` is made when a server starts, because it needs the event loop. The server owns it; every
connection and every cycle gets it as an argument. So imports run downwards (server, protocol,
cycle, service), and a test of a cycle needs neither a server nor a socket.

**The tick.** Once a second one callback sets the clock and the Date line, and lets every connection
look at its deadlines. A timer for each connection would be created and cancelled with each request;
to compare two numbers a second for each connection costs a hundredth of that. The price is
precision: a deadline is never early, and it is up to two ticks late. Limits below two seconds make
the tick shorter, so that they keep their meaning.

**Time that the server lost is not the client's.** A tick that comes more than one interval late
says that the process was paused, or its event loop blocked. The clock of the deadlines stood still
in the meantime, so no client is ended for the time in which the server could not read its bytes.

**The context.** Every request starts in a copy of the context in which the server was started.
Without it a request that starts inside another one's ``send`` (the next of a pipeline), or in a
callback that the other one has registered, would see the other one's context variables (CPython
issue 140947; uvicorn has a flag for it).

**Room.** A connection counts against ``max_connections`` as long as its client can send a request.
The client that has closed its half counts no more, nor does the connection that the server is
closing; both are bounded, the one by the requests in progress, the other by seconds. When there is
no room, the connection that has been idle longest is closed in favour of the new one; when none is
idle, the new one gets a 503.

**The version of ASGI** that the scope names is 2.3, and the choice is about streams. Starlette and
FastAPI read it: from 2.4 on, their streaming responses learn of the client's end only from a
``send`` that raises, and a stream that waits for its next event does not send. Below 2.4 they
listen for "http.disconnect" beside the stream and cancel it. So with "2.5" an idle stream outlived
its client for ever, and with "2.3" it ends at once. ``send`` raises `ClientDisconnected` all the
same, as 2.4 asks: an application that knows the newer rule gets it, and no application relies on
silence.

A `Deadline` is one moment on this clock. It is absolute: a single byte does not renew it, or a
client that sends one byte a second would keep its connection for ever. `PROGRESS` bytes renew it.

Rejected: to hand the server itself to its connections. They would know the listening sockets and
the stop, and server and connection would import each other.
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
    trusted: TrustedProxies
    #: The path under which a proxy has mounted the application.
    root_path: str
    access_log: bool
    #: The lifespan state (ASGI lifespan 2.0); each request gets a shallow copy.
    state: dict[str, Any]
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    #: Each request runs in a copy of it.
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    #: Set when the stop begins. In the scope it is ``extensions["minibg.stopping"]["event"]``.
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    #: All open connections.
    connections: set[Connected] = field(default_factory=set)
    #: Those of them that count: their clients can still send a request.
    clients: set[Connected] = field(default_factory=set)
    #: Those of them that are idle, the longest idle first.
    idle: dict[Connected, None] = field(default_factory=dict)
    #: The applications at work, those included whose response has left.
    requests: set[asyncio.Task[None]] = field(default_factory=set)
    #: Set during the stop when there are neither connections nor requests any more.
    empty: asyncio.Event = field(default_factory=asyncio.Event)
    #: The Date line of the current second (RFC 9110 §5.6.7).
    date: bytes = field(default=b"", init=False)
    #: The clock of the deadlines, as of the last tick, and the loop's time at that moment.
    now: float = field(default=0.0, init=False)
    _ticked_at: float = field(default=0.0, init=False)
    #: The same clock at the next tick.
    next_tick: float = field(default=0.0, init=False)
    #: Seconds between two ticks.
    interval: float = field(default=1.0, init=False)
    #: The limit, or what the process's descriptors allow: a quarter of them is left to the
    #: application.
    max_connections: int = field(default=0, init=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        limits = self.limits
        shortest = min(limits.header_timeout, limits.body_timeout, limits.write_timeout, limits.keep_alive)
        self.interval = max(TICK_AT_LEAST, min(1.0, shortest / 2))
        self._ticked_at = self.loop.time()
        self.max_connections = min(limits.max_connections, descriptor_limit() * 3 // 4)

    def tick(self) -> None:
        """Set the clock and the date, let every connection look at its deadlines, and come back."""
        self._timer = self.loop.call_later(self.interval, self.tick)
        before, self._ticked_at = self._ticked_at, self.loop.time()
        passed = self._ticked_at - before
        if passed < 2 * self.interval:  # Otherwise the server itself has lost the time.
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
        """Count a new connection, if there is room for it or an idle one makes room. Return whether."""
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
        """Count a connection no more: it gets no further request."""
        self.clients.discard(connection)
        self.idle.pop(connection, None)

    def lose(self, connection: Connected) -> None:
        """Strike out a connection that has ended."""
        self.connections.discard(connection)
        self.leave(connection)
        self.check_empty()

    def is_full(self) -> bool:
        """Return whether so many connections are closing that not even a 503 can be sent."""
        return len(self.connections) >= 2 * self.max_connections + self.limits.max_requests_in_progress

    # --- requests ---

    def constant_scope(self, transport: asyncio.BaseTransport, peer: Any) -> dict[str, Any]:
        """Return the part of the scope that all requests of a connection have in common.

        ``peer`` is the address that was accepted; a transport whose client has gone may not know
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
        """Return the whole scope of a request; ``constant`` is the connection's part.

        Raises `RequestRefused` for a URI whose scheme is not that of its connection.
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
    """A moment by which something has to happen; `PROGRESS` bytes renew it.

    Progress is the difference of two positions. A position is a count of bytes that only grows,
    such as the bytes of a body that have been read.
    """

    __slots__ = ("_position", "_service", "moment")

    def __init__(self, service: Service) -> None:
        self._service = service
        #: On the clock of the service; ``inf`` means that nothing is expected.
        self.moment = inf
        self._position = 0

    def set(self, seconds: float, position: int = 0) -> None:
        """Expect it in ``seconds``. The clock is up to one tick behind, so one tick is added."""
        self.moment = self._service.next_tick + seconds
        self._position = position

    def clear(self) -> None:
        """Expect nothing."""
        self.moment = inf

    def has_passed(self) -> bool:
        """Return whether the moment has come."""
        return self.moment <= self._service.now

    def renew(self, seconds: float, position: int) -> bool:
        """Set the deadline anew if there was progress since it was set. Return whether."""
        if position - self._position < PROGRESS:
            return False
        self.set(seconds, position)
        return True
