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
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING

from minibg.asgi import ClientDisconnected, Message, Scope
from minibg.server.head import Request
from minibg.server.writer import CONTINUE, Fields, Framing, chunk, response_head

if TYPE_CHECKING:
    from minibg.server.protocol import Connection

logger = logging.getLogger("minibg.server")


class Stage(StrEnum):
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


TRANSITIONS: dict[Stage, frozenset[Stage]] = {
    Stage.WAITING: frozenset((Stage.STARTED, Stage.GONE)),
    Stage.STARTED: frozenset((Stage.STREAMING, Stage.ENDING, Stage.GONE)),
    Stage.STREAMING: frozenset((Stage.STREAMING, Stage.ENDING, Stage.GONE)),
    Stage.ENDING: frozenset((Stage.SENT, Stage.GONE)),
    Stage.SENT: frozenset(),
    Stage.GONE: frozenset(),
}
#: Nothing has been written: the server may still answer by itself.
UNANSWERED = (Stage.WAITING, Stage.STARTED)
#: The client still waits for something.
UNFINISHED = (*UNANSWERED, Stage.STREAMING)
#: Nothing will be written any more.
OVER = (Stage.SENT, Stage.GONE)


class Cycle:
    """One request and its response."""

    task: asyncio.Task[None]

    def __init__(
        self, connection: "Connection", request: Request, scope: Scope, arrived: bytes, *, complete: bool
    ) -> None:
        self._connection = connection
        self.request = request
        self.scope = scope
        self.stage = Stage.WAITING
        #: What the access log says if the response never begins, as nginx does.
        self.status = 499
        #: Bytes of the response written so far, its head included.
        self.size = 0
        #: The connection ends after this response.
        self.close = False
        #: 100 Continue is still owed.
        self.continue_due = request.expects_continue and not arrived and not complete
        #: The part of the body that waits for the application, and whether it is the last, and was taken.
        self._arrived, self._complete, self._delivered = arrived, complete, False
        self._framing, self._left = Framing.NONE, 0
        self._headers: Fields = ()
        self._news: asyncio.Event | None = None
        self.started_at = connection.server.loop.time()

    async def run(self) -> None:
        """Call the application and answer for what it leaves undone."""
        server = self._connection.server
        try:
            await server.app(self.scope, self.receive, self.send)
            if self.stage is not Stage.SENT:
                self._returned(None)
        except (GeneratorExit, KeyboardInterrupt):  # not the application's: the loop is going down
            raise
        except BaseException as error:  # noqa: BLE001 - no application takes the server with it, by SystemExit neither
            self._returned(error)
        server.requests.discard(self.task)
        server.left()

    def _returned(self, error: BaseException | None) -> None:
        """Close what the application has left open, and log its fault once."""
        stage, connection = self.stage, self._connection
        if stage in UNFINISHED:
            connection.fail(HTTPStatus.INTERNAL_SERVER_ERROR)
        elif error is None:
            return
        # Neither of these is a fault: the client's end, and the stop's, which has a line of its own.
        stopped = isinstance(error, asyncio.CancelledError) and connection.server.stopping.is_set()
        if not stopped and not isinstance(error, ClientDisconnected):
            line = "%s %r: the application %s while its response was %s"
            how = "failed" if error else "returned"
            # Starlette's own exception for the client's end is no fault, but no secret either. It is known by its name
            # and not by having ours as its context: a fault in a cleanup after ClientDisconnected has that too.
            quiet = stage is Stage.GONE and type(error).__name__ == "ClientDisconnect"
            level = logging.DEBUG if quiet else logging.ERROR
            logger.log(level, line, self.scope["method"], self.scope["path"], how, stage, exc_info=error)

    def move(self, stage: Stage) -> None:
        """The one place where the stage changes. Raises RuntimeError for what the table does not have."""
        if stage not in TRANSITIONS[self.stage]:
            raise RuntimeError(f"a response that is {self.stage} cannot become {stage}")
        self.stage = stage
        self.wake()

    async def changed(self) -> None:
        """Wait until the stage changes, more of the body arrives, or the kernel has taken what was written."""
        self._news = self._news or asyncio.Event()
        await self._news.wait()

    def wake(self) -> None:
        """Something has changed."""
        if self._news is not None:
            self._news.set()
            self._news = None

    # --- receive ---

    async def receive(self) -> Message:
        """The next piece of the body, then "http.disconnect" (ASGI http, "Request" and "Disconnect")."""
        while self.stage not in OVER:
            if not self._delivered and (self._arrived or self._complete):
                body, self._arrived = self._arrived, b""
                self._delivered = self._complete
                self._connection.body_taken()
                return {"type": "http.request", "body": body, "more_body": not self._complete}
            if self.continue_due and self.stage in UNANSWERED:  # RFC 9110 §10.1.1
                self.continue_due = False
                self._connection.write(CONTINUE)
            await self.changed()
        return {"type": "http.disconnect"}

    def feed(self, data: bytes, *, complete: bool) -> int:
        """More of the body has arrived. The bytes that wait for the application."""
        self._arrived += data
        self._complete = complete
        self.continue_due = False  # the client did not wait
        self.wake()
        return len(self._arrived)

    # --- send ---

    async def send(self, message: Message) -> None:
        """Take one message of the response. Returns when the kernel has taken its bytes."""
        before = self.stage
        if before is Stage.SENT:
            return
        if before is Stage.GONE:
            raise ClientDisconnected("the client has gone")
        data = self._encode(message)
        connection = self._connection
        if data:
            self.size += len(data)
            connection.write(data)
        if self.stage is Stage.ENDING and not connection.paused:
            connection.response_taken(self)
        while connection.paused and self.stage not in OVER:
            await self.changed()
        if self.stage is Stage.GONE:
            raise ClientDisconnected("the client has gone")

    def _encode(self, message: Message) -> bytes:
        """The bytes of a message; none for the start. Raises for what is not a message."""
        kind = message["type"]
        if kind == "http.response.body":
            body = message.get("body", b"")
            if not isinstance(body, bytes):  # Starlette may send a memoryview. What is no buffer is a TypeError.
                body = bytes(memoryview(body))
            more = message.get("more_body", False)
            head = self._open(None if more else len(body)) if self.stage is Stage.STARTED else b""
            framed = self._frame(body, more=more)
            self.move(Stage.STREAMING if more else Stage.ENDING)
            return head + framed
        if kind != "http.response.start":
            raise ValueError(f"not a message of an HTTP response: {kind!r}")
        status = message["status"]
        if not isinstance(status, int) or not 200 <= status <= 999:
            raise ValueError(f"not the status of a final response: {status!r}")
        self.move(Stage.STARTED)
        self.status, self._headers = int(status), message.get("headers", ())
        return b""

    def _open(self, whole: int | None) -> bytes:
        """The head, and how the body is framed."""
        close, date = self._connection.must_close(self), self._connection.server.date
        head = response_head(self.request, self.status, self._headers, whole, close=close, date=date)
        self._framing, self._left, self.close = head.framing, head.length, head.close
        return head.data

    def _frame(self, body: bytes, *, more: bool) -> bytes:
        """The bytes of a piece of the body on the wire."""
        framing = self._framing
        if framing is Framing.LENGTH:
            left = self._left = self._left - len(body)
            if left < 0 or (left and not more):
                raise ValueError(f"the body has {'more' if left < 0 else 'less'} bytes than its Content-Length")
            return body
        if framing is Framing.CHUNKED:
            return chunk(body, last=not more)
        return b"" if framing is Framing.NONE else body
