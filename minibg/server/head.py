"""A request head: the checks of RFC 9112 beyond those of h11, and the ASGI scope. Pure.

h11 judges the head. Its Request event checks the grammar of the method, the target, the field names
and values, and that there is one Host, one Content-Length and a known transfer coding. h11 is
lenient on purpose towards old software. A server behind a proxy must be strict: if two parsers read
the same bytes differently, a second request can hide inside the first (request smuggling). So this
file checks the raw bytes before h11 parses them, and the event afterwards. Each refusal cites its
paragraph:

===========================================  ======  ==============================================
Refused                                      Answer  Reason
===========================================  ======  ==============================================
Transfer-Encoding with Content-Length        400     RFC 9112 §6.3 item 3: "ought to be handled as
                                                     an error"
a final transfer coding other than chunked   400     RFC 9112 §6.3 item 4: MUST; any other coding
                                                     before it is 501, which is h11's answer
Transfer-Encoding in HTTP/1.0                400     RFC 9112 §6.1: "MUST treat the message as if
                                                     the framing is faulty"
bare LF or CR                                400     RFC 9112 §2.2: a lone LF MAY end a line, a
                                                     lone CR is invalid
obs-fold                                     400     RFC 9112 §5.2: "MUST either reject [...] or
                                                     replace"
control bytes                                400     RFC 9110 §5.5: "invalid and dangerous"
an invalid Host                              400     RFC 9112 §3.2: "MUST respond with a 400"
no Host in 1.1 and later                     400     the same; h11 requires it in exactly 1.1
a target that is neither path nor URI,       400     RFC 9112 §3.2
or that contains "#"
CONNECT                                      405     RFC 9110 §9.3.6: this server is no proxy
another major version                        505     RFC 9110 §15.6.6; 1.2 and up are served as
                                                     1.1 (§6.2)
an https URI over a plain connection         421     RFC 9110 §7.4: MUST, unless a trusted proxy
                                                     says that its own connection was secured
target, header section or number of fields   414,    `minibg.server.limits`
beyond the limit                             431
===========================================  ======  ==============================================

Two decisions need more than the bytes of the head, and the connection makes them
(`minibg.server.protocol`): it skips blank lines before a request (RFC 9112 §2.2, SHOULD), and
compares the scheme of an absolute URI with its own.

Rules of this file: no state, no input or output. `RequestRefused` carries the status. Its text goes
to the log and not to the client, because a text that repeats the client's bytes could be an attack
on the browser of another user.

Rejected: an `h11.Connection` around the event. Its buffers and state machines, created for one
head, take 13 of the 40 microseconds of a small request; the event takes 5. After the first check
below, parsing only has to split lines at colons. The tests use `h11.Connection` as the oracle: it
reads every head that is accepted here as the same request. Rejected too: h11's size limit. It
applies only while an event is incomplete, so a head of any size passes in one packet. Rejected too:
a cache of parsed heads. It helps benchmarks, whose requests repeat, and little else.
"""

import re
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import unquote

import h11

from minibg.server.limits import Limits

Headers = list[tuple[bytes, bytes]]


class RequestRefused(Exception):
    """The server answers the request itself, with ``status``, and then closes the connection."""

    def __init__(self, status: HTTPStatus, why: str, headers: Headers | None = None) -> None:
        super().__init__(why)
        #: The status of the answer.
        self.status = status
        #: Further header fields of the answer.
        self.headers = headers or []


class RequestHead(NamedTuple):
    """A request head that passed every check."""

    method: bytes
    target: bytes
    #: Names in lower case, in the order of the request.
    headers: Headers
    #: The client speaks HTTP/1.0: no chunks, no 100 Continue, no keep-alive.
    http10: bool
    #: Bytes of the body; None for a chunked body.
    length: int | None
    #: The client allows another request on this connection.
    keep_alive: bool
    #: The client waits for 100 Continue before it sends the body.
    expects_continue: bool


#: The bytes that a head may contain besides CR and LF; those are counted instead.
VISIBLE = bytes(set(range(256)) - set(range(32)) - {127} | {9})
#: RFC 9110 §7.2: uri-host [ ":" port ], with RFC 3986's IP-literal and reg-name. May be empty.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-fvV:.]+\]|(?:[0-9A-Za-z\-._~!$&'()*+,;=]++|%[0-9A-Fa-f]{2})*+)(?::[0-9]*)?")
#: RFC 9112 §3: method SP request-target SP HTTP-version. h11 checks the bytes of the first two.
_REQUEST_LINE = re.compile(rb"([^ ]+) ([^ ]+) HTTP/([0-9]\.[0-9])")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE)
#: Fields about the message itself: its framing, its host, its connection.
_MESSAGE_FIELDS = frozenset((b"connection", b"content-length", b"expect", b"host", b"transfer-encoding"))
#: Bytes for the method, two blanks, the version and CRLF in a request line. The longest registered
#: method has 17 bytes.
_LINE_ROOM = 64
#: RFC 9110 §15.5.6: a 405 MUST have Allow. The server sends it, because CONNECT is refused before
#: the application runs.
_ALLOW = [(b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")]
#: Bytes of blank lines that are skipped before one request. Old clients send one such line after a
#: body.
MAX_BLANK = 64
_BLANK = re.compile(rb"\A(?:\r\n)+")
BAD_REQUEST = HTTPStatus.BAD_REQUEST


def skip_blank_lines(data: bytes, skipped: int) -> tuple[bytes, int]:
    """Return the data without the blank lines at its beginning, and ``skipped`` plus their bytes.

    RFC 9112 §2.2: a server SHOULD ignore at least one. A limit in bytes holds however the bytes are
    split into packets. Raises `RequestRefused` for more than `MAX_BLANK` bytes before one request.
    """
    rest = _BLANK.sub(b"", data)
    skipped += len(data) - len(rest)
    if skipped > MAX_BLANK:
        raise RequestRefused(BAD_REQUEST, "too many blank lines before a request")
    return rest, skipped


def check_beginning(data: bytes, limits: Limits) -> None:
    """Raise `RequestRefused` for bytes that cannot be the beginning of a valid head.

    The answer is the same however the bytes are split into packets.
    """
    line = data.find(b"\r\n", 0, limits.max_target + _LINE_ROOM)
    if line < 0 and len(data) >= limits.max_target + _LINE_ROOM:
        raise RequestRefused(HTTPStatus.REQUEST_URI_TOO_LONG, "request line too long")
    if line >= 0 and len(data) - line - 4 > limits.max_header_bytes:
        raise RequestRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "header section too large")
    if (data[:1] < b"!" and data not in (b"", b"\r")) or data.count(b"\n") != data.count(b"\r\n"):
        raise RequestRefused(BAD_REQUEST, "not HTTP (TLS on a plain port?), or a bare LF")


def read_head(head: bytes, limits: Limits) -> RequestHead:
    """Parse and check one complete head, its blank line included. Raises `RequestRefused`."""
    lines = head.count(b"\r\n")
    check_beginning(head, limits)
    if lines - 2 > limits.max_headers:
        raise RequestRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields")
    # After removing the visible bytes, only the pairs of CR and LF may be left.
    if len(head.translate(None, VISIBLE)) != 2 * lines or b"\r\n " in head or b"\r\n\t" in head:
        raise RequestRefused(BAD_REQUEST, "bare CR or LF, folded line or control byte")
    first, *fields = [line.partition(b":") for line in head[:-4].split(b"\r\n")]
    parts = _REQUEST_LINE.fullmatch(b"".join(first))
    if parts is None or not all(colon for _, colon, _ in fields):
        raise RequestRefused(BAD_REQUEST, "not a request line, or a field without a colon")
    method, target, version = parts.groups()
    headers = [(name, value.strip(b" \t")) for name, _, value in fields]
    try:
        event = h11.Request(method=method, target=target, headers=headers, http_version=version)
    except h11.LocalProtocolError as error:
        raise RequestRefused(_status_of(error, headers), str(error)) from None
    return _checked(event, limits)


def _status_of(error: h11.LocalProtocolError, headers: Headers) -> HTTPStatus:
    """Return h11's status, except for a final transfer coding other than chunked.

    A final coding other than chunked MUST be 400 (RFC 9112 §6.3 item 4); an unknown coding before
    the final one is 501 (§6.1).
    """
    codings = [value.lower() for name, value in headers if name.lower() == b"transfer-encoding"]
    faulty = codings and codings[-1].rpartition(b",")[2].strip(b" \t") != b"chunked"
    return BAD_REQUEST if faulty else HTTPStatus(error.error_status_hint)


def _checked(event: h11.Request, limits: Limits) -> RequestHead:
    """Return the request of an event, after a numbered procedure of checks. Raises `RequestRefused`."""
    # 1. RFC 9110 §15.6.6: the major version.
    if event.http_version[:1] != b"1":
        raise RequestRefused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "another major version")
    http10 = event.http_version == b"1.0"
    # 2. RFC 9112 §3.2: the target.
    if len(event.target) > limits.max_target:
        raise RequestRefused(HTTPStatus.REQUEST_URI_TOO_LONG, "target too long")
    _check_target(event.method, event.target)
    # 3. RFC 9112 §3.2: Host. h11 has refused a second Host, Content-Length or Transfer-Encoding, so
    # a dict loses nothing.
    headers = [(name.lower(), value) for name, value in event.headers.raw_items()]
    own = {name: value for name, value in headers if name in _MESSAGE_FIELDS}
    host = own.get(b"host")
    if _HOST.fullmatch(host or b"") is None or (host is None and not http10):
        raise RequestRefused(BAD_REQUEST, "no Host, or an invalid one")
    # 4. RFC 9112 §6.3: the length of the body.
    length = _body_length(own, http10=http10)
    if length is not None and length > limits.max_body:
        raise RequestRefused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "declared body too large")
    # 5. RFC 9110 §10.1.1: a server MUST ignore the expectation in HTTP/1.0, and MAY ignore
    # expectations other than 100-continue.
    expects = b"expect" in own and not http10 and b"100-continue" in members(headers, b"expect")
    # 6. RFC 9112 §9.3: keep-alive. As in h11, HTTP/1.0 connections are not kept alive.
    close = http10 or (b"connection" in own and b"close" in members(headers, b"connection"))
    return RequestHead(event.method, event.target, headers, http10, length, not close, expects)


def members(headers: Headers, field: bytes) -> list[bytes]:
    """Return the members of a list field in lower case, from all its field lines (RFC 9110 §5.6.1)."""
    return [member.strip(b" \t") for name, value in headers if name == field for member in value.lower().split(b",")]


def _body_length(own: dict[bytes, bytes], *, http10: bool) -> int | None:
    """Return the length of the body in bytes, or None for a chunked body (RFC 9112 §6.3)."""
    if b"transfer-encoding" not in own:
        return int(own.get(b"content-length", b"0"))
    if b"content-length" in own or http10:
        raise RequestRefused(BAD_REQUEST, "Transfer-Encoding with Content-Length, or in HTTP/1.0")
    return None


def _check_target(method: bytes, target: bytes) -> None:
    """Raise `RequestRefused` for a target that has none of the forms of RFC 9112 §3.2."""
    if method == b"CONNECT":
        raise RequestRefused(HTTPStatus.METHOD_NOT_ALLOWED, "CONNECT", _ALLOW)
    if b"#" in target:
        raise RequestRefused(BAD_REQUEST, "fragment in the target")
    if target[:1] == b"/" or (target == b"*" and method == b"OPTIONS"):
        return
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or _HOST.fullmatch(absolute[1]) is None:
        raise RequestRefused(BAD_REQUEST, "neither a path nor an absolute URI")


def scope_of(request: RequestHead, constant: dict[str, Any]) -> dict[str, Any]:
    """Return the ASGI scope of a request (ASGI http 2.5, "HTTP Connection Scope").

    ``constant`` holds the keys that all requests of a connection share. Its ``root_path`` is put
    before the path: the proxy that mounts the application there has removed it from the target.
    """
    target, headers = request.target, request.headers
    if target[:1] != b"/" and target != b"*":
        target, headers = _absolute(target, headers)
    raw_path, _, query = target.partition(b"?")
    path, root_path = raw_path.decode("ascii"), constant["root_path"]
    return {
        **constant,
        "http_version": "1.0" if request.http10 else "1.1",
        "method": request.method.decode("ascii").upper(),
        "path": root_path + (unquote(path) if "%" in path else path),
        "raw_path": root_path.encode() + raw_path if root_path else raw_path,
        "query_string": query,
        "headers": headers,
    }


def _absolute(target: bytes, headers: Headers) -> tuple[bytes, Headers]:
    """Return the path of an absolute-form target, and the headers with its authority as Host.

    RFC 9112 §3.2.2: the authority of the target replaces the Host field.
    """
    absolute = _ABSOLUTE.fullmatch(target)
    assert absolute is not None
    authority, rest = absolute.groups()
    others = [field for field in headers if field[0] != b"host"]
    return rest if rest[:1] == b"/" else b"/" + rest, [(b"host", authority), *others]
