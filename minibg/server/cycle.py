r"""One request: ``receive`` and ``send``, and the moment at which the response has left.

A cycle is the server's half of one call of the application. Its task is made by the connection once the request has been
read as far as it had arrived; inside it the application runs, and the two methods here are all it sees of the server.

The response goes through five stages, and `TRANSITIONS` is all that may happen::

    WAITING -- start --> STARTED -- more --> STREAMING -- last --> ENDING -- taken --> SENT
                            \------- last ------------------------/

and from each but SENT a lost connection leads to GONE. What is not in the table is the application's mistake and is
raised out of ``send``. The start message is held until the first body message (ASGI http: a server need not flush it
before), so a response in one message is one write with a Content-Length, and an application that fails in between still
becomes a clean 500.

ENDING and SENT are different, and minibg stands on the difference: ENDING means the last byte was written to the
transport, SENT that the kernel has taken it. ``send`` returns from the last message at SENT. Then, not when the
application returns, the connection goes on to its next request; the application may run as long as it likes, and if it
fails now, it is logged and touches nothing.

``send`` raises `ClientDisconnected` if the client has gone, before or while the bytes are taken, and is ignored after a
complete response (ASGI http, "Response Body"). ``receive`` gives "http.disconnect", every time, after either.

Rejected: futures and events made for each request. Most applications never wait here: the body is there before they run
and the kernel takes the response at once. What waits makes its event then.
"""

import asyncio
import logging
from collections.abc import Iterable
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from minibg.asgi import ClientDisconnected, Message
from minibg.server.head import Request
from minibg.server.writer import Framing, chunk, response_head

if TYPE_CHECKING:
    from minibg.server.protocol import Connection

logger = logging.getLogger("minibg.server")


class Stage(Enum):
    """How far the response is."""

    #: Nothing has come from the application.
    WAITING = "waiting"
    #: "http.response.start" is held.
    STARTED = "started"
    #: The head has been written, and more is to come.
    STREAMING = "streaming"
    #: The last byte has been written to the transport.
    ENDING = "ending"
    #: The kernel has taken the last byte.
    SENT = "sent"
    #: The connection was lost, or the server answered instead of the application.
    GONE = "gone"


class Step(Enum):
    """What moves a response on."""

    START = "http.response.start"
    MORE = "http.response.body with more_body"
    LAST = "the last http.response.body"
    TAKEN = "taken by the kernel"
    LOST = "connection lost"


TRANSITIONS: dict[Stage, dict[Step, Stage]] = {
    Stage.WAITING: {Step.START: Stage.STARTED, Step.LOST: Stage.GONE},
    Stage.STARTED: {Step.MORE: Stage.STREAMING, Step.LAST: Stage.ENDING, Step.LOST: Stage.GONE},
    Stage.STREAMING: {Step.MORE: Stage.STREAMING, Step.LAST: Stage.ENDING, Step.LOST: Stage.GONE},
    Stage.ENDING: {Step.TAKEN: Stage.SENT, Step.LOST: Stage.GONE},
    Stage.SENT: {Step.LOST: Stage.SENT},
    Stage.GONE: {Step.LOST: Stage.GONE},
}


class Cycle:
    """One request and its response."""

    __slots__ = (
        "_arrived",
        "_complete",
        "_connection",
        "_delivered",
        "_framing",
        "_headers",
        "_left",
        "_news",
        "close",
        "continue_due",
        "request",
        "scope",
        "size",
        "stage",
        "started_at",
        "status",
        "task",
    )

    task: asyncio.Task[None]

    def __init__(
        self,
        connection: "Connection",
        request: Request,
        scope: dict[str, Any],
        arrived: bytes,
        *,
        complete: bool,
    ) -> None:
        self._connection = connection
        self.request = request
        self.scope = scope
        self.stage = Stage.WAITING
        self.status = 499
        #: Bytes of the response written so far, its head included.
        self.size = 0
        #: The connection ends after this response.
        self.close = False
        #: 100 Continue is still owed.
        self.continue_due = request.expects_continue and not arrived and not complete
        self._arrived: bytes | bytearray = arrived
        self._complete = complete
        self._delivered = False
        self._framing = Framing.NONE
        self._headers: Iterable[Iterable[bytes]] = ()
        self._left = 0
        self._news: asyncio.Event | None = None
        self.started_at = connection.service.loop.time() if connection.service.access_log else 0.0

    async def run(self) -> None:
        """Call the application and answer for what it leaves undone."""
        error: BaseException | None = None
        try:
            await self._connection.service.app(self.scope, self.receive, self.send)
        except (GeneratorExit, KeyboardInterrupt):  # not the application's: the loop is going down
            raise
        except BaseException as raised:  # noqa: BLE001 - an application may not take the server with it, not by SystemExit either
            error = raised
        self._returned(error)
        service = self._connection.service
        service.cycles.discard(self.task)
        service.left()

    def _returned(self, error: BaseException | None) -> None:
        """Close what the application has left open, and log once."""
        stage = self.stage
        if stage in (Stage.WAITING, Stage.STARTED):
            self._connection.fail(HTTPStatus.INTERNAL_SERVER_ERROR)
        elif stage is Stage.STREAMING:
            self._connection.cut()
        if isinstance(error, ClientDisconnected):
            return
        if isinstance(error, asyncio.CancelledError) and self._connection.service.stopping.is_set():
            return  # the stop has a line of its own
        line = f"{self.scope['method']} {self.scope['path']!r}"
        if error is not None:
            where = "after its response" if stage in (Stage.ENDING, Stage.SENT) else f"while {stage.value}"
            logger.error("%s: the application failed %s", line, where, exc_info=error)
        elif stage in (Stage.WAITING, Stage.STARTED, Stage.STREAMING):
            logger.error("%s: the application returned without a complete response (%s)", line, stage.value)

    # --- receive ---

    async def receive(self) -> Message:
        """The next piece of the body, then "http.disconnect" (ASGI http, "Request" and "Disconnect")."""
        while self.stage not in (Stage.SENT, Stage.GONE):
            if not self._delivered and (self._arrived or self._complete):
                return self._take()
            self._connection.wants_body()
            self._news = self._news or asyncio.Event()
            await self._news.wait()
        return {"type": "http.disconnect"}

    def _take(self) -> Message:
        body, self._arrived = bytes(self._arrived), b""
        self._delivered = self._complete
        self._connection.body_taken()
        return {"type": "http.request", "body": body, "more_body": not self._complete}

    @property
    def untaken(self) -> int:
        """Bytes of the body that wait for the application."""
        return len(self._arrived)

    def feed(self, data: bytes, *, complete: bool) -> None:
        """More of the body has arrived."""
        if self.stage not in (Stage.SENT, Stage.GONE):
            if not isinstance(self._arrived, bytearray):
                self._arrived = bytearray(self._arrived)
            self._arrived += data
        self._complete = complete
        self.continue_due = False  # the client did not wait
        self._wake()

    def move(self, step: Step) -> None:
        """The one place where the stage changes. Raises RuntimeError for what the table does not have."""
        try:
            self.stage = TRANSITIONS[self.stage][step]
        except KeyError:
            raise RuntimeError(
                f"{step.value} is not allowed while the response is {self.stage.value}"
            ) from None
        if self._news is not None:
            self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, None
        if news is not None:
            news.set()

    # --- send ---

    async def send(self, message: Message) -> None:
        """Take one message of the response. Returns when the kernel has taken its bytes."""
        before = self.stage
        if before is Stage.SENT:
            return
        if before is Stage.GONE:
            raise ClientDisconnected("the client has gone")
        data = self._encode(message)
        if data:
            self.size += len(data)
            self._connection.write(data)
        if self.stage is Stage.ENDING:
            self._connection.response_written()
        while self._connection.paused and self.stage is not Stage.SENT:
            await self._connection.drained()
        if self.stage is Stage.GONE:
            raise ClientDisconnected("the client has gone")

    def _encode(self, message: Message) -> bytes:
        """The bytes of a message; none for the start. Raises for what is not a message."""
        kind = message["type"]
        if kind == "http.response.body":
            body = message.get("body", b"")
            if type(body) is not bytes:
                body = _as_bytes(body)
            more = message.get("more_body", False)
            head = self._open(None if more else len(body)) if self.stage is Stage.STARTED else b""
            framed = self._frame(body, more=more)
            self.move(Step.MORE if more else Step.LAST)
            return head + framed
        if kind != "http.response.start":
            raise ValueError(f"not a message of an HTTP response: {kind!r}")
        status = message["status"]
        if not isinstance(status, int) or not 200 <= status <= 999:
            raise ValueError(f"not the status of a final response: {status!r}")
        self.move(Step.START)
        self.status, self._headers = int(status), message.get("headers", ())
        return b""

    def _open(self, whole: int | None) -> bytes:
        request, connection = self.request, self._connection
        head = response_head(
            self.status,
            self._headers,
            method=request.method,
            http10=request.http10,
            whole=whole,
            close=connection.must_close(),
            date=connection.service.date,
        )
        self._framing, self._left, self.close = head.framing, head.length, head.close
        if head.framing is Framing.LENGTH and whole is not None and whole != head.length:
            raise ValueError(f"Content-Length is {head.length}, but the body has {whole} bytes")
        return head.data

    def _frame(self, body: bytes, *, more: bool) -> bytes:
        framing = self._framing
        if framing is Framing.LENGTH:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                fault = "more" if self._left < 0 else "less"
                raise ValueError(f"the body has {fault} bytes than its Content-Length says")
            return body
        if framing is Framing.CHUNKED:
            return chunk(body, last=not more)
        return b"" if framing is Framing.NONE else body


def _as_bytes(body: object) -> bytes:
    if not isinstance(body, bytearray | memoryview):
        raise TypeError(f"a body is bytes, not {type(body).__name__}")
    return bytes(body)
