"""The startup and shutdown conversation with the application (ASGI lifespan 2.0).

The server calls the application once with a scope of type "lifespan", in an asyncio task that exists as
long as the server serves. It sends "lifespan.startup" before the first connection is accepted, and
"lifespan.shutdown" after the last one has ended. The application answers each with "complete" or
"failed".

- An application that raises or returns before it has answered the startup does not support lifespan.
  The server goes on without it (the specification says MUST) and sends no shutdown.
- "lifespan.startup.failed" is raised as `StartupFailed`, with the application's message. Many frameworks
  send "failed" and then raise as well; that is one failure and is reported once.
- Each request gets a shallow copy of ``scope["state"]``, as the application has filled it during the
  startup.
- There is no deadline here. In minibg the tasks are drained inside the shutdown
  (`minibg.after_response`), and the pool has deadlines of its own. `give_up` ends the wait of a caller
  that has one.

Rejected: an option to turn lifespan off or to require it. An application whose startup matters sends
"failed".
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from minibg.asgi import ASGIApp, Message
from minibg.log import SafeLogger

logger = SafeLogger("minibg.server")

#: Seconds a cancelled application has for its ``finally`` blocks. There is no precedent; a rollback fits.
CANCEL_GRACE = 5.0


class StartupFailed(RuntimeError):
    """The application sent "lifespan.startup.failed". The text is its message."""


class Lifespan:
    """One conversation; each method is called once."""

    def __init__(self, app: ASGIApp, state: dict[str, Any], addresses: Sequence[Any] = ()) -> None:
        self._app = app
        self._addresses = addresses
        self._state = state
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        #: Set when the application has answered the last event, or has ended.
        self.answered = asyncio.Event()
        self._answer: Message = {}
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Send the startup and wait for the answer. Raises StartupFailed."""
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
        """Send the shutdown. The application's answer, or its end, sets `answered`."""
        if self._task is None or self._task.done():
            self.answered.set()
        else:
            self.answered.clear()
            self._inbox.put_nowait({"type": "lifespan.shutdown"})

    async def give_up(self) -> None:
        """Cancel the application if it still runs, and wait for its end for `CANCEL_GRACE` seconds."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CANCEL_GRACE)
            if not self._task.done():
                logger.error("the lifespan of the application does not end when cancelled; it is left behind")

    async def _run(self) -> None:
        asgi = {"version": "3.0", "spec_version": "2.0"}
        # The addresses are bound before the application starts, so it can print where it will be reached.
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
