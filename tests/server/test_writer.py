"""Responses to bytes. h11 as a client is the oracle: it reads back the response that was meant."""

from http import HTTPStatus

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibg.server.head import RequestHead
from minibg.server.writer import NO_REQUEST, Framing, chunk, plain_response, response_head

DATE = b"Tue, 15 Nov 1994 08:12:31 GMT"


def request(method: bytes = b"GET", http10: bool = False) -> RequestHead:
    return NO_REQUEST._replace(method=method, http10=http10)


def head(
    status: int = 200,
    headers: list[tuple[bytes, bytes]] = [],
    body_size: int | None = 0,
    close: bool = False,
    to: RequestHead = request(),
) -> bytes:
    return response_head(to, status, headers, body_size, close=close, date=DATE).data


def test_a_head_is_these_bytes() -> None:
    assert head(200, [(b"content-type", b"text/plain"), (b"x", b"")], 5) == (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nx: \r\ncontent-length: 5\r\n"
        b"date: Tue, 15 Nov 1994 08:12:31 GMT\r\nserver: minibg\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("status", "headers", "body_size", "to", "framing", "sent"),
    [
        (200, [], 5, request(), Framing.LENGTH, [b"content-length: 5"]),
        (200, [], None, request(), Framing.CHUNKED, [b"transfer-encoding: chunked"]),
        (200, [], None, request(http10=True), Framing.CLOSE, [b"connection: close"]),
        (200, [(b"Content-Length", b"7")], None, request(), Framing.LENGTH, [b"content-length: 7"]),
        (200, [(b"transfer-encoding", b"gzip")], 5, request(), Framing.LENGTH, [b"content-length: 5"]),
        (200, [], 0, request(b"HEAD"), Framing.NONE, []),
        (200, [(b"content-length", b"7")], 0, request(b"HEAD"), Framing.NONE, [b"content-length: 7"]),
        (204, [(b"content-length", b"7")], 0, request(), Framing.NONE, []),
        (205, [(b"content-length", b"7")], None, request(), Framing.NONE, [b"content-length: 0"]),
        (304, [(b"content-length", b"7")], 0, request(), Framing.NONE, [b"content-length: 7"]),
        (304, [], 0, request(), Framing.NONE, []),
        (200, [(b"connection", b"Close")], 0, request(), Framing.LENGTH, [b"content-length: 0", b"connection: close"]),
        (200, [(b"connection", b"keep-alive")], 0, request(), Framing.LENGTH, [b"content-length: 0"]),
    ],
)
def test_the_server_frames_the_message(
    status: int,
    headers: list[tuple[bytes, bytes]],
    body_size: int | None,
    to: RequestHead,
    framing: Framing,
    sent: list[bytes],
) -> None:
    found = response_head(to, status, headers, body_size, close=False, date=DATE)
    assert found.framing is framing
    names = (b"content-length", b"transfer-encoding", b"connection")
    assert [line for line in found.data.split(b"\r\n") if line.lower().startswith(names)] == sent
    assert found.close is (b"connection: close" in sent)


def test_there_is_one_date_and_one_server() -> None:
    data = head(200, [(b"date", b"today"), (b"Date", b"tomorrow"), (b"server", b"mine")])
    assert data == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ndate: tomorrow\r\nserver: mine\r\n\r\n"


def test_a_status_without_a_name_has_an_empty_reason() -> None:
    assert head(299).startswith(b"HTTP/1.1 299 \r\n")


@pytest.mark.parametrize(
    "field",
    [
        (b"x", b"a\r\nset-cookie: b"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\0b"),
        (b"x", b"a\x7fb"),
        (b"x y", b"a"),
        (b"x:", b"a"),
        (b"", b"a"),
        (b"x\r\n", b"a"),
        (b"date", b"a\r\nb: c"),
        (b"content-length", b"1x"),
        (b"content-length", b""),
    ],
)
def test_a_field_that_is_no_header_is_refused(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError):
        head(200, [field])


def test_two_different_lengths_are_refused_and_two_equal_ones_are_one() -> None:
    fields = [(b"content-length", b"7"), (b"x", b"y"), (b"Content-Length", b"7")]
    assert head(200, fields, None).count(b"ength: 7") == 1
    for other in (b"8", b"07", b"7, 7"):
        for to in (request(), request(b"HEAD")):
            with pytest.raises(ValueError):
                head(200, [*fields, (b"content-length", other)], None, to=to)


def test_text_instead_of_bytes_is_refused() -> None:
    with pytest.raises(TypeError):
        head(200, [("x", "y")])  # type: ignore[list-item]


names = (
    st.text("abcXYZ019-_", min_size=1, max_size=10)
    .map(str.encode)
    .filter(
        lambda name: name.lower() not in {b"connection", b"content-length", b"date", b"server", b"transfer-encoding"}
    )
)
values = st.binary(max_size=20).map(lambda b: bytes(c for c in b if c > 32 and c != 127))


@given(
    st.sampled_from([200, 201, 204, 205, 304, 404, 500]),
    st.lists(st.tuples(names, values), max_size=5),
    st.lists(st.binary(max_size=30), min_size=1, max_size=4),
    st.sampled_from([b"GET", b"HEAD", b"POST"]),
    st.booleans(),
    st.booleans(),
)
def test_h11_reads_back_the_response(
    status: int, headers: list[tuple[bytes, bytes]], pieces: list[bytes], method: bytes, http10: bool, close: bool
) -> None:
    body_size = len(pieces[0]) if len(pieces) == 1 else None
    to = request(method, http10)
    written = response_head(to, status, headers, body_size, close=close, date=DATE)
    data = written.data
    for number, piece in enumerate(pieces, 1):
        if written.framing is Framing.CHUNKED:
            data += chunk(piece, last=number == len(pieces))
        elif written.framing is not Framing.NONE:
            data += piece
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    if written.close:
        client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response)
    assert response.status_code == status
    own = {b"content-length", b"transfer-encoding", b"connection", b"date", b"server"}
    assert [field for field in response.headers if field[0] not in own] == [
        (name.lower(), value) for name, value in headers
    ]
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    assert body == (b"" if written.framing is Framing.NONE else b"".join(pieces))
    assert client.trailing_data[0] == b""


def test_an_answer_of_the_server_ends_the_connection() -> None:
    assert plain_response(HTTPStatus.NOT_FOUND, DATE, NO_REQUEST, [(b"x", b"y")]) == (
        b"HTTP/1.1 404 Not Found\r\ncontent-type: text/plain; charset=utf-8\r\nx: y\r\ncontent-length: 10\r\n"
        b"date: Tue, 15 Nov 1994 08:12:31 GMT\r\nserver: minibg\r\nconnection: close\r\n\r\nNot Found\n"
    )
    assert plain_response(HTTPStatus.NOT_FOUND, DATE, request(b"HEAD")).endswith(b"\r\n\r\n")
