"""The bytes after a request head -> the request body. Pure.

A body ends after as many bytes as Content-Length says, or with the last chunk (RFC 9112 §6.3). The reader is a
push parser: `feed` takes what came and gives back what of it is body; when ``complete`` is true, ``rest`` is what lies
behind the end: the next request.

Why h11 does not read the body, although it could: it throws chunk extensions and the form of the trailers away before
anybody can look at them, and what a server must refuse there (a bare CR, a folded line, control bytes, megabytes of
either) is refused by looking. A second look at the same bytes beside h11 would be a second parser; one strict parser
of fifty lines is less. In the tests h11 is its oracle: what is accepted here, h11 must read as the same body.

What is refused, with 400 unless said otherwise:

- a size line that is not hexadecimal digits and extensions of visible bytes (RFC 9112 §7.1), no more than 16 digits;
- a size line of more than `_LINE_LIMIT` bytes; extensions have no use that anybody knows (§7.1.1: ignore them, but
  limit their total length). More of them than of the body and a header section together is 431: with chunks of one
  byte they would carry a hundred times what ``max_body`` allows;
- a chunk that does not end with CRLF; bare LF anywhere (§2.2);
- trailers that are no fields, and more of them than a header section may have (431). The rest is dropped: they may not
  be merged into the headers unless the field allows it (§7.1.2), and ASGI has no place for them;
- more body than ``max_body`` (413), as soon as a size line announces it.

Rejected: giving the body back in the chunks of the client. They belong to the connection, and whoever stands between
may cut them anew (RFC 9112 §7.1.1); and one message for all that has arrived is cheaper.
"""

import re
from http import HTTPStatus

from minibg.server.head import BAD, Refused
from minibg.server.limits import Limits

#: Bytes of a size line: 16 digits, CRLF, and an extension or two that somebody's client adds.
_LINE_LIMIT = 256
#: The lines of RFC 9112 §7.1: a chunk's size, the end of its data, a trailer field or the blank line after the last.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[\t ]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_END = re.compile(rb"\r\n")
_TRAILER = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*)?\r\n")


class Body:
    """The reader of one body."""

    complete = False
    rest = b""

    def __init__(self, length: int | None, limits: Limits) -> None:
        """``length`` is the Content-Length; None means chunks."""
        self._limits = limits
        #: Bytes of the body, or of the current chunk, that are still to come.
        self.left = length or 0
        self._size = self._extensions = self._trailers = 0
        #: What the next line has to be, and the beginning of it. There are no lines in a body of known length.
        self._expected = _SIZE if length is None else None
        self._line = b""

    def feed(self, data: bytes) -> bytes:
        """What of the data is body. Raises `Refused`."""
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
                raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "trailer section too large")
        elif length > _LINE_LIMIT:
            raise Refused(BAD, "chunk size line too long")

    def _read_line(self, expected: re.Pattern[bytes], line: bytes) -> None:
        match = expected.fullmatch(line)
        if match is None:
            raise Refused(BAD, "not a chunked body")
        if expected is _SIZE:
            self.left = int(match[1], 16)
            self._size += self.left
            self._expected = _END if self.left else _TRAILER
            self._extensions += len(line) - match.end(1) - 2
            if self._extensions > self._size + self._limits.max_header_bytes:
                raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "chunk extensions too large")
            if self._size > self._limits.max_body:
                raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "chunked body too large")
        elif expected is _END:
            self._expected = _SIZE
        else:
            self._trailers += len(line)
            self.complete = line == b"\r\n"
