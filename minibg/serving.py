"""Pool, joint and server put together: `serve` for a program of your own, `run` for a process that
does nothing else.

    async with serve(app, port=0, task_workers=4) as server:
        print(server.port, server.pool.statistics())

`serve` wraps the application in `AfterResponse`, unless it is one already, and returns a `Server`
that also knows the pool. It has no side effects on the process: no signal handlers, no logging, no
exit. Two of them can be in one event loop.

`run` is what the command does. It imports the application by name (`minibg.application`), chooses
the event loop (uvloop where it exists), and turns signals into phases of the stop.

**The stop of a process**, from the first signal (SIGINT or SIGTERM) to the exit:

1. No new connections; idle ones are closed.
2. Responses in flight have ``graceful_timeout`` seconds. What is left is cancelled and has
   `CANCEL_GRACE` seconds for its clean-up.
3. The application shuts down. First the pool is drained, inside the lifespan: `background/drain.py`
   has its phases and deadlines. When the application fails to shut down, the stop goes on, and
   `run` raises `ShutdownFailed` at its end.
4. The event loop is closed. Asyncio tasks that still run, of a library for example, are cancelled,
   and left behind after `LEFT_BEHIND_SECONDS`.

The second signal ends the phase that is waited for and goes on to the next; during the start it
gives up the start. The third signal has its default effect and ends the process at once. [drain.9]
Threads that do not end are not waited for either: the command names them and exits
(`minibg.__main__`).

Each option of the command is a keyword of both functions, under the same name. They are read from
`Server`, `Limits` and `Pool`, with one difference: ``workers`` of a `Pool` is ``task_workers``
here, because a server's workers are processes everywhere else. For editors and type checkers they
are written down once more, as `Options`; a test compares the two.

Rejected: one signature with thirty keywords for each function. It would be the same list three
times.
"""

import asyncio
import dataclasses
import inspect
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict, Unpack

from minibg.after_response import AfterResponse
from minibg.application import checked, load, make, objection_to
from minibg.asgi import ASGIApp
from minibg.background import Pool
from minibg.log import SafeLogger
from minibg.server import Limits, Server
from minibg.server.listen import raise_descriptor_limit

logger = SafeLogger("minibg")

#: The options of the command that belong to each part.
LIMITS: dict[str, Any] = {field.name: field for field in dataclasses.fields(Limits)}
SERVER: dict[str, Any] = {
    field.name: field for field in dataclasses.fields(Server) if field.init and field.name not in {"app", "limits"}
}
POOL: dict[str, Any] = {
    "task_workers" if name == "workers" else name: option
    for name, option in inspect.signature(Pool).parameters.items()
    if name not in {"clock", "random"}
}
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds that asyncio tasks have to end when the event loop is closed, and asynchronous generators after them.
LEFT_BEHIND_SECONDS = 1.0


class Options(TypedDict, total=False):
    """The options of `serve` and `run`. Each one's default and meaning is where it comes from."""

    # Of `Server`.
    host: str
    port: int
    uds: str | None
    uds_permissions: int | None
    fd: int | None
    ssl_certfile: str | None
    ssl_keyfile: str | None
    ssl_keyfile_password: str | None
    root_path: str
    forwarded_allow_ips: str
    access_log: bool
    # Of `Limits`.
    header_timeout: float
    body_timeout: float
    write_timeout: float
    keep_alive: float
    max_target: int
    max_header_bytes: int
    max_headers: int
    max_body: int
    max_connections: int
    max_requests_in_progress: int
    graceful_timeout: float
    shutdown_timeout: float
    # Of `Pool`.
    task_workers: int
    queue_limit: int
    drain_timeout: float
    keep_finished: int
    keep_for: float
    journal: str | os.PathLike[str] | None
    durability: Literal["power", "process"]


class ShutdownFailed(RuntimeError):
    """The application has not shut down in order. What it said is in the log."""


class TaskServer(Server):
    """A server, and the pool that runs its tasks. Made by `serve`."""

    app: AfterResponse

    @property
    def pool(self) -> Pool:
        """The pool that runs the tasks."""
        return self.app.pool

    @property
    def shutdown_failed(self) -> bool:
        """Whether the application failed to shut down: it said so, or it raised."""
        return self._lifespan.shutdown_failed

    def hurry(self) -> None:
        """End the phase of the stop that is waited for: one of the drain, or one of the server."""
        if self.pool.is_draining:
            self.pool.hurry()
        else:
            super().hurry()


def serve(
    app: ASGIApp, *, pool: Pool | None = None, limits: Limits | None = None, **options: Unpack[Options]
) -> TaskServer:
    """Return a server for ``app``, to be used with ``async with``; then it has ``port``, ``pool`` and ``stop()``.

    - ``pool``: a `Pool`. One that is open already stays its owner's; any other lives as long as the application.
    - ``limits``: a `Limits`, or its fields as keywords.
    - ``options``: the keywords of `Server` (``host``, ``port``, ``uds``, ``fd``, ...), of `Limits`
      and of `Pool`, with ``task_workers`` for the pool's ``workers``.

    Raises TypeError for an option that does not exist and for what is no ASGI application,
    ValueError for a value that makes no sense. Entering raises OSError when the address cannot be
    bound, and StartupFailed when the application says so.
    """
    objection = objection_to(app)
    if objection is not None:
        raise TypeError(f"the application {objection}")
    unknown = options.keys() - SERVER.keys() - LIMITS.keys() - POOL.keys()
    if unknown:
        hint = ": its tasks' workers are task_workers=" if "workers" in unknown else ""
        raise TypeError(f"serve() has no option {', '.join(sorted(unknown))}{hint}")
    of_limits, of_pool = _only(options, LIMITS), _only(options, POOL)
    if limits is not None and of_limits:
        raise TypeError(f"options of Limits ({', '.join(sorted(of_limits))}) next to limits=")
    if not isinstance(app, AfterResponse):
        if "task_workers" in of_pool:
            of_pool["workers"] = of_pool.pop("task_workers")
        app = AfterResponse(app, pool, **of_pool)
    elif pool is not None or of_pool:
        raise TypeError("the application is an AfterResponse already: its pool has its own options")
    server = TaskServer(app, limits=limits or Limits(**of_limits), **_only(options, SERVER))
    server.drain_seconds = app.pool.stop_seconds
    return server


def run(
    app: ASGIApp | Callable[[], ASGIApp] | str,
    *,
    factory: bool = False,
    app_dir: str = ".",
    loop: Literal["auto", "asyncio", "uvloop"] = "auto",
    pool: Pool | None = None,
    limits: Limits | None = None,
    **options: Unpack[Options],
) -> None:
    """Serve an application until a signal stops it. Blocks; ``options`` are those of `serve`.

    - ``app``: the application, or where it is: ``"module:attribute"``, looked for in ``app_dir`` first.
    - ``factory``: call it to get the application.
    - ``loop``: the event loop; "auto" is uvloop where it is installed.

    Raises AppNotFound when there is none, ShutdownFailed after the stop, and the errors of `serve`.
    """
    name = app if isinstance(app, str) else "the factory" if factory else "the application"
    found: Any = load(app, app_dir) if isinstance(app, str) else app
    found = checked(make(found, name) if factory else found, f"what {name} returned" if factory else name)
    server = serve(found, pool=pool, limits=limits, **options)
    raise_descriptor_limit()
    event_loop = loop_factory(loop)()
    try:
        event_loop.run_until_complete(_serve_until_signalled(server))
    finally:
        _close(event_loop)
    if server.shutdown_failed:
        raise ShutdownFailed("the application failed to shut down")


async def _serve_until_signalled(server: TaskServer) -> None:
    """Start, wait for the first signal, and stop. Later signals hurry the stop."""
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    starting = loop.create_task(server.start())

    def on_signal() -> None:
        if not signalled.is_set():  # The first. While the application starts, the stop begins when it has.
            signalled.set()
            return
        for number in STOP_SIGNALS:  # The second; the third has its default effect.
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        if not starting.done():
            starting.cancel()
        server.hurry()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        await starting
    except asyncio.CancelledError:
        logger.warning("the start was given up: the application had not started")
        return
    try:
        await signalled.wait()
    finally:
        await server.stop()


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """Close an event loop without waiting for what does not end.

    `asyncio.Runner` waits without limit for each asyncio task that swallows its cancellation, and for each thread of the
    default executor, such as one that sits in ``asyncio.to_thread``.
    """
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=LEFT_BEHIND_SECONDS))
    loop.run_until_complete(asyncio.wait([loop.create_task(loop.shutdown_asyncgens())], timeout=LEFT_BEHIND_SECONDS))
    loop.close()


def loop_factory(name: Literal["auto", "asyncio", "uvloop"]) -> Callable[[], asyncio.AbstractEventLoop]:
    """Choose the event loop: with "auto" uvloop where it is installed."""
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop  # noqa: PLC0415 - it does not exist everywhere.
    except ImportError:
        if name == "uvloop":
            raise
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _only(options: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in names}
