"""The joint between server and queue: hold a response's tasks until it has left, then release them.

`AfterResponse` is plain ASGI: an application around an application. It is the one place where both worlds are known,
and the whole of what it knows is a moment. For each request:

1. An empty hold joins the scope, as ``scope["minibg.background"]``. The handler adds tasks to it.
2. The response head passes through ``send`` here. First the hold is *committed*, then the head goes on: an accepted
   response is a promise kept. If the commit is refused (no places), the client gets a 503 with Retry-After instead,
   and what the application still sends is dropped. Tasks added while the body streams are committed before its last message.
3. The application returns. On minibg's server ``send`` has returned from the last message when the kernel had taken
   the last byte, so by now the response has left: the hold is *released*.

If the application raises instead, the hold is *dropped*, but for tasks that run always. One exception to that is no
failure: the client went away, ``send`` said so by an OSError (ASGI http 2.4), and the application let that out. The
handler had answered, and its tasks run; whether somebody stayed to read is not the handler's business.

What counts is what reaches this file. minibg's `App` says so itself when it makes a response of an exception, and the
tasks are dropped. Starlette and FastAPI make a response of an HTTPException deep inside: here it is a 4xx like one that
was returned, and the tasks run.

**The pool lives inside the application's lifespan.** It is opened before the application starts up (which may add
tasks already), works when the startup is complete, and is drained before the application hears of the shutdown, so that
the tasks still find everything open that they use. A pool that somebody else has opened is left to them. An
application that does not speak the lifespan protocol gets it spoken for it. Where no lifespan runs at all (``uvicorn
--lifespan off``, an in-memory client), the first request starts the pool, and the log says that nobody will drain it.

It works under any ASGI server, around any ASGI application. What only minibg's server gives is the strict meaning of
"has left"; under uvicorn the last byte may still be in the transport's buffer when the tasks start.

Rejected: running the tasks inside the response, as Starlette does. They are then in reach of every middleware, and of the
server's idea of how long a request may take.
"""

import asyncio
import logging
from enum import Enum, auto
from typing import Any

from minibg.asgi import ASGIApp, Message, Receive, Scope, Send
from minibg.background import BackgroundTasks, NotAccepted, Pool

logger = logging.getLogger("minibg.background")


class AfterResponse:
    """Run ``app``, and the tasks it adds to ``scope["minibg.background"]`` after its responses.

    ``pool`` runs them; without one, ``options`` are those of `Pool`.
    """

    def __init__(self, app: ASGIApp, pool: Pool | None = None, **options: Any) -> None:
        if pool is not None and options:
            raise TypeError(f"options of a pool ({', '.join(sorted(options))}) next to a pool that has its own")
        self.app = app
        self.pool = pool or Pool(**options)
        self._starting = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        if self.pool.is_new:
            async with self._starting:  # A second request waits for the first one's start.
                await self._start()
        await self._respond(scope, receive, send)

    async def _start(self) -> None:
        if self.pool.is_new:
            logger.warning("no lifespan was run: the pool starts with this request, and nobody will drain it")
            await self.pool.__aenter__()

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        hold = BackgroundTasks(self.pool, f"{scope.get('method', scope['type'])} {scope.get('path', '')}")
        response = _Response(hold, send)
        try:
            await self.app({**scope, "minibg.background": hold}, receive, response.send)
            await response.end()
        except NotAccepted as refusal:
            hold.drop()
            if response.stage is not _Stage.BEFORE:
                raise
            await response.refuse(refusal)
        except BaseException:
            if response.stage is not _Stage.ABANDONED:
                hold.drop()
            raise
        finally:
            hold.release()

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak the lifespan protocol around the application (ASGI lifespan 2.0)."""
        startup = await receive()
        life = _Lifespan(self.pool, startup, receive, send)
        if life.owns_pool:
            try:
                await self.pool.open()
            except Exception as error:
                await send({"type": "lifespan.startup.failed", "message": f"the pool cannot open: {error}"})
                raise
        try:
            await self.app({**scope, "minibg.background": life.hold}, life.receive, life.send)
        except Exception as error:
            if life.stage is not _Stage.BEFORE:
                await life.close()
                raise
            logger.info("the application does not speak the lifespan protocol: %r", error)
        await life.end()


class _Stage(Enum):
    """How far a conversation between server and application is."""

    #: The application has not answered.
    BEFORE = auto()
    #: It has: the response has started, or the startup is complete.
    ANSWERED = auto()
    #: It got another answer than its own, because its tasks could not be accepted.
    REFUSED = auto()
    #: Nobody is there any more: the client has left, or the application is shutting down.
    ABANDONED = auto()


class _Response:
    """The messages of one response, on their way from the application to the server."""

    __slots__ = ("_hold", "_send", "stage")

    def __init__(self, hold: BackgroundTasks, send: Send) -> None:
        self.stage = _Stage.BEFORE
        self._hold = hold
        self._send = send

    async def send(self, message: Message) -> None:
        if self.stage is _Stage.REFUSED:
            return
        if self.stage is _Stage.BEFORE:
            try:
                await self._hold.commit()
            except NotAccepted as refusal:
                self._hold.drop()
                await self.refuse(refusal)
                return
            self.stage = _Stage.ANSWERED
        elif not message.get("more_body", False):
            await self._hold.commit()  # What was added while the body streamed.
        try:
            await self._send(message)
        except OSError:
            self.stage = _Stage.ABANDONED
            raise

    async def end(self) -> None:
        """Promise what was added after the last message, or without any. What was promised before stays so."""
        if self.stage is _Stage.REFUSED:
            return
        try:
            await self._hold.commit()
        except NotAccepted as refusal:
            if self.stage is _Stage.BEFORE:
                raise
            logger.warning("a task that was added after the response was not accepted: %s", refusal)

    async def refuse(self, refusal: NotAccepted) -> None:
        """Answer in place of the application: 503 with Retry-After (RFC 9110 §10.2.3, §15.6.4)."""
        self.stage = _Stage.REFUSED
        body = f"{refusal}\n".encode()
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (b"retry-after", b"%d" % refusal.retry_after),
        ]
        await self._send({"type": "http.response.start", "status": 503, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


class _Lifespan:
    """The messages of the lifespan, with the pool's own moments put in."""

    def __init__(self, pool: Pool, startup: Message, receive: Receive, send: Send) -> None:
        self.stage = _Stage.BEFORE
        self.owns_pool = pool.is_new
        self.hold = BackgroundTasks(pool)
        self._startup: Message | None = startup
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        if self._startup is not None:
            startup, self._startup = self._startup, None
            return startup
        shutdown = await self._receive()
        self.stage = _Stage.ABANDONED
        await self.close()
        return shutdown

    async def send(self, message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            self.stage = _Stage.ANSWERED
            if self.owns_pool:
                self.hold.pool.start()
            await self.hold.commit()
            self.hold.release()
        elif message["type"] == "lifespan.startup.failed":
            self.stage = _Stage.REFUSED
            await self.close()
        await self._send(message)

    async def end(self) -> None:
        """Say what an application leaves unsaid that does not speak the protocol, or has stopped to."""
        if self.stage is _Stage.BEFORE:
            await self.send({"type": "lifespan.startup.complete"})
        if self.stage is _Stage.ANSWERED:
            self._startup = None
            await self.receive()
            await self._send({"type": "lifespan.shutdown.complete"})

    async def close(self) -> None:
        """Drain the pool, if it is this lifespan's."""
        if self.owns_pool:
            await self.hold.pool.stop()
