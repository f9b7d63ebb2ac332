"""Pool, joint and server put together: `serve` for a program of your own, `run` for a process that does nothing else.

    async with serve(app, port=0, workers=4) as server:
        print(server.port, server.pool.statistics())

`serve` wraps the application in `AfterResponse`, unless it is one already, and gives a `Server` that also knows the pool. It has
no side effects on the process: no signal handlers, no logging, no exit. Two of them live in one loop.

`run` is what the command does: it imports the application by name, chooses the loop (uvloop where it exists), and
turns signals into phases of the stop. The first SIGINT or SIGTERM begins it, the second gives up the phase that is being
waited for, the third has its default effect and ends the process where it stands.

Every option of the command is a keyword of both, under the same name; which half of the machine it belongs to is read
from `Server`, `Limits` and `Pool` themselves, so there is no second list of options to keep in step.
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
from minibg.server import Limits, Server

#: The options of the command that belong to each part.
LIMITS: dict[str, Any] = {field.name: field for field in dataclasses.fields(Limits)}
SERVER: dict[str, Any] = {
    field.name: field for field in dataclasses.fields(Server) if field.init and field.name not in {"app", "limits"}
}
POOL: dict[str, Any] = {
    name: option for name, option in inspect.signature(Pool).parameters.items() if name not in {"clock", "random"}
}
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class AppNotFound(Exception):
    """There is no application under this name; the message says what is missing."""


class TaskServer(Server):
    """A server, and the pool that runs its tasks."""

    pool: Pool

    def hurry(self) -> None:
        """Give up what the stop is waiting for: the drain of the tasks, or a phase of the server."""
        if self.pool.is_draining:
            self.pool.hurry()
        else:
            super().hurry()


def serve(app: ASGIApp, *, pool: Pool | None = None, limits: Limits | None = None, **options: Any) -> TaskServer:
    """Give a server for ``app``, to be used with ``async with``; then it has ``port``, ``pool`` and ``stop()``.

    - ``pool``: a `Pool`. One that is open already stays its owner's; any other lives as long as the application.
    - ``limits``: a `Limits`, or its fields as keywords.
    - ``options``: the keywords of `Server` (``host``, ``port``, ``uds``, ``fd``, ...), of `Limits` and of `Pool`.

    Raises TypeError for an option that does not exist. Entering raises OSError when the address cannot be bound, and
    StartupFailed when the application says so.
    """
    unknown = options.keys() - SERVER.keys() - LIMITS.keys() - POOL.keys()
    if unknown:
        raise TypeError(f"serve() has no option {', '.join(sorted(unknown))}")
    of_limits, of_pool = _only(options, LIMITS), _only(options, POOL)
    if limits is not None and of_limits:
        raise TypeError(f"options of Limits ({', '.join(sorted(of_limits))}) next to limits=")
    if not isinstance(app, AfterResponse):
        app = AfterResponse(app, pool, **of_pool)
    elif pool is not None or of_pool:
        raise TypeError("the application is an AfterResponse already: its pool has its own options")
    server = TaskServer(app, limits=limits or Limits(**of_limits), **_only(options, SERVER))
    server.pool = app.pool
    return server


def run(
    app: ASGIApp | Callable[[], ASGIApp] | str,
    *,
    factory: bool = False,
    app_dir: str = ".",
    loop: Literal["auto", "asyncio", "uvloop"] = "auto",
    **options: Any,
) -> None:
    """Serve an application until a signal ends it. ``options`` are those of `serve`.

    - ``app``: the application, or where it is: ``"module:attribute"``, looked for in ``app_dir`` first.
    - ``factory``: call it to get the application.

    Raises AppNotFound when there is none, and what `serve` raises.
    """
    found: Any = load(app, app_dir) if isinstance(app, str) else app
    server = serve(_made(found) if factory else found, **options)
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runner.run(_serve_until_signalled(server))


async def _serve_until_signalled(server: TaskServer) -> None:
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if signalled.is_set():
            for number in STOP_SIGNALS:  # The next one has its default effect.
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)
            server.hurry()
        signalled.set()

    # Before the start: one that comes while the application starts ends it in order, as soon as it has.
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal)
    async with server:
        await signalled.wait()


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
