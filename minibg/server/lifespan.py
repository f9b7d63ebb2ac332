"""The startup and shutdown conversation with the application (ASGI lifespan 2.0).

The application is called once with a scope of type "lifespan", in a task of its own that lives as long as the server. It
is told "lifespan.startup" before the first connection is accepted, and "lifespan.shutdown" after the last one has gone;
to each it answers "complete" or "failed".

- An application that raises or returns before it has answered the startup does not speak lifespan. The server goes on
  without (the specification says MUST) and sends it no shutdown.
- "lifespan.startup.failed" is raised as `StartupFailed`, with the application's message. Many frameworks say "failed" and
  raise as well; that is one failure and is told once.
- What the application puts into ``scope["state"]`` during startup is what each request gets a shallow copy of.
- There is no deadline here. In minibg the tasks are drained inside the shutdown (`minibg.after_response`), and the pool
  has deadlines of its own. Who cannot wait calls `give_up`.

Rejected: a switch to turn lifespan off or to insist on it. A startup that matters says "failed".
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from minibg.asgi import ASGIApp, Message

logger = logging.getLogger("minibg.server")

#: Seconds a cancelled application has for its ``finally`` blocks. There is no precedent; it is what a rollback needs.
CANCEL_GRACE = 5.0


class StartupFailed(RuntimeError):
    """The application said "lifespan.startup.failed"; the text is its message."""


class Lifespan:
    """One conversation; each method is called once."""

    def __init__(self, app: ASGIApp, state: dict[str, Any], addresses: Sequence[Any] = ()) -> None:
        self._app = app
        self._addresses = addresses
        self._state = state
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        #: Set when the application has answered what it was told last, or has ended.
        self.answered = asyncio.Event()
        self._answer: Message = {}
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Tell the application to start, and wait until it has. Raises StartupFailed."""
        self._task = asyncio.create_task(self._run())
        self._inbox.put_nowait({"type": "lifespan.startup"})
        try:
            await self.answered.wait()
        except asyncio.CancelledError:
            await self.give_up()
            raise
        if self._answer.get("type") == "lifespan.startup.failed":
            await self.give_up()
            raise StartupFailed(self._answer.get("message") or "the application did not say why")

    def shutdown(self) -> None:
        """Tell the application to end; `answered` is set when it has."""
        if self._task is None or self._task.done():
            self.answered.set()
        else:
            self.answered.clear()
            self._inbox.put_nowait({"type": "lifespan.shutdown"})

    async def give_up(self) -> None:
        """Cancel the application if it is still there, and wait for its end, but not for ever."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CANCEL_GRACE)
            if not self._task.done():
                logger.error("the lifespan of the application does not end when cancelled; it is left behind")

    async def _run(self) -> None:
        asgi = {"version": "3.0", "spec_version": "2.0"}
        # The addresses are bound before the application starts, so that it can say where it is.
        extensions = {"minibg.addresses": self._addresses}
        scope = {"type": "lifespan", "asgi": asgi, "state": self._state, "extensions": extensions}
        try:
            await self._app(scope, self._inbox.get, self._send)
        except Exception as error:
            if not self._answer:
                logger.info("the application does not speak lifespan: %r", error)
            else:
                level = logging.DEBUG if self._answer["type"].endswith(".failed") else logging.ERROR
                logger.log(level, "the lifespan of the application failed", exc_info=error)
        finally:
            self.answered.set()

    async def _send(self, message: Message) -> None:
        kind, expected = message["type"], "shutdown" if self._answer else "startup"
        if kind not in (f"lifespan.{expected}.complete", f"lifespan.{expected}.failed"):
            raise RuntimeError(f"{kind!r} is not an answer to lifespan.{expected}")
        self._answer = message
        if kind == "lifespan.shutdown.failed":
            logger.error("the application failed to shut down: %s", message.get("message", ""))
        self.answered.set()
