"""The bytes after a request head -> the request body. Pure.

A body ends after Content-Length bytes, or with the last chunk (RFC 9112 §6.3). `Body` is a push parser:
`feed` takes the bytes that have arrived and returns the part of them that is body. When ``complete`` is
true, ``rest`` holds the bytes behind the end, which begin the next request.

h11 could read the body too, but it discards chunk extensions and the form of the trailers before a
caller can look at them. A server has to refuse some of both (a bare CR, a folded line, control bytes,
megabytes of either), and a second look at the same bytes beside h11 would be a second parser. One
strict parser of sixty lines is less. The tests use h11 as the oracle: a body that is accepted here,
h11 reads as the same body.

The following is refused, with 400 unless another status is given:

- a size line that is not 1 to 16 hexadecimal digits and extensions (RFC 9112 §7.1);
- a size line of more than `_LINE_LIMIT` bytes. No use of extensions is known; §7.1.1 says to ignore
  them and to limit their total length. Extensions that exceed, in sum, the body and a header section
  are 431: with chunks of one byte they would carry a hundred times what ``max_body`` allows;
- a chunk that does not end with CRLF, and a bare LF anywhere (§2.2);
- trailers that are not fields. A trailer section larger than a header section may be is 431. Accepted
  trailers are dropped: they may be merged into the headers only where the field allows it (§7.1.2),
  and ASGI has no place for them;
- a body larger than ``max_body`` (413), as soon as a size line announces it.

Rejected: returning the body in the client's chunks. Chunks belong to the connection, and a proxy may
divide them anew (RFC 9112 §7.1.1); and one message for all that has arrived is cheaper.
"""

import re
from http import HTTPStatus

from minibg.server.head import BAD_REQUEST, RequestRefused
from minibg.server.limits import Limits

#: Bytes of a size line: 16 digits, CRLF, and room for an extension or two.
_LINE_LIMIT = 256
#: The lines of RFC 9112 §7.1: a chunk's size, the end of its data, a trailer field or the blank line after them.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[\t ]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_END = re.compile(rb"\r\n")
_TRAILER = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*)?\r\n")


class Body:
    """The reader of one body."""

    complete = False
    rest = b""

    def __init__(self, length: int | None, limits: Limits) -> None:
        """``length`` is the Content-Length in bytes, or None for a chunked body."""
        self._limits = limits
        #: Bytes of the body, or of the current chunk, that have not arrived.
        self.left = length or 0
        self._size = self._extensions = self._trailers = 0
        #: The form of the next line, and the part of it that has arrived. A body of known length has no lines.
        self._expected = _SIZE if length is None else None
        self._line = b""

    def feed(self, data: bytes) -> bytes:
        """Return the part of ``data`` that is body. Raises `RequestRefused`."""
        data, self._line = self._line + data, b""
        at, pieces = 0, []
        while not self.complete:
            if self.left:
                pieces.append(data[at : at + self.left])
                at += len(pieces[-1])
                self.left -= len(pieces[-1])
            if self._expected is None or self.left:
                self.complete = not self.left
                break
            end = data.find(b"\n", at) + 1
            self._check_length((end or len(data)) - at)
            if not end:
                self._line = data[at:]
                break
            self._read_line(self._expected, data[at:end])
            at = end
        self.rest = data[at:] if self.complete else b""
        return b"".join(pieces)

    def _check_length(self, length: int) -> None:
        if self._expected is _TRAILER:
            if self._trailers + length > self._limits.max_header_bytes:
                raise RequestRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "trailer section too large")
        elif length > _LINE_LIMIT:
            raise RequestRefused(BAD_REQUEST, "chunk size line too long")

    def _read_line(self, expected: re.Pattern[bytes], line: bytes) -> None:
        match = expected.fullmatch(line)
        if match is None:
            raise RequestRefused(BAD_REQUEST, "not a chunked body")
        if expected is _SIZE:
            self.left = int(match[1], 16)
            self._size += self.left
            self._expected = _END if self.left else _TRAILER
            self._extensions += len(line) - match.end(1) - 2
            if self._extensions > self._size + self._limits.max_header_bytes:
                raise RequestRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "chunk extensions too large")
            if self._size > self._limits.max_body:
                raise RequestRefused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "chunked body too large")
        elif expected is _END:
            self._expected = _SIZE
        else:
            self._trailers += len(line)
            self.complete = line == b"\r\n"
