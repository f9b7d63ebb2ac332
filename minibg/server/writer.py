"""Response messages of the application -> bytes on the wire. Pure.

In minibg, h11 reads requests and does not write responses. Its events, a second check of every
header and its state machine cost 40 % of its time. This file needs one pass over the headers and
one check of the finished head. The check is a count: after removing the visible bytes, a head must
consist of one pair of CR and LF for each written line. So no header value can end its line and
begin another (response splitting), and no control byte leaves the process. The checked names are
cached, since an application uses few. The tests use h11 as the oracle: as a client, it must read
every head that is written here as the same response.

Rules of this file:

- The server owns the message framing. The application's Transfer-Encoding is ignored (ASGI http,
  "Response Start"). Its Content-Length is used, and the cycle enforces it (`minibg.server.cycle`).
  Two different values are an error; two equal values are sent once (RFC 9110 §8.6). Of its
  Connection field only "close" has an effect.
- A response has one Date and one Server field. A field of the application replaces the server's.
- If a response must not have a body, body bytes of the application are not written.
- ValueError and TypeError report a fault of the application, before the first byte is written.

`_framing` chooses how the client learns where the body ends, in the order of RFC 9112 §6.3: no
content for HEAD, 204, 205 and 304; a length if the application gave one, or if the first body
message is also the last; chunks for HTTP/1.1; the end of the connection for HTTP/1.0.

Rejected: a response object that collects headers and serialises itself. A function with all its
inputs in its signature does the same without state.
"""

import re
from collections.abc import Iterable
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

from minibg.server.head import VISIBLE, RequestHead, members


class Framing(Enum):
    """How the client learns where the body ends (RFC 9112 §6.3)."""

    #: No body follows, whatever the headers say.
    NONE = "none"
    #: The body ends after Content-Length bytes.
    LENGTH = "length"
    #: The body ends with the last chunk (Transfer-Encoding: chunked).
    CHUNKED = "chunked"
    #: The body ends with the connection. HTTP/1.0 only.
    CLOSE = "close"


class Head(NamedTuple):
    """A finished head, and the framing of its body."""

    #: The status line, the headers and the blank line.
    data: bytes
    framing: Framing
    #: Bytes of the body with `Framing.LENGTH`; without meaning otherwise.
    length: int
    #: The connection ends after this response.
    close: bool


#: Header fields that the server writes; the others are copied.
_SERVER_FIELDS = frozenset((b"content-length", b"date", b"keep-alive", b"server", b"transfer-encoding"))
#: RFC 9110 §5.6.2: a field name is a token.
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
#: The stand-in for the request when the server answers bytes that are no request.
NO_REQUEST = RequestHead(b"", b"", [], http10=False, length=0, keep_alive=False, expects_continue=False)
Fields = Iterable[Iterable[bytes]]


def response_head(
    request: RequestHead, status: int, headers: Fields, body_size: int | None, *, close: bool, date: bytes
) -> Head:
    """Choose the framing and return the head.

    - ``headers``: pairs of bytes, name and value, as the application sent them.
    - ``body_size``: bytes of the body if its first message is also the last; otherwise None.
    - ``close``: the connection ends after this response, whatever the headers say.
    - ``date``: the value of Date (RFC 9110 §5.6.7).

    Raises ValueError for a header that HTTP cannot express, TypeError for one that is not bytes.
    """
    lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status]
    own = {b"date": date, b"server": b"minibg"}
    for name, value in headers:
        lowered = _lowered(name)
        if lowered == b"connection":
            close = close or b"close" in members([(lowered, value)], lowered)
        elif lowered in _SERVER_FIELDS:
            if lowered == b"content-length" and own.get(lowered, value) != value:
                raise ValueError(f"two different values of Content-Length: {own[lowered]!r} and {value!r}")
            own[lowered] = value
        else:
            lines.append(b"%b: %b" % (name, value))
    framing, length = _framing(request, status, body_size, own.get(b"content-length"))
    if length is not None:
        lines.append(b"content-length: %d" % length)
    elif framing is Framing.CHUNKED:
        lines.append(b"transfer-encoding: chunked")
    close = close or framing is Framing.CLOSE
    # RFC 9110 §6.6.1: an origin server with a clock MUST send Date.
    lines += b"date: " + own[b"date"], b"server: " + own[b"server"]
    # RFC 9112 §9.6: the end of the connection SHOULD be announced.
    lines += (b"connection: close", b"", b"") if close else (b"", b"")
    data = b"\r\n".join(lines)
    if len(data.translate(None, VISIBLE)) != 2 * (len(lines) - 1):
        raise ValueError(f"a line break or a control byte in the headers of the response: {headers!r}")
    return Head(data, framing, length or 0, close)


@lru_cache(1024)
def _lowered(name: bytes) -> bytes:
    """Return a field name in lower case. Raises ValueError if it is not a token."""
    if _TOKEN.fullmatch(name) is None:
        raise ValueError(f"not the name of a header: {name!r}")
    return name.lower()


def _framing(
    request: RequestHead, status: int, body_size: int | None, declared_length: bytes | None
) -> tuple[Framing, int | None]:
    """Return the framing, and the Content-Length to send or None, by a numbered procedure.

    The steps follow RFC 9112 §6.3. Raises ValueError for an invalid Content-Length.
    """
    if declared_length is not None and not declared_length.isdigit():
        raise ValueError(f"not a Content-Length: {declared_length!r}")
    length = body_size if declared_length is None else int(declared_length)
    # 1. RFC 9110 §8.6: MUST NOT send Content-Length with 204.
    if status == 204:
        return Framing.NONE, None
    # 2. RFC 9110 §15.3.6: 205 has no content, and the length tells the client so.
    if status == 205:
        return Framing.NONE, 0
    # 3. HEAD and 304 have no content. Their Content-Length is that of a GET response, which only
    # the application knows.
    if request.method == b"HEAD" or status == 304:
        return Framing.NONE, length if declared_length else None
    # 4. The length is known.
    if length is not None:
        return Framing.LENGTH, length
    # 5. The length is not known, and HTTP/1.0 has no chunks.
    return (Framing.CLOSE if request.http10 else Framing.CHUNKED), None


def chunk(data: bytes, *, last: bool) -> bytes:
    """Return one piece of a chunked body (RFC 9112 §7.1).

    Empty data yields no chunk, because an empty chunk would end the body.
    """
    piece = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
    return piece + LAST_CHUNK if last else piece


def plain_response(status: HTTPStatus, date: bytes, request: RequestHead, headers: Fields = ()) -> bytes:
    """Return a complete response of the server itself. Its body is a text that names the status.

    The response ends the connection, because the bytes after a refused request cannot be trusted.
    """
    # RFC 9110 §15.5, §15.6: SHOULD explain the error; §15.6.6: a 505 SHOULD name the versions that
    # are supported.
    versions = ": use HTTP/1.1 or HTTP/1.0" if status is HTTPStatus.HTTP_VERSION_NOT_SUPPORTED else ""
    body = f"{status.phrase}{versions}\n".encode()
    fields = [(b"content-type", b"text/plain; charset=utf-8"), *headers]
    head = response_head(request, status, fields, len(body), close=True, date=date)
    return head.data if head.framing is Framing.NONE else head.data + body
