"""The joint between server and queue: hold a response's tasks until it has left, then release them.

`AfterResponse` is plain ASGI: an application around an application. It is the only file that knows
both sides, and it decides when the tasks start. For each request:

1. An empty hold joins the scope, as ``scope["minibg.background"]``. The handler adds tasks to it.
2. The response head passes through ``send`` here. First the hold is *committed*, then the head goes
   on. If the commit is refused, for example because the journal's disk is full, the client gets a
   503 with ``Retry-After`` instead, and the application's response is discarded. Tasks that are
   added while the body streams are committed before its last message.
3. The application returns. minibg's server returns from ``send`` of the last message once the
   kernel has taken the last byte. So the response has left, and the hold is *released*. [start.1]

**A response head that has left commits the server to the tasks.** `Head` is the state of the
response head. It decides between release and drop, in the last lines of `AfterResponse._respond`:

- If the application raises before the head has left, the hold is *dropped*, except for tasks with
  ``always=True``. [promise.1]
- After the head has left, the tasks are never dropped: an error in the stream or in the clean-up of
  a dependency, a disconnected client, or a stop that cancels the response does not change that.
  [promise.4] A response of status 500 whose application raises is the exception, see
  `Head.SERVER_ERROR`.
- A client that leaves before the end of its response makes ``send`` raise an OSError (ASGI http
  2.4). The handler had answered, so its tasks run. [gone.1]

This file sees only messages and exceptions. minibg's `App` drops the hold itself when it answers an
exception with a response. Starlette and FastAPI turn an HTTPException into a response before it
reaches this file: it looks like a returned 4xx, and the tasks run. They answer any other exception
with a 500 and raise it again: then the tasks are dropped.

**The pool lives inside the application's lifespan.** It is opened before the application starts up
(which may add tasks), starts when the startup is complete, and is drained before the application
receives the shutdown, while the resources of the tasks are still open. A pool that was opened
elsewhere is not stopped here. A pool that was made here is replaced for each lifespan, but shared
with a second lifespan that runs beside the first. For an application without the lifespan protocol,
the pool is opened and drained in the same way. Where no lifespan runs (``uvicorn --lifespan off``,
an in-memory client), the first request opens the pool, and a warning says that it will not be
drained.

It works under any ASGI server, around any ASGI application. Only minibg's server guarantees that
the last byte has left: under uvicorn the last bytes may still be in the transport's buffer when the
tasks start.

Rejected: running the tasks inside the response, as Starlette does. Every middleware and every
request timeout of the server could then interrupt them.
"""

import asyncio
import sys
from enum import Enum, auto
from typing import Any

from minibg.asgi import ASGIApp, Message, Receive, Scope, Send
from minibg.background import BackgroundTasks, NotAccepted, Pool
from minibg.log import SafeLogger

logger = SafeLogger("minibg.background")


class Head(Enum):
    """The state of a response head."""

    #: The application has not sent the head.
    WAITING = auto()
    #: The head was passed on, and the server still holds it back. If the application raises now,
    #: the server answers with a 500.
    STARTED = auto()
    #: The head has left, and the tasks run.
    LEFT = auto()
    #: The head has left with status 500. If the application raises now, as Starlette does, the 500
    #: was the framework's answer to that exception. If the application returns, the 500 was a
    #: response like any other.
    SERVER_ERROR = auto()
    #: The application sent the head, but the client had disconnected. The tasks run.
    UNDELIVERED = auto()
    #: A 503 has left instead: the tasks could not be accepted.
    REPLACED = auto()


#: The heads that keep their tasks.
PROMISED = (Head.LEFT, Head.UNDELIVERED)
#: The messages that are a head. Others may come before it: hints, or what a test client asks for.
HEADS = {"http.response.start", "websocket.http.response.start", "websocket.accept", "websocket.close"}


class AfterResponse:
    """Run ``app``, and the tasks it adds to ``scope["minibg.background"]`` after its responses.

    ``pool`` runs the tasks; without it, a `Pool` is made with ``options``. A pool that is open
    already must be stopped by its owner. Raises TypeError for options next to a pool.
    """

    def __init__(self, app: ASGIApp, pool: Pool | None = None, **options: Any) -> None:
        if pool is not None and options:
            raise TypeError(f"options of a pool ({', '.join(sorted(options))}) next to a pool that has its own")
        self.app = app
        self.pool = pool or Pool(**options)
        #: The options of pools that are made here; None when the pool was given.
        self._options = options if pool is None else None
        self._starting = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        if self.pool.loop is not asyncio.get_running_loop():
            async with self._starting:  # A second request waits until the first one has opened the pool.
                await self._start()
        await self._respond(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        hold = BackgroundTasks(self.pool, f"{scope.get('method', scope['type'])} {scope.get('path', '')}")
        response = _Response(hold, send, scope)
        try:
            await self.app({**scope, "minibg.background": hold}, receive, response.send)
            response.end()
        except NotAccepted as refusal:
            if response.head is Head.WAITING:
                await response.refuse(refusal)
            elif response.head is not Head.REPLACED:  # Else a 503 has left.
                raise
        finally:
            # The application has returned or raised. The head alone decides about its tasks.
            try:
                if response.head in PROMISED:
                    await response.commit_late()
                else:
                    hold.drop()
            finally:
                hold.release()  # After a drop: the tasks that run always.

    async def _start(self) -> None:
        """Open the pool for a request without a lifespan."""
        self._renew()
        if self.pool.is_new:
            logger.warning("no lifespan was run: the pool starts with this request, and will not be drained")
            await self.pool.open()
            self.pool.start()

    def _renew(self) -> None:
        """Replace a pool that was made here for an earlier lifespan or event loop. One that runs in
        this event loop stays: a second lifespan beside the first shares it.
        """
        runs = self.pool.is_open and not self.pool.is_draining and self.pool.loop is asyncio.get_running_loop()
        if self._options is not None and not self.pool.is_new and not runs:
            self.pool, self._starting = Pool(**self._options), asyncio.Lock()

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak the lifespan protocol around the application (ASGI lifespan 2.0)."""
        startup = await receive()
        self._renew()
        lifespan = _Lifespan(self.pool, startup, receive, send)
        try:
            await lifespan.open()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": f"the pool cannot open: {error}"})
            raise
        try:
            try:
                await self.app({**scope, "minibg.background": lifespan.hold}, lifespan.receive, lifespan.send)
            except Exception as error:
                if lifespan.stage is not Stage.STARTING:
                    raise
                logger.info("the application does not speak the lifespan protocol: %r", error)
            await lifespan.end()
        finally:  # Also when the server cancels a start: no file stays in use, and no worker is left.
            await lifespan.close()


class _Response:
    """The messages of one response, on their way from the application to the server."""

    __slots__ = ("_hold", "_is_held_back", "_left", "_send", "head")

    def __init__(self, hold: BackgroundTasks, send: Send, scope: Scope) -> None:
        self.head = Head.WAITING
        self._hold = hold
        self._send = send
        # minibg's server keeps the head back until the first message of the body (ASGI http allows
        # it). An application that raises in between is still answered with a 500, so the head has
        # not left before the first message of the body.
        self._is_held_back = "minibg.stopping" in (scope.get("extensions") or ())
        #: The state of the head once it has left.
        self._left = Head.LEFT

    async def send(self, message: Message) -> None:
        if self.head is Head.REPLACED:
            return
        if self.head is not Head.WAITING:
            if not message.get("more_body", False):
                await self.commit_late()
            await self._pass_on(message)
        elif message["type"] not in HEADS:
            await self._send(message)
        else:
            try:
                await self._commit(message)
            except NotAccepted as refusal:
                await self.refuse(refusal)
            else:
                await self._pass_on(message)

    async def _commit(self, message: Message) -> None:
        """Commit the hold before the head. Raises NotAccepted."""
        # Starlette and FastAPI answer an uncaught QueueFull with a 500. It is raised again here, so
        # that the client gets a 503.
        cause = sys.exception() if message.get("status") == 500 else None
        if isinstance(cause, NotAccepted):
            raise cause
        await self._hold.commit()

    async def _pass_on(self, message: Message) -> None:
        """Send a message to the server, and update the state of the head."""
        is_first = self.head is Head.WAITING
        if is_first and message.get("status") == 500:
            self._left = Head.SERVER_ERROR
        try:
            await self._send(message)
        except OSError:
            self.head = Head.UNDELIVERED
            raise
        except asyncio.CancelledError:
            # The stop came while the kernel had not taken the first part of the body. The server
            # had written the head before that.
            self.head = self._left if self.head is Head.STARTED else self.head
            raise
        self.head = Head.STARTED if is_first and self._is_held_back else self._left

    def end(self) -> None:
        """Note that the application has returned: its head is a promise, whatever has become of it.

        A framework that stops a stream because its client has gone returns too: the handler had
        answered.
        """
        if self.head in (Head.STARTED, Head.SERVER_ERROR):
            self.head = Head.LEFT

    async def commit_late(self) -> None:
        """Commit the tasks that were added after the head. Only tasks that are refused now are
        dropped.
        """
        try:
            await self._hold.commit()
        except NotAccepted as refusal:
            self._hold.drop_uncommitted(f"it was added after the response head: {refusal}")

    async def refuse(self, refusal: NotAccepted) -> None:
        """Answer in place of the application: 503 with Retry-After (RFC 9110 §10.2.3, §15.6.4)."""
        self.head = Head.REPLACED
        self._hold.drop(str(refusal))
        body = f"{refusal}\n".encode()
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (b"retry-after", b"%d" % refusal.retry_after),
        ]
        await self._send({"type": "http.response.start", "status": 503, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


class Stage(Enum):
    """The stage of the lifespan protocol."""

    #: The application has not answered the startup.
    STARTING = auto()
    #: It has started.
    STARTED = auto()
    #: It reported that its startup failed.
    FAILED = auto()
    #: It was told to shut down.
    STOPPING = auto()


class _Lifespan:
    """The messages of the lifespan, which open, start and stop the pool on their way."""

    def __init__(self, pool: Pool, startup: Message, receive: Receive, send: Send) -> None:
        self.stage = Stage.STARTING
        self.hold = BackgroundTasks(pool)
        #: The startup message, until the application has received it.
        self._startup: Message | None = startup
        self._pool = pool
        self._owns_pool = False
        self._receive = receive
        self._send = send

    async def open(self) -> None:
        """Open the pool, unless its owner has opened it. Raises JournalUnusable, and RuntimeError
        for a pool that has stopped.
        """
        self._owns_pool = self._pool.is_new
        if self._owns_pool:
            await self._pool.open()
        elif not self._pool.is_open:
            raise RuntimeError("it was given to AfterResponse and has stopped: a pool that is given lives once")

    async def receive(self) -> Message:
        if self._startup is not None:
            startup, self._startup = self._startup, None
            return startup
        shutdown = await self._receive()
        self.stage = Stage.STOPPING
        await self.close()
        return shutdown

    async def send(self, message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            self.stage = Stage.STARTED
            if self._owns_pool:
                self._pool.start()
            await self.hold.commit()
            self.hold.release()
        elif message["type"] == "lifespan.startup.failed":
            self.stage = Stage.FAILED
            await self.close()
        await self._send(message)

    async def end(self) -> None:
        """Complete the lifespan of an application that does not support it, or returned early."""
        if self.stage is Stage.STARTING:
            await self.send({"type": "lifespan.startup.complete"})
        if self.stage is Stage.STARTED:
            self._startup = None
            await self.receive()
            await self._send({"type": "lifespan.shutdown.complete"})

    async def close(self) -> None:
        """Drain the pool if this lifespan opened it."""
        if self._owns_pool:
            await self._pool.stop()
