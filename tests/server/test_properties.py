"""Any bytes, cut anywhere: what must be true of all of them, on examples that hypothesis makes.

`Wire` is a transport in memory, so an example costs no socket and nothing depends on the kernel: the connection gets a piece,
the loop turns as often as the example says, the connection gets the next. At the end the client closes its half, and
everything must come to an end within a bounded number of turns: that is what "no hang" means here.

The examples are the same in every run (`derandomize`), so a failure is found again; to search further, run with
``--hypothesis-profile`` of your own or raise `EXAMPLES`.

The oracle of the mutations is h11, which is more lenient than minibg: whatever request the application was given, h11 must
find at the same place in the same bytes, with the same headers and the same body.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import h11
import uvloop
from hypothesis import HealthCheck, given, settings, strategies as st

from minibg.asgi import ASGIApp, Receive, Scope, Send
from minibg.server import Server
from minibg.server.protocol import Connection
from tests.server.wire import respond

EXAMPLES = 200
#: Turns of the loop after which everything must have come to an end. An example needs a few for each request.
TURNS = 500

fixed = settings(
    derandomize=True, max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


class Wire(asyncio.Transport):
    """A transport that keeps what is written, and takes it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False
        self._protocol: Connection | None = None
        self._reading = True

    def connect(self, connection: Connection) -> None:
        self._protocol = connection
        connection.connection_made(self)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert (high, low) == (0, 0)

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: Any) -> None:
        assert not self.closed
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """The client answers the end of our half with the end of its own, at the end of its pieces."""

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            assert self._protocol is not None
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close


class Seen(NamedTuple):
    """A request as the application was given it. The body is None if it did not come to its end."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes | None


class Reading:
    """An application that reads a request to its end and answers with its size."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        place, body, more = len(self.seen), b"", True
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        request = Seen(scope["method"].encode(), target, tuple(scope["headers"]), None)
        self.seen.append(request)
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        self.seen[place] = request._replace(body=body)
        await respond(send, b"%d" % len(body), 200, [(b"date", b"now")])
        assert await receive() == {"type": "http.disconnect"}


async def conversation(server: Server, pieces: list[bytes], turns: list[int]) -> bytes:
    """Everything that is written to a client who sends these pieces and then closes its half."""
    wire = Wire()
    connection = Connection(server.service)
    wire.connect(connection)
    for number, piece in enumerate(pieces):
        for _ in range(turns[number % len(turns)]):
            await asyncio.sleep(0)
        await turn_until(lambda: wire.is_reading() or wire.closed)
        if wire.closed:
            break
        connection.data_received(piece)
    await turn_until(lambda: wire.is_reading() or wire.closed)
    if not wire.closed and not connection.eof_received():
        wire.close()
    await turn_until(lambda: not server.service.requests and connection not in server.service.connections)
    return wire.written


async def turn_until(true: Callable[[], bool]) -> None:
    for _ in range(TURNS):
        if true():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not come to an end")


class Complaints(logging.Handler):
    """Every warning and error of the server, as its text."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def talking(app: ASGIApp) -> Iterator[Callable[[list[bytes], list[int]], bytes]]:
    """A function that holds a conversation with a server of its own. Nothing may complain in the meantime."""
    complaints = Complaints()
    logger = logging.getLogger("minibg.server")
    logger.addHandler(complaints)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: complaints.texts.append(repr(context)))
        server = Server(app, port=0, access_log=False)
        runner.run(server.start())
        server.service.close()  # time stands still: no deadline depends on how fast this machine is
        try:
            yield lambda pieces, turns: runner.run(conversation(server, pieces, turns))
        finally:
            runner.run(server.stop())
            logger.removeHandler(complaints)
    assert complaints.texts == []


# --- valid requests ---

TOKEN = st.text("abcXYZ019-_.!~", min_size=1, max_size=8).map(str.encode)
VALUE = st.lists(st.text('az09 ;,="/\t', max_size=12).map(str.strip), max_size=1).map("".join).map(str.encode)
TARGET = st.tuples(st.text("ab/%.~:@", max_size=8), st.sampled_from(["", "?", "?q=1", "?%20&x"])).map(
    lambda parts: ("/" + parts[0].replace("%", "%41") + parts[1]).encode()
)
BODY = st.binary(max_size=40) | st.sampled_from(
    [b"0\r\n\r\n", b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n", bytes(70_000)]
)


class Sent(NamedTuple):
    """A request: its bytes, and what they mean."""

    data: bytes
    means: Seen


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    """A body in chunks of any sizes, with extensions and trailers."""
    data, at = b"", 0
    while at < len(body):
        size = draw(st.integers(1, len(body) - at))
        extension = draw(st.sampled_from([b"", b";x", b';x="y z"', b" ; a=b"]))
        form = draw(st.sampled_from([b"%x", b"%X", b"00%x"]))
        data += form % size + extension + b"\r\n" + body[at : at + size] + b"\r\n"
        at += size
    return data + b"0\r\n" + draw(st.sampled_from([b"", b"Trailer: x\r\n", b"A: 1\r\nB: 2\r\n"])) + b"\r\n"


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"BREW"]))
    target, body = draw(TARGET), draw(BODY)
    headers = [(b"host", draw(st.sampled_from([b"a", b"a:80", b"[::1]:8000", b""])))]
    headers += draw(st.lists(st.tuples(TOKEN.map(lambda name: b"x-" + name.lower()), VALUE), max_size=4))
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    if framing == "none":
        body = payload = b""
    elif framing == "length":
        headers.append((b"content-length", b"%d" % len(body)))
        payload = body
    else:
        headers.append((b"transfer-encoding", draw(st.sampled_from([b"chunked", b"Chunked"]))))
        payload = draw(chunked(body))
    blank = draw(st.sampled_from([b"", b"", b"\r\n"]))
    lines = [b"%b %b HTTP/1.1" % (method, target)]
    lines += [
        b"%b:%b" % (draw(st.sampled_from([name, name.title()])), b" " * draw(st.integers(0, 2)) + value)
        for name, value in headers
    ]
    # h11 gives coding names in lower case; an empty query is none.
    means = Seen(
        method,
        target.removesuffix(b"?"),
        tuple((n, v.lower() if n == b"transfer-encoding" else v) for n, v in headers),
        body,
    )
    return Sent(blank + b"\r\n".join([*lines, b"", b""]) + payload, means)


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The same bytes in pieces: a few cuts, or one at every byte of the beginning."""
    if draw(st.booleans()):
        places = sorted(set(draw(st.lists(st.integers(1, max(1, len(data) - 1)), max_size=8))))
    else:
        places = list(range(1, min(len(data), 400)))
    ends = [*places, len(data)]
    return [piece for piece in (data[start:end] for start, end in zip([0, *places], ends, strict=True)) if piece]


TURN_COUNTS = st.lists(st.integers(0, 4), min_size=1, max_size=5)


def test_any_valid_requests_cut_anywhere_are_the_same_requests_and_get_the_same_answers() -> None:
    app = Reading()
    with talking(app) as talk:

        @fixed
        @given(st.lists(requests(), min_size=1, max_size=4), st.data(), TURN_COUNTS)
        def check(sent: list[Sent], data: st.DataObject, turns: list[int]) -> None:
            whole = b"".join(each.data for each in sent)
            app.seen.clear()
            answers = talk(data.draw(cut(whole)), turns)
            assert app.seen == [each.means for each in sent]
            sizes = [b"%d" % len(each.means.body or b"") for each in sent]
            head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\ndate: now\r\nserver: minibg\r\n\r\n"
            assert answers == b"".join(head % len(size) + size for size in sizes)

        check()


# --- mutations ---

BATCH = (
    b"GET /one?a=b HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n"
    b"POST /two HTTP/1.1\r\nHost: a\r\nContent-Length: 46\r\n\r\nhello\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n1234"
    b"POST /three HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;x=y\r\nhello\r\n24\r\nGET /hidden HTTP/1.1\r\nHost: hidden\r\n\r\n\r\n0\r\nT: v\r\n\r\n"
    b"\r\nPUT /four HTTP/1.1\r\nHost: a:80\r\nX-Long: 1234567890\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nok"
    b"DELETE /five HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
)
#: What people who look for holes put in.
SPICE = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"f", b"-1", b"+1", b"\xff", b"\x0b", b"#", b"%",
    b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
    b"Host: b\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"HTTP/1.0", b"HTTP/2.0", b"CONNECT ", b"0\r\n\r\n",
    b"fffffffffffffffffffff", b"X" * 70_000,
]  # fmt: skip


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    data = BATCH
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([0, 0, 1, 1, 2, 7, 40]))
        how = draw(st.sampled_from(["insert", "replace", "delete", "repeat", "truncate", "flip"]))
        piece = data[at : at + length]
        if how in ("insert", "replace"):
            piece = draw(st.sampled_from(SPICE)) + (piece if how == "insert" else b"")
        elif how == "delete":
            piece = b""
        elif how == "repeat":
            piece *= 2
        elif how == "flip":
            piece = bytes(byte ^ draw(st.sampled_from([1, 32, 128])) for byte in piece)
        data = data[:at] + piece + (b"" if how == "truncate" else data[at + length :])
    return data


#: RFC 9112 section 2.2: at least one SHOULD be ignored before a request. h11 ignores none.
BLANK_LINES = re.compile(rb"\A(?:\r\n)+")


def found_by_h11(data: bytes) -> Iterator[Seen]:
    """The requests that the bytes contain, as h11 reads them one after the other."""
    while data := BLANK_LINES.sub(b"", data):
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1_000_000)
        parser.receive_data(data)
        parser.receive_data(b"")
        head, body = None, b""
        try:
            while type(event := parser.next_event()) is not h11.EndOfMessage:
                if isinstance(event, h11.Request):
                    headers = tuple((name.lower(), value) for name, value in event.headers.raw_items())
                    head = Seen(event.method.upper(), event.target.removesuffix(b"?"), headers, None)
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                else:
                    break
        except h11.RemoteProtocolError:
            event = None
        if head is not None:
            yield head._replace(body=body) if isinstance(event, h11.EndOfMessage) else head
        if not isinstance(event, h11.EndOfMessage):
            return
        data = parser.trailing_data[0]


def test_any_mutation_of_a_batch_gives_requests_that_it_contains_and_no_complaint_and_no_hang() -> None:
    app = Reading()
    counts = {"seen": 0, "refused": 0}
    with talking(app) as talk:

        @fixed
        @given(mutations(), st.data(), TURN_COUNTS)
        def check(data: bytes, choice: st.DataObject, turns: list[int]) -> None:
            app.seen.clear()
            answers = talk(choice.draw(cut(data)), turns)
            contained = list(found_by_h11(data))
            for seen, there in zip(app.seen, contained, strict=False):
                assert seen._replace(body=None) == there._replace(body=None)
                assert seen.body in (None, there.body)
            assert len(app.seen) <= len(contained)
            assert all(seen.body is not None for seen in app.seen[:-1])
            statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]
            final = [status for status in statuses if status != 100]
            # One answer for each whole request, in order, and at most one refusal, at the end.
            whole = [seen for seen in app.seen if seen.body is not None]
            assert final[: len(whole)] == [200] * len(whole)
            assert all(400 <= status < 600 for status in final[len(whole) :])
            assert len(final) <= len(whole) + 1
            counts["seen"] += len(whole)
            counts["refused"] += len(final) - len(whole)

        check()
    assert min(counts.values()) > EXAMPLES / 4  # the mutations are neither all harmless nor all fatal
