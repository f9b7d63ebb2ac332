"""The startup and shutdown conversation with the application (ASGI lifespan 2.0).

The server calls the application once with a scope of type "lifespan", in an asyncio task that
exists as long as the server serves. It sends "lifespan.startup" before the first connection is
accepted, and "lifespan.shutdown" after the last connection has ended. The application answers each
with "complete" or "failed".

- An application that raises an Exception or returns before it has answered the startup does not
  support lifespan. The server then continues without lifespan (a MUST of the specification), and
  sends no shutdown.
- "lifespan.startup.failed" is raised as `StartupFailed`, with the application's message. Many
  frameworks send "failed" and then also raise; this is reported as one failure.
- SystemExit, KeyboardInterrupt and all other BaseExceptions do not leave this file, because an
  asyncio task that raises SystemExit or KeyboardInterrupt ends the event loop at once. Before the
  answer to the startup they fail the startup; afterwards they are logged like any other error.
- A startup that hangs can be ended by `hurry` or by cancelling `startup`. Both cancel the
  application and wait for its end. An application that swallows its cancellation is reported in the
  log after `CANCEL_GRACE` seconds, and left running.
- ``shutdown_failed`` is true after "lifespan.shutdown.failed", and after an error that ended the
  application once its startup was complete.
- Each request gets a shallow copy of ``scope["state"]``, which the application fills during the
  startup.
- The caller sets the deadlines (`Server._stop_in_phases`), and ends its wait with `give_up`. In
  minibg the tasks are drained inside the shutdown (`minibg.after_response`).

Rejected: an option to turn lifespan off or to require it. An application that must not be served
after a failed startup can send "lifespan.startup.failed".
"""

import asyncio
import logging
import traceback
from collections.abc import Sequence
from typing import Any

from minibg.asgi import ASGIApp, Message
from minibg.log import SafeLogger

logger = SafeLogger("minibg.server")

#: Seconds that a cancelled application has for its ``finally`` blocks, a rollback for example. The
#: number follows no precedent.
CANCEL_GRACE = 5.0


class StartupFailed(RuntimeError):
    """The application has not started. The text is the application's message, or the reason."""


class Lifespan:
    """The lifespan of one application; `startup` and `shutdown` are called once each."""

    def __init__(self, app: ASGIApp, state: dict[str, Any], addresses: Sequence[Any] = ()) -> None:
        """``addresses``: each is (host, port) or the path of a Unix socket. The list may be filled
        until `startup`.
        """
        self._app = app
        self._addresses = addresses
        self._state = state
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        #: The application has failed to shut down.
        self.shutdown_failed = False
        #: Set when the application has answered the last event, or has ended.
        self.answered = asyncio.Event()
        #: The last answer of the application. Empty before the first.
        self._answer: Message = {}
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Send the startup and wait for the answer. Raises StartupFailed."""
        self._task = asyncio.create_task(self._run())
        self._inbox.put_nowait({"type": "lifespan.startup"})
        try:
            await self.answered.wait()
        except asyncio.CancelledError:
            self.hurry()
            await self.give_up()
            raise
        if self._answer.get("type") == "lifespan.startup.failed":
            await self.give_up()
            raise StartupFailed(self._answer.get("message") or "the application did not say why")

    def hurry(self, reason: str = "given up while the application was starting") -> None:
        """Make `startup` raise StartupFailed with the reason, if the application has not answered
        yet.
        """
        if not self._answer:
            self._answer = {"type": "lifespan.startup.failed", "message": reason}
            self.answered.set()

    def shutdown(self) -> None:
        """Send the shutdown. The application's answer, or its end, sets `answered`."""
        if self._task is None or self._task.done():
            self.answered.set()
        else:
            self.answered.clear()
            self._inbox.put_nowait({"type": "lifespan.shutdown"})

    async def give_up(self) -> None:
        """Cancel the application if it still runs; wait `CANCEL_GRACE` seconds for its end."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CANCEL_GRACE)
            if not self._task.done():
                logger.error("the lifespan of the application does not end when cancelled; it is left running")

    async def _run(self) -> None:
        asgi = {"version": "3.0", "spec_version": "2.0"}
        # The addresses are bound already, so the application can print them.
        extensions = {"minibg.addresses": {"addresses": self._addresses}}
        scope = {"type": "lifespan", "asgi": asgi, "state": self._state, "extensions": extensions}
        try:
            await self._app(scope, self._inbox.get, self._send)
        except BaseException as error:  # No application ends the server.
            if not self._answer and isinstance(error, Exception):
                logger.info("the application does not support lifespan: %r", error)
                return
            self.hurry("the application raised " + "".join(traceback.format_exception_only(error)).strip())
            # The application has reported this failure already, or this server has cancelled it.
            known = self._answer["type"].endswith(".failed") or isinstance(error, asyncio.CancelledError)
            self.shutdown_failed |= not known
            level = logging.DEBUG if known else logging.ERROR
            logger.log(level, "the lifespan of the application failed", exc_info=error)
        finally:
            self.answered.set()

    async def _send(self, message: Message) -> None:
        kind, expected = message["type"], "shutdown" if self._answer else "startup"
        if kind not in (f"lifespan.{expected}.complete", f"lifespan.{expected}.failed"):
            raise RuntimeError(f"{kind!r} is not an answer to lifespan.{expected}")
        self._answer = message
        if kind == "lifespan.shutdown.failed":
            self.shutdown_failed = True
            logger.error("the application failed to shut down: %s", message.get("message", ""))
        self.answered.set()
