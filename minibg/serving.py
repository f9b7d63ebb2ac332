"""Pool, joint and server put together: `serve` for a program of your own, `run` for a process that does nothing else.

    async with serve(app, port=0, task_workers=4) as server:
        print(server.port, server.pool.statistics())

`serve` wraps the application in `AfterResponse`, unless it is one already, and returns a `Server` that also knows the pool. It has
no side effects on the process: no signal handlers, no logging, no exit. Two of them live in one event loop.

`run` is what the command does. It imports the application by name, chooses the event loop (uvloop where it exists), raises
the process's limit of file descriptors, and turns signals into phases of the stop.

**The stop of a process**, from the first signal (SIGINT or SIGTERM) to the exit:

1. No new connections; idle ones are closed.
2. Responses in flight have ``graceful_timeout`` seconds. What is left is cancelled and has `CANCEL_GRACE` seconds for its
   clean-up.
3. The application shuts down. First the pool is drained, inside the lifespan: `background/drain.py` has its phases and
   deadlines.
4. The event loop is closed. Asyncio tasks that still run, of a library for example, are cancelled, and left behind after
   `LEFT_BEHIND_SECONDS`.

The second signal ends the phase that is waited for and goes on to the next; during the start it gives up the start. The third
signal has its default effect and ends the process at once. [drain.9] Threads that do not end are not waited for either: the
command names them and exits (`minibg.__main__`).

Every option of the command is a keyword of both functions, under the same name. They are read from `Server`, `Limits` and
`Pool`, with one difference: ``workers`` of a `Pool` is ``task_workers`` here, because a server's workers are processes everywhere
else.
"""

import asyncio
import dataclasses
import importlib
import inspect
import signal
import sys
from collections.abc import Callable
from functools import reduce
from typing import Any, Literal

from minibg.after_response import AfterResponse
from minibg.asgi import ASGIApp
from minibg.background import Pool
from minibg.log import SafeLogger
from minibg.server import Limits, Server

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


class AppNotFound(Exception):
    """There is no application under this name; the message says what is missing."""


class TaskServer(Server):
    """A server, and the pool that runs its tasks. Made by `serve`."""

    app: AfterResponse

    @property
    def pool(self) -> Pool:
        """The pool that runs the tasks."""
        return self.app.pool

    def hurry(self) -> None:
        """End the phase of the stop that is waited for: one of the drain, or one of the server."""
        if self.pool.is_draining:
            self.pool.hurry()
        else:
            super().hurry()


def serve(app: ASGIApp, *, pool: Pool | None = None, limits: Limits | None = None, **options: Any) -> TaskServer:
    """Return a server for ``app``, to be used with ``async with``; then it has ``port``, ``pool`` and ``stop()``.

    - ``pool``: a `Pool`. One that is open already stays its owner's; any other lives as long as the application.
    - ``limits``: a `Limits`, or its fields as keywords.
    - ``options``: the keywords of `Server` (``host``, ``port``, ``uds``, ``fd``, ...), of `Limits` and of `Pool`, with
      ``task_workers`` for the pool's ``workers``.

    Raises TypeError for an option that does not exist, ValueError for a value that makes no sense. Entering raises OSError
    when the address cannot be bound, and StartupFailed when the application says so.
    """
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
    return TaskServer(app, limits=limits or Limits(**of_limits), **_only(options, SERVER))


def run(
    app: ASGIApp | Callable[[], ASGIApp] | str,
    *,
    factory: bool = False,
    app_dir: str = ".",
    loop: Literal["auto", "asyncio", "uvloop"] = "auto",
    **options: Any,
) -> None:
    """Serve an application until a signal stops it. Blocks; ``options`` are those of `serve`.

    - ``app``: the application, or where it is: ``"module:attribute"``, looked for in ``app_dir`` first.
    - ``factory``: call it to get the application.
    - ``loop``: the event loop; "auto" is uvloop where it is installed.

    Raises AppNotFound when there is none, and the errors of `serve`.
    """
    found: Any = load(app, app_dir) if isinstance(app, str) else app
    server = serve(_made(found) if factory else found, **options)
    event_loop = loop_factory(loop)()
    try:
        event_loop.run_until_complete(_serve_until_signalled(server))
    finally:
        _close(event_loop)


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


def _made(factory: Callable[[], Any]) -> Any:
    try:
        return factory()
    except Exception as error:
        raise AppNotFound(f"the factory failed: {type(error).__name__}: {error}") from error


def load(name: str, app_dir: str = ".") -> Any:
    """Import ``module:attribute``. Raises AppNotFound."""
    module_name, separator, attribute = name.partition(":")
    if not (module_name and separator and attribute):
        raise AppNotFound(f"{name!r} is not the name of an application: write module:attribute")
    if app_dir not in sys.path:
        sys.path.insert(0, app_dir)
    try:
        module = importlib.import_module(module_name)
        return reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise AppNotFound(f"cannot load {name}: {error}") from error
    except Exception as error:
        raise AppNotFound(f"cannot import {module_name}: {type(error).__name__}: {error}") from error


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


def _only(options: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in names}
