"""RFC 9112: message format, request line, target, Host and header fields.

The part of a message before its body. Each request is sent whole and byte by byte (`answered`), and the answer is compared to its
last byte. Requests that are accepted ask for the end of the connection, so that the answer has an end.
"""

import pytest

from tests.server.requirements import answered, mirror, ok, refused, requirement, understood

END = b"Host: a\r\nConnection: close\r\n\r\n"
GET = b"GET / HTTP/1.1\r\n" + END
ANSWER = ok(b"GET / 1.1 []", close=True)


# --- §2.2 message parsing ---


@requirement("RFC 9112 §2.2", "SHOULD", "One empty line before the request line is ignored.")
async def test_an_empty_line_before_the_request_is_ignored() -> None:
    assert await answered(b"\r\n" + GET) == ANSWER


@requirement("RFC 9112 §2.2", "SHOULD", "The empty line is ignored before each request of a connection.")
async def test_an_empty_line_between_two_requests_is_ignored() -> None:
    assert await answered(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\r\n" + GET) == ok(b"GET / 1.1 []") + ANSWER


@requirement("RFC 9112 §2.2", "chosen", 'All empty lines before a request are ignored, where "at least one" SHOULD be.')
async def test_more_empty_lines_are_ignored_too() -> None:
    assert await answered(b"\r\n\r\n\r\n" + GET) == ANSWER


@requirement(
    "RFC 9112 §2.2", "chosen", "A line that ends with a bare LF, which a server MAY accept, is refused with 400."
)
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\n" + END,
        b"GET / HTTP/1.1\r\nHost: a\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"\n" + GET,
    ],
    ids=["request line", "field", "blank line", "all", "before"],
)
async def test_a_bare_lf_is_refused(data: bytes) -> None:
    assert await answered(data) == refused(400)


@requirement("RFC 9112 §2.2", "MUST", "A bare CR is invalid: 400.")
@pytest.mark.parametrize(
    "data",
    [
        b"GET /\r HTTP/1.1\r\n" + END,
        b"GET / HTTP/1.1\rHost: b\r\n" + END,
        b"GET / HTTP/1.1\r\nA: b\rc\r\n" + END,
        b"GET / HTTP/1.1\r\nA\r: b\r\n" + END,
        b"GET / HTTP/1.1\r\r\n" + END,
    ],
    ids=["target", "line end", "value", "name", "doubled"],
)
async def test_a_bare_cr_is_refused(data: bytes) -> None:
    assert await answered(data) == refused(400)


@requirement(
    "RFC 9112 §2.2", "MUST", "Whitespace between the request line and the first field: the message is rejected (400)."
)
@pytest.mark.parametrize("space", [b" ", b"\t"])
async def test_whitespace_before_the_first_field_is_refused(space: bytes) -> None:
    assert await answered(b"GET / HTTP/1.1\r\n" + space + b"A: b\r\n" + END) == refused(400)


@requirement(
    "RFC 9112 §2.2",
    "MUST",
    "The message is parsed as octets: bytes above 127 in a value reach the application as they are.",
)
async def test_a_message_is_octets_and_not_text() -> None:
    [(scope, _)] = await understood(b"GET / HTTP/1.1\r\nA: \xe4\xff\x80\r\n" + END)
    assert scope["headers"][0] == (b"a", b"\xe4\xff\x80")


@requirement("RFC 9112 §2.2", "SHOULD", "Bytes that are no HTTP request are answered with 400.")
@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00", b"SSH-2.0-x\r\n\r\n", b"GET\r\n\r\n", b"A: b\r\n\r\n", b"\x00\x00"], ids=repr
)
async def test_noise_is_refused(data: bytes) -> None:
    assert await answered(data) == refused(400)


# --- §2.3 version ---


@requirement(
    "RFC 9112 §2.3", "SHOULD", "HTTP-version is case-sensitive and has one digit each side of the dot; else 400."
)
@pytest.mark.parametrize(
    "version",
    [b"http/1.1", b"HTTP/1", b"HTTP/11.1", b"HTTP/1.10", b"HTTP/1,1", b"HTTP/ 1.1", b"HTTPS/1.1", b"HTTP/1.x", b"1.1"],
    ids=repr,
)
async def test_an_invalid_version_is_refused(version: bytes) -> None:
    assert await answered(b"GET / " + version + b"\r\n" + END) == refused(400)


@requirement(
    "RFC 9112 §2.3", "SHOULD", "A request line without a version (HTTP/0.9) is not understood as a request: 400."
)
async def test_a_request_without_version_is_refused() -> None:
    assert await answered(b"GET /\r\n" + END) == refused(400)


@requirement("RFC 9110 §6.2", "SHOULD", "A higher minor version of 1 is processed as 1.1, and answered as 1.1.")
@pytest.mark.parametrize("minor", [b"2", b"9"])
async def test_a_higher_minor_version_is_served_as_1_1(minor: bytes) -> None:
    assert await answered(GET.replace(b"1.1", b"1." + minor)) == ANSWER


@requirement(
    "RFC 9110 §15.6.6",
    "SHOULD",
    "Another major version is answered with 505, in the server's own version; the text names the versions that are served.",
)
@pytest.mark.parametrize("version", [b"0.9", b"2.0", b"3.7", b"9.9"])
async def test_another_major_version_is_refused(version: bytes) -> None:
    assert await answered(GET.replace(b"1.1", version)) == refused(505, more=": use HTTP/1.1 or HTTP/1.0")


@requirement(
    "RFC 9110 §6.2", "SHOULD", "The answer to HTTP/1.0 names the highest version the server conforms to: HTTP/1.1."
)
async def test_http_1_0_is_answered_as_1_1() -> None:
    assert await answered(b"GET / HTTP/1.0\r\n\r\n") == ok(b"GET / 1.0 []", close=True)


# --- §3 request line ---


@requirement(
    "RFC 9112 §3",
    "chosen",
    "The three parts are separated by one SP each; other whitespace, which a server MAY accept, is 400.",
)
@pytest.mark.parametrize(
    "line",
    [
        b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1",
        b" GET / HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b"GET\t/ HTTP/1.1",
        b"GET / a HTTP/1.1",
        b"GET /\tHTTP/1.1",
        b"GET /\x0bHTTP/1.1",
    ],
    ids=repr,
)
async def test_other_whitespace_in_the_request_line_is_refused(line: bytes) -> None:
    assert await answered(line + b"\r\n" + END) == refused(400)


@requirement("RFC 9112 §3", "SHOULD", "A request line of at least 8,000 octets is supported (RECOMMENDED), by default.")
async def test_a_request_line_of_8000_octets_is_accepted() -> None:
    target = b"/" + b"a" * 7984
    assert len(b"GET " + target + b" HTTP/1.1\r\n") == 8000
    assert await answered(b"GET " + target + b" HTTP/1.1\r\n" + END) == ok(b"GET " + target + b" 1.1 []", close=True)


@requirement("RFC 9112 §3", "MUST", "A target that is longer than the server wants to parse is answered with 414.")
@pytest.mark.parametrize("length", [33, 34, 90, 100, 200])
async def test_a_long_target_is_refused(length: int) -> None:
    assert await answered(GET.replace(b"/ ", b"/" * length + b" "), max_target=32) == refused(414)


@requirement("RFC 9112 §3", "chosen", "A target of exactly the limit is accepted.")
async def test_a_target_of_the_limit_is_accepted() -> None:
    answer = await answered(GET.replace(b"/ ", b"/" * 32 + b" "), max_target=32)
    assert answer == ok(b"GET " + b"/" * 32 + b" 1.1 []", close=True)


@requirement(
    "RFC 9112 §3",
    "chosen",
    "A request line whose method alone is too long is refused with 414, where 501 SHOULD be: it is not yet known to be a method.",
)
async def test_an_endless_method_is_refused() -> None:
    assert await answered(b"A" * 200, max_target=32) == refused(414)


@requirement(
    "RFC 9112 §3.1", "SHOULD", "The method is any token, case-sensitive in its comparison; what is no token is 400."
)
@pytest.mark.parametrize(
    "method", [b"G(T", b"G\x00T", b"G\xe4T", b"G:T", b"G/T", b'"GET"', b"G,T", b"G\x7fT"], ids=repr
)
async def test_a_method_that_is_no_token_is_refused(method: bytes) -> None:
    assert await answered(method + b" / HTTP/1.1\r\n" + END) == refused(400)


@requirement("RFC 9112 §3.1", "chosen", "An unregistered method reaches the application, which may answer 405 or 501.")
@pytest.mark.parametrize("method", [b"PROPFIND", b"M-SEARCH", b"X!#$%&'*+-.^_`|~9"], ids=repr)
async def test_an_unknown_method_reaches_the_application(method: bytes) -> None:
    assert await answered(method + b" / HTTP/1.1\r\n" + END) == ok(method + b" / 1.1 []", close=True)


# --- §3.2 target and Host ---


@requirement("RFC 9112 §3.2", "MUST", "A request of HTTP/1.1 without Host is answered with 400.")
@pytest.mark.parametrize("version", [b"1.1", b"1.2"])
async def test_a_request_without_host_is_refused(version: bytes) -> None:
    assert await answered(b"GET / HTTP/" + version + b"\r\nConnection: close\r\n\r\n") == refused(400)


@requirement(
    "RFC 9112 §3.2", "MUST", "A request with more than one Host line is answered with 400, even if they are the same."
)
@pytest.mark.parametrize("second", [b"Host: a", b"Host: b", b"host:", b"HOST: a"], ids=repr)
async def test_two_hosts_are_refused(second: bytes) -> None:
    assert await answered(b"GET / HTTP/1.1\r\n" + second + b"\r\n" + END) == refused(400)


@requirement("RFC 9112 §3.2", "MUST", "A request whose Host is no host is answered with 400.")
@pytest.mark.parametrize(
    "host",
    [
        b"a b",
        b"a/b",
        b"a@b",
        b"http://a",
        b"a:b",
        b"a:80:80",
        b"[::1",
        b"::1",
        b"a?b",
        b"a#b",
        b"a\\b",
        b"%zz",
        b"%4",
        b"\xe4",
        b'"a"',
        b"<a>",
    ],
    ids=repr,
)
async def test_an_invalid_host_is_refused(host: bytes) -> None:
    assert await answered(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n") == refused(400)


@requirement("RFC 9110 §7.2", "MUST", "Every Host that is one by RFC 9110 §7.2 is accepted, the empty one too.")
@pytest.mark.parametrize(
    "host",
    [b"a", b"A.b-c_d~:", b"a,b", b"a:8000", b"127.0.0.1:1", b"[::1]", b"[::1]:80", b"[v1.a]", b"%41.b", b"a.", b""],
    ids=repr,
)
async def test_a_valid_host_is_accepted(host: bytes) -> None:
    assert await answered(b"GET / HTTP/1.1\r\nHost:" + host + b"\r\nConnection: close\r\n\r\n") == ANSWER


@requirement("RFC 9112 §3.2", "chosen", "HTTP/1.0 needs no Host, but one it sends must be a host.")
@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        (b"", ok(b"GET / 1.0 []", close=True)),
        (b"Host: a\r\n", ok(b"GET / 1.0 []", close=True)),
        (b"Host: a b\r\n", refused(400)),
        (b"Host: a\r\nHost: a\r\n", refused(400)),
    ],
    ids=["none", "one", "invalid", "two"],
)
async def test_host_in_http_1_0(fields: bytes, answer: bytes) -> None:
    assert await answered(b"GET / HTTP/1.0\r\n" + fields + b"\r\n") == answer


@requirement("RFC 9112 §3.2.1", "MUST", "origin-form: path and query arrive apart, the empty query too.")
@pytest.mark.parametrize(
    ("target", "raw_path", "query"),
    [
        (b"/a/b", b"/a/b", b""),
        (b"/a?", b"/a", b""),
        (b"/a?b=c&d", b"/a", b"b=c&d"),
        (b"/?a?b", b"/", b"a?b"),
        (b"//a//", b"//a//", b""),
        (b"/a;p=1,2", b"/a;p=1,2", b""),
        (b"/../b", b"/../b", b""),
        (b"/http://a", b"/http://a", b""),
    ],
    ids=repr,
)
async def test_origin_form(target: bytes, raw_path: bytes, query: bytes) -> None:
    [(scope, _)] = await understood(b"GET " + target + b" HTTP/1.1\r\n" + END)
    assert (scope["raw_path"], scope["query_string"]) == (raw_path, query)


@requirement("RFC 9112 §3.2.2", "MUST", "absolute-form is accepted: its path and query are those of the request.")
@pytest.mark.parametrize(
    ("target", "seen"),
    [
        (b"http://b/c?d", b"/c?d"),
        (b"http://b", b"/"),
        (b"http://b/", b"/"),
        (b"HTTP://b:80/c", b"/c"),
        (b"http://[::1]:443/c", b"/c"),
        (b"http://b?d", b"/?d"),
    ],
    ids=repr,
)
async def test_absolute_form(target: bytes, seen: bytes) -> None:
    assert await answered(b"GET " + target + b" HTTP/1.1\r\n" + END) == ok(b"GET " + seen + b" 1.1 []", close=True)


@requirement(
    "RFC 9112 §3.2.2", "MUST", "With absolute-form, the received Host is ignored and replaced by the target's."
)
async def test_the_host_of_absolute_form_replaces_the_field() -> None:
    [(scope, _)] = await understood(b"GET http://b:81/c HTTP/1.1\r\nA: x\r\n" + END)
    assert scope["headers"] == [(b"host", b"b:81"), (b"a", b"x"), (b"connection", b"close")]


@requirement(
    "RFC 9110 §7.4",
    "MUST",
    "An https URI over a plain connection is refused with 421, unless a trusted proxy says that its own was secured.",
)
@pytest.mark.parametrize("target", [b"https://a/", b"HTTPS://a:443/c?d"], ids=repr)
async def test_an_https_uri_over_a_plain_connection_is_refused(target: bytes) -> None:
    data = b"GET " + target + b" HTTP/1.1\r\nX-Forwarded-Proto: https\r\n" + END
    assert await answered(data) == refused(421)
    assert (await answered(data, forwarded_allow_ips="127.0.0.1")).startswith(b"HTTP/1.1 200 ")
    assert await answered(data.replace(b"-Proto", b"-Port"), forwarded_allow_ips="127.0.0.1") == refused(421)


@requirement("RFC 9112 §3.2.2", "MUST", "Host is asked for with absolute-form too.")
async def test_absolute_form_needs_a_host_field() -> None:
    assert await answered(b"GET http://a/ HTTP/1.1\r\n\r\n") == refused(400)


@requirement(
    "RFC 9110 §4.2.1",
    "MUST",
    "An absolute-form target without a host is 400; so is one with user information (§4.2.4, SHOULD) or with another scheme (chosen).",
)
@pytest.mark.parametrize(
    "target",
    [
        b"http:///a",
        b"http://",
        b"http://u@a/",
        b"http://u:p@a/",
        b"ftp://a/",
        b"file:///a",
        b"http:a",
        b"http://a:b/",
        b"javascript:alert(1)",
    ],
    ids=repr,
)
async def test_an_invalid_absolute_form_is_refused(target: bytes) -> None:
    assert await answered(b"GET " + target + b" HTTP/1.1\r\n" + END) == refused(400)


@requirement("RFC 9112 §3.2.3", "SHOULD", "authority-form is for CONNECT alone: with another method 400.")
@pytest.mark.parametrize("target", [b"a:80", b"a"])
async def test_authority_form_is_refused(target: bytes) -> None:
    assert await answered(b"GET " + target + b" HTTP/1.1\r\n" + END) == refused(400)


@requirement(
    "RFC 9110 §9.3.6",
    "chosen",
    "CONNECT is answered with 405 and Allow (this is no proxy), and nothing after it is read.",
)
@pytest.mark.parametrize("target", [b"a:80", b"/", b"*"])
async def test_connect_is_refused(target: bytes) -> None:
    allow = b"allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
    assert await answered(b"CONNECT " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n" + GET) == refused(405, allow)


@requirement("RFC 9112 §3.2.4", "MUST", "asterisk-form with OPTIONS reaches the application.")
async def test_options_asterisk() -> None:
    assert await answered(b"OPTIONS * HTTP/1.1\r\n" + END) == ok(b"OPTIONS * 1.1 []", close=True)


@requirement("RFC 9112 §3.2.4", "SHOULD", "asterisk-form is for OPTIONS alone: with another method 400.")
@pytest.mark.parametrize("line", [b"GET *", b"OPTIONS *a", b"OPTIONS **", b"options *"], ids=repr)
async def test_an_asterisk_with_another_method_is_refused(line: bytes) -> None:
    assert await answered(line + b" HTTP/1.1\r\n" + END) == refused(400)


@requirement(
    "RFC 9112 §3.2", "SHOULD", "A target with bytes that no form allows is answered with 400, and not corrected."
)
@pytest.mark.parametrize(
    "target", [b"/a#b", b"/a\x00", b"/a\x7f", b"/\xe4", b"/a\x1b[0m", b"a", b"?a", b"#", b"../a", b"\\a"], ids=repr
)
async def test_an_invalid_target_is_refused(target: bytes) -> None:
    assert await answered(b"GET " + target + b" HTTP/1.1\r\n" + END) == refused(400)


# --- §5 fields ---


@requirement("RFC 9112 §5", "MUST", "Field names are compared without case: whatever their case, the field counts.")
@pytest.mark.parametrize("name", [b"connection", b"CONNECTION", b"cOnNeCtIoN"])
async def test_field_names_have_no_case(name: bytes) -> None:
    assert await answered(b"GET / HTTP/1.1\r\nhOST: a\r\n" + name + b": CLOSE\r\n\r\n") == ANSWER


@requirement("RFC 9112 §5.1", "MUST", "Whitespace between a field's name and its colon: 400.")
@pytest.mark.parametrize(
    "field", [b"A : b", b"A\t: b", b"Content-Length : 5", b"Transfer-Encoding : chunked", b"Host : a"], ids=repr
)
async def test_a_blank_before_the_colon_is_refused(field: bytes) -> None:
    assert await answered(b"GET / HTTP/1.1\r\n" + field + b"\r\n" + END) == refused(400)


@requirement("RFC 9110 §5.5", "MUST", "Whitespace around a field's value is no part of it; whitespace inside is.")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"A:b", b"b"),
        (b"A: b", b"b"),
        (b"A: \t b \t ", b"b"),
        (b"A:", b""),
        (b"A: \t ", b""),
        (b"A: b  c\td", b"b  c\td"),
        (b"A: b: c", b"b: c"),
    ],
    ids=repr,
)
async def test_whitespace_around_a_value_is_removed(field: bytes, value: bytes) -> None:
    [(scope, _)] = await understood(b"GET / HTTP/1.1\r\n" + field + b"\r\n" + END)
    assert scope["headers"][0] == (b"a", value)


@requirement("RFC 9112 §5.2", "MUST", "A folded line (obs-fold) is rejected with 400.")
@pytest.mark.parametrize(
    "fold", [b"A: b\r\n c", b"A: b\r\n\tc", b"A: b\r\n \r\nB: c", b"A:\r\n b", b"Host: a\r\n b"], ids=repr
)
async def test_a_folded_line_is_refused(fold: bytes) -> None:
    assert await answered(b"GET / HTTP/1.1\r\n" + fold + b"\r\n" + END) == refused(400)


@requirement("RFC 9112 §5", "SHOULD", "A field name is a token: empty ones and others are 400.")
@pytest.mark.parametrize(
    "field",
    [b": b", b":", b"A B: c", b"A(: b", b"A\x00: b", b"A\xe4: b", b'"A": b', b"A@: b", b"A/B: c", b"A", b"{A}: b"],
    ids=repr,
)
async def test_a_field_name_that_is_no_token_is_refused(field: bytes) -> None:
    assert await answered(b"GET / HTTP/1.1\r\n" + field + b"\r\n" + END) == refused(400)


@requirement(
    "RFC 9110 §5.5",
    "MUST",
    "CR, LF and NUL in a value are rejected with 400; so are the other control bytes, which MAY be kept.",
)
@pytest.mark.parametrize(
    "byte", [b"\x00", b"\x01", b"\x07", b"\x08", b"\x0b", b"\x0c", b"\r", b"\n", b"\x1b", b"\x1f", b"\x7f"], ids=repr
)
async def test_a_control_byte_in_a_value_is_refused(byte: bytes) -> None:
    assert await answered(b"GET / HTTP/1.1\r\nA: b" + byte + b"c\r\n" + END) == refused(400)


@requirement(
    "RFC 9110 §5.3",
    "MUST",
    "The order of fields of the same name, which is significant, is kept; they are not merged, though they MAY be.",
)
async def test_fields_of_one_name_keep_their_order() -> None:
    [(scope, _)] = await understood(b"GET / HTTP/1.1\r\nA: 1\r\nB: 2\r\na: 3\r\nA: 1\r\n" + END)
    assert scope["headers"][:4] == [(b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"a", b"1")]


@requirement(
    "RFC 9110 §5.4",
    "MUST",
    "Fields that are larger, all together, than the server wants to process are answered with 431 (RFC 6585 §5).",
)
@pytest.mark.parametrize("more", [1, 2, 50, 500])
async def test_too_large_a_header_section_is_refused(more: int) -> None:
    data = b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * (100 - len(b"Host: a\r\nA: \r\n") + more) + b"\r\n\r\n"
    assert await answered(data, max_header_bytes=100) == refused(431)


@requirement("RFC 9110 §5.4", "chosen", "A header section of exactly the limit is accepted.")
async def test_a_header_section_of_the_limit_is_accepted() -> None:
    fields = b"A: " + b"b" * (97 - len(END)) + b"\r\n" + END
    assert len(fields) == 100 + len(b"\r\n")
    assert await answered(b"GET / HTTP/1.1\r\n" + fields, max_header_bytes=100) == ANSWER


@requirement(
    "RFC 9110 §5.4",
    "MUST",
    "More fields than the server wants to process are answered with 431, as many as it wants are not.",
)
@pytest.mark.parametrize(("count", "answer"), [(10, ANSWER), (11, refused(431)), (30, refused(431))])
async def test_too_many_fields_are_refused(count: int, answer: bytes) -> None:
    data = b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * (count - 2) + END
    assert await answered(data, mirror, max_headers=10) == answer


@requirement(
    "RFC 9110 §5.1", "SHOULD", "Fields that the server does not know change nothing, and reach the application."
)
async def test_unknown_fields_are_left_to_the_application() -> None:
    [(scope, _)] = await understood(b"GET / HTTP/1.1\r\nX-New: 1\r\nTE: trailers\r\nMax-Forwards: 0\r\n" + END)
    assert scope["headers"][:3] == [(b"x-new", b"1"), (b"te", b"trailers"), (b"max-forwards", b"0")]
