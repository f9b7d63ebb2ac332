"""Every limit and every deadline of the server, with its reason.

A public server has to bound everything that a client decides, in time and in size. The bounds are
the fields of `Limits`, so that they can be read, changed and tested in one place. Limits that an
operator has no reason to change are constants in other files, each with its reason.

Rules of this file:

- Times are seconds as float, sizes are bytes as int. The names are the keyword options of
  ``serve()`` and, with dashes, the options of the command.
- Deadlines are absolute. A deadline runs from the start of a phase, and a single byte does not
  renew it; otherwise a client that sends one byte a second could hold its connection for ever.
  Bodies may be large or slow for good reasons, so `PROGRESS` bytes of a body, in either direction,
  renew its deadline.
- Limits do not depend on how the bytes are split into packets.
- Deadlines are checked once a tick (`minibg.server.service`). A deadline is never early, and at
  most two ticks late.

A client that reaches a limit gets 408 (late head or body), 413, 414, 431, or 503 with Retry-After.
If it does not read its response in time, the connection is reset.

Rejected: "no limit" as a default. Of the four servers compared, two have no deadline for the
request head, three none for the body, and none has a deadline for a client that does not read.
"""

from dataclasses import dataclass, field, fields
from typing import Any

#: Bytes of a body that renew its deadline. With the default deadline of 30 s the client needs about
#: 550 bytes a second, the speed of a modem of 1990.
PROGRESS = 16 * 1024


def _option(default: float, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of the server.

    Raises ValueError for a limit that is not positive.
    """

    #: Seconds for a request head. They run from the connection, or from the first byte of a later
    #: head, to the end of the head. nginx allows 60, hyper 30. A head fits into one packet, and ten
    #: seconds are enough to resend that packet several times.
    header_timeout: float = _option(10.0, "seconds for a request head to arrive")
    #: Seconds for the next `PROGRESS` bytes of a request body. The time does not count while the
    #: application does not read.
    body_timeout: float = _option(30.0, "seconds without progress in a request body")
    #: Seconds in which the client must take the next `PROGRESS` bytes of a response.
    write_timeout: float = _option(30.0, "seconds without progress in a response")
    #: Seconds an idle connection stays open; the default of nginx. Proxies keep their connections
    #: for 60 (nginx, AWS). A server with a shorter time (5 in Node and uvicorn) closes connections
    #: that the proxy still uses, and the proxy answers 502 now and then.
    keep_alive: float = _option(75.0, "seconds an idle connection is kept open")
    #: Bytes of the request target. RFC 9112 §3 recommends at least 8,000 octets for a request line.
    max_target: int = _option(8192, "bytes of a request target (414)")
    #: Bytes of the header section, of the trailer section, or of chunk extensions beyond the size
    #: of their body. Node allows 16 KiB, Tomcat 8, nginx 32.
    max_header_bytes: int = _option(32768, "bytes of a header section (431)")
    #: Header fields in one request. hyper stops at 100, nginx at 1,000 (for HTTP/2).
    max_headers: int = _option(100, "number of header fields (431)")
    #: Bytes of a request body. The 1 MiB of nginx is raised in most deployments, so this limit is
    #: far higher.
    max_body: int = _option(100 * 1024 * 1024, "bytes of a request body (413)")
    #: Connections whose clients can still send a request, idle ones included. At the limit a new
    #: connection replaces the one that has been idle longest. An idle connection costs a descriptor
    #: and a few KiB. The limit is never more than three quarters of the descriptors that the
    #: process may open (`minibg.server.service`).
    max_connections: int = _option(10_000, "open connections (503)")
    #: Requests whose application has not ended, also if the response or the client has left. A
    #: running application costs tens of KiB, and often a thread or a database connection; 1,000 is
    #: more than the pools of either contain. A server with many open streams needs a higher limit.
    max_requests_in_progress: int = _option(1000, "requests whose applications are at work (503)")
    #: Seconds a stop waits for responses in flight. Docker kills a process after 10, Kubernetes
    #: after 30.
    graceful_timeout: float = _option(10.0, "seconds a stop waits for responses in flight")
    #: Seconds a stop waits for the application's shutdown, in addition to the drain of its tasks.
    #: hypercorn waits 60; uvicorn and granian wait without a limit.
    shutdown_timeout: float = _option(60.0, "seconds a stop waits for the application to shut down")

    def __post_init__(self) -> None:
        for limit in fields(self):
            if not getattr(self, limit.name) > 0:
                raise ValueError(f"{limit.name} must be positive, not {getattr(self, limit.name)!r}")
