"""The bytes after a request head -> the request body. Pure.

A body ends after Content-Length bytes, or with the last chunk (RFC 9112 §6.3). `Body` is a push
parser: `feed` takes the bytes that have arrived and returns the part of them that is body. When
``complete`` is true, ``rest`` holds the bytes behind the body. They begin the next request.

h11 could read the body too, but it discards chunk extensions and the form of the trailers before a
caller can look at them. A server has to refuse some of both: a bare CR, a folded line, control
bytes, megabytes of either. To check the bytes beside h11 would take a second parser, so one strict
parser of sixty lines replaces h11 here. The tests use h11 as the oracle: h11 reads every body that
is accepted here as the same body.

The parser refuses, with 400 unless another status is given:

- a size line that is not 1 to 16 hexadecimal digits and extensions by the grammar of RFC 9112
  §7.1.1. Blanks around ";" and "=" are part of that grammar; blanks before the end of the line are
  not;
- a size line of more than `_LINE_LIMIT` bytes. No use of extensions is known; §7.1.1 says to ignore
  them and to limit their total length. Extensions that are in sum larger than the body and a header
  section together are refused with 431. Otherwise a body in chunks of one byte could carry a
  hundred times ``max_body`` in extensions;
- a chunk that does not end with CRLF, and a bare LF anywhere (§2.2);
- trailers that are not fields, and a trailer section above ``max_header_bytes`` (431). Accepted
  trailers are dropped: only some fields allow that a trailer is merged into the headers (§7.1.2),
  and ASGI has no message for trailers of a request;
- a body larger than ``max_body`` (413), as soon as a size line announces it.

One regular expression matches the end of a chunk together with the next size line. So a chunk costs
one match, 0.4 microseconds. One read of a socket can bring 43,000 of the smallest chunks (256,000
bytes), and they must not block the event loop. No chunk precedes the first size line, so the parser
puts a CRLF of its own before the client's bytes.

Rejected: returning the body in the client's chunks. A proxy may change the division into chunks
(RFC 9112 §7.1.1), so it carries no meaning, and one message for all the bytes that have arrived is
cheaper.
"""

import re
from http import HTTPStatus

from minibg.server.head import BAD_REQUEST, RequestRefused
from minibg.server.limits import Limits

#: Bytes of a size line with its CRLF: 16 digits and one or two extensions.
_LINE_LIMIT = 256
#: RFC 9110 §5.6.2: the bytes of a token, as the content of a character class.
_TOKEN = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
#: RFC 9110 §5.6.4: a quoted-string.
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+"'
#: RFC 9112 §7.1.1: BWS ";" BWS name [ BWS "=" BWS value ], where the value is a token or a
#: quoted-string.
_EXTENSION = rb"[\t ]*;[\t ]*[%b]+(?:[\t ]*=[\t ]*(?:[%b]+|%b))?" % (_TOKEN, _TOKEN, _QUOTED)
#: The end of a chunk's data, and the size and the extensions of the next chunk.
_CHUNK = re.compile(rb"\r\n([0-9A-Fa-f]{1,16})((?:%b)*)\r\n" % _EXTENSION)
#: A trailer field, or the blank line after the last field.
_TRAILER = re.compile(rb"(?:[%b]+:[\t\x20-\x7e\x80-\xff]*)?\r\n" % _TOKEN)


class Body:
    """The push parser of one body."""

    def __init__(self, length: int | None, limits: Limits) -> None:
        """``length`` is the Content-Length in bytes, or None for a chunked body."""
        self._limits = limits
        #: The whole body and its trailers have been read.
        self.complete = False
        #: The bytes behind a complete body.
        self.rest = b""
        #: Bytes of the body, or of the current chunk, that have not arrived.
        self.left = length or 0
        self._is_chunked = length is None
        #: The beginning of a line whose end has not arrived.
        self._unread = b"\r\n" if self._is_chunked else b""
        #: The last chunk has been read; trailers follow.
        self._is_last = False
        #: Bytes of the body, of its extensions and of its trailers that have been read.
        self._size = self._extensions = self._trailers = 0

    def feed(self, data: bytes) -> bytes:
        """Return the part of ``data`` that is body. Raises `RequestRefused`."""
        if not self._is_chunked:
            body, self.rest = data[: self.left], data[self.left :]
            self.left -= len(body)
            self.complete = not self.left
            return body
        data, at = self._unread + data, 0
        pieces: list[bytes] = []
        if not self._is_last:
            at = self._read_chunks(data, pieces)
        if self._is_last:
            at = self._read_trailers(data, at)
        self._unread = data[at:]
        self.rest = self._unread if self.complete else b""
        return b"".join(pieces)

    def _read_chunks(self, data: bytes, pieces: list[bytes]) -> int:
        """Collect the data of the chunks in ``pieces``. Return where the unread bytes begin."""
        # Local names are faster, and the client decides how often this loop runs: once a chunk.
        match_chunk, max_body, at, left, size = _CHUNK.match, self._limits.max_body, 0, self.left, self._size
        while match := match_chunk(data, at + left):
            pieces.append(data[at : at + left])
            at = match.end()
            digits, extensions = match.groups()
            left = int(digits, 16)
            size += left
            if extensions:
                self._extensions += len(extensions)
                if len(match[0]) - 2 > _LINE_LIMIT:
                    raise RequestRefused(BAD_REQUEST, "chunk size line too long")
                if self._extensions > size + self._limits.max_header_bytes:
                    raise RequestRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "chunk extensions too large")
            if size > max_body:
                raise RequestRefused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "chunked body too large")
            if not left:
                self._is_last = True
                break
        else:
            # The current chunk, or the size line after it, is incomplete.
            end = at + left
            pieces.append(data[at:end])
            at, left = min(end, len(data)), max(0, end - len(data))
            line = data[at:]
            if not b"\r\n".startswith(line[:2]) or b"\n" in line[2:] or len(line) - 2 > _LINE_LIMIT:
                raise RequestRefused(BAD_REQUEST, "not a chunked body")
        self.left, self._size = left, size
        return at

    def _read_trailers(self, data: bytes, at: int) -> int:
        """Check the complete lines from ``at`` on. Return where the unread bytes begin."""
        while not self.complete:
            end = data.find(b"\n", at) + 1
            size = (end or len(data)) - at
            if self._trailers + size > self._limits.max_header_bytes:
                raise RequestRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "trailer section too large")
            if not end:
                break
            if _TRAILER.fullmatch(data, at, end) is None:
                raise RequestRefused(BAD_REQUEST, "not a trailer field")
            self._trailers += size
            self.complete = data[at:end] == b"\r\n"
            at = end
        return at
