"""The access log: one line per request, written when its response has ended.

    127.0.0.1:52114 "GET /register HTTP/1.1" 200 51 0.004

The fields are the client, the request line as the client sent it, the status, the bytes of the
response on the wire, and the seconds from the end of the request head until the kernel has taken
the last byte. The line is written at the end because size and duration are not known earlier.
uvicorn logs at the start and shows neither. The seconds do not include the work of the application
after its response; tasks have their own log. A request that got no response has the status 499,
which is nginx' number for it.

Rules of this file:

- The request line is escaped: quotes, backslashes, and all bytes that are not printable ASCII.
  Otherwise a request target could close the quotes and forge a second line, or send control
  sequences to the terminal of the operator.
- The record carries its parts as attributes (`PARTS`), so that a formatter can write them as
  fields. `minibg.logs.JsonFormatter` does.
- Nothing here configures logging. "minibg.access" is an ordinary logger. An exception in one of its
  filters or handlers does not reach the server (`minibg.log`).

Rejected: a format string as an option, as in Apache. A formatter of `logging` can write any format
from the parts.
"""

import codecs

from minibg.log import SafeLogger

logger = SafeLogger("minibg.access")

#: Attributes of an access record: "host:port" or "-", the escaped request line, the status, bytes,
#: seconds.
PARTS = ("client", "request", "status", "bytes", "seconds")

#: The codec is looked up at import. Its first use imports a module, which fails in a process that
#: is out of descriptors.
_escape = codecs.getencoder("unicode_escape")


def escaped(line: bytes) -> str:
    """Return the line as printable ASCII in which quotes and backslashes are escaped."""
    text = _escape(line.decode("latin-1"))[0].decode("ascii")
    return text.replace('"', '\\"')


def log(client: tuple[str, int] | None, request: bytes, status: int, size: int, seconds: float) -> None:
    """Write the access line of one response.

    ``client`` is None on a Unix socket; ``size`` is bytes on the wire.
    """
    name = f"{client[0]}:{client[1]}" if client else "-"
    parts = dict(zip(PARTS, (name, escaped(request), status, size, round(seconds, 6)), strict=True))
    logger.info('%(client)s "%(request)s" %(status)d %(bytes)d %(seconds).3f', parts, extra=parts)
