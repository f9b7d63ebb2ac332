"""Listen, serve, and stop in numbered phases.

A server is made of nothing but its settings; ``async with`` starts it and stops it::

    async with Server(app, port=0) as server:
        print(server.port)

It installs no signal handler, configures no logging and never exits the process: whoever runs it does
(`minibg.serving`). Two of them live in one loop.

Starting: bind, let the application start (`minibg.server.lifespan`), then listen and accept; a start that fails leaves
nothing behind. Stopping is the way back, in phases of which each has its end and its line in the log:

1. No new connections. Idle connections, and those that have sent half a head, are closed; the others close after the
   response they are at. The scope's extension "minibg.stopping" is set, so that endless streams can end themselves.
   It is not announced as "http.disconnect", because the client is still there.
2. Responses in flight, and applications that still run after their response, have ``graceful_timeout`` seconds. What is
   left is cancelled *and awaited*, so that its cleanup finds everything in place.
3. The application shuts down. In minibg the tasks are drained here, by deadlines of their own.

`hurry` gives up the phase that is being waited for and goes on to the next; nothing is skipped.

The tick. Once a second one callback sets the coarse clock and the Date line, and looks at the deadlines of all
connections. A timer per connection would be created and cancelled with each request; comparing two numbers a second for
each connection costs a hundredth of that. The price is precision: a deadline is never early, and up to two ticks late.
Limits below two seconds make the tick shorter, so they keep their meaning. It runs only while the server does.

The context. Every request starts in a copy of the context in which the server was started. Without this a request that
is started from another one's ``send`` (the next in a pipeline), or read by a callback which that one registered, would
see its context variables (CPython issue 140947; uvicorn has a flag for it).

Rejected: polling "is everybody gone?" ten times a second, as uvicorn does; the last one to leave sets an event. Rejected
too: ``asyncio.Server.wait_closed`` and its kin, whose meaning changed in Python 3.12.1.
"""

import asyncio
import contextvars
import logging
import socket
from contextlib import AsyncExitStack
from dataclasses import KW_ONLY, dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any, Self

from minibg.asgi import ASGIApp
from minibg.server.forwarded import Trust
from minibg.server.lifespan import CANCEL_GRACE, Lifespan
from minibg.server.limits import Limits
from minibg.server.listen import bind_tcp, bind_unix, naming, tls_context
from minibg.server.protocol import Connection

logger = logging.getLogger("minibg.server")

#: Connections the kernel completes before they are accepted. uvicorn's number; Linux cuts it to somaxconn.
BACKLOG = 2048


@dataclass(eq=False)
class Server:
    """One server. The fields are its settings, with the names of the command's options."""

    app: ASGIApp
    _: KW_ONLY
    #: A name or an address; empty means all addresses of the machine.
    host: str = "127.0.0.1"
    #: 0 takes a free port. After the start it is the one that was taken.
    port: int = 8000
    #: The path of a Unix socket, instead of host and port.
    uds: str | None = None
    #: The mode of that socket, as in chmod; None leaves what the umask gives.
    uds_permissions: int | None = None
    #: An open, bound socket, instead of all of these.
    fd: int | None = None
    limits: Limits = field(default_factory=Limits)
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_keyfile_password: str | None = field(default=None, repr=False)
    #: The path under which a proxy has mounted the application; it comes before each path of the scope.
    root_path: str = ""
    #: Addresses and networks, comma-separated, whose X-Forwarded headers are believed.
    forwarded_allow_ips: str = ""
    access_log: bool = True
    #: (host, port) of each socket, or the path of a Unix socket. Empty until the start.
    addresses: list[tuple[str, int] | str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.trust = Trust(self.forwarded_allow_ips)
        #: Set when the stop begins. In the scope it is the extension "minibg.stopping".
        self.stopping = asyncio.Event()
        #: The lifespan state (ASGI lifespan 2.0); each request gets a shallow copy.
        self.state: dict[str, Any] = {}
        self.connections: set[Connection] = set()
        #: Those of them that were one too many.
        self.refused: set[Connection] = set()
        #: The running applications, those included whose response has left.
        self.requests: set[asyncio.Task[None]] = set()
        #: Set during the stop when there is neither any more.
        self._empty = asyncio.Event()
        self._hurry = asyncio.Event()
        self._lifespan = Lifespan(self.app, self.state, self.addresses)
        self._listeners: list[asyncio.Server] = []
        self._stop: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        shortest = (self.limits.header_timeout, self.limits.body_timeout, self.limits.write_timeout)
        self._interval = min(1.0, min(*shortest, self.limits.keep_alive) / 2)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    # --- start ---

    async def start(self) -> None:
        """Bind, start the application, accept. Raises OSError and `StartupFailed`; then nothing is left behind."""
        self.loop = asyncio.get_running_loop()
        #: What each request starts with a copy of.
        self.context = contextvars.copy_context()
        options: dict[str, Any] = {"backlog": BACKLOG}
        if self.ssl_certfile:
            options["ssl"] = tls_context(self.ssl_certfile, self.ssl_keyfile, self.ssl_keyfile_password)
            options["ssl_handshake_timeout"] = self.limits.header_timeout
        async with AsyncExitStack() as undo:
            sockets = [undo.enter_context(sock) for sock in self._bind()]
            if self.uds is not None:
                undo.callback(Path(self.uds).unlink, missing_ok=True)
            await self._lifespan.startup()
            undo.push_async_callback(self.stop)
            self._tick()
            for sock, address in zip(sockets, self._names(), strict=True):
                with naming(address):  # Another process may have been a moment quicker, of which uvloop does not tell.
                    sock.listen(BACKLOG)
                self._listeners += [await self.loop.create_server(lambda: Connection(self), sock=sock, **options)]
            undo.pop_all()
        logger.info("listening on %s", ", ".join(self._names()))

    def _names(self) -> list[str]:
        return [each if isinstance(each, str) else "{} port {}".format(*each) for each in self.addresses]

    def _bind(self) -> list[socket.socket]:
        if self.fd is not None:
            with naming(f"fd {self.fd}"):
                sockets = [socket.socket(fileno=self.fd)]
        elif self.uds is not None:
            sockets = [bind_unix(self.uds, self.uds_permissions)]
        else:
            sockets = bind_tcp(self.host, self.port)
        names = [sock.getsockname() for sock in sockets]
        self.addresses[:] = [name if isinstance(name, str) else (name[0], name[1]) for name in names]
        if not isinstance(names[0], str):
            self.port = names[0][1]
        return sockets

    # --- while it serves ---

    def _tick(self) -> None:
        """Set the coarse clock and the date, look at every deadline, and come back."""
        self._timer = self.loop.call_later(self._interval, self._tick)
        self._now = self.loop.time()
        self.date = formatdate(usegmt=True).encode()  # RFC 9110 §5.6.7
        for connection in tuple(self.connections):
            connection.expire(self._now)

    def deadline(self, seconds: float) -> float:
        """The moment in so many seconds. The coarse clock is up to one tick behind, so one is added."""
        return self._now + self._interval + seconds

    def left(self) -> None:
        """A connection or an application has ended."""
        if not self.connections and not self.requests:
            self._empty.set()

    # --- stop ---

    async def stop(self) -> None:
        """Stop in phases. Every call waits for the same stop; cancelling one does not end it."""
        if self._stop is None:
            self._stop = asyncio.create_task(self._stop_in_phases())
        await asyncio.shield(self._stop)

    def hurry(self) -> None:
        """Give up the phase that is being waited for."""
        self._hurry.set()

    async def _stop_in_phases(self) -> None:
        self._stop_accepting()
        logger.info("stop 2/3: up to %g s for %d requests", self.limits.graceful_timeout, len(self.requests))
        if not await self._waited_for(self._empty, self.limits.graceful_timeout):
            await self._cancel_requests()
        if self._timer is not None:  # else it was never started
            self._timer.cancel()
        logger.info("stop 3/3: the application shuts down")
        self._lifespan.shutdown()
        await self._waited_for(self._lifespan.answered, None)
        await self._lifespan.give_up()
        logger.info("stopped")

    def _stop_accepting(self) -> None:
        self.stopping.set()
        for listener in self._listeners:
            listener.close()
        if self.uds is not None and self._listeners:  # else the path is another server's
            Path(self.uds).unlink(missing_ok=True)
        logger.info("stop 1/3: no new connections; %d are open", len(self.connections))
        for connection in tuple(self.connections):
            connection.shutdown()
        self._empty.clear()
        self.left()

    async def _cancel_requests(self) -> None:
        """Phase 2 has ended early: cancel what runs, wait for its cleanup, and cut what is connected."""
        running = tuple(self.requests)
        logger.warning("stop 2/3: given up; %d requests are cancelled", len(running))
        for task in running:
            task.cancel()
        if running:
            _, stuck = await asyncio.wait(running, timeout=CANCEL_GRACE)
            for task in stuck:
                logger.error("does not end when cancelled, and is left behind: %r", task)
        for connection in tuple(self.connections):
            connection.cut()

    async def _waited_for(self, event: asyncio.Event, seconds: float | None) -> bool:
        """Wait for an event, until the deadline or the next `hurry`. Whether it came."""
        self._hurry.clear()
        waits = [asyncio.ensure_future(each.wait()) for each in (event, self._hurry)]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return event.is_set()
