"""What all connections of one server share: the application, the limits, the tick, and who is there.

A connection (`minibg.server.protocol`) needs to know a dozen things that are the same for every connection. They are
here and not in `Server`, so that the files can be read in one direction: service, cycle, protocol, server.

The tick. Once a second one callback sets the coarse clock and the Date line, and looks at the deadlines of all
connections. A timer per connection would be created and cancelled with each request; comparing two numbers a second for
each connection costs a hundredth of that. The price is precision: a deadline is never early, and up to two ticks late.
Limits below a second make the tick shorter, so they keep their meaning. It runs only while the server does.

The context. Every request starts in a copy of the context in which the server was started. Without this a request that
is started from another one's ``send`` (the next in a pipeline), or read by a callback which that one registered, would
see its context variables (CPython issue 140947; uvicorn has a flag for it).

Rejected: `asyncio.timeout` around each wait: a timer and a context manager for every message.
"""

import asyncio
import contextvars
from email.utils import formatdate
from typing import Protocol

from minibg.asgi import ASGIApp
from minibg.server.forwarded import Trust
from minibg.server.limits import Limits


class Client(Protocol):
    """What the service and the server ask of a connection."""

    def expire(self, now: float) -> None:
        """Look at the deadlines."""

    def shutdown(self) -> None:
        """Take no further request."""

    def cut(self) -> None:
        """End at once."""


class Service:
    """The state all connections of one server share."""

    def __init__(
        self, app: ASGIApp, limits: Limits, *, root_path: str, trust: Trust, access_log: bool
    ) -> None:
        self.app = app
        self.limits = limits
        self.root_path = root_path
        self.trust = trust
        self.access_log = access_log
        self.loop = asyncio.get_running_loop()
        self.context = contextvars.copy_context()
        #: Set when the stop begins. In the scope it is the extension "minibg.stopping".
        self.stopping = asyncio.Event()
        #: The lifespan state (ASGI lifespan 2.0); each request gets a shallow copy.
        self.state: dict[str, object] = {}
        self.connections: set[Client] = set()
        #: The running applications, those included whose response has left.
        self.cycles: set[asyncio.Task[None]] = set()
        #: Set when there is no connection and no application left; looked at during the stop.
        self.empty = asyncio.Event()
        self.interval = min(
            1.0,
            limits.header_timeout / 2,
            limits.body_timeout / 2,
            limits.write_timeout / 2,
            limits.keep_alive / 2,
        )
        self.now = 0.0
        self.date = b""
        self._timer: asyncio.TimerHandle | None = None

    def tick(self) -> None:
        """Set clock and date, look at every deadline, and come back."""
        self.now = self.loop.time()
        self.date = f"date: {formatdate(usegmt=True)}\r\n".encode()  # RFC 9110 §5.6.7
        for connection in tuple(self.connections):
            connection.expire(self.now)
        self._timer = self.loop.call_later(self.interval, self.tick)

    def stop_ticking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def deadline(self, seconds: float) -> float:
        """The moment in so many seconds. The coarse clock is up to one tick behind, so one is added."""
        return self.now + self.interval + seconds

    def left(self) -> None:
        """A connection or an application has ended."""
        if not self.connections and not self.cycles:
            self.empty.set()
