"""Every limit and every deadline of the server, with its reason.

A server that a stranger can reach owes an answer to the questions "how long?" and "how much?" at each place where the
stranger decides. All the answers stand in this file, so that they can be read, changed and tested in one place. A
limit that stands elsewhere as a constant is one that nobody needs to change; it has its reason there.

Rules of this file:

- Times are seconds as float, sizes are bytes as int. The names are the keyword options of ``serve()`` and, with
  dashes, the options of the command.
- Deadlines are absolute: they run from the moment a thing began and are not renewed by a single byte, or a client that
  sends one byte a second holds its connection for ever. Where a transfer may honestly take long (bodies, both ways) the
  deadline is renewed by *progress*: `PROGRESS` bytes.
- Limits do not depend on how the bytes are cut into packets.
- Deadlines are looked at once a tick (`minibg.server.server`), so they are never early and at most two ticks late.

What is exceeded and what the client sees: 408 for a late head or body, 413, 414, 431, 503 with Retry-After; a response
that is not taken in time is cut.

Rejected: "no limit" as a default anywhere. Of the servers compared, two have no deadline for the request head, three
none for the body, and none has one for a client that does not read.
"""

from dataclasses import dataclass, field, fields
from typing import Any

#: A body that moves this many bytes within its deadline gets a new deadline. With the default of 30 s it is about
#: 550 bytes a second, which a modem of 1990 reached.
PROGRESS = 16 * 1024


def _option(default: float, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may take, and for how long. Raises ValueError for a limit that is not positive."""

    #: Seconds from the first moment of a connection, or the first byte of a later head, to the end of the head. nginx
    #: gives 60, hyper 30; a head fits in one packet, and ten seconds survive a lost one several times.
    header_timeout: float = _option(10.0, "seconds for a request head to arrive")
    #: Seconds for the next `PROGRESS` bytes of a request body. The time in which the application does not read is not counted.
    body_timeout: float = _option(30.0, "seconds without progress in a request body")
    #: Seconds for the next `PROGRESS` bytes of a response to be taken by the client.
    write_timeout: float = _option(30.0, "seconds without progress in a response")
    #: Seconds an idle connection is kept for its next request. Node's and uvicorn's 5 is shorter than what proxies keep
    #: their connections (60 in nginx, AWS), which they answer with a 502 now and then; 75 is nginx' own.
    keep_alive: float = _option(75.0, "seconds an idle connection is kept open")
    #: Bytes of the request target. RFC 9112 §3 asks for a request line of 8,000 octets at least.
    max_target: int = _option(8192, "bytes of a request target (414)")
    #: Bytes of the header section, of the trailer section, or of chunk extensions beyond the size of their body. Node
    #: takes 16 KiB, Tomcat 8, nginx 32.
    max_header_bytes: int = _option(32768, "bytes of a header section (431)")
    #: Header fields in one request. hyper and nginx stop at 100 and at 1,000 (for HTTP/2).
    max_headers: int = _option(100, "number of header fields (431)")
    #: Bytes of a request body. nginx takes 1 MiB and everybody raises it; a limit that is a guard, not a policy.
    max_body: int = _option(100 * 1024 * 1024, "bytes of a request body (413)")
    #: Connections at once, idle ones included. With TLS one counts from the end of its handshake, which asyncio does
    #: before it shows us the client, and which has ``header_timeout`` seconds. As many again may be about to be refused.
    #: Beyond that the process's file descriptors are the bound: 1,024 by default on Linux.
    max_connections: int = _option(1000, "open connections (503)")
    #: Seconds a stop waits for responses in flight. Docker and Kubernetes kill after 10 and 30.
    graceful_timeout: float = _option(10.0, "seconds a stop waits for responses in flight")

    def __post_init__(self) -> None:
        for limit in fields(self):
            if not getattr(self, limit.name) > 0:
                raise ValueError(f"{limit.name} must be positive, not {getattr(self, limit.name)!r}")
