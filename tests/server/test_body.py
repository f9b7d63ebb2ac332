"""Request bodies of known length and in chunks. h11 is the oracle: it reads an accepted body alike."""

import re
from contextlib import suppress

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibg.server.body import Body
from minibg.server.head import RequestRefused
from minibg.server.limits import Limits

from tests.shared import Stopwatch

LIMITS = Limits(max_body=1000, max_header_bytes=1000)


def read(raw: bytes, length: int | None, splits: list[int] = []) -> tuple[bytes, bool, bytes]:
    """Return the body, whether it is complete, and the bytes behind it."""
    body, found, rest = Body(length, LIMITS), b"", b""
    edges = [0, *sorted(splits), len(raw)]
    for start, end in zip(edges, edges[1:], strict=False):
        if body.complete:
            rest += raw[start:end]
        else:
            found += body.feed(raw[start:end])
            rest += body.rest
    return found, body.complete, rest


def h11_reads(raw: bytes, framing: str) -> tuple[bytes, bytes]:
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(f"POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n".encode() + raw)
    assert isinstance(parser.next_event(), h11.Request)
    body = b""
    while isinstance(event := parser.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    return body, parser.trailing_data[0]


@given(st.binary(max_size=50), st.binary(max_size=10), st.lists(st.integers(0, 60), max_size=5))
def test_a_body_of_known_length(data: bytes, rest: bytes, splits: list[int]) -> None:
    raw = data + rest
    assert read(raw, len(data), [min(edge, len(raw)) for edge in splits]) == (data, True, rest) or not data
    assert h11_reads(raw, f"Content-Length: {len(data)}") == (data, rest)


chunks = st.lists(st.binary(min_size=1, max_size=20), max_size=5)
tokens = st.text("aZ9!#$%&'*+-.^_`|~", min_size=1, max_size=3)
quoted = st.text('a;=\t \xe4"\\', max_size=4).map(lambda text: re.sub(r'(["\\])', r"\\\1", text)).map('"{}"'.format)
blanks = st.text(" \t", max_size=2)
values = st.one_of(st.just(""), st.tuples(blanks, st.just("="), blanks, st.one_of(tokens, quoted)).map("".join))
later = st.tuples(blanks, st.just(";"), blanks, tokens, values).map("".join)
#: RFC 9112 §7.1.1. The first ";" has no blank before it: h11, the oracle, reads none there.
extensions = st.tuples(st.just(";"), blanks, tokens, values, st.lists(later, max_size=3).map("".join)).map("".join)


@given(
    chunks,
    st.sampled_from(["%x", "%X", "000%x"]),
    st.one_of(st.just(""), extensions),
    st.lists(st.sampled_from(["A: b", "c:", "d:\te"]), max_size=3),
    st.sampled_from([b"", b"GET"]),
    st.lists(st.integers(0, 300), max_size=5),
)
def test_a_chunked_body_split_anywhere(
    pieces: list[bytes], form: str, extension: str, trailers: list[str], rest: bytes, splits: list[int]
) -> None:
    raw = b"".join((form % len(piece) + extension).encode() + b"\r\n" + piece + b"\r\n" for piece in pieces)
    raw += b"0\r\n" + "".join(f"{trailer}\r\n" for trailer in trailers).encode() + b"\r\n" + rest
    expected = (b"".join(pieces), True, rest)
    assert read(raw, None, [min(edge, len(raw)) for edge in splits]) == expected
    assert h11_reads(raw, "Transfer-Encoding: chunked") == (expected[0], rest)


@pytest.mark.parametrize(
    ("status", "raw"),
    [
        (400, b"\r\n"),
        (400, b"g\r\n"),
        (400, b"-1\r\n"),
        (400, b"0x1\r\n"),
        (400, b" 1\r\n"),
        (400, b"1\n"),
        (400, b"1\r\r\n"),
        (400, b"1;a\rb\r\n"),
        (400, b"1;a\x01\r\n"),
        (400, b"1 \r\n"),
        (400, b"1\t\r\n"),
        (400, b"1 a\r\n"),
        (400, b"1;\r\n"),
        (400, b"1;=b\r\n"),
        (400, b"1;a=\r\n"),
        (400, b"1;a;\r\n"),
        (400, b"1;;a\r\n"),
        (400, b"1;a \r\n"),
        (400, b"1;a=b \r\n"),
        (400, b"1;a b\r\n"),
        (400, b"1;a=b c\r\n"),
        (400, b"1;a=b=c\r\n"),
        (400, b"1;a/b\r\n"),
        (400, b"1;a=(\r\n"),
        (400, b"1;\xe4\r\n"),
        (400, b'1;"a"\r\n'),
        (400, b'1;a="b\r\n'),
        (400, b'1;a=b"\r\n'),
        (400, b'1;a="b\\"\r\n'),
        (400, b'1;a="b"c\r\n'),
        (400, b'1;a="\x01"\r\n'),
        (400, b'1;a="\\\x7f"\r\n'),
        (400, b"11111111111111111\r\n"),
        (400, b"1;" + b"a" * 300),
        (400, b"1;" + b"a" * 300 + b"\r\n"),
        (400, b"1\r\nab\r\n"),
        (400, b"1\r\na\n"),
        (400, b"1\r\na\r\r\n"),
        (413, b"3e9\r\n"),
        (413, b"3e8\r\n" + bytes(1000) + b"\r\n1\r\n"),
        (413, b"ffffffffffffffff\r\n"),
        (400, b"0\r\nno field\r\n"),
        (400, b"0\r\na: b\r\n folded\r\n"),
        (400, b"0\r\na: b\n\r\n"),
        (400, b"0\r\na: \0\r\n\r\n"),
        (431, b"0\r\n" + b"a: b\r\n" * 200),
        (431, b"0\r\na: " + b"b" * 1000),
    ],
)
def test_bytes_that_are_no_chunked_body_are_refused_however_they_are_split(status: int, raw: bytes) -> None:
    for splits in ([], list(range(len(raw)))):
        with pytest.raises(RequestRefused) as refused:
            read(raw, None, splits)
        assert refused.value.status == status


@pytest.mark.parametrize(
    "extension",
    [
        b";a",
        b" ;a",
        b"\t; \ta",
        b";a=b",
        b"; a \t=\t b",
        b";a;b=c ; d",
        b';a=""',
        b';a="b;c=d\t\xe4 \\" \\\\"',
        b";" + b"a" * 252,
    ],
    ids=repr,
)
def test_extensions_that_match_the_grammar_are_ignored(extension: bytes) -> None:
    raw = b"1" + extension + b"\r\na\r\n0" + extension + b"\r\n\r\n"
    for splits in ([], list(range(len(raw)))):
        assert read(raw, None, splits) == (b"a", True, b"")


def held(raw: bytes) -> float:
    """Return the milliseconds of one call of `feed`, in the best of a few runs."""
    runs = []
    for _ in range(5):
        body = Body(None, Limits())
        with Stopwatch() as watch, suppress(RequestRefused):
            body.feed(raw)
        runs.append(watch.seconds)
    return min(runs) * 1000


@pytest.mark.parametrize(
    "raw",
    [
        b"1\r\na\r\n" * 21_800,
        b"1;a\r\na\r\n" * 16_300,
        b"2\r\n\r\n\r\n" * 18_700,
        b'1;a="' + b"\\a" * 120 + b'"\r\na\r\n',
        b'1;a="' + b"\\a" * 120 + b"\r\na\r\n",
        b"1" + b" ;a" * 80 + b" \r\n",
        b"1;" + b" " * 250 + b"\r\n",
        b"1" + b" ;a" * 43_000,
        b"1" + b";a=b" * 32_000 + b" \r\n",
        b"1;a" + b" " * 128_000 + b"\r\n",
        b"1;a" + b"\t =" * 43_000,
        b"1;" + b"a" * 128_000 + b" ",
        b'1;a="' + b"\\a" * 64_000,
        b"1" + b';a="b' * 25_600,
        b"1" + b';a="b"' * 21_000 + b"x\r\n",
        b"0" * 128_000,
        b"0\r\n" + b"a:\r\n" * 6_500 + b"\r\n",
        b"0\r\na:" + b" " * 32_000 + b"\r\n\r\n",
        b"0\r\n" + b"a" * 32_000 + b"\r\n\r\n",
    ],
    ids=lambda raw: repr(raw[:16]),
)
def test_no_body_of_128_kib_blocks_the_event_loop_for_20_ms(raw: bytes) -> None:
    assert held(raw) < 20
