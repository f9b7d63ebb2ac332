"""RFC 9110: Date, Expect, HEAD, Upgrade, statuses and the head of a response.

What HTTP means, as far as it is the server's to keep and not the application's.
"""

import re
from email.utils import parsedate_to_datetime
from datetime import UTC, datetime
from http import HTTPStatus

import pytest

from minibg.asgi import ASGIApp, Receive, Scope, Send
from minibg.server.protocol import Phase
from tests.server.requirements import answered, mirror, ok, refused, requirement, undated
from tests.server.test_protocol import seen_by
from tests.server.wire import Client, Recorder, connected, respond, serving, without_lifespan

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
EXPECT = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"


def with_headers(*headers: tuple[bytes, bytes], status: int = 200) -> ASGIApp:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"ok", status, headers)

    return app


@without_lifespan
async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without a look at the body."""
    await respond(send, b"no", 403)


# --- §6.6.1 Date ---


@requirement(
    "RFC 9110 §6.6.1",
    "MUST",
    "Every response has one Date, of now, as an IMF-fixdate (§5.6.7): 200, 204, 304, 400 and 500, where it MAY be.",
)
@pytest.mark.parametrize(
    ("app", "data"),
    [
        (mirror, GET_CLOSE),
        (with_headers(status=204), GET_CLOSE),
        (with_headers(status=304), GET_CLOSE),
        (mirror, b"BROKEN\r\n\r\n"),
        (with_headers(status=0), GET),
    ],
    ids=["200", "204", "304", "400", "500"],
)
async def test_every_response_has_one_date(app: ASGIApp, data: bytes) -> None:
    async with connected(app) as client:
        await client.send(data)
        answer = await client.rest()
    [date] = re.findall(rb"(?im)^date: (.*)\r$", answer)
    assert undated(answer).count(b"date: D\r\n") == 1
    assert abs((datetime.now(UTC) - parsedate_to_datetime(date.decode())).total_seconds()) < 5


@requirement("RFC 9110 §6.6.1", "chosen", "The Date of the application is kept, and no second one is sent.")
async def test_the_date_of_the_application_is_kept() -> None:
    date = b"Tue, 15 Nov 1994 08:12:31 GMT"
    async with connected(with_headers((b"Date", date))) as client:
        await client.send(GET_CLOSE)
        assert re.findall(rb"(?im)^date: (.*)\r$", await client.rest()) == [date]


@requirement("RFC 9110 §10.2.4", "MAY", "There is one Server field, the application's if it has set one.")
async def test_the_server_field_of_the_application_is_kept() -> None:
    answer = await answered(GET_CLOSE, with_headers((b"Server", b"mine")))
    assert answer == ok(b"ok", close=True).replace(b"server: minibg", b"server: mine")


# --- §10.1.1 Expect ---


@requirement(
    "RFC 9110 §10.1.1",
    "MUST",
    "100 Continue is sent when the application asks for the body, once, before the final response.",
)
@pytest.mark.parametrize("expect", [b"100-continue", b"100-Continue", b"x, 100-continue", b"x\r\nExpect: 100-continue"])
async def test_100_continue_is_sent_when_the_body_is_wanted(expect: bytes) -> None:
    async with connected(mirror) as client:
        await client.send(EXPECT.replace(b"100-continue", expect))
        assert await client.reader.readexactly(len(CONTINUE)) == CONTINUE
        await client.send(b"hello")
        assert undated(await client.rest()) == ok(b"POST / 1.1 [hello]", close=True)


@requirement("RFC 9110 §10.1.1", "MAY", "100 Continue is left out if the body has come already.")
async def test_100_continue_is_left_out_for_a_body_that_is_there() -> None:
    async with connected(mirror) as client:
        await client.send(EXPECT + b"hello")
        assert undated(await client.rest()) == ok(b"POST / 1.1 [hello]", close=True)


@requirement(
    "RFC 9110 §10.1.1",
    "MUST",
    "A final response instead of 100 Continue comes at once, and ends the connection, as it is unknown whether a body follows.",
)
async def test_a_final_response_instead_of_100_continue() -> None:
    async with connected(deaf) as client:
        await client.send(EXPECT.replace(b"Connection: close\r\n", b""))
        assert undated(await client.rest()) == ok(b"no", close=True, status=b"403 Forbidden")


@requirement("RFC 9110 §10.1.1", "MUST", "Expect in HTTP/1.0 is ignored: no 100 Continue.")
async def test_expect_in_http_1_0_is_ignored() -> None:
    data = b"POST / HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello"
    assert await answered(data) == ok(b"POST / 1.0 [hello]", close=True)


@requirement("RFC 9110 §10.1.1", "MAY", "No 100 Continue for a request without a body.")
@pytest.mark.parametrize("length", [b"", b"Content-Length: 0\r\n"])
async def test_expect_without_a_body_is_ignored(length: bytes) -> None:
    data = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + length + b"Expect: 100-continue\r\n\r\n"
    assert await answered(data) == ok(b"POST / 1.1 []", close=True)


@requirement("RFC 9110 §10.1.1", "chosen", "Another expectation, which MAY be answered with 417, is ignored.")
@pytest.mark.parametrize("expect", [b"the-unexpected", b"x, y", b"100-continue;x", b""], ids=repr)
async def test_another_expectation_is_ignored(expect: bytes) -> None:
    data = (
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\nExpect: " + expect + b"\r\n\r\nhello"
    )
    assert await answered(data) == ok(b"POST / 1.1 [hello]", close=True)


@requirement("RFC 9110 §10.1.1", "MUST", "A request that is refused gets its final status instead of 100 Continue.")
async def test_a_refused_request_gets_no_100_continue() -> None:
    assert await answered(EXPECT, max_body=4) == refused(413)


@requirement(
    "RFC 9110 §15.2",
    "MUST",
    "No 1xx is sent to a client of HTTP/1.0, and none by an application's start message, whose status must be final.",
)
async def test_an_application_sends_no_interim_response() -> None:
    for data in (GET_CLOSE, b"GET / HTTP/1.0\r\n\r\n"):
        assert await answered(data, with_headers(status=103)) == refused(500)


# --- §5.3 the order of what comes ---


@requirement("RFC 9110 §5.3", "MUST", "No request reaches the application before its header section is complete.")
async def test_nothing_is_applied_before_the_head_is_complete() -> None:
    app = Recorder()
    async with serving(app) as server:
        client = await Client.to(server)
        await client.send(GET_CLOSE[:-2])
        await seen_by(server, lambda connection: connection.phase is Phase.HEAD)
        assert not app.scopes
        assert not server.service.requests
        await client.send(GET_CLOSE[-2:])
        assert undated(await client.rest()) == ok(b"ok", close=True)
        client.writer.close()
    assert len(app.scopes) == 1


# --- §9 methods ---


@requirement(
    "RFC 9110 §9.1", "MUST", "GET and HEAD are supported, and so is every other method: it is the application's."
)
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"QUERY"])
async def test_every_method_is_the_applications(method: bytes) -> None:
    body = method + b" / 1.1 []"
    content = b"" if method == b"HEAD" else None
    if method != b"HEAD":
        assert await answered(GET_CLOSE.replace(b"GET", method)) == ok(body, close=True, content=content)
    app = with_headers((b"content-length", b"2"))
    assert await answered(GET_CLOSE.replace(b"GET", method), app) == ok(b"ok", close=True, content=content)


@requirement(
    "RFC 9110 §9.3.2", "MUST", "HEAD has the header fields of GET and no content, also if the application sends one."
)
async def test_head_is_get_without_content() -> None:
    app = with_headers((b"content-length", b"2"), (b"x", b"y"))
    get = await answered(GET_CLOSE, app)
    assert await answered(GET_CLOSE.replace(b"GET", b"HEAD"), app) == get.removesuffix(b"ok")
    assert get.endswith(b"\r\n\r\nok")


@requirement(
    "RFC 9110 §9.3.2",
    "MAY",
    "A Content-Length that is only known from the content is left out of the response to HEAD.",
)
async def test_head_without_a_length_has_none() -> None:
    head = b"HTTP/1.1 200 OK\r\ndate: D\r\nserver: minibg\r\nconnection: close\r\n\r\n"
    assert await answered(GET_CLOSE.replace(b"GET", b"HEAD"), with_headers()) == head


@requirement("RFC 9110 §9.3.2", "MUST", "The server's own refusal of a HEAD request has no content either.")
async def test_a_failed_head_has_no_content() -> None:
    answer = await answered(GET.replace(b"GET", b"HEAD"), with_headers(status=0))
    assert answer == refused(500, body=False)
    assert await answered(b"HEAD / HTTP/1.1\r\n\r\n") == refused(400, body=False)
    assert await answered(b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n", max_body=8) == refused(
        413, body=False
    )


@requirement("RFC 9110 §9.3.8", "chosen", "TRACE reaches the application: the server reflects nothing by itself.")
async def test_trace_is_the_applications() -> None:
    assert await answered(GET_CLOSE.replace(b"GET", b"TRACE")) == ok(b"TRACE / 1.1 []", close=True)


# --- §7.8 Upgrade ---


@requirement(
    "RFC 9110 §7.8", "MAY", "Upgrade is ignored: the request is answered in HTTP/1.1, and the connection goes on."
)
@pytest.mark.parametrize("protocol", [b"websocket", b"h2c", b"TLS/1.0", b"HTTP/2.0, x/1"])
async def test_an_upgrade_is_ignored(protocol: bytes) -> None:
    upgrade = (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: " + protocol + b"\r\nHTTP2-Settings: AA\r\n\r\n"
    )
    assert await answered(upgrade + GET_CLOSE) == ok(b"GET / 1.1 []") + ok(b"GET / 1.1 []", close=True)


@requirement("RFC 9110 §7.8", "MUST", "Upgrade in HTTP/1.0 is ignored.")
async def test_an_upgrade_in_http_1_0_is_ignored() -> None:
    data = b"GET / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: HTTP/1.1, websocket\r\n\r\n"
    assert await answered(data) == ok(b"GET / 1.0 []", close=True)


@requirement("RFC 9110 §7.8", "chosen", "The preface of HTTP/2 is answered with 505 in HTTP/1.1.")
async def test_the_preface_of_http_2_is_refused() -> None:
    assert await answered(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") == refused(505, more=": use HTTP/1.1 or HTTP/1.0")


# --- §15 statuses ---


@requirement(
    "RFC 9112 §4",
    "MUST",
    "Every final status is sent as the application says, with its phrase if one is registered, else with the space before it.",
)
@pytest.mark.parametrize("status", [200, 201, 206, 301, 308, 400, 404, 418, 451, 500, 503, 299, 799, 999])
async def test_every_final_status_is_sent(status: int) -> None:
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
    expected = ok(b"ok", close=True, status=f"{status} {phrase}".encode())
    assert await answered(GET_CLOSE, with_headers(status=status)) == expected


@requirement("RFC 9110 §8.6", "MAY", "A 304 may keep the Content-Length that a 200 would have, without its bytes.")
async def test_a_304_keeps_its_length() -> None:
    expected = ok(b"x" * 7, close=True, status=b"304 Not Modified", content=b"")
    assert await answered(GET_CLOSE, with_headers((b"content-length", b"7"), status=304)) == expected


@requirement("RFC 9110 §15.5", "SHOULD", "The server's own refusal says in words what was wrong.")
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"Bad Request"),
        (b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 9000), HTTPStatus(414).phrase.encode()),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: %b\r\n\r\n" % (b"x" * 40000), HTTPStatus(431).phrase.encode()),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", b"HTTP Version Not Supported: use HTTP/1.1 or HTTP/1.0"),
    ],
    ids=["400", "414", "431", "505"],
)
async def test_a_refusal_has_a_text(data: bytes, text: bytes) -> None:
    async with connected(mirror) as client:
        await client.send(data)
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
    assert b"content-type: text/plain; charset=utf-8" in head.split(b"\r\n")
    assert body == text + b"\n"


@requirement("RFC 9110 §15.5.6", "MUST", "The server's 405 has an Allow field.")
async def test_405_has_allow() -> None:
    allow = b"allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
    assert await answered(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n") == refused(405, allow)


@requirement(
    "RFC 9110 §15.6.1",
    "chosen",
    "An application that fails before its response is a 500 without any detail of the failure.",
)
async def test_a_failure_is_a_500() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("secret")

    assert await answered(GET, app) == refused(500)


# --- §5 the fields of a response ---


@requirement("RFC 9110 §5.3", "MUST", "The application's fields keep their order, their case and their number.")
async def test_the_fields_of_a_response_keep_their_order() -> None:
    app = with_headers((b"Set-Cookie", b"a=1"), (b"X-b", b""), (b"set-cookie", b"a=2"))
    head, _, _ = (await answered(GET_CLOSE, app)).partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[1:4] == [b"Set-Cookie: a=1", b"X-b: ", b"set-cookie: a=2"]


@requirement(
    "RFC 9110 §2.2",
    "MUST",
    "No field of the application can end its line or hold a control byte: 500 instead of a split response.",
)
@pytest.mark.parametrize(
    "field",
    [
        (b"x", b"a\r\nset-cookie: b"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\x00b"),
        (b"x", b"\x7f"),
        (b"a\r\nb", b"c"),
        (b"a b", b"c"),
        (b"a:", b"c"),
        (b"", b"c"),
        (b"\xe4", b"c"),
    ],
    ids=repr,
)
async def test_a_response_cannot_be_split(field: tuple[bytes, bytes]) -> None:
    assert await answered(GET, with_headers(field)) == refused(500)


@requirement("RFC 9110 §8.6", "MUST", "A Content-Length of the application that is no number is not sent: 500.")
@pytest.mark.parametrize("value", [b"", b"+2", b"-2", b"2.0", b"two", b"2, 2", b" 2"], ids=repr)
async def test_an_invalid_length_of_the_application(value: bytes) -> None:
    assert await answered(GET, with_headers((b"content-length", value))) == refused(500)


@requirement(
    "RFC 9110 §8.6",
    "MUST",
    "Two different Content-Lengths of the application are not sent: 500. Two that are equal are sent as one.",
)
async def test_two_lengths_of_the_application() -> None:
    fields = [(b"content-length", b"2"), (b"Content-Length", b"2")]
    assert await answered(GET_CLOSE, with_headers(*fields)) == ok(b"ok", close=True)
    assert await answered(GET, with_headers(*fields, (b"content-length", b"3"))) == refused(500)
