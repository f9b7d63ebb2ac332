"""What RFC 9112 asks of a request head beyond h11's own checks, and the head as an ASGI scope. Pure.

h11 judges the head: its Request event checks the grammar of method, target, field names and values, and that there is one
Host, one Content-Length and a transfer coding it knows. It is lenient on purpose where old software is sloppy. A server
behind a proxy cannot be: every byte that two parsers read differently is a place where a second request hides inside the
first (request smuggling). So the raw bytes are checked before h11 sees them, and what it found is checked after. Each
refusal cites its paragraph:

==============================================  ======  ==============================================================
What                                            Answer  Why
==============================================  ======  ==============================================================
Transfer-Encoding with Content-Length           400     RFC 9112 §6.3 item 3: "ought to be handled as an error"
a final transfer coding that is not chunked     400     RFC 9112 §6.3 item 4: MUST; another before it is h11's 501
Transfer-Encoding in HTTP/1.0                   400     RFC 9112 §6.1: "MUST treat the message as if the framing is
                                                        faulty"
bare LF or CR                                   400     RFC 9112 §2.2: a lone LF MAY end a line, a lone CR is invalid
obs-fold                                        400     RFC 9112 §5.2: "MUST either reject [...] or replace"
control bytes                                   400     RFC 9110 §5.5: "invalid and dangerous"
Host that is no host                            400     RFC 9112 §3.2: "MUST respond with a 400"
no Host in 1.1 and later                        400     the same; h11 asks for it in exactly 1.1
a target that is neither path nor URI, or "#"   400     RFC 9112 §3.2
CONNECT                                         405     RFC 9110 §9.3.6: this is not a proxy
another major version                           505     RFC 9110 §15.6.6; 1.2 and up are answered as 1.1 (§6.2)
an https URI over a plain connection            421     RFC 9110 §7.4: MUST, but for a trusted proxy's connection
too long target, header section, too many       414 431 `minibg.server.limits`
==============================================  ======  ==============================================================

Two of these things the connection does, which knows more than the bytes: it skips blank lines before a request (RFC 9112
§2.2, SHOULD), and it compares the scheme of a URI with its own.

Rules of this file: no state, no input or output. `Refused` carries the status; its text is for the log, never for the
client, who wrote the bytes and may be trying them on somebody else's browser.

Rejected: `h11.Connection` around the event. Made for one head and thrown away, its buffers and its two state machines take
13 of the 40 microseconds of a small request, the event takes 5; and after the first check below, lines and colons are all
there is to split. In the tests it is the oracle: what is accepted here, it reads as the same request.
Rejected too: h11's own size limit. It bites only while an event is incomplete, so a head of any size passes in one packet.
And a cache of parsed heads: it shines in benchmarks, which repeat themselves, and nowhere else.
"""

import re
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import unquote

import h11

from minibg.server.limits import Limits

Headers = list[tuple[bytes, bytes]]


class Refused(Exception):
    """The request is answered by the server itself, and the connection ends."""

    def __init__(self, status: HTTPStatus, why: str, headers: Headers | None = None) -> None:
        super().__init__(why)
        self.status = status
        self.headers = headers or []


class Request(NamedTuple):
    """A request head that passed every check."""

    method: bytes
    target: bytes
    #: Names in lower case, in the order they came.
    headers: Headers
    #: The client speaks HTTP/1.0: no chunks, no 100 Continue, no keep-alive.
    http10: bool
    #: Bytes of the body; None if it comes in chunks.
    length: int | None
    #: The client does not ask to close.
    keep_alive: bool
    #: The client waits for 100 Continue before it sends the body.
    expects_continue: bool


#: Bytes a head may consist of, but CR and LF, which are counted.
VISIBLE = bytes(set(range(256)) - set(range(32)) - {127} | {9})
#: RFC 9110 §7.2: uri-host [ ":" port ], with RFC 3986's IP-literal and reg-name. May be empty.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-fvV:.]+\]|(?:[0-9A-Za-z\-._~!$&'()*+,;=]++|%[0-9A-Fa-f]{2})*+)(?::[0-9]*)?")
#: RFC 9112 §3: method SP request-target SP HTTP-version. What the first two may hold is h11's to say.
_LINE = re.compile(rb"([^ ]+) ([^ ]+) HTTP/([0-9]\.[0-9])")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE)
#: Fields that decide about the message itself.
_OWN = frozenset((b"connection", b"content-length", b"expect", b"host", b"transfer-encoding"))
#: Room for the method, two blanks, the version and CRLF in a request line. The longest registered method has 17 bytes.
_LINE_ROOM = 64
#: What 405 has to name (RFC 9110 §15.5.6), as CONNECT is refused before an application could say.
_ALLOW = [(b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")]
BAD = HTTPStatus.BAD_REQUEST


def check_beginning(data: bytes, limits: Limits) -> None:
    """Refuse what can no longer become a head, or is too large already, however it was cut into packets."""
    line = data.find(b"\r\n", 0, limits.max_target + _LINE_ROOM)
    if line < 0 and len(data) >= limits.max_target + _LINE_ROOM:
        raise Refused(HTTPStatus.REQUEST_URI_TOO_LONG, "request line too long")
    if line >= 0 and len(data) - line - 4 > limits.max_header_bytes:
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "header section too large")
    if (data[:1] < b"!" and data not in (b"", b"\r")) or data.count(b"\n") != data.count(b"\r\n"):
        raise Refused(BAD, "TLS on a plain port, a bare LF, or noise")


def read_head(head: bytes, limits: Limits) -> Request:
    """Parse and check one whole head, blank line included. Raises `Refused`."""
    lines = head.count(b"\r\n")
    check_beginning(head, limits)
    if lines - 2 > limits.max_headers:
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields")
    # What is left without the visible bytes must be the pairs of CR and LF, and nothing else.
    if len(head.translate(None, VISIBLE)) != 2 * lines or b"\r\n " in head or b"\r\n\t" in head:
        raise Refused(BAD, "bare CR or LF, folded line or control byte")
    line, *fields = [whole.partition(b":") for whole in head[:-4].split(b"\r\n")]
    first = _LINE.fullmatch(b"".join(line))
    if first is None or not all(colon for _, colon, _ in fields):
        raise Refused(BAD, "not a request line, or a field without a colon")
    method, target, version = first.groups()
    headers = [(name, value.strip(b" \t")) for name, _, value in fields]
    try:
        event = h11.Request(method=method, target=target, headers=headers, http_version=version)
    except h11.LocalProtocolError as error:
        raise Refused(_status_of(error, headers), str(error)) from None
    return _checked(event, limits)


def _status_of(error: h11.LocalProtocolError, headers: Headers) -> HTTPStatus:
    """h11's status, but RFC 9112 §6.3 item 4: a final coding that is not chunked MUST be 400; any before it is 501 (§6.1)."""
    codings = [value.lower() for name, value in headers if name.lower() == b"transfer-encoding"]
    faulty = codings and codings[-1].rpartition(b",")[2].strip(b" \t") != b"chunked"
    return BAD if faulty else HTTPStatus(error.error_status_hint)


def _checked(event: h11.Request, limits: Limits) -> Request:
    version = event.http_version
    if version[:1] != b"1":
        raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "another major version")
    if len(event.target) > limits.max_target:
        raise Refused(HTTPStatus.REQUEST_URI_TOO_LONG, "target too long")
    _check_target(event.method, event.target)
    http10 = version == b"1.0"
    headers = [(name.lower(), value) for name, value in event.headers.raw_items()]
    # The last field of each name, and h11 has seen to it that there is one Host, one length and one coding.
    own = {name: value for name, value in headers if name in _OWN}
    host = own.get(b"host")
    if _HOST.fullmatch(host or b"") is None or (host is None and not http10):
        raise Refused(BAD, "no Host, or an invalid one")
    if len(own) == (host is not None):  # the usual request: nothing else
        return Request(event.method, event.target, headers, http10, 0, not http10, expects_continue=False)
    length = _body_length(own, http10=http10)
    if length is not None and length > limits.max_body:
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "declared body too large")
    # RFC 9110 §10.1.1: MUST ignore it in HTTP/1.0, MAY ignore other expectations.
    expects = not http10 and b"100-continue" in members(headers, b"expect")
    close = b"close" in members(headers, b"connection")
    return Request(event.method, event.target, headers, http10, length, not (http10 or close), expects)


def members(headers: Headers, field: bytes) -> list[bytes]:
    """RFC 9110 §5.6.1: what a list has in it, however many lines it takes. Names of options have no case."""
    return [member.strip(b" \t") for name, value in headers if name == field for member in value.lower().split(b",")]


def _body_length(own: dict[bytes, bytes], *, http10: bool) -> int | None:
    """RFC 9112 §6.3; None means chunks."""
    if b"transfer-encoding" not in own:
        return int(own.get(b"content-length", b"0"))
    if b"content-length" in own or http10:
        raise Refused(BAD, "Transfer-Encoding with Content-Length, or in HTTP/1.0")
    return None


def _check_target(method: bytes, target: bytes) -> None:
    """RFC 9112 §3.2: the four forms of a target."""
    if method == b"CONNECT":
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "CONNECT", _ALLOW)
    if b"#" in target:
        raise Refused(BAD, "fragment in the target")
    if target[:1] == b"/" or (target == b"*" and method == b"OPTIONS"):
        return
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or _HOST.fullmatch(absolute[1]) is None:
        raise Refused(BAD, "neither a path nor an absolute URI")


def scope_of(request: Request, constant: dict[str, Any]) -> dict[str, Any]:
    """The ASGI scope of a request (ASGI http 2.5, "HTTP Connection Scope"); ``constant`` is the connection's part.

    The root path comes before the path, as if the proxy that has mounted us there had not cut it off.
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
    """RFC 9112 §3.2.2: the authority of an absolute-form target replaces the Host field."""
    absolute = _ABSOLUTE.fullmatch(target)
    assert absolute is not None
    authority, rest = absolute.groups()
    others = [field for field in headers if field[0] != b"host"]
    return rest if rest[:1] == b"/" else b"/" + rest, [(b"host", authority), *others]
