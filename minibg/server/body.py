"""The bytes after a request head -> the request body. Pure.

A body ends after as many bytes as Content-Length says, or with the last chunk (RFC 9112 §6.3). Both readers here are
push parsers: `feed` takes what came and gives back what of it is body; when ``complete`` is true, ``rest`` is what lies
behind the end: the next request.

Why h11 does not read the body, although it could: it throws chunk extensions and the form of the trailers away before
anybody can look at them, and what a server must refuse there (a bare CR, a folded line, control bytes, megabytes of
either) is refused by looking. A second look at the same bytes beside h11 would be a second parser; one strict parser
of fifty lines is less. In the tests h11 is its oracle: what is accepted here, h11 must read as the same body.

What is refused, with 400 unless said otherwise:

- a size line that is not hexadecimal digits and extensions of visible bytes (RFC 9112 §7.1), no more than 16 digits;
- a size line of more than `_LINE_LIMIT` bytes; extensions have no use that anybody knows (§7.1.1: ignore them);
- a chunk that does not end with CRLF; bare LF anywhere (§2.2);
- trailers that are no fields, and more of them than a header section may have (431). The rest is dropped: they may not
  be merged into the headers unless the field allows it (§7.1.2), and ASGI has no place for them;
- more body than ``max_body`` (413), as soon as a size line announces it.

Rejected: giving the body back in the chunks of the client. They are the transport's, not a unit of anything
(RFC 9110 §7.7), and one message for all that has arrived is cheaper.
"""

import re
from http import HTTPStatus

from minibg.server.head import BAD, Refused
from minibg.server.limits import Limits

#: Bytes of a size line: 16 digits, CRLF, and an extension or two that somebody's client adds.
_LINE_LIMIT = 256
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[\t ]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*)?\r\n")


class LengthBody:
    """A body of as many bytes as Content-Length says."""

    __slots__ = ("complete", "left", "rest")

    def __init__(self, length: int) -> None:
        self.left = length
        self.complete = length == 0
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        if len(data) < self.left:
            self.left -= len(data)
            return data
        body, self.rest = data[: self.left], data[self.left :]
        self.left, self.complete = 0, True
        return body


class ChunkedBody:
    """A body in chunks (RFC 9112 §7.1)."""

    __slots__ = ("_chunk", "_limits", "_line", "_size", "_trailers", "complete", "rest")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        #: The beginning of a line that has not ended yet.
        self._line = b""
        #: Bytes left of the current chunk with its CRLF; 0 while a line is read.
        self._chunk = 0
        #: Bytes of the body announced so far.
        self._size = 0
        #: Bytes of trailers so far; None before the last chunk.
        self._trailers: int | None = None
        self.complete = False
        self.rest = b""

    @property
    def left(self) -> int:
        """At least this many bytes come: what is announced."""
        return self._chunk

    def feed(self, data: bytes) -> bytes:
        """Raises `Refused`."""
        pieces: list[bytes] = []
        at = 0
        while at < len(data) and not self.complete:
            if self._chunk:
                at = self._read_chunk(data, at, pieces)
            else:
                at = self._read_line(data, at)
        self.rest = data[at:]
        return b"".join(pieces)

    def _read_chunk(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Take what is there of the chunk's data, then of its CRLF."""
        end = at + self._chunk
        if self._chunk > 2:
            pieces.append(data[at : end - 2])
        ending = data[max(at, end - 2) : end]
        if ending != b"\r\n"[max(at - (end - 2), 0) :][: len(ending)]:
            raise Refused(BAD, "chunk does not end with CRLF")
        self._chunk -= min(len(data), end) - at
        return min(len(data), end)

    def _read_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at) + 1
        self._line += data[at : end or len(data)]
        if len(self._line) > (_LINE_LIMIT if self._trailers is None else self._limits.max_header_bytes):
            raise self._too_long()
        if not end:
            return len(data)
        line, self._line = self._line, b""
        if self._trailers is None:
            self._start_chunk(line)
        else:
            self._read_trailer(line, self._trailers + len(line))
        return end

    def _too_long(self) -> Refused:
        if self._trailers is None:
            return Refused(BAD, "chunk size line too long")
        return Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "trailer section too large")

    def _start_chunk(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            raise Refused(BAD, "not a chunk size line")
        size = int(match[1], 16)
        self._size += size
        if self._size > self._limits.max_body:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "chunked body too large")
        if size:
            self._chunk = size + 2
        else:
            self._trailers = 0

    def _read_trailer(self, line: bytes, size: int) -> None:
        if _TRAILER.fullmatch(line) is None:
            raise Refused(BAD, "not a trailer field")
        if size > self._limits.max_header_bytes:
            raise self._too_long()
        self._trailers = size
        self.complete = line == b"\r\n"


Body = LengthBody | ChunkedBody


def body_of(length: int | None, limits: Limits) -> Body:
    """The reader for a request with this Content-Length; None means chunks."""
    return ChunkedBody(limits) if length is None else LengthBody(length)
