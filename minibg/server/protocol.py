r"""One client: bytes in, requests out, and everything that can go wrong between.

The loop calls the methods of an `asyncio.Protocol` when bytes come, when they went and when the client has gone. What they
mean depends on the phase::

    IDLE --> HEAD --> BODY --> RESPONSE --> IDLE ...      one request after the other
      \        \        \---> DISCARD ---/                 the response was there before the end of the request
       `--------`--------`---------`------> CLOSING

The rules of the file:

- *No application runs inside `data_received`.* Bytes are parsed to the end of the message, if it has arrived, and the
  cycle becomes a task. So all sockets that are ready are read before any application runs; answering at once instead
  costs a fifth to two thirds of the throughput. A small body is complete before its application starts.
- *The next request begins when the last byte of the response has been taken by the kernel*, and not when the application
  has returned. Both are told by the transport: its write buffer limit is zero, so "resume_writing" means "empty".
- *Nothing is buffered without bound.* Reading pauses when more than `BUFFER` bytes wait for the application or for their
  turn in the pipeline; ``send`` waits for the kernel.
- *A half-closed client gets its response.* The end of its bytes is not the end of the connection (RFC 9112 §9.6 speaks of
  closing in stages, and this is how a client does it). A client that is really gone is seen by the next write, or found
  out by the tick.
- *The connection closes in stages*: first the sending half, then, when the client has closed its own or `LINGER` has passed,
  the rest. Closing both at once with unread bytes makes the kernel reset the connection, which may destroy the response
  on its way (RFC 9112 §9.6).
- *A response that cannot be finished is cut by a reset.* An orderly end would be the lie that a body ended by the close of
  the connection is whole.
- *Deadlines* are two numbers, for reading and for writing, compared once a tick (`minibg.server.server`).

TLS has its own buffers below the ones a protocol can see: there "taken" means encrypted and given to the transport under
it, which holds at most 64 KiB; and a TLS client cannot half-close, as neither can asyncio's TLS.

Rejected: asyncio streams. They cost half the throughput of a protocol on the same socket and hide "taken".
"""

import asyncio
import logging
import re
import select
import socket
import struct
from contextlib import suppress
from enum import Enum
from http import HTTPStatus
from math import inf
from typing import TYPE_CHECKING, Any

from minibg.server import access
from minibg.server.body import Body
from minibg.server.cycle import UNANSWERED, Cycle, Stage
from minibg.server.head import Refused, check_beginning, read_head, scope_of
from minibg.server.limits import PROGRESS
from minibg.server.writer import UNREAD, Fields, plain_response

if TYPE_CHECKING:
    from minibg.server.server import Server

logger = logging.getLogger("minibg.server")

#: Bytes that may wait for the application, or in the pipeline. As much as asyncio's streams; one read may add to it.
BUFFER = 64 * 1024
#: Bytes of an unwanted request body that are read and thrown away so that the connection can be kept.
DISCARD = 256 * 1024
#: Seconds the client has to close its half. nginx' lingering_timeout is 5 for each piece; the answer is on its way already.
LINGER = 2.0
#: Empty lines before a request.
_BLANK = re.compile(rb"\A(?:\r\n)+")
#: SO_LINGER with zero seconds: close sends a reset.
_RESET = struct.pack("ii", 1, 0)


class Phase(Enum):
    """What the bytes of the client mean."""

    #: Nothing of the next request has come.
    IDLE = "idle"
    #: A part of its head.
    HEAD = "head"
    #: The application runs, and the request body is not complete.
    BODY = "body"
    #: The request is complete; what comes is the next one's.
    RESPONSE = "response"
    #: The response has left; the rest of the request body is thrown away.
    DISCARD = "discard"
    #: Everything is said; what comes is thrown away. The end of it is the end of the connection.
    CLOSING = "closing"


#: The phases without a request.
_UNBEGUN = (Phase.IDLE, Phase.HEAD)


class Connection(asyncio.Protocol):
    """One client."""

    transport: asyncio.Transport

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.phase = Phase.IDLE
        #: The kernel has not yet taken all that was written.
        self.paused = False
        self._cycle: Cycle | None = None
        self._body = Body(0, server.limits)
        #: Bytes that belong to the next request.
        self._pending = b""
        #: The two deadlines, and where the progress towards them was measured last.
        self._deadline = self._write_deadline = inf
        self._read_mark = self._write_mark = 0
        #: The client has sent all it will.
        self._half_closed = False
        #: The server stops, or the client has broken off.
        self._last_request = False
        #: What every request of this connection has in its scope.
        self._scope: dict[str, Any] = {}

    # --- what the loop calls ---

    def connection_made(self, transport: Any) -> None:  # uvloop's transports inherit from nothing of asyncio's
        """Introduce the client to the server, or refuse it."""
        self.transport, server = transport, self.server
        tls = transport.get_extra_info("sslcontext") is not None
        # asyncio's TLS pauses at "size >= high", a plain transport at "size > high"; both resume when empty.
        transport.set_write_buffer_limits(high=1 if tls else 0, low=0)
        peer, here = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        client = (peer[0], peer[1]) if isinstance(peer, tuple) else None
        name = (here[0], here[1]) if isinstance(here, tuple) else (here, None)
        self._scope = {"type": "http", "scheme": "https" if tls else "http", "client": client, "server": name}
        self._scope["root_path"] = server.root_path
        server.connections.add(self)
        self._deadline = server.deadline(server.limits.header_timeout)
        # Those that are refused linger with their answer. They keep nobody out, and there may be as many again.
        limit, refused = server.limits.max_connections, server.refused
        if server.stopping.is_set() or len(server.connections) - len(refused) > limit:
            refused.add(self)
            if server.stopping.is_set() or len(refused) > limit:
                transport.abort()
            else:
                self.fail(HTTPStatus.SERVICE_UNAVAILABLE, [(b"retry-after", b"1")])

    def data_received(self, data: bytes) -> None:
        """Give the bytes the meaning of the phase."""
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
        """The client has sent all it will. True keeps our half open."""
        self._half_closed = True
        if self.phase in (Phase.HEAD, Phase.BODY):  # RFC 9112 §8: an incomplete request
            self._last_request = True
            self.fail(HTTPStatus.BAD_REQUEST)
        elif self.phase is not Phase.RESPONSE:
            self.transport.close()
        return self.transport.can_write_eof()  # TLS cannot stay half open, and warns

    def pause_writing(self) -> None:
        """The kernel has not taken everything."""
        self.paused = True
        self._write_mark = self.transport.get_write_buffer_size()
        self._write_deadline = self.server.deadline(self.server.limits.write_timeout)

    def resume_writing(self) -> None:
        """The kernel has taken everything."""
        self.paused = False
        self._write_deadline = inf
        cycle = self._cycle
        if cycle is not None:
            cycle.wake()
            if cycle.stage is Stage.ENDING:
                self.response_taken(cycle)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the reason does not change what follows
        """Nobody is there any more."""
        self.phase = Phase.CLOSING
        self.server.connections.discard(self)
        self.server.refused.discard(self)
        self._end_cycle(Stage.GONE)
        self.server.left()

    # --- requests ---

    def _next_request(self) -> None:
        """Begin the request that ``_pending`` holds, if its head is complete."""
        if self._pending[:2] == b"\r\n":
            # RFC 9112 §2.2: at least one empty line SHOULD be ignored; one alone would depend on how they are cut.
            self._pending = _BLANK.sub(b"", self._pending)
        data = self._pending
        end = data.find(b"\r\n\r\n") + 4
        try:
            if end >= 4:
                self._begin(data[:end], data[end:])
                return
            check_beginning(data, self.server.limits)
            if data and self.phase is Phase.IDLE:
                self.phase, self._deadline = Phase.HEAD, self.server.deadline(self.server.limits.header_timeout)
        except Refused as refused:
            logger.debug("refused with %d: %s", refused.status, refused)
            self.fail(refused.status, refused.headers)

    def _begin(self, head: bytes, rest: bytes) -> None:
        """Start the cycle of one request; ``rest`` is what lies behind its head. Raises `Refused`."""
        server = self.server
        request = read_head(head, server.limits)
        arrived, complete = b"", True
        if request.length != 0:
            body = self._body = Body(request.length, server.limits)
            arrived, complete, rest = body.feed(rest), body.complete, body.rest
        scope = scope_of(request, self._scope)
        scope["asgi"] = {"version": "3.0", "spec_version": "2.5"}
        scope["state"] = server.state.copy()
        scope["extensions"] = {"minibg.stopping": server.stopping}
        if server.trust:
            scope["client"], scope["scheme"] = server.trust.client_and_scheme(scope)
        if scope["scheme"] == "http" and request.target[:6].lower() == b"https:":  # RFC 9110 §7.4
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "https over a plain connection")
        self._pending = rest
        self._cycle = cycle = Cycle(self, request, scope, arrived, complete=complete)
        self.phase, self._deadline = Phase.RESPONSE, inf
        if not complete:
            self.phase, self._deadline = Phase.BODY, server.deadline(server.limits.body_timeout)
        cycle.task = server.loop.create_task(cycle.run(), context=server.context.copy())
        server.requests.add(cycle.task)

    def _read_body(self, data: bytes) -> None:
        """More of the request body: for the application, or for nobody."""
        body, cycle = self._body, self._cycle
        try:
            decoded = body.feed(data)
        except Refused as refused:
            self.fail(refused.status)
            return
        self._read_mark += len(data)
        if body.complete:
            self._pending = body.rest
        if cycle is None:
            if body.complete:
                self._next_cycle()
            elif self._read_mark > DISCARD:
                self._close()
            return
        if body.complete:
            self.phase, self._deadline = Phase.RESPONSE, inf
        if cycle.feed(decoded, complete=body.complete) > BUFFER and not body.complete:
            self.transport.pause_reading()
            self._deadline = inf  # it is the application that keeps us waiting

    def body_taken(self) -> None:
        """The application has taken what had arrived: read on."""
        if self.phase is Phase.BODY and not self.transport.is_reading():
            self._deadline = self.server.deadline(self.server.limits.body_timeout)
            self.transport.resume_reading()

    # --- responses ---

    def write(self, data: bytes) -> None:
        """Hand bytes to the transport; a transport that fails at once means that the client has gone."""
        self.transport.write(data)
        if self.transport.is_closing():
            self._end_cycle(Stage.GONE)

    def must_close(self, cycle: Cycle) -> bool:
        """Whether this response is the last one, asked when its head is written."""
        if self._last_request or not cycle.request.keep_alive:
            return True
        # A client that was never told to continue may send its body, or its next request: nobody can know.
        return self.phase is Phase.BODY and (cycle.continue_due or self._body.left > DISCARD)

    def response_taken(self, cycle: Cycle) -> None:
        """The kernel has the last byte: on to what comes next."""
        self._end_cycle(Stage.SENT)
        if cycle.close or self._last_request:
            self._close()
        elif self.phase is Phase.BODY:
            self.phase, self._read_mark = Phase.DISCARD, 0
            self._deadline = self.server.deadline(self.server.limits.body_timeout)
            self.transport.resume_reading()
        else:
            self._next_cycle()

    def _next_cycle(self) -> None:
        self.phase, self._deadline = Phase.IDLE, self.server.deadline(self.server.limits.keep_alive)
        self._read_mark = 0
        if self._pending:
            self._next_request()
        if self._half_closed:
            if self.phase in (Phase.HEAD, Phase.BODY):  # RFC 9112 §8: the end has come already
                self.fail(HTTPStatus.BAD_REQUEST)
            elif self.phase is Phase.IDLE:
                self._close()
        elif not self.transport.is_reading() and len(self._pending) <= BUFFER:
            self.transport.resume_reading()

    # --- ends ---

    def fail(self, status: HTTPStatus, headers: Fields = ()) -> None:
        """The request cannot go on: answer if that is still possible, else cut, but leave a whole response alone."""
        cycle, server = self._cycle, self.server
        if self.phase is Phase.DISCARD:
            self._close()
        elif cycle is None or cycle.stage in UNANSWERED:
            unread = UNREAD._replace(method=self._pending.partition(b" ")[0])  # HEAD gets no content, in whatever state
            answer = plain_response(status, server.date, cycle.request if cycle else unread, headers)
            if cycle is not None:
                cycle.status, cycle.size = status.value, len(answer)
            elif server.access_log:
                line = self._pending.partition(b"\r\n")[0][:200]
                access.log(self._scope["client"], line, status.value, len(answer), 0.0)
            self._end_cycle(Stage.GONE)
            self.transport.write(answer)
            self._close()
        elif cycle.stage is Stage.STREAMING:
            self.cut()

    def cut(self) -> None:
        """Reset the connection, so that the client cannot take what it has for the whole."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None:  # TLS forgets its socket before it says that the connection is lost
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._end_cycle(Stage.GONE)
        self.transport.abort()

    def shutdown(self) -> None:
        """The server stops: no further request, and none that has not begun."""
        self._last_request = True
        if self.phase in _UNBEGUN:
            self.transport.close()

    def _close(self) -> None:
        """Close the sending half; `eof_received` or the deadline closes the rest."""
        self.phase, self._pending = Phase.CLOSING, b""
        self._deadline = self.server.deadline(LINGER)
        if self._half_closed or self.transport.is_closing() or not self.transport.can_write_eof():
            # Not here: asyncio says connection_lost twice if a transport is closed within resume_writing.
            self.server.loop.call_soon(self.transport.close)
        else:
            with suppress(OSError):  # a reset has arrived that asyncio has not read yet; it is the next thing it reads
                self.transport.write_eof()
            self.transport.resume_reading()

    def _end_cycle(self, stage: Stage) -> None:
        """The response has been taken, or its client has gone."""
        cycle, self._cycle = self._cycle, None
        if cycle is not None:
            cycle.move(stage)
            if self.server.access_log:
                request, seconds = cycle.request, self.server.loop.time() - cycle.started_at
                line = b"%b %b HTTP/%b" % (request.method, request.target, b"1.0" if request.http10 else b"1.1")
                access.log(cycle.scope["client"], line, cycle.status, cycle.size, seconds)

    # --- deadlines ---

    def expire(self, now: float) -> None:
        """Look at the deadlines; called once a tick."""
        if self._write_deadline <= now:
            waiting = self.transport.get_write_buffer_size()
            if self._write_mark - waiting < PROGRESS:
                self.cut()
                return
            self._write_mark = waiting
            self._write_deadline = self.server.deadline(self.server.limits.write_timeout)
        if self._deadline <= now:
            self._expire_reading()
        if self._half_closed and self.phase is Phase.RESPONSE and self._is_gone():
            self.cut()

    def _expire_reading(self) -> None:
        if self.phase is Phase.CLOSING:
            self.transport.abort()
        elif self.phase is Phase.IDLE:
            self.transport.close()
        elif self._read_mark >= PROGRESS:
            self._read_mark, self._deadline = 0, self.server.deadline(self.server.limits.body_timeout)
        else:
            self._last_request = True
            self.fail(HTTPStatus.REQUEST_TIMEOUT)

    def _is_gone(self) -> bool:
        """Whether a half-closed client has closed the other half too: poll(2) says POLLHUP or POLLERR unasked.

        A Unix socket knows at once. Over TCP it takes a probe that is answered with a reset (see `minibg.server.listen`):
        about a minute, in which an application that waits for "http.disconnect" and sends nothing has to be waited for.
        """
        if not hasattr(select, "poll"):  # pragma: no cover - on Windows the next write has to find it out
            return False
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), 0)
        return bool(poll.poll(0))
