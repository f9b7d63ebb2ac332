"""The checks of a request head; each refusal with its status."""

from contextlib import suppress
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibg.server.head import RequestRefused, check_beginning, read_head, scope_of
from minibg.server.limits import Limits

from tests.shared import Stopwatch

LIMITS = Limits(max_target=100, max_header_bytes=1000, max_headers=10, max_body=1000)


def head(line: str = "GET / HTTP/1.1", *fields: str, host: str = "Host: a") -> bytes:
    return "\r\n".join([line, *([host] if host else []), *fields, "", ""]).encode("latin-1")


def status_of(data: bytes) -> int:
    """200 if the head is accepted."""
    try:
        read_head(data, LIMITS)
    except RequestRefused as refused:
        return refused.status
    return 200


@pytest.mark.parametrize(
    ("status", "data"),
    [
        # RFC 9112 §2.2: line ends
        (400, b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\n\rX: b\r\n\r\n"),
        # §2.3, §2.5: versions
        (505, head("GET / HTTP/2.0")),
        (505, head("GET / HTTP/3.7")),
        (505, head("GET / HTTP/0.9")),
        (400, head("GET / HTTP/1.10")),
        (400, head("GET / http/1.1")),
        (400, head("GET /")),
        (200, head("GET / HTTP/1.2")),
        (400, head("GET / HTTP/1.2", host="")),
        (200, head("GET / HTTP/1.0", host="")),
        # §3: request line
        (400, head("GET  / HTTP/1.1")),
        (400, head("GET / x HTTP/1.1")),
        (400, head(" GET / HTTP/1.1")),
        (400, head("G@T / HTTP/1.1")),
        (400, head("GET /\xe4 HTTP/1.1")),
        (200, head("BREW / HTTP/1.1")),
        (414, head("GET /" + "a" * 100 + " HTTP/1.1")),
        (414, head("GET /" + "a" * 1000 + " HTTP/1.1")),
        (200, head("GET /" + "a" * 99 + " HTTP/1.1")),
        # §3.2: targets
        (200, head("OPTIONS * HTTP/1.1")),
        (400, head("GET * HTTP/1.1")),
        (400, head("GET a HTTP/1.1")),
        (400, head("GET /a#b HTTP/1.1")),
        (200, head("GET http://b/c HTTP/1.1")),
        (200, head("GET HTTPS://b:1?x HTTP/1.1")),
        (400, head("GET ftp://b/c HTTP/1.1")),
        (400, head("GET http:///c HTTP/1.1")),
        (400, head("GET http://u@b/c HTTP/1.1")),
        (405, head("CONNECT a:1 HTTP/1.1")),
        # §3.2 and RFC 9110 §7.2: Host
        (400, head(host="")),
        (400, head("GET / HTTP/1.1", "Host: b")),
        (400, head(host="Host: a b")),
        (400, head(host="Host: a/b")),
        (400, head(host="Host: a, b")),
        (400, head(host="Host: u@b")),
        (400, head(host="Host: [::1")),
        (400, head(host="Host: a:b")),
        (200, head(host="Host:")),
        (200, head(host="Host: [::1]:80")),
        (200, head(host="Host: a-b.c_d:80")),
        # §5: fields
        (400, head("GET / HTTP/1.1", "X : b")),
        (400, head("GET / HTTP/1.1", "X")),
        (400, head("GET / HTTP/1.1", ": b")),
        (400, head("GET / HTTP/1.1", "X: b", " folded")),
        (400, head("GET / HTTP/1.1", "X: b", "\tfolded")),
        (400, head("GET / HTTP/1.1", "X: a\0b")),
        (400, head("GET / HTTP/1.1", "X: a\x01b")),
        (400, head("GET / HTTP/1.1", "X: a\x7fb")),
        (200, head("GET / HTTP/1.1", "X: a\tb \xe4")),
        (431, head("GET / HTTP/1.1", *["X: b"] * 10)),
        (200, head("GET / HTTP/1.1", *["X: b"] * 9)),
        (431, head("GET / HTTP/1.1", "X: " + "b" * 1000)),
        # §6: framing
        (400, head("GET / HTTP/1.1", "Content-Length: 1", "Transfer-Encoding: chunked")),
        (400, head("GET / HTTP/1.1", "Transfer-Encoding: chunked", "Content-Length: 0")),
        (400, head("GET / HTTP/1.0", "Transfer-Encoding: chunked")),
        (501, head("GET / HTTP/1.1", "Transfer-Encoding: gzip, chunked")),
        (400, head("GET / HTTP/1.1", "Transfer-Encoding: identity")),
        (501, head("GET / HTTP/1.1", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked")),
        (200, head("GET / HTTP/1.1", "Transfer-Encoding: Chunked")),
        (400, head("GET / HTTP/1.1", "Content-Length: 1", "Content-Length: 2")),
        (400, head("GET / HTTP/1.1", "Content-Length: 1, 2")),
        (400, head("GET / HTTP/1.1", "Content-Length: -1")),
        (400, head("GET / HTTP/1.1", "Content-Length: +1")),
        (400, head("GET / HTTP/1.1", "Content-Length: 1 1")),
        (400, head("GET / HTTP/1.1", "Content-Length: 0x1")),
        (400, head("GET / HTTP/1.1", "Content-Length:")),
        (413, head("GET / HTTP/1.1", "Content-Length: 1001")),
        (413, head("GET / HTTP/1.1", "Content-Length: 99999999999999999999")),
        (200, head("GET / HTTP/1.1", "Content-Length: 7", "Content-Length: 7")),
    ],
)
def test_a_head_is_accepted_or_refused(status: int, data: bytes) -> None:
    assert status_of(data) == status


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (200, b""),
        (200, b"\r"),
        (200, b"GET / HTTP/1.1\r"),
        (400, b"\x16\x03\x01"),
        (400, b" GET"),
        (400, b"\n"),
        (400, b"GET / HTTP/1.1\n"),
        (414, b"G" * 164),
        (200, b"G" * 163),
        (431, b"GET / HTTP/1.1\r\n" + b"x" * 1003),
        (200, b"GET / HTTP/1.1\r\n" + b"x" * 1000),
    ],
)
def test_a_beginning_is_refused_before_its_end_comes(status: int, data: bytes) -> None:
    try:
        check_beginning(data, LIMITS)
    except RequestRefused as refused:
        assert refused.status == status
    else:
        assert status == 200


def test_connect_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(RequestRefused) as refused:
        read_head(head("CONNECT a:1 HTTP/1.1"), LIMITS)
    assert refused.value.headers == [(b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")]


@pytest.mark.parametrize(
    ("fields", "length", "keep_alive", "expects"),
    [
        ([], 0, True, False),
        (["Content-Length: 5"], 5, True, False),
        (["Transfer-Encoding: chunked"], None, True, False),
        (["Connection: close"], 0, False, False),
        (["Connection: foo,\tClose"], 0, False, False),
        (["Connection: close", "Connection: foo"], 0, False, False),
        (["Connection: closed"], 0, True, False),
        (["Expect: 100-Continue", "Content-Length: 5"], 5, True, True),
        (["Expect: something"], 0, True, False),
    ],
)
def test_the_fields_that_decide(fields: list[str], length: int | None, keep_alive: bool, expects: bool) -> None:
    request = read_head(head("POST / HTTP/1.1", *fields), LIMITS)
    assert (request.length, request.keep_alive, request.expects_continue) == (length, keep_alive, expects)


def test_http_1_0_has_no_keep_alive_and_no_continue() -> None:
    request = read_head(head("POST / HTTP/1.0", "Expect: 100-continue", "Connection: keep-alive"), LIMITS)
    assert (request.http10, request.keep_alive, request.expects_continue) == (True, False, False)


def scope(data: bytes, root_path: str = "") -> dict[str, Any]:
    return scope_of(read_head(data, LIMITS), {"type": "http", "root_path": root_path})


def test_the_scope_of_a_request() -> None:
    data = head("get /a%20b%C3%A4%FF?x=%20&y HTTP/1.1", "X-Y: 1", "x-y: 2")
    assert scope(data) == {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": "/a b\u00e4\ufffd",
        "raw_path": b"/a%20b%C3%A4%FF",
        "query_string": b"x=%20&y",
        "root_path": "",
        "headers": [(b"host", b"a"), (b"x-y", b"1"), (b"x-y", b"2")],
    }


@pytest.mark.parametrize(
    ("target", "path", "query", "host"),
    [
        ("http://b:1/c?d", "/c", b"d", b"b:1"),
        ("https://b", "/", b"", b"b"),
        ("http://b?d", "/", b"d", b"b"),
        ("*", "*", b"", b"a"),
    ],
)
def test_the_forms_of_a_target(target: str, path: str, query: bytes, host: bytes) -> None:
    found = scope(head(f"OPTIONS {target} HTTP/1.0"))
    assert (found["path"], found["query_string"], found["headers"]) == (path, query, [(b"host", host)])
    assert found["http_version"] == "1.0"


def test_the_root_path_comes_before_the_path() -> None:
    found = scope(head("GET /a HTTP/1.1"), "/mounted")
    assert (found["root_path"], found["path"], found["raw_path"]) == ("/mounted", "/mounted/a", b"/mounted/a")


FULL = 32_700


@pytest.mark.parametrize(
    ("line", "host", "fields"),
    [
        ("GET / HTTP/1.1", "a", ["X: " + "a" * FULL]),
        ("GET / HTTP/1.1", "a", ["X: " + "a " * (FULL // 2) + "b"]),
        ("GET / HTTP/1.1", "a", ["X: a" + "\t" * FULL + "b"]),
        ("GET / HTTP/1.1", "a", ["X: a" + " " * FULL]),
        ("GET / HTTP/1.1", "a", ["X: " + "\xff" * FULL]),
        ("GET / HTTP/1.1", "a", ["X" * FULL + ": a"]),
        ("GET / HTTP/1.1", "a", [":" * FULL]),
        ("GET / HTTP/1.1", "a", ["X: " + "a" * 320] * 99),
        ("GET / HTTP/1.1", "a", ["Connection: " + "," * FULL]),
        ("GET / HTTP/1.1", "a", ["Connection: " + "a," * (FULL // 2)]),
        ("GET / HTTP/1.1", "a", ["Connection: " + "a," * 150] * 99),
        ("GET / HTTP/1.1", "a", ["Expect: " + "a ," * (FULL // 3)]),
        ("GET / HTTP/1.1", "a", ["Content-Length: " + "1," * (FULL // 2) + "1"]),
        ("GET / HTTP/1.1", "a", ["Content-Length: " + "1" * FULL]),
        ("GET / HTTP/1.1", "a", ["Transfer-Encoding: " + "a," * (FULL // 2) + "chunked"]),
        ("GET / HTTP/1.1", "a" * FULL, []),
        ("GET / HTTP/1.1", "a" * FULL + "/", []),
        ("GET / HTTP/1.1", "%41" * (FULL // 3), []),
        ("GET / HTTP/1.1", "%41" * (FULL // 3) + "%", []),
        ("GET / HTTP/1.1", "[" + ":" * FULL, []),
        ("GET / HTTP/1.1", "a:" + "1" * FULL + "x", []),
        ("GET /" + "%41" * 2_700 + " HTTP/1.1", "a", []),
        ("GET /" + "a%e4" * 2_000 + " HTTP/1.1", "a", []),
        ("GET http://" + "%41" * 2_700 + "% HTTP/1.1", "a", []),
        ("GET http://" + "a" * 8_000 + " HTTP/1.1", "a", []),
        ("G" * 8_000, "a", []),
        ("G" + " " * 8_000, "a", []),
    ],
    ids=lambda value: None if isinstance(value, list) else value[:12],
)
def test_no_head_within_the_limits_blocks_the_event_loop_for_20_ms(line: str, host: str, fields: list[str]) -> None:
    data = head(line, *fields, host=f"Host: {host}")
    runs = []
    for _ in range(3):
        with Stopwatch() as watch, suppress(RequestRefused):
            scope_of(read_head(data, Limits()), {"root_path": ""})
        runs.append(watch.seconds)
    assert min(runs) < 0.02


@st.composite
def mutated_heads(draw: st.DrawFn) -> bytes:
    """A valid head with a few bytes replaced, inserted or removed."""
    fields = draw(
        st.lists(st.sampled_from(["X: y", "Content-Length: 5", "Connection: close", "a:b:c", "E:"]), max_size=4)
    )
    data = bytearray(head(draw(st.sampled_from(["GET / HTTP/1.1", "POST http://b/c?d HTTP/1.0"])), *fields)[:-4])
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 1))] = draw(
            st.sampled_from([b"", b" ", b"\t", b":", b"\r\n", b",", b"\xff", b"9"])
        )
    return bytes(data) + b"\r\n\r\n"


@settings(max_examples=500)
@given(mutated_heads())
def test_h11_reads_an_accepted_head_as_the_same_request(data: bytes) -> None:
    try:
        request = read_head(data, LIMITS)
    except RequestRefused:
        return
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(data)
    event = parser.next_event()
    assert isinstance(event, h11.Request)
    assert (request.method, request.target, request.headers) == (event.method, event.target, list(event.headers))
    assert request.http10 == (event.http_version == b"1.0")
    assert parser.trailing_data[0] == b""
