"""Response messages of the application -> bytes on the wire. Pure.

h11 could write responses too. It is not asked to: building its events, checking every header twice and walking its
state machine costs 40 % of its time, and this file needs one pass over the headers and one check of the finished head.
The check counts: without its visible bytes a head must be as many pairs of CR and LF as lines were written, so no header
value can end its line and begin another (response splitting), and no control byte leaves the process. Names are checked
once each and remembered, as an application has few. In the tests h11 is the oracle: whatever is written here,
h11 as a client must read back as the same response.

Rules of this file:

- The server owns the message framing. The application's Transfer-Encoding is ignored (ASGI http, "Response Start"), its
  Content-Length is believed and enforced, and of its Connection only "close" is heard.
- One Date and one Server line: the application's, if it has set one.
- A response that must not have a body has none on the wire, whatever the application sends.
- Errors are the application's (ValueError, TypeError) and are raised before the first byte is written.

The framing is chosen in the order of RFC 9112 §6.3: no content for HEAD, 204, 205 and 304; a length if one was given
or if the first body message is also the last; chunks for HTTP/1.1; the end of the connection for HTTP/1.0.

Rejected: a response object that collects headers and knows its own bytes. A function with all its inputs in its
signature is the same thing without the question of what state it is in.
"""

import re
from collections.abc import Iterable
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

from minibg.server.head import VISIBLE, Request, members


class Framing(Enum):
    """How the client learns where the body ends (RFC 9112 §6.3)."""

    #: There is no body, whatever the headers say.
    NONE = "none"
    #: Content-Length.
    LENGTH = "length"
    #: Transfer-Encoding: chunked.
    CHUNKED = "chunked"
    #: The connection ends. HTTP/1.0 only.
    CLOSE = "close"


class Head(NamedTuple):
    """A finished head and what it promises."""

    #: The status line, the headers and the blank line.
    data: bytes
    framing: Framing
    #: Bytes of the body, if that is the framing.
    length: int
    #: The connection ends after this response.
    close: bool


#: Headers that are the server's business; the others are copied.
_OWNED = frozenset((b"content-length", b"date", b"keep-alive", b"server", b"transfer-encoding"))
#: RFC 9110 §5.6.2: a field name is a token.
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
#: The request that is answered when none could be read.
UNREAD = Request(b"", b"", [], http10=False, length=0, keep_alive=False, expects_continue=False)
Fields = Iterable[Iterable[bytes]]


def response_head(
    request: Request, status: int, headers: Fields, whole: int | None, *, close: bool, date: bytes
) -> Head:
    """Choose the framing and write the head. ``whole`` is the size of the body if its first message is the last.

    Raises ValueError or TypeError if the application asks for what HTTP cannot say.
    """
    lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status]
    own = {b"date": date, b"server": b"minibg"}
    for name, value in headers:
        lowered = _lowered(name)
        if lowered == b"connection":
            close = close or b"close" in members([(lowered, value)], lowered)
        elif lowered in _OWNED:
            own[lowered] = value
        else:
            lines.append(b"%b: %b" % (name, value))
    framing, length = _framing(request, status, whole, own.get(b"content-length"))
    if length is not None:
        lines.append(b"content-length: %d" % length)
    elif framing is Framing.CHUNKED:
        lines.append(b"transfer-encoding: chunked")
    close = close or framing is Framing.CLOSE
    # RFC 9110 §6.6.1: an origin server with a clock MUST send Date.
    lines += b"date: " + own[b"date"], b"server: " + own[b"server"]
    if close:  # RFC 9112 §9.6: SHOULD be announced
        lines.append(b"connection: close")
    lines += b"", b""
    data = b"\r\n".join(lines)
    if len(data.translate(None, VISIBLE)) != 2 * (len(lines) - 1):
        raise ValueError(f"a line break or a control byte in the headers of the response: {headers!r}")
    return Head(data, framing, length or 0, close)


@lru_cache(1024)
def _lowered(name: bytes) -> bytes:
    if _TOKEN.fullmatch(name) is None:
        raise ValueError(f"not the name of a header: {name!r}")
    return name.lower()


def _framing(request: Request, status: int, whole: int | None, said: bytes | None) -> tuple[Framing, int | None]:
    """Framing and Content-Length (None: it is not sent), in the order of RFC 9112 §6.3."""
    if said is not None and not said.isdigit():
        raise ValueError(f"not a Content-Length: {said!r}")
    if status == 204:  # RFC 9110 §8.6: MUST NOT send Content-Length with 204.
        return Framing.NONE, None
    if status == 205:  # RFC 9110 §15.3.6: no content, and the client must see where it ends.
        return Framing.NONE, 0
    length = whole if said is None else int(said)
    if request.method == b"HEAD" or status == 304:  # the length, if it is told, is the one a GET would have had
        return Framing.NONE, length if said else None
    if length is not None:
        return Framing.LENGTH, length
    return (Framing.CLOSE if request.http10 else Framing.CHUNKED), None


def chunk(data: bytes, *, last: bool) -> bytes:
    """One piece of a chunked body (RFC 9112 §7.1). An empty chunk would end the body, so it is not written."""
    piece = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
    return piece + LAST_CHUNK if last else piece


def plain_response(status: HTTPStatus, date: bytes, request: Request, headers: Fields = ()) -> bytes:
    """A whole answer of the server itself. It always ends the connection: what follows cannot be trusted."""
    # RFC 9110 §15.5, §15.6: SHOULD explain the error; §15.6.6: and which versions there are.
    spoken = ": use HTTP/1.1 or HTTP/1.0" if status is HTTPStatus.HTTP_VERSION_NOT_SUPPORTED else ""
    body = f"{status.phrase}{spoken}\n".encode()
    fields = [(b"content-type", b"text/plain; charset=utf-8"), *headers]
    head = response_head(request, status, fields, len(body), close=True, date=date)
    return head.data if head.framing is Framing.NONE else head.data + body
