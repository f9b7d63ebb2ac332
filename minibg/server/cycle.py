r"""One request: ``receive`` and ``send``, and the moment at which the response has left.

A cycle is the server's half of one call of the application. The connection creates the cycle after
it has parsed the bytes that have arrived, and then starts the cycle's asyncio task. The application
runs in this task, and knows of the server only ``receive`` and ``send``.

The response goes through five stages; `NEXT_STAGES` lists every step that is allowed::

    WAITING -- start --> STARTED -- more --> STREAMING -- last --> WRITTEN -- taken --> SENT
                            \------- last ------------------------/

A lost connection leads to GONE from every stage but SENT. Any other step is a mistake of the
application, and ``send`` raises RuntimeError. The start message is kept until the first body
message, as ASGI http allows. So a response with one body message is one write with a
Content-Length, and if the application fails between the two messages, the client still gets a
complete 500.

**WRITTEN is not SENT**, and minibg depends on the difference. WRITTEN means that the last byte has
been given to the transport. SENT means that the kernel has taken it: the transport's buffer is
empty. The last ``send`` returns at SENT. At that moment, and not when the application returns, the
connection goes on to its next request. The application may run on without a time limit; a failure
after SENT is logged and has no other effect.

The application learns of a lost connection and of a complete response as follows:

- ``send`` raises `ClientDisconnected` once the connection is lost, also if it is waiting at that
  moment.
- ``send`` ignores messages after a complete response (ASGI http, "Response Body").
- ``receive`` returns "http.disconnect" after either, at every call. After the body it also returns
  it when the client has closed its sending half; ``send`` still delivers to such a client.

After "http.disconnect" the application may return without a response, or in the middle of one. This
is not logged as a fault, and the connection is reset.

A cycle uses its connection through the few members of `Conversation`. Two of them call the cycle
back before they return: ``write`` calls `end` if the transport has failed, and ``response_taken``
calls `end` and then starts the next cycle. So ``send`` reads the stage again after each of these
calls.

Rejected: a future or an event for each request. Most applications never wait here, because the body
is complete before they run and the kernel takes the response at once. A call that has to wait
creates its event at that moment.
"""

import asyncio
import logging
from enum import StrEnum
from http import HTTPStatus
from traceback import clear_frames
from typing import Protocol

from minibg.asgi import ClientDisconnected, Message, Scope
from minibg.log import SafeLogger
from minibg.server import access
from minibg.server.head import RequestHead
from minibg.server.service import Service
from minibg.server.writer import CONTINUE, Fields, Framing, chunk, response_head

logger = SafeLogger("minibg.server")


class Conversation(Protocol):
    """The interface of a connection that a cycle uses. Tests implement it without a socket."""

    #: The kernel has not yet taken all that was written.
    paused: bool

    def write(self, data: bytes) -> None:
        """Write bytes to the transport; end the cycle if the client has gone."""

    def must_close(self) -> bool:
        """Return whether the connection ends after this response."""

    def body_taken(self) -> None:
        """Read on, because the application has taken the part of the body that had arrived."""

    def response_taken(self) -> None:
        """End the cycle as SENT and go on, because the kernel has taken the whole response."""

    def refuse(self, status: HTTPStatus) -> None:
        """Answer in place of the application, which has sent nothing, and close."""

    def reset(self) -> None:
        """Reset the connection, because the response cannot be finished."""


class Stage(StrEnum):
    """The progress of a response."""

    #: The application has sent nothing.
    WAITING = "waiting"
    #: The application has sent "http.response.start", which is kept.
    STARTED = "started"
    #: The head has been written, and a part of the body is still missing.
    STREAMING = "streaming"
    #: The last byte has been written to the transport.
    WRITTEN = "written"
    #: The kernel has taken the last byte.
    SENT = "sent"
    #: The connection was lost, or the server answered in place of the application.
    GONE = "gone"


NEXT_STAGES: dict[Stage, frozenset[Stage]] = {
    Stage.WAITING: frozenset((Stage.STARTED, Stage.GONE)),
    Stage.STARTED: frozenset((Stage.STREAMING, Stage.WRITTEN, Stage.GONE)),
    Stage.STREAMING: frozenset((Stage.STREAMING, Stage.WRITTEN, Stage.GONE)),
    Stage.WRITTEN: frozenset((Stage.SENT, Stage.GONE)),
    Stage.SENT: frozenset(),
    Stage.GONE: frozenset(),
}


class Presence(StrEnum):
    """The server's and the application's knowledge of whether the client is still there."""

    #: It can still send.
    HERE = "here"
    #: It has closed its sending half. Whether it still reads is not known.
    LEFT = "left"
    #: The application has received "http.disconnect".
    TOLD = "told"


#: Nothing has been written, so the server can still answer in place of the application.
UNANSWERED = (Stage.WAITING, Stage.STARTED)
#: Nothing more will be written.
OVER = (Stage.SENT, Stage.GONE)


class Cycle:
    """One request and its response."""

    def __init__(
        self,
        connection: Conversation,
        service: Service,
        request: RequestHead,
        scope: Scope,
        *,
        arrived: bytes = b"",
        complete: bool = True,
    ) -> None:
        """``arrived``: the part of the body that has been read. ``complete``: it is the whole body."""
        self._connection = connection
        self._service = service
        self.request = request
        self.scope = scope
        self.stage = Stage.WAITING
        self._client = Presence.HERE
        #: The status in the access line. 499 is nginx' number for a response that never began.
        self._status = 499
        #: Bytes of the response written so far, its head included.
        self._size = 0
        #: The connection ends after this response.
        self.close = False
        #: The client waits for 100 Continue before it sends the body.
        self.continue_due = request.expects_continue and not arrived and not complete
        #: The part of the body that waits for the application; whether it is the last part; whether
        #: the application has received the last part.
        self._arrived, self._complete, self._delivered = arrived, complete, False
        #: The framing of the response, and the bytes that are missing to its Content-Length.
        self._framing, self._missing = Framing.NONE, 0
        self._headers: Fields = ()
        self._news: asyncio.Event | None = None
        self._started_at = service.loop.time()
        self._task: asyncio.Task[None] | None = None

    # --- the application ---

    def start(self) -> None:
        """Run the application in a new asyncio task."""
        service = self._service
        self._task = service.loop.create_task(self.run(), context=service.context.copy())
        service.requests.add(self._task)

    async def run(self) -> None:
        """Call the application, and answer in its place if it does not finish its response."""
        service = self._service
        try:
            await service.app(self.scope, self.receive, self.send)
            if self.stage is not Stage.SENT:
                self._returned(None)
        except BaseException as error:  # No application ends the server, not even by SystemExit.
            if asyncio.current_task(service.loop) is not self._task:
                raise  # GeneratorExit: the loop has ended and closes the coroutine.
            self._returned(error)
        if self._task is not None:
            service.requests.discard(self._task)
        service.check_empty()

    def _returned(self, error: BaseException | None) -> None:
        """Finish or reset an unfinished response, and log the application's fault once."""
        stage, level = self.stage, self._fault(error)
        if stage in UNANSWERED and (level == logging.ERROR or self._client is not Presence.TOLD):
            self._connection.refuse(HTTPStatus.INTERNAL_SERVER_ERROR)
        elif stage in UNANSWERED or stage is Stage.STREAMING:
            self._connection.reset()
        if level:
            line, how = "%s %r: the application %s while its response was %s", "failed" if error else "returned"
            logger.log(level, line, self.scope["method"], self.scope["path"], how, stage, exc_info=error)

    def _fault(self, error: BaseException | None) -> int:
        """Return the log level for the end of the application; 0 means that it is not logged."""
        # Neither a lost client nor the cancellation by a stop is a fault. The stop logs its own
        # line.
        if isinstance(error, ClientDisconnected):
            # The exception and the frames of a framework refer to each other. Clearing the frames
            # frees the generator of a stream at once; otherwise its clean-up waits for the garbage
            # collector.
            clear_frames(error.__traceback__)
            return 0
        if self._service.stopping.is_set() and isinstance(error, asyncio.CancelledError):
            return 0
        knows = self.stage is Stage.GONE or self._client is Presence.TOLD
        if error is None:
            return 0 if knows or self.stage is Stage.WRITTEN else logging.ERROR
        # Starlette's own exception for a lost client is recognised by its name. Its context cannot
        # tell: a fault in the clean-up after ClientDisconnected has the same context.
        return logging.DEBUG if knows and type(error).__name__ == "ClientDisconnect" else logging.ERROR

    # --- the stage ---

    def _move(self, stage: Stage) -> None:
        """Change the stage. Raises RuntimeError for a step that is not in `NEXT_STAGES`."""
        if stage not in NEXT_STAGES[self.stage]:
            raise RuntimeError(f"a response that is {self.stage} cannot become {stage}")
        self.stage = stage
        self.wake()

    def end(self, stage: Stage) -> None:
        """Become SENT or GONE, and write the access line."""
        self._move(stage)
        service, request = self._service, self.request
        if service.access_log:
            seconds = service.loop.time() - self._started_at
            line = b"%b %b HTTP/%b" % (request.method, request.target, b"1.0" if request.http10 else b"1.1")
            access.log(self.scope["client"], line, self._status, self._size, seconds)

    def refused(self, status: HTTPStatus, size: int) -> None:
        """Become GONE: the server has answered in place of the application, with ``size`` bytes."""
        self._status, self._size = status.value, size
        self.end(Stage.GONE)

    def wake(self) -> None:
        """Wake each ``receive`` and ``send`` that waits."""
        if self._news is not None:
            self._news.set()
            self._news = None

    async def _changed(self) -> None:
        """Wait for the next `wake`: a new stage, more body, or bytes that the kernel has taken."""
        self._news = self._news or asyncio.Event()
        await self._news.wait()

    # --- receive ---

    async def receive(self) -> Message:
        """Return the next part of the body, then "http.disconnect" (ASGI http, "Disconnect")."""
        while self.stage not in OVER:
            if not self._delivered and (self._arrived or self._complete):
                body, self._arrived = self._arrived, b""
                self._delivered = self._complete
                self._connection.body_taken()
                return {"type": "http.request", "body": body, "more_body": not self._complete}
            if self._client is not Presence.HERE:
                self._client = Presence.TOLD
                break
            if self.continue_due and self.stage in UNANSWERED:  # RFC 9110 §10.1.1
                self.continue_due = False
                self._connection.write(CONTINUE)
            await self._changed()
        return {"type": "http.disconnect"}

    def feed(self, data: bytes, *, complete: bool) -> int:
        """Keep a part of the body for the application. Return the bytes that wait for it."""
        self._arrived += data
        self._complete = complete
        self.continue_due = False  # The client did not wait for 100 Continue.
        self.wake()
        return len(self._arrived)

    def disconnect(self) -> None:
        """Note that the client has closed its sending half. It may still read the response."""
        if self._client is Presence.HERE:
            self._client = Presence.LEFT
            self.wake()

    # --- send ---

    async def send(self, message: Message) -> None:
        """Write one message of the response. Return when the kernel has taken its bytes.

        Raises `ClientDisconnected`; RuntimeError for a message out of order; ValueError, TypeError
        or KeyError for a message that HTTP or ASGI does not know.
        """
        stage = self.stage
        if stage is Stage.SENT:
            return
        if stage is Stage.GONE:
            raise ClientDisconnected("the client has gone")
        data = self._encode(message)
        connection = self._connection
        if data:
            self._size += len(data)
            connection.write(data)
        if self.stage is Stage.WRITTEN and not connection.paused:
            connection.response_taken()  # The usual case. Otherwise `Connection.resume_writing` calls it.
        while connection.paused and self.stage not in OVER:
            await self._changed()
        if self.stage is Stage.GONE:  # The stage has changed during the write or the wait.
            raise ClientDisconnected("the client has gone")

    def _encode(self, message: Message) -> bytes:
        """Return the bytes to write for a message; none for the start message."""
        kind = message["type"]
        if kind == "http.response.body":
            body = message.get("body", b"")
            if not isinstance(body, bytes):  # Starlette may send a memoryview; a str raises TypeError.
                body = bytes(memoryview(body))
            more = message.get("more_body", False)
            head = self._open(None if more else len(body)) if self.stage is Stage.STARTED else b""
            framed = self._frame(body, more=more)
            self._move(Stage.STREAMING if more else Stage.WRITTEN)
            return head + framed
        if kind != "http.response.start":
            raise ValueError(f"not a message of an HTTP response: {kind!r}")
        status = message["status"]
        if not isinstance(status, int) or not 200 <= status <= 999:
            raise ValueError(f"not the status of a final response: {status!r}")
        self._move(Stage.STARTED)
        self._status, self._headers = int(status), message.get("headers", ())
        return b""

    def _open(self, body_size: int | None) -> bytes:
        """Choose the framing and return the head. ``body_size`` is None if more of the body follows."""
        close, date = self._connection.must_close(), self._service.date
        head = response_head(self.request, self._status, self._headers, body_size, close=close, date=date)
        self._framing, self._missing, self.close = head.framing, head.length, head.close
        return head.data

    def _frame(self, body: bytes, *, more: bool) -> bytes:
        """Return a part of the body in its framing."""
        framing = self._framing
        if framing is Framing.LENGTH:
            missing = self._missing = self._missing - len(body)
            if missing < 0 or (missing and not more):
                raise ValueError(f"the body has {'more' if missing < 0 else 'less'} bytes than its Content-Length")
            return body
        if framing is Framing.CHUNKED:
            return chunk(body, last=not more)
        return b"" if framing is Framing.NONE else body
