"""RFC 9112: message body, chunked coding and incomplete messages.

Where a body ends, in both directions. A server that reads a body's end elsewhere than its proxy takes the rest of one
client's body for another's request; so after each request that is refused here nothing is read, and a second request that
follows it in the same bytes never reaches the application.
"""

import pytest

from minibg.asgi import ASGIApp, Message, Receive, Scope, Send
from tests.server.requirements import answered, mirror, ok, refused, requirement, undated
from tests.server.wire import connected, without_lifespan

POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
#: The request that a wrong body end would smuggle in. It also ends the connection of accepted requests.
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
NEXT_ANSWER = ok(b"GET /next 1.1 []", close=True)


def responding(*messages: Message, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> ASGIApp:
    """An application that answers with these body messages."""

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/next":
            await mirror(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": status, "headers": headers or []})
        for message in messages:
            await send({"type": "http.response.body", **message})

    return app


PIECES: list[Message] = [{"body": b"ab", "more_body": True}, {"body": b"", "more_body": True}, {"body": b"c"}]


# --- §6 the body of a request ---


@requirement("RFC 9112 §6.3", "MUST", "A request without Content-Length and Transfer-Encoding has no body.")
@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT"])
async def test_a_request_without_framing_has_no_body(method: bytes) -> None:
    answer = await answered(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT)
    assert answer == ok(method + b" / 1.1 []") + NEXT_ANSWER


@requirement("RFC 9112 §6.3", "MUST", "A body is as long as Content-Length says, whatever the method.")
@pytest.mark.parametrize("method", [b"GET", b"DELETE", b"POST", b"OPTIONS"])
@pytest.mark.parametrize("body", [b"", b"x", b"GET / HTTP/1.1\r\n\r\n"], ids=repr)
async def test_a_body_of_known_length(method: bytes, body: bytes) -> None:
    head = method + b" / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert await answered(head + body + NEXT) == ok(method + b" / 1.1 [" + body + b"]") + NEXT_ANSWER


@requirement(
    "RFC 9112 §6.1",
    "MUST",
    'Content-Length together with Transfer-Encoding ends the connection; it is an error (400), as it "ought to be".',
)
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("length", [b"Content-Length: 5\r\n", b"content-length: 0\r\n"])
async def test_two_framings_are_refused(length: bytes, swapped: bool) -> None:
    fields = [length, b"Transfer-Encoding: chunked\r\n"]
    head = POST + b"".join(reversed(fields) if swapped else fields)
    assert await answered(head + b"\r\n0\r\n\r\n" + NEXT) == refused(400)


@requirement("RFC 9112 §6.3", "MUST", "Content-Lengths that differ: 400, and the connection ends.")
@pytest.mark.parametrize(
    "lengths",
    [b"Content-Length: 5\r\nContent-Length: 6\r\n", b"Content-Length: 5, 6\r\n", b"Content-Length: 5,5,6\r\n"],
    ids=repr,
)
async def test_different_lengths_are_refused(lengths: bytes) -> None:
    assert await answered(POST + lengths + b"\r\nhello" + NEXT) == refused(400)


@requirement("RFC 9110 §8.6", "MAY", "Content-Lengths that are all the same count as one.")
@pytest.mark.parametrize(
    "lengths",
    [b"Content-Length: 5\r\nContent-Length: 5\r\n", b"Content-Length: 5, 5\r\n", b"Content-Length: 5,5\r\n"],
    ids=repr,
)
async def test_the_same_length_twice_is_one(lengths: bytes) -> None:
    assert await answered(POST + lengths + b"\r\nhello" + NEXT) == ok(b"POST / 1.1 [hello]") + NEXT_ANSWER


@requirement("RFC 9112 §6.3", "MUST", "A Content-Length that is no number: 400, and the connection ends.")
@pytest.mark.parametrize(
    "length",
    [b"+5", b"-5", b"5.0", b"0x5", b"5 5", b"five", b"", b",", b"5,", b",5", b"5;", b"1_0", b"\xb2", b"5e0"],
    ids=repr,
)
async def test_an_invalid_length_is_refused(length: bytes) -> None:
    assert await answered(POST + b"Content-Length: " + length + b"\r\n\r\nhello" + NEXT) == refused(400)


@requirement(
    "RFC 9110 §8.6", "MUST", "A Content-Length of any size is read without overflow: beyond the limit it is 413."
)
@pytest.mark.parametrize("length", [b"101", b"4294967301", b"18446744073709551621", b"9" * 20])
async def test_a_huge_length_is_refused(length: bytes) -> None:
    assert await answered(POST + b"Content-Length: " + length + b"\r\n\r\nhello" + NEXT, max_body=100) == refused(413)


@requirement(
    "RFC 9110 §15.5.14",
    "MAY",
    "A body larger than the server wants to process is answered with 413 and the end of the connection; one of the limit is not.",
)
async def test_a_body_of_the_limit_is_accepted() -> None:
    answer = await answered(POST + b"Content-Length: 5\r\n\r\nhello" + NEXT, max_body=5)
    assert answer == ok(b"POST / 1.1 [hello]") + NEXT_ANSWER
    assert await answered(POST + b"Content-Length: 6\r\n\r\nhello!" + NEXT, max_body=5) == refused(413)


@requirement(
    "RFC 9112 §6.1",
    "SHOULD",
    "A transfer coding before the final chunked is not understood: 501, and the connection ends; so is chunked twice.",
)
@pytest.mark.parametrize(
    "coding",
    [
        b"gzip, chunked",
        b"x;a=b, Chunked",
        b"identity , chunked",
        b"chunked, chunked",
        b"chunked\r\nTransfer-Encoding: chunked",
    ],
    ids=repr,
)
async def test_another_transfer_coding_is_refused(coding: bytes) -> None:
    assert await answered(POST + b"Transfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n" + NEXT) == refused(501)


@requirement("RFC 9112 §7", "MUST", "The names of transfer codings have no case.")
@pytest.mark.parametrize("coding", [b"Chunked", b"CHUNKED", b" chunked \t"], ids=repr)
async def test_transfer_codings_have_no_case(coding: bytes) -> None:
    answer = await answered(POST + b"Transfer-Encoding:" + coding + b"\r\n\r\n1\r\na\r\n0\r\n\r\n" + NEXT)
    assert answer == ok(b"POST / 1.1 [a]") + NEXT_ANSWER


@requirement(
    "RFC 9112 §6.3", "MUST", "A request whose final transfer coding is not chunked: 400, and the connection ends."
)
@pytest.mark.parametrize(
    "coding",
    [
        b"br",
        b"identity",
        b"",
        b"xchunked",
        b"chunked-x",
        b'"chunked"',
        b"chunked, gzip",
        b"chunked\r\nTransfer-Encoding: identity",
    ],
    ids=repr,
)
async def test_another_final_coding_is_refused(coding: bytes) -> None:
    assert await answered(POST + b"Transfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n" + NEXT) == refused(400)


@requirement(
    "RFC 9110 §5.6.1.2",
    "chosen",
    "Transfer-Encoding with an empty element, which MUST be ignored, is refused: what two parsers may read in two ways is no framing.",
)
@pytest.mark.parametrize(("coding", "status"), [(b", chunked", 501), (b"chunked,", 400), (b"chunked, ,", 400)])
async def test_a_transfer_coding_with_an_empty_element_is_refused(coding: bytes, status: int) -> None:
    assert await answered(POST + b"Transfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n" + NEXT) == refused(status)


@requirement("RFC 9112 §7.1", "SHOULD", "Parameters of chunked, which has none, are an error: 400.")
@pytest.mark.parametrize("coding", [b"chunked;q=1", b"chunked ; a", b"gzip, chunked;a=b"], ids=repr)
async def test_chunked_has_no_parameters(coding: bytes) -> None:
    assert await answered(POST + b"Transfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n" + NEXT) == refused(400)


@requirement("RFC 9112 §6.1", "MUST", "Transfer-Encoding in HTTP/1.0 is faulty framing: 400, and the connection ends.")
@pytest.mark.parametrize("more", [b"", b"Connection: keep-alive\r\n", b"Content-Length: 5\r\n"], ids=repr)
async def test_transfer_encoding_in_http_1_0_is_refused(more: bytes) -> None:
    head = b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + more
    assert await answered(head + b"\r\n5\r\nhello\r\n0\r\n\r\n" + NEXT) == refused(400)


# --- §6 the body of a response ---


@requirement(
    "RFC 9112 §6.3",
    "MUST",
    "The response to HEAD ends with its head, and keeps the Content-Length of the application (RFC 9110 §9.3.2).",
)
@pytest.mark.parametrize("messages", [[{"body": b"abc"}], PIECES], ids=["one", "pieces"])
async def test_the_response_to_head_has_no_body(messages: list[Message]) -> None:
    app = responding(*messages, headers=[(b"content-length", b"3")])
    assert await answered(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT, app) == ok(b"abc", content=b"") + NEXT_ANSWER


@requirement(
    "RFC 9112 §6.3",
    "MUST",
    "A 204 or 304 ends with its head, whatever the application sends; a 204 has no Content-Length (RFC 9110 §8.6).",
)
@pytest.mark.parametrize("messages", [[{"body": b"abc"}], PIECES, [{}]], ids=["one", "pieces", "none"])
@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_a_status_without_content_has_no_body(status: bytes, messages: list[Message]) -> None:
    app = responding(*messages, status=int(status[:3]))
    head = b"HTTP/1.1 " + status + b"\r\ndate: D\r\nserver: minibg\r\n\r\n"
    assert await answered(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT, app) == head + NEXT_ANSWER


@requirement("RFC 9112 §6.1", "MUST", "No Transfer-Encoding in a 204, though the application sets it.")
async def test_a_204_has_no_transfer_encoding() -> None:
    app = responding(*PIECES, status=204, headers=[(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"3")])
    head = b"HTTP/1.1 204 No Content\r\ndate: D\r\nserver: minibg\r\n\r\n"
    assert await answered(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT, app) == head + NEXT_ANSWER


@requirement("RFC 9110 §15.3.6", "MUST", "A 205 has no content, and says so with Content-Length: 0.")
async def test_a_205_has_no_content() -> None:
    head = b"HTTP/1.1 205 Reset Content\r\ncontent-length: 0\r\ndate: D\r\nserver: minibg\r\n\r\n"
    answer = await answered(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT, responding(*PIECES, status=205))
    assert answer == head + NEXT_ANSWER


@requirement(
    "RFC 9110 §8.6", "SHOULD", "A body that is known when the head is written gets a Content-Length, an empty one too."
)
@pytest.mark.parametrize("body", [b"", b"abc"])
async def test_a_body_in_one_message_gets_its_length(body: bytes) -> None:
    answer = await answered(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT, responding({"body": body}))
    assert answer == ok(body) + NEXT_ANSWER


@requirement(
    "RFC 9112 §6.3",
    "SHOULD",
    "A body of unknown length goes in chunks to a client of HTTP/1.1, and the connection is kept.",
)
async def test_a_body_in_pieces_goes_in_chunks() -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ndate: D\r\nserver: minibg\r\n\r\n"
    answer = await answered(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT, responding(*PIECES))
    assert answer == head + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n" + NEXT_ANSWER


@requirement(
    "RFC 9112 §6.1",
    "MUST",
    "No Transfer-Encoding in a response to HTTP/1.0: a body of unknown length ends with the connection.",
)
async def test_no_chunks_for_http_1_0() -> None:
    head = b"HTTP/1.1 200 OK\r\ndate: D\r\nserver: minibg\r\nconnection: close\r\n\r\n"
    assert await answered(b"GET / HTTP/1.0\r\n\r\n", responding(*PIECES)) == head + b"abc"


@requirement(
    "RFC 9112 §6.2",
    "MUST",
    "Content-Length and Transfer-Encoding never stand in one response: the application's Transfer-Encoding is ignored.",
)
@pytest.mark.parametrize(
    "headers",
    [
        [(b"transfer-encoding", b"chunked"), (b"content-length", b"3")],
        [(b"content-length", b"3"), (b"Transfer-Encoding", b"gzip")],
    ],
    ids=repr,
)
async def test_one_framing_in_a_response(headers: list[tuple[bytes, bytes]]) -> None:
    app = responding(*PIECES, headers=headers)
    assert await answered(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT, app) == ok(b"abc") + NEXT_ANSWER


@requirement(
    "RFC 9110 §8.6", "MUST", "A Content-Length that is not the body's is not sent: 500 while nothing has been written."
)
@pytest.mark.parametrize(
    "messages",
    [[{"body": b"ab"}], [{"body": b"abcd"}], [{"body": b"abcd", "more_body": True}, {}]],
    ids=["short", "long", "long piece"],
)
async def test_a_wrong_length_becomes_a_500(messages: list[Message]) -> None:
    app = responding(*messages, headers=[(b"content-length", b"3")])
    assert await answered(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT, app) == refused(500)


@requirement(
    "RFC 9110 §8.6",
    "MUST",
    "A body that turns out longer or shorter than the Content-Length that was sent ends with a reset.",
)
@pytest.mark.parametrize("last", [b"", b"cd"], ids=["short", "long"])
async def test_a_body_of_the_wrong_length_ends_with_a_reset(last: bytes) -> None:
    app = responding({"body": b"ab", "more_body": True}, {"body": last}, headers=[(b"content-length", b"3")])
    async with connected(app) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT)
        assert await client.is_reset()


# --- §7 chunked coding ---


@requirement(
    "RFC 9112 §7.1",
    "MUST",
    "A chunked body is understood: sizes in hexadecimal of either case, with leading zeros, to the last chunk.",
)
@pytest.mark.parametrize(
    ("chunks", "body"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc"),
        (b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
        (b"0010\r\n0123456789abcdef\r\n000\r\n\r\n", b"0123456789abcdef"),
        (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
        (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
    ],
    ids=repr,
)
async def test_a_chunked_body(chunks: bytes, body: bytes) -> None:
    assert await answered(CHUNKED + chunks + NEXT) == ok(b"POST / 1.1 [" + body + b"]") + NEXT_ANSWER


@requirement(
    "RFC 9112 §7.1", "SHOULD", "An invalid size, or one too large for the parser, ends the connection with 400."
)
@pytest.mark.parametrize(
    "size", [b"", b"g", b"0x1", b"+1", b"-1", b" 1", b"1.0", b"1 1", b"1_1", b"\xb2", b"0" * 17, b"f" * 17], ids=repr
)
async def test_a_bad_size_is_refused(size: bytes) -> None:
    assert await answered(CHUNKED + size + b"\r\na\r\n0\r\n\r\n" + NEXT) == refused(400)


@requirement(
    "RFC 9112 §7.1", "MUST", "A size beyond the limit is answered with 413 as soon as it is read, without overflow."
)
@pytest.mark.parametrize(
    "chunks",
    [b"65\r\n", b"64\r\n" + b"a" * 100 + b"\r\n1\r\n", b"ffffffffffffffff\r\n", b"100000005\r\n"],
    ids=["101", "100 and 1", "2^64", "2^32"],
)
async def test_a_chunk_beyond_the_limit_is_refused(chunks: bytes) -> None:
    assert await answered(CHUNKED + chunks, max_body=100) == refused(413)


@requirement("RFC 9112 §7.1", "SHOULD", "Each chunk ends with CRLF, and each size with CRLF: anything else is 400.")
@pytest.mark.parametrize(
    "chunks",
    [
        b"1\r\nab\r\n0\r\n\r\n",
        b"1\r\na0\r\n\r\n",
        b"1\r\na\n0\r\n\r\n",
        b"1\na\r\n0\r\n\r\n",
        b"1\r\na\r0\r\n\r\n",
        b"1\r\na\r\n\r\n0\r\n\r\n",
        b"0\n\n",
        b"0\r\n\n",
        b"1\r\r\na\r\n0\r\n\r\n",
    ],
    ids=repr,
)
async def test_a_chunk_without_its_line_end_is_refused(chunks: bytes) -> None:
    assert await answered(CHUNKED + chunks + NEXT) == refused(400)


@requirement("RFC 9112 §7.1.1", "MUST", "Chunk extensions that are not understood are ignored.")
@pytest.mark.parametrize(
    "extension", [b";a", b";a=b", b' ; a = "b;c"', b";a;b;c=d", b"\t;a", b';a="\xe4\\""'], ids=repr
)
async def test_chunk_extensions_are_ignored(extension: bytes) -> None:
    chunks = b"1" + extension + b"\r\na\r\n0" + extension + b"\r\n\r\n"
    assert await answered(CHUNKED + chunks + NEXT) == ok(b"POST / 1.1 [a]") + NEXT_ANSWER


@requirement(
    "RFC 9112 §7.1.1",
    "SHOULD",
    "Extensions that do not match the grammar are refused with 400: no name, a byte that is no token, an open quote, blanks before the line end.",
)
@pytest.mark.parametrize(
    "extension",
    [b";", b";=b", b";a=", b";a;", b";\xe4", b";a/b", b';a="b', b';a=b"', b';a="b\\"', b"  ", b";a ", b" a", b";a b"],
    ids=repr,
)
async def test_chunk_extensions_outside_the_grammar_are_refused(extension: bytes) -> None:
    assert await answered(CHUNKED + b"1" + extension + b"\r\na\r\n0\r\n\r\n" + NEXT) == refused(400)


@requirement(
    "RFC 9112 §7.1.1",
    "chosen",
    "Extensions with control bytes or bare line ends, or of more than 256 bytes a line, are refused with 400.",
)
@pytest.mark.parametrize(
    "extension", [b";a\rb", b";a\nb", b";a\x00", b";a\x7f", b";" + b"a" * 256], ids=["CR", "LF", "NUL", "DEL", "long"]
)
async def test_bad_chunk_extensions_are_refused(extension: bytes) -> None:
    assert await answered(CHUNKED + b"1" + extension + b"\r\na\r\n0\r\n\r\n" + NEXT) == refused(400)


@requirement(
    "RFC 9112 §7.1.1",
    "chosen",
    'All extensions of a body, whose total length a server "ought to limit", may take as much as the body and a header section; more is 431.',
)
async def test_the_extensions_of_a_body_are_limited_in_sum() -> None:
    chunks, end = [b"1;" + b"e" * 99 + b"\r\na\r\n"], b"0\r\n\r\n"
    assert await answered(CHUNKED + b"".join(chunks * 10) + end + NEXT, max_header_bytes=990) == (
        ok(b"POST / 1.1 [" + b"a" * 10 + b"]") + NEXT_ANSWER
    )
    assert await answered(CHUNKED + b"".join(chunks * 11) + end + NEXT, max_header_bytes=990) == refused(431)


@requirement(
    "RFC 9112 §7.1.2", "MAY", "Trailer fields are read and dropped: none becomes a header or the next request."
)
@pytest.mark.parametrize(
    "trailers", [b"A: b\r\n", b"A: b\r\nC:d\r\n", b"Content-Length: 5\r\nHost: b\r\n", b"A:\r\n"], ids=repr
)
async def test_trailers_are_dropped(trailers: bytes) -> None:
    assert (
        await answered(CHUNKED + b"1\r\na\r\n0\r\n" + trailers + b"\r\n" + NEXT) == ok(b"POST / 1.1 [a]") + NEXT_ANSWER
    )


@requirement(
    "RFC 9112 §7.1.2",
    "SHOULD",
    "A trailer section that is not made of fields is refused with 400, as a header section is.",
)
@pytest.mark.parametrize(
    "trailers",
    [
        b"A : b\r\n",
        b" A: b\r\n",
        b"A: b\r\n c\r\n",
        b"A: b\n",
        b"A: \x00\r\n",
        b": b\r\n",
        b"GET / HTTP/1.1\r\n",
        b"A: b\rc\r\n",
    ],
    ids=repr,
)
async def test_bad_trailers_are_refused(trailers: bytes) -> None:
    assert await answered(CHUNKED + b"0\r\n" + trailers + b"\r\n" + NEXT) == refused(400)


@requirement("RFC 9112 §7.1.2", "chosen", "A trailer section may be as large as a header section; a larger one is 431.")
async def test_trailers_have_the_limit_of_headers() -> None:
    chunks = b"0\r\nA: " + b"b" * 93 + b"\r\n\r\n"
    assert await answered(CHUNKED + chunks + NEXT, max_header_bytes=100) == ok(b"POST / 1.1 []") + NEXT_ANSWER
    for more in (b"b", b"b" * 100):
        too_large = chunks.replace(b"A: ", b"A: " + more)
        assert await answered(CHUNKED + too_large + NEXT, max_header_bytes=100) == refused(431)


# --- §8 incomplete messages ---


@requirement(
    "RFC 9112 §6.3",
    "MUST",
    "A request that ends before its end is incomplete: the application never gets a body that looks whole, and the connection ends, with a 400, as §8 MAY.",
)
@pytest.mark.parametrize(
    "data",
    [
        b"G",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        POST + b"Content-Length: 5\r\n\r\nhell",
        CHUNKED,
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\n",
        CHUNKED + b"5\r\nhe",
    ],
    ids=repr,
)
async def test_an_incomplete_request_is_refused(data: bytes) -> None:
    got: list[Message] = []

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not got or got[-1]["type"] != "http.disconnect":
            got.append(await receive())

    async with connected(app) as client:
        await client.send(data)
        client.writer.write_eof()
        assert undated(await client.rest()) == refused(400)
    assert [message for message in got if not message.get("more_body", True)] == []


@requirement(
    "RFC 9112 §8",
    "chosen",
    "A response that cannot be finished ends so that it cannot be taken for a whole one: by a reset, in all three framings.",
)
@pytest.mark.parametrize(
    "request_bytes", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"], ids=["chunks", "connection end"]
)
@pytest.mark.parametrize("headers", [[], [(b"content-length", b"5")]], ids=["unknown", "length"])
async def test_an_incomplete_response_ends_with_a_reset(
    request_bytes: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    async with connected(responding({"body": b"ab", "more_body": True}, headers=headers)) as client:
        await client.send(request_bytes)
        assert await client.is_reset()
