"""Every limit and every deadline of the server, with its reason.

A server that strangers can reach has to answer two questions wherever a client decides: how long,
and how much? The answers are the fields of `Limits`, so that they can be read, changed and tested
in one place. A limit that is a constant of another file is one that an operator has no reason to
change; its reason is given there.

Rules of this file:

- Times are seconds as float, sizes are bytes as int. The names are the keyword options of
  ``serve()`` and, with dashes, the options of the command.
- Deadlines are absolute. A deadline runs from the start of a phase, and a single byte does not
  renew it; otherwise a client that sends one byte a second could hold its connection for ever.
  Bodies, which may take long for honest reasons, renew their deadline by *progress*: `PROGRESS`
  bytes, in either direction.
- Limits do not depend on how the bytes are split into packets.
- Deadlines are checked once a tick (`minibg.server.service`): never early, at most two ticks late.

At a limit the client sees 408 (late head or body), 413, 414, 431, or 503 with Retry-After. A
response that is not taken in time ends with a reset of the connection.

Rejected: "no limit" as a default. Of the four servers compared, two have no deadline for the
request head, three none for the body, and none has a deadline for a client that does not read.
"""

from dataclasses import dataclass, field, fields
from typing import Any

#: Bytes of a body that, moved within its deadline, renew the deadline. With the default of 30 s
#: this is about 550 bytes a second, which a modem of 1990 reached.
PROGRESS = 16 * 1024


def _option(default: float, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may take, and for how long.

    Raises ValueError for a limit that is not positive.
    """

    #: Seconds for a request head: from the connection, or from the first byte of a later head, to
    #: the head's end. nginx allows 60, hyper 30; a head fits into one packet, which can be lost
    #: several times within ten seconds.
    header_timeout: float = _option(10.0, "seconds for a request head to arrive")
    #: Seconds for the next `PROGRESS` bytes of a request body. The time in which the application
    #: does not read is not counted.
    body_timeout: float = _option(30.0, "seconds without progress in a request body")
    #: Seconds in which the client must take the next `PROGRESS` bytes of a response.
    write_timeout: float = _option(30.0, "seconds without progress in a response")
    #: Seconds an idle connection stays open. nginx' default. The 5 of Node and uvicorn is shorter
    #: than proxies keep theirs (60 in nginx and AWS): such a proxy sends into a closed connection
    #: now and then, and answers 502.
    keep_alive: float = _option(75.0, "seconds an idle connection is kept open")
    #: Bytes of the request target. RFC 9112 §3 recommends at least 8,000 octets for a request line.
    max_target: int = _option(8192, "bytes of a request target (414)")
    #: Bytes of the header section, of the trailer section, or of chunk extensions beyond the size
    #: of their body. Node allows 16 KiB, Tomcat 8, nginx 32.
    max_header_bytes: int = _option(32768, "bytes of a header section (431)")
    #: Header fields in one request. hyper stops at 100, nginx at 1,000 (for HTTP/2).
    max_headers: int = _option(100, "number of header fields (431)")
    #: Bytes of a request body. nginx' 1 MiB is raised in most deployments; this limit is a guard,
    #: not a policy.
    max_body: int = _option(100 * 1024 * 1024, "bytes of a request body (413)")
    #: Connections whose clients can still send a request, idle ones included. At the limit the
    #: connection that has been idle longest gives way to a new one. An idle connection costs a
    #: descriptor and a few KiB; where the process may open fewer, three quarters of its descriptors
    #: are the limit (`minibg.server.service`).
    max_connections: int = _option(10_000, "open connections (503)")
    #: Requests whose application has not ended, whether or not the response has left and whether
    #: or not the client has stayed. An application at work costs tens of KiB, often a thread or a
    #: connection to a database, and 1,000 is more than either pool has. A server of many open
    #: streams raises it.
    max_requests_in_progress: int = _option(1000, "requests whose applications are at work (503)")
    #: Seconds a stop waits for responses in flight. Docker kills after 10, Kubernetes after 30.
    graceful_timeout: float = _option(10.0, "seconds a stop waits for responses in flight")
    #: Seconds a stop waits for the application's shutdown, beside the drain of its tasks. The 60 of
    #: hypercorn; uvicorn and granian wait without end.
    shutdown_timeout: float = _option(60.0, "seconds a stop waits for the application to shut down")

    def __post_init__(self) -> None:
        for limit in fields(self):
            if not getattr(self, limit.name) > 0:
                raise ValueError(f"{limit.name} must be positive, not {getattr(self, limit.name)!r}")
