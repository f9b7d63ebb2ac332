"""Listen, serve, and stop in numbered phases.

A server is created from its settings alone; ``async with`` starts and stops it::

    async with Server(app, port=0) as server:
        print(server.port)

It installs no signal handler, configures no logging and never exits the process; `minibg.serving`
does this for the command. Two servers can run in one loop.

**The start**: bind, start the application (`minibg.server.lifespan`), then listen and accept. A
start that fails closes all that it has opened.

**The stop** undoes the start in three phases. Each has a time limit and a line in the log:

====================================================  ===========================================
phase                                                 ends at the latest after
====================================================  ===========================================
1. No new connections. Idle connections close, and    at once
   those with half a head; each other closes after
   its current response. "minibg.stopping" is set.
2. Responses in flight finish, and applications that  ``graceful_timeout`` (10 s)
   still run after their response.
   The rest is cancelled *and awaited*, so that its   `CANCEL_GRACE` (5 s)
   clean-up finds everything in place; then every
   connection is reset.
3. The application shuts down ("lifespan.shutdown").  ``shutdown_timeout`` (60 s), and the drain of
   In minibg the tasks are drained here.              tasks: ``drain_seconds`` of their owner
   If it does not answer, it is cancelled and          `CANCEL_GRACE` (5 s)
   awaited.
====================================================  ===========================================

The sum is the longest time that a stop can take, whatever the application does. A request or a
lifespan that swallows its cancellation, or that blocks in a thread, is reported in the log and left
running. `hurry` ends the current wait and goes on to the next line; no phase is skipped. Before the
start is complete, `hurry` gives up the application's startup.

**Accepting** is a loop of the server's own on ``sock_accept``. The loops of asyncio and uvloop do
not fit. If the process is out of descriptors, asyncio's logs a line for each connection that the
kernel holds, and pauses for a second. Neither lets the server close an idle connection to get a
descriptor, or shows a TLS client before the end of its handshake.

"minibg.stopping" is an event in each request's scope, so that endless streams can end themselves.
The server does not report a stop as "http.disconnect", because the client is still there.

Rejected: to poll ten times a second for the end of all connections, as uvicorn does. The last
connection or request to end sets an event. Rejected too: ``asyncio.Server.wait_closed``, whose
meaning changed in Python 3.12.1.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Self

from minibg.asgi import ASGIApp
from minibg.log import SafeLogger
from minibg.server.forwarded import TrustedProxies
from minibg.server.lifespan import CANCEL_GRACE, Lifespan
from minibg.server.limits import Limits
from minibg.server.listen import bind_tcp, bind_unix, oserrors_about, tls_context
from minibg.server.protocol import LINGER, Connection
from minibg.server.service import Service

logger = SafeLogger("minibg.server")

#: Connections that the kernel completes before they are accepted, as in uvicorn. Linux lowers the
#: number to somaxconn.
BACKLOG = 2048
#: Connections that are accepted in one turn of the event loop, so that a burst does not block it.
ACCEPT_AT_ONCE = 64
#: Seconds until the next try after a failed accept. No event reports a free descriptor, because all
#: code of the process uses them.
ACCEPT_AGAIN = 0.05
#: Seconds between two log lines about a failed accept.
TELL_AGAIN = 1.0


@dataclass(eq=False)
class Server:
    """One server. Its fields are the settings, named like the command's options."""

    app: ASGIApp
    _: KW_ONLY
    #: A name or an address; empty means all addresses of the machine.
    host: str = "127.0.0.1"
    #: 0 takes a free port. After the start this field is the real port.
    port: int = 8000
    #: The path of a Unix socket, instead of host and port.
    uds: str | None = None
    #: The mode of that socket, as in chmod; None leaves the mode to the umask.
    uds_permissions: int | None = None
    #: The descriptor of an open, bound socket, instead of host, port and uds.
    fd: int | None = None
    limits: Limits = field(default_factory=Limits)
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_keyfile_password: str | None = field(default=None, repr=False)
    #: The path under which a proxy has mounted the application; the scope's path begins with it.
    root_path: str = ""
    #: Addresses and networks, comma-separated, whose X-Forwarded headers are believed.
    forwarded_allow_ips: str = ""
    access_log: bool = True
    #: (host, port) of each socket, or the path of a Unix socket. Empty until the start.
    addresses: list[tuple[str, int] | str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._trusted = TrustedProxies(self.forwarded_allow_ips)
        self._lifespan_state: dict[str, Any] = {}
        self._lifespan = Lifespan(self.app, self._lifespan_state, self.addresses)
        self._service: Service | None = None
        #: The tasks that accept connections, each with its listening socket.
        self._accepting: dict[asyncio.Task[None], socket.socket] = {}
        #: The tasks that make accepted sockets connections, which takes a handshake with TLS. The
        #: oldest is the first.
        self._connecting: dict[asyncio.Task[None], None] = {}
        #: Seconds that the drain of tasks may add to the application's shutdown. The owner of the
        #: pool sets it.
        self.drain_seconds = 0.0
        self._hurried = asyncio.Event()
        #: The file of the Unix socket that this server has made.
        self._socket_file: os.stat_result | None = None
        self._stop: asyncio.Task[None] | None = None

    @property
    def service(self) -> Service:
        """Return the connections, the requests and the clock. Raises RuntimeError before the start."""
        if self._service is None:
            raise RuntimeError("the server has not been started")
        return self._service

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    # --- start ---

    async def start(self) -> None:
        """Bind, start the application, and accept. Raises OSError and `StartupFailed`."""
        tls = self._tls_options()
        async with AsyncExitStack() as undo:
            sockets = [undo.enter_context(sock) for sock in self._bind()]
            undo.callback(self._remove_socket)
            await self._lifespan.startup()
            undo.push_async_callback(self.stop)
            service = self._service = self._new_service()
            service.tick()
            for sock, address in zip(sockets, self._names(), strict=True):
                with oserrors_about(address):  # Another process may have begun to listen after the bind.
                    sock.listen(BACKLOG)
                sock.setblocking(False)
                self._accepting[service.loop.create_task(self._accept(sock, tls, service))] = sock
            undo.pop_all()
        logger.info("listening on %s", ", ".join(self._names()))

    def _tls_options(self) -> dict[str, Any]:
        if not self.ssl_certfile:
            if self.ssl_keyfile:  # Its owner expects TLS.
                raise ValueError("ssl_keyfile without ssl_certfile")
            return {}
        context = tls_context(self.ssl_certfile, self.ssl_keyfile, self.ssl_keyfile_password)
        seconds = {"ssl_handshake_timeout": self.limits.header_timeout, "ssl_shutdown_timeout": LINGER}
        return {"ssl": context, **seconds}

    def _new_service(self) -> Service:
        return Service(
            app=self.app,
            limits=self.limits,
            trusted=self._trusted,
            root_path=self.root_path,
            access_log=self.access_log,
            state=self._lifespan_state,
        )

    def _names(self) -> list[str]:
        return [each if isinstance(each, str) else "{} port {}".format(*each) for each in self.addresses]

    def _bind(self) -> list[socket.socket]:
        if self.fd is not None:
            with oserrors_about(f"fd {self.fd}"):
                sockets = [socket.socket(fileno=self.fd)]
        elif self.uds is not None:
            sockets = [bind_unix(self.uds, self.uds_permissions)]
            self._socket_file = Path(self.uds).stat()
        else:
            sockets = bind_tcp(self.host, self.port)
        names = [sock.getsockname() for sock in sockets]
        self.addresses[:] = [name if isinstance(name, str) else (name[0], name[1]) for name in names]
        if not isinstance(names[0], str):
            self.port = names[0][1]
        return sockets

    def _remove_socket(self) -> None:
        """Remove the file of the Unix socket, unless another server has one under that path by now.

        The socket is still open, so the number of its file cannot have been given to another one.
        """
        with suppress(OSError):
            if self.uds and self._socket_file and Path(self.uds).stat().st_ino == self._socket_file.st_ino:
                Path(self.uds).unlink()

    # --- while it serves ---

    async def _accept(self, listener: socket.socket, tls: dict[str, Any], service: Service) -> None:
        """Accept connections until the task is cancelled."""
        told = -inf
        while True:
            try:
                self._take(*await service.loop.sock_accept(listener), tls, service)
                for _ in range(ACCEPT_AT_ONCE):
                    self._take(*listener.accept(), tls, service)
            except BlockingIOError:  # All waiting connections are accepted.
                continue
            except OSError as error:  # The process is out of descriptors, or the client has gone.
                service.close_idle()
                if told + TELL_AGAIN <= service.loop.time():
                    told = service.loop.time()
                    logger.warning("cannot accept a connection: %s", error)
                await asyncio.sleep(ACCEPT_AGAIN)
            else:
                await asyncio.sleep(0)

    def _take(self, sock: socket.socket, peer: Any, tls: dict[str, Any], service: Service) -> None:
        """Make an accepted socket a `Connection`, unless there is no room even for its 503.

        A client in its TLS handshake counts too. At the limit the oldest handshake is cancelled.
        """
        if service.is_full():
            sock.close()
            return
        taken = len(service.clients) + len(self._connecting)
        if tls and self._connecting and taken >= service.max_connections and not service.close_idle():
            oldest = next(iter(self._connecting))
            self._connecting.pop(oldest)
            oldest.cancel()
        sock.setblocking(False)
        task = service.loop.create_task(self._connect(sock, partial(Connection, service, peer), tls))
        self._connecting[task] = None
        task.add_done_callback(lambda _: self._connecting.pop(task, None))

    async def _connect(self, sock: socket.socket, new: Callable[[], Connection], tls: dict[str, Any]) -> None:
        """Make an accepted socket a `Connection`."""
        try:
            await asyncio.get_running_loop().connect_accepted_socket(new, sock, **tls)
        except OSError as error:  # The TLS handshake has failed or timed out.
            logger.debug("no connection: %s", error)

    # --- stop ---

    async def stop(self) -> None:
        """Stop in phases. All calls wait for the same stop; a cancelled call does not end it."""
        if self._stop is None:
            self._stop = asyncio.create_task(self._stop_in_phases())
        await asyncio.shield(self._stop)

    def hurry(self) -> None:
        """End the current wait: a phase of the stop, or the application's startup."""
        self._hurried.set()
        if self._service is None:
            self._lifespan.hurry()

    async def _stop_in_phases(self) -> None:
        if self._service is None:
            return
        service = self._service
        await self._stop_accepting(service)
        logger.info("stop 2/3: up to %g s for %d requests", self.limits.graceful_timeout, len(service.requests))
        if not await self._ended(service.empty.wait(), self.limits.graceful_timeout):
            await self._cancel_requests(service)
        service.close()
        logger.info("stop 3/3: the application shuts down")
        self._lifespan.shutdown()
        seconds = self.limits.shutdown_timeout + self.drain_seconds
        if not await self._ended(self._lifespan.answered.wait(), seconds):
            logger.warning("stop 3/3: given up; the application is cancelled")
        await self._ended(self._lifespan.give_up(), None)
        logger.info("stopped")

    async def _stop_accepting(self, service: Service) -> None:
        """Phase 1."""
        service.stopping.set()
        logger.info("stop 1/3: no new connections; %d are open", len(service.connections))
        for connection in tuple(service.connections):
            connection.shutdown()
        service.empty.clear()
        service.check_empty()
        for tasks in (
            self._accepting,
            self._connecting,
        ):  # In this order: afterwards each connecting task has begun, and owns its socket.
            ending = [task for task in tasks if task.cancel()]
            if ending:
                await asyncio.wait(ending)
        # Before the close: after it, the path may be the socket of the next server.
        self._remove_socket()
        for listener in self._accepting.values():
            listener.close()

    async def _cancel_requests(self, service: Service) -> None:
        """Cancel the applications at the end of phase 2, and reset every connection."""
        running = tuple(service.requests)
        logger.warning("stop 2/3: given up; %d requests are cancelled", len(running))
        for task in running:
            task.cancel()
        if running:
            await self._ended(asyncio.wait(running), CANCEL_GRACE)
        for task in running:
            if not task.done():
                logger.error("a request does not end when cancelled, and is left running: %r", task)
        for connection in tuple(service.connections):
            connection.reset()

    async def _ended(self, phase: Coroutine[Any, Any, object], seconds: float | None) -> bool:
        """Wait for the end of a phase, its deadline or the next `hurry`. Return whether it has ended."""
        waits = [asyncio.ensure_future(each) for each in (phase, self._hurried.wait())]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        ended = waits[0].done()
        for wait in waits:
            wait.cancel()
        self._hurried.clear()
        return ended
