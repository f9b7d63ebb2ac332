"""Listen, serve, and stop in numbered phases.

A server is made of nothing but its settings; ``async with`` starts it and stops it::

    async with Server(app, port=0) as server:
        print(server.port)

It installs no signal handler, configures no logging and never exits the process: whoever runs it does
(`minibg.serving`). Two of them live in one loop.

Starting: bind, let the application start (`minibg.server.lifespan`), then accept. Stopping is the way back, in phases of
which each has its end and its line in the log:

1. No new connections. Idle connections, and those that have sent half a head, are closed; the others close after the
   response they are at. The scope's extension "minibg.stopping" is set, so that endless streams can end themselves.
   It is not announced as "http.disconnect", because the client is still there.
2. Responses in flight, and applications that still run after their response, have ``graceful_timeout`` seconds. What is
   left is cancelled *and awaited*, so that its cleanup finds everything in place.
3. The application shuts down. In minibg the tasks are drained here, by deadlines of their own.

`hurry` gives up the phase that is being waited for and goes on to the next; nothing is skipped.

Rejected: polling "is everybody gone?" ten times a second, as uvicorn does; the last one to leave sets an event. Rejected
too: ``asyncio.Server.wait_closed`` and its kin, whose meaning changed in Python 3.12.1.
"""

import asyncio
import logging
import socket
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from minibg.asgi import ASGIApp
from minibg.server.forwarded import Trust
from minibg.server.lifespan import CANCEL_GRACE, Lifespan
from minibg.server.limits import Limits
from minibg.server.listen import bind_tcp, bind_unix, tls_context
from minibg.server.protocol import Connection
from minibg.server.service import Service

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
        self._listeners: list[asyncio.Server] = []
        self._stop: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    # --- start ---

    async def start(self) -> None:
        """Bind, start the application, accept. Raises OSError and `StartupFailed`; then nothing is left behind."""
        self._service = service = Service(
            self.app,
            self.limits,
            root_path=self.root_path,
            trust=Trust(self.forwarded_allow_ips),
            access_log=self.access_log,
        )
        #: Set when the stop begins (an `asyncio.Event`).
        self.stopping = service.stopping
        self._hurry = asyncio.Event()
        self._lifespan = Lifespan(self.app, service)
        tls = None
        if self.ssl_certfile:
            tls = tls_context(self.ssl_certfile, self.ssl_keyfile, self.ssl_keyfile_password)
        sockets = self._bind()
        try:
            await self._lifespan.startup()
            service.tick()
            for sock in sockets:
                self._listeners.append(
                    await service.loop.create_server(
                        lambda: Connection(service),
                        sock=sock,
                        backlog=BACKLOG,
                        ssl=tls,
                        ssl_handshake_timeout=self.limits.header_timeout if tls else None,
                    )
                )
        except BaseException:
            service.stop_ticking()
            for sock in sockets:
                sock.close()
            raise
        logger.info("listening on %s", ", ".join(map(_printable, self.addresses)))

    def _bind(self) -> list[socket.socket]:
        if self.fd is not None:
            sockets = [socket.socket(fileno=self.fd)]
        elif self.uds is not None:
            sockets = [bind_unix(self.uds, self.uds_permissions)]
        else:
            sockets = bind_tcp(self.host, self.port)
        names = [sock.getsockname() for sock in sockets]
        self.addresses = [name if isinstance(name, str) else (name[0], name[1]) for name in names]
        if not isinstance(names[0], str):
            self.port = names[0][1]
        return sockets

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
        service = self._service
        self._stop_accepting(service)
        service.left()
        if not await self._waited_for(service.empty, self.limits.graceful_timeout):
            await self._cancel_requests(service)
        service.stop_ticking()
        logger.info("stop 3/3: the application shuts down")
        self._lifespan.shutdown()
        await self._waited_for(self._lifespan.answered, None)
        await self._lifespan.give_up()
        logger.info("stopped")

    def _stop_accepting(self, service: Service) -> None:
        service.stopping.set()
        for listener in self._listeners:
            listener.close()
        if self.uds is not None:
            Path(self.uds).unlink(missing_ok=True)
        connections = tuple(service.connections)
        for connection in connections:
            connection.shutdown()
        logger.info("stop 1/3: no new connections; %d are open", len(connections))
        logger.info(
            "stop 2/3: up to %g seconds for %d requests", self.limits.graceful_timeout, len(service.cycles)
        )

    async def _cancel_requests(self, service: Service) -> None:
        """Phase 2 has ended early: cancel what runs, wait for its cleanup, and cut what is connected."""
        running = tuple(service.cycles)
        logger.warning("stop 2/3: given up; %d requests are cancelled", len(running))
        for task in running:
            task.cancel()
        if running:
            _, stuck = await asyncio.wait(running, timeout=CANCEL_GRACE)
            for task in stuck:
                logger.error("does not end when cancelled, and is left behind: %r", task.get_coro())
        for connection in tuple(service.connections):
            connection.cut()

    async def _waited_for(self, event: asyncio.Event, seconds: float | None) -> bool:
        """Wait for an event, until the deadline or the next `hurry`. Whether it came."""
        self._hurry.clear()
        waits = [asyncio.ensure_future(each.wait()) for each in (event, self._hurry)]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return event.is_set()


def _printable(address: tuple[str, int] | str) -> str:
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
