r"""One client: parse its bytes into requests, one after another, and end its connection in order.

The event loop calls the methods of an `asyncio.Protocol` when bytes arrive, when the written bytes
have left, and when the connection is lost. The phase decides how arriving bytes are read::

    IDLE --> HEAD --> BODY --> RESPONSE --> IDLE ...      one request after another
      \        \        \---> DISCARD ---/                 the response left before the body
       `--------`--------`---------`------> CLOSING

The rules of this file:

- *No application runs inside `data_received`.* The bytes are parsed as far as they belong to the
  request, and then the cycle starts as an asyncio task. So all sockets that are ready are read
  before any application runs; running the application at once costs a fifth to two thirds of the
  throughput. A small body is complete before its application starts.
- *The next request begins when the kernel has taken the last byte of the response*, and not when
  the application has returned. The transport has a write buffer limit of zero, so it calls
  `pause_writing` if the kernel does not take everything, and `resume_writing` when its buffer is
  empty. With or without a pause, the last byte leads to `response_taken`; the tasks after the
  response depend on this moment.
- *Nothing is buffered without bound.* Reading pauses while more than `BUFFER` bytes wait for the
  application, or for their turn in the pipeline; ``send`` waits for the kernel.
- *The end of a client's bytes is reported at once and cancels nothing.* A closed browser tab and a
  client that only closes its sending half (RFC 9112 §9.6 describes it) look alike, so the
  application receives "http.disconnect", and its response is still sent. The connection no longer
  counts, and it ends when the response has left, when the application has ended, or when a write
  fails. While reading is paused or the bytes have ended, no read can report a lost client, so the
  tick asks the kernel.
- *The connection closes in stages*: first the sending half; then the other half, when the client
  has closed its own or `LINGER` seconds have passed. If both halves were closed while bytes are
  unread, the kernel would reset the connection, and the reset may destroy the response on its way
  (RFC 9112 §9.6).
- *A response that cannot be finished is reset.* Otherwise a client whose body ends with the
  connection would take the part for the whole.
- *Two deadlines*, one for reading and one for writing, are compared at each tick
  (`minibg.server.service`).

If the bytes of a request are faulty, late or end too early, `_break_off` ends the request by this
table::

    phase    response               the client gets
    HEAD     no request yet         the refusal, and the end of the connection
    BODY     WAITING or STARTED     the refusal, and the end of the connection
    BODY     STREAMING              a reset
    BODY     WRITTEN                the whole response, and the end of the connection
    DISCARD  SENT already           the end of the connection

TLS has buffers of its own below those that a protocol sees. With TLS, "taken" means that the bytes
are encrypted and given to the transport below, which keeps at most 64 KiB. A TLS client cannot
half-close, because asyncio's TLS does not support it.

Rejected: asyncio streams. They cost half the throughput of a protocol on the same socket, and they
hide the moment at which the bytes have left.
"""

import asyncio
from contextlib import suppress
from enum import Enum
from http import HTTPStatus
from typing import Any

from minibg.log import SafeLogger
from minibg.server import access
from minibg.server.body import Body
from minibg.server.cycle import UNANSWERED, Cycle, Stage
from minibg.server.head import RequestRefused, check_beginning, read_head, skip_blank_lines
from minibg.server.listen import Peer, presence_of_peer, reset_when_closed
from minibg.server.service import Deadline, Service
from minibg.server.writer import NO_REQUEST, Fields, plain_response

logger = SafeLogger("minibg.server")

#: Bytes that may wait for the application, or in the pipeline; one read may exceed it. asyncio's
#: streams have the same limit.
BUFFER = 64 * 1024
#: Bytes of an unwanted request body that are read and thrown away to keep the connection.
DISCARD = 256 * 1024
#: Seconds that the client has to close its half. nginx' lingering_timeout is 5 for each read; here
#: the kernel has the answer already.
LINGER = 2.0
#: The header of a 503. One second is a guess: the server does not know when it will have room.
RETRY_LATER = [(b"retry-after", b"1")]


class Phase(Enum):
    """The meaning of the client's bytes."""

    #: Nothing of the next request has arrived.
    IDLE = "idle"
    #: A part of the next request's head has arrived.
    HEAD = "head"
    #: The application runs, and the request body is not complete.
    BODY = "body"
    #: The request is complete; arriving bytes belong to the next request.
    RESPONSE = "response"
    #: The response has left; the rest of the request body is thrown away.
    DISCARD = "discard"
    #: The server has closed its half; the bytes are thrown away until the client closes too.
    CLOSING = "closing"


class Connection(asyncio.Protocol):
    """One client's connection: the `Conversation` of its cycles, and `Connected` to its service."""

    transport: asyncio.Transport

    def __init__(self, service: Service, peer: Any = None) -> None:
        """``peer`` is the client's address from accept; None: the transport is asked for it."""
        self.service = service
        self._peer = peer
        self.phase = Phase.IDLE
        #: The kernel has not yet taken all that was written.
        self.paused = False
        self._cycle: Cycle | None = None
        self._body = Body(0, service.limits)
        #: Bytes of the request body that were read in this phase.
        self._body_read = 0
        #: Bytes that belong to the next request.
        self._pending = b""
        #: Bytes of blank lines that were skipped before the next request.
        self._blank = 0
        self._read_deadline, self._write_deadline = Deadline(service), Deadline(service)
        #: The client has closed its sending half.
        self._half_closed = False
        #: The connection ends after the current response: the server stops, or the request was
        #: faulty.
        self._last_request = False
        #: The part of the scope that all requests of this connection have in common.
        self._scope: dict[str, Any] = {}

    # --- calls of the event loop ---

    def connection_made(self, transport: Any) -> None:  # uvloop's transports are no subclasses of asyncio's.
        """Register the client with the service, or refuse it."""
        self.transport, service = transport, self.service
        self._scope = service.constant_scope(transport, self._peer)
        # asyncio's TLS pauses at "size >= high", a plain transport at "size > high". Both resume
        # when their buffer is empty.
        transport.set_write_buffer_limits(high=1 if self._scope["scheme"] == "https" else 0, low=0)
        service.connections.add(self)
        self._read_deadline.set(service.limits.header_timeout)
        if service.stopping.is_set():
            transport.abort()
        elif not service.admit(self):
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, RETRY_LATER)

    def data_received(self, data: bytes) -> None:
        """Read the bytes according to the phase."""
        phase = self.phase
        if phase is Phase.BODY or phase is Phase.DISCARD:
            self._read_body(data)
        elif phase is not Phase.CLOSING:
            self._pending = self._pending + data if self._pending else data
            if phase is not Phase.RESPONSE:
                self._next_request()
            elif len(self._pending) > BUFFER:
                self.transport.pause_reading()

    def eof_received(self) -> bool:
        """Tell the application that its client has closed one half. True keeps the other half open."""
        self._half_closed = True
        self.service.leave(self)
        if self.phase in (Phase.HEAD, Phase.BODY):  # RFC 9112 §8: an incomplete request.
            self._break_off(HTTPStatus.BAD_REQUEST)
        elif self._cycle is not None:
            self._cycle.disconnect()
        else:
            self.transport.close()
        return self.transport.can_write_eof()  # TLS cannot stay half open; asyncio would warn.

    def pause_writing(self) -> None:
        """Start the deadline for writing, because the kernel has not taken everything."""
        self.paused = True
        self._write_deadline.set(self.service.limits.write_timeout, -self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Wake the application or end its cycle, because the kernel has taken everything."""
        self.paused = False
        self._write_deadline.clear()
        cycle = self._cycle
        if cycle is not None:
            cycle.wake()
            if cycle.stage is Stage.WRITTEN:
                self.response_taken()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the reason does not change what follows
        """End the cycle as GONE, and tell the service that the client has gone."""
        self.phase = Phase.CLOSING
        self._end_cycle(Stage.GONE)
        self.service.lose(self)

    # --- requests ---

    def _next_request(self) -> None:
        """Begin the request that ``_pending`` contains, if its head is complete."""
        try:
            if self._pending[:2] == b"\r\n":
                self._pending, self._blank = skip_blank_lines(self._pending, self._blank)
            data = self._pending
            end = data.find(b"\r\n\r\n") + 4
            if end >= 4:
                self._begin(data[:end], data[end:])
            else:
                check_beginning(data, self.service.limits)
                if data and self.phase is Phase.IDLE:
                    self.phase = Phase.HEAD
                    self.service.idle.pop(self, None)
                    self._read_deadline.set(self.service.limits.header_timeout)
        except RequestRefused as refused:
            logger.debug("refused with %d: %s", refused.status, refused)
            self.refuse(refused.status, refused.headers)

    def _begin(self, head: bytes, rest: bytes) -> None:
        """Start the cycle of one request; ``rest`` follows its head. Raises `RequestRefused`."""
        service, limits = self.service, self.service.limits
        if len(service.requests) >= limits.max_requests_in_progress:
            raise RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests in progress", RETRY_LATER)
        request = read_head(head, limits)
        arrived, complete = b"", True
        if request.length != 0:
            body = self._body = Body(request.length, limits)
            arrived, complete, rest = body.feed(rest), body.complete, body.rest
        scope = service.scope_of(request, self._scope)
        self._pending, self._blank = rest, 0
        self._cycle = Cycle(self, service, request, scope, arrived=arrived, complete=complete)
        service.idle.pop(self, None)
        self.phase = Phase.RESPONSE
        self._read_deadline.clear()
        if not complete:
            self._expect_body(Phase.BODY)
        elif self._half_closed:
            self._cycle.disconnect()
        self._cycle.start()

    # --- bodies ---

    def _expect_body(self, phase: Phase) -> None:
        """Begin to read a body: for the application (BODY), or to throw it away (DISCARD)."""
        self.phase, self._body_read = phase, 0
        self._read_deadline.set(self.service.limits.body_timeout)

    def _read_body(self, data: bytes) -> None:
        """Read more of the request body."""
        body, cycle = self._body, self._cycle
        try:
            decoded = body.feed(data)
        except RequestRefused as refused:
            self._break_off(refused.status)
            return
        self._body_read += len(data)
        if body.complete:
            self._pending = body.rest
        if cycle is None:
            if body.complete:
                self._next_cycle()
            elif self._body_read > DISCARD:
                self._close()
            return
        if body.complete:
            self.phase = Phase.RESPONSE
            self._read_deadline.clear()
        if cycle.feed(decoded, complete=body.complete) > BUFFER and not body.complete:
            self.transport.pause_reading()
            self._read_deadline.clear()  # From now on the client waits for the application.

    def body_taken(self) -> None:
        """Read on, because the application has taken the part of the body that had arrived."""
        if self.phase is Phase.BODY and not self.transport.is_reading():
            self._read_deadline.set(self.service.limits.body_timeout, self._body_read)
            self.transport.resume_reading()

    # --- responses ---

    def write(self, data: bytes) -> None:
        """Write bytes to the transport. If the write fails at once, end the cycle as GONE."""
        self.transport.write(data)
        if self.transport.is_closing():
            self._end_cycle(Stage.GONE)

    def must_close(self) -> bool:
        """Return whether the connection ends after this response."""
        cycle = self._cycle
        if cycle is None or self._last_request or not cycle.request.keep_alive:
            return True
        # If 100 Continue was never sent, the client may send its body next or skip it. The bytes of
        # the body and of the next request cannot be told apart.
        return self.phase is Phase.BODY and (cycle.continue_due or self._body.left > DISCARD)

    def response_taken(self) -> None:
        """End the cycle as SENT, and go on to the next request or to the end of the connection."""
        cycle = self._cycle
        self._end_cycle(Stage.SENT)  # HERE: the kernel has taken the last byte. The response has left.
        if cycle is None or cycle.close or self._last_request:
            self._close()
        elif self.phase is Phase.BODY:
            self._expect_body(Phase.DISCARD)
            self.transport.resume_reading()
        else:
            self._next_cycle()

    def _next_cycle(self) -> None:
        """Begin the next request, or wait for it."""
        self.phase = Phase.IDLE
        self._read_deadline.set(self.service.limits.keep_alive)
        if self._pending:
            self._next_request()
        if self._half_closed:
            if self.phase in (Phase.HEAD, Phase.BODY):  # RFC 9112 §8: an incomplete request.
                self._break_off(HTTPStatus.BAD_REQUEST)
            elif self.phase is Phase.IDLE:
                self._close()
            return
        if self.phase is Phase.IDLE:
            self.service.idle[self] = None
        if not self.transport.is_reading() and len(self._pending) <= BUFFER:
            self.transport.resume_reading()

    def _end_cycle(self, stage: Stage) -> None:
        """End the cycle, if there is one, as SENT or GONE."""
        cycle, self._cycle = self._cycle, None
        if cycle is not None:
            cycle.end(stage)

    # --- ends ---

    def _break_off(self, status: HTTPStatus) -> None:
        """End a request that cannot be completed, by the table at the top of this file."""
        self._last_request = True
        cycle = self._cycle
        if self.phase is Phase.DISCARD:
            self._close()
        elif cycle is None or cycle.stage in UNANSWERED:
            self.refuse(status)
        elif cycle.stage is Stage.STREAMING:
            self.reset()
        # WRITTEN: the response is complete, and `response_taken` will close the connection.

    def refuse(self, status: HTTPStatus, headers: Fields = ()) -> None:
        """Answer in place of the application, which has written nothing, and close."""
        cycle, self._cycle = self._cycle, None
        # An answer to HEAD has no content, also if the request head was not complete.
        request = cycle.request if cycle else NO_REQUEST._replace(method=self._pending.partition(b" ")[0])
        answer = plain_response(status, self.service.date, request, headers)
        if cycle is not None:
            cycle.refused(status, len(answer))
        elif self.service.access_log:
            line = self._pending.partition(b"\r\n")[0][:200]
            access.log(self._scope["client"], line, status.value, len(answer), 0.0)
        self.transport.write(answer)
        self._close()

    def reset(self) -> None:
        """Reset the connection, so that the client does not take a part of a body for the whole."""
        reset_when_closed(self.transport.get_extra_info("socket"))
        self._end_cycle(Stage.GONE)
        self.transport.abort()

    def shutdown(self) -> None:
        """Begin no further request, and close the connection unless a request is in progress."""
        self._last_request = True
        if self.phase in (Phase.IDLE, Phase.HEAD):
            self._hang_up()

    def _close(self) -> None:
        """Close the sending half. `eof_received` or the deadline closes the other half."""
        self.phase, self._pending = Phase.CLOSING, b""
        self.service.leave(self)
        self._read_deadline.set(LINGER)
        if self._half_closed or self.transport.is_closing() or not self.transport.can_write_eof():
            # Closed by a later callback, because asyncio calls connection_lost twice if a transport
            # is closed within resume_writing.
            self.service.loop.call_soon(self.transport.close)
        else:
            with suppress(OSError):  # A reset has arrived, and asyncio reads it next.
                self.transport.write_eof()
            self.transport.resume_reading()

    def _hang_up(self) -> None:
        """Close both halves at once. No request is in progress, so no response can be lost."""
        self.service.leave(self)
        self.transport.close()
        if self._scope["scheme"] == "https":  # TLS has sent its close_notify, and would wait 30 s for the client's.
            self.transport.abort()

    # --- deadlines ---

    def check_deadlines(self) -> None:
        """End the connection if one of its deadlines has passed. Called at each tick."""
        if self._write_deadline.has_passed():
            taken = -self.transport.get_write_buffer_size()
            if not self._write_deadline.renew(self.service.limits.write_timeout, taken):
                self.reset()
                return
        if self._read_deadline.has_passed():
            self._end_reading()
        if self._cycle is not None and (self._half_closed or not self.transport.is_reading()):
            self._ask_the_kernel()

    def _end_reading(self) -> None:
        """Act on the passed deadline for reading."""
        seconds = self.service.limits.body_timeout
        if self.phase is Phase.CLOSING:
            self.transport.abort()
        elif self.phase is Phase.IDLE:
            self._hang_up()
        elif self.phase is Phase.HEAD or not self._read_deadline.renew(seconds, self._body_read):
            self._break_off(HTTPStatus.REQUEST_TIMEOUT)

    def _ask_the_kernel(self) -> None:
        """Ask the kernel for the end of a client that no read can report."""
        peer = presence_of_peer(self.transport.get_extra_info("socket"))
        if peer is Peer.GONE:
            self.reset()
        elif peer is Peer.HALF_CLOSED:
            self.service.leave(self)
            if self._cycle is not None and self.phase is Phase.RESPONSE:  # In BODY a part of the body is still unread.
                self._cycle.disconnect()
