"""Pool, joint and server together: `serve` for use inside a program, `run` for a process that only
serves.

    async with serve(app, port=0, task_workers=4) as server:
        print(server.port, server.pool.statistics())

`serve` wraps the application in `AfterResponse`, unless it is one already, and returns a `Server`
that also knows the pool. It sets no signal handlers, configures no logging, and never exits the
process. Two servers can be in one event loop.

`run` is what the command does. It imports the application by name (`minibg.application`), chooses
the event loop (uvloop where it exists), and turns signals into phases of the stop.

**The stop of a process**, from the first signal (SIGINT or SIGTERM) to the exit:

1. No new connections; idle ones are closed.
2. Responses in flight have ``graceful_timeout`` seconds. The remaining ones are cancelled, with
   `CANCEL_GRACE` seconds for their clean-up.
3. The application shuts down. First the pool is drained, inside the lifespan: `background/drain.py`
   has its phases and deadlines. When the application fails to shut down, the stop goes on, and
   `run` raises `ShutdownFailed` at its end.
4. The event loop is closed. Asyncio tasks that still run, such as those of a library, are
   cancelled, and left behind after `LEFT_BEHIND_SECONDS`.

The second signal ends the current phase of the stop and begins the next; during the start it
cancels the start. The third signal has its default effect and ends the process at once. [drain.9]
The command names threads that do not end, and exits without waiting for them (`minibg.__main__`).

Each option of the command is a keyword of both functions, under the same name. They are read from
`Server`, `Limits` and `Pool`, with one difference: ``workers`` of a `Pool` is ``task_workers``
here, because a server's workers are processes everywhere else. `Options` repeats them for editors
and type checkers, and a test compares the two.

Rejected: a signature with thirty keywords for each function. The same list would exist three times.
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
#: Seconds that asyncio tasks, and then asynchronous generators, have to end when the event loop is
#: closed.
LEFT_BEHIND_SECONDS = 1.0


class Options(TypedDict, total=False):
    """The options of `serve` and `run`. Defaults and meanings are in `Server`, `Limits` and `Pool`."""

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
    """The application failed to shut down. Its error is in the log."""


class TaskServer(Server):
    """A server, and the pool that runs its tasks. Made by `serve`."""

    app: AfterResponse

    @property
    def pool(self) -> Pool:
        """The pool that runs the tasks."""
        return self.app.pool

    @property
    def shutdown_failed(self) -> bool:
        """Whether the application reported a failed shutdown, or raised during the shutdown."""
        return self._lifespan.shutdown_failed

    def hurry(self) -> None:
        """End the current phase of the stop, in the pool's drain or in the server."""
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

    Raises TypeError for an unknown option and for an object that is no ASGI application, ValueError
    for an invalid value. Entering raises OSError when the address cannot be bound, and
    StartupFailed when the application reports a failed startup.
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

    - ``app``: the application, or its name ``"module:attribute"``, which is searched in ``app_dir``
      first.
    - ``factory``: whether ``app`` is a function that returns the application.
    - ``loop``: the event loop; "auto" is uvloop where it is installed.

    Raises AppNotFound when there is no such application, ShutdownFailed after the stop, and the
    errors of `serve`.
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
        if not signalled.is_set():  # The first. During the startup, the stop begins after the startup.
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
    """Close an event loop without waiting for tasks and threads that do not end.

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
    """Return the factory of the event loop; "auto" is uvloop where it is installed."""
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
