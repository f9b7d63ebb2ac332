"""The request as a handler sees it."""

import asyncio
from collections.abc import AsyncIterator
from http.cookies import _unquote as unquote_cookie
from typing import Any

import httpx
import pytest

from minibg.asgi import ClientDisconnected
from minibg.serving import serve
from minibg.web.app import App
from minibg.web.fields import Headers
from minibg.web.request import Request
from minibg.web.response import StreamingResponse
from tests.web.driver import Answer, call


async def with_request(look: Any, method: str = "GET", target: str = "/", **options: Any) -> tuple[Any, Answer]:
    """What `look` makes of the request, and what was answered."""
    seen: list[Any] = []
    app = App()

    @app.route("/{rest:path}", methods=["GET", "POST"])
    async def handler(request: Request) -> None:
        value = look(request)
        seen.append(await value if hasattr(value, "__await__") else value)

    answer = await call(app, method, target, **options)
    return (seen[0] if seen else None), answer


async def test_a_request_says_where_it_came_from_and_where_to() -> None:
    seen, _ = await with_request(
        lambda r: [r.method, r.client, r.client.host, str(r.url), r.url.path, r.url.query, r.url.hostname, r.url.port],
        target="/a b?x=1&y=%20",
        headers={"Host": "example.org:8000"},
    )
    url = "http://example.org:8000/a%20b?x=1&y=%20"
    assert seen == ["GET", ("127.0.0.1", 4000), "127.0.0.1", url, "/a%20b", "x=1&y=%20", "example.org", 8000]


async def test_without_a_host_field_the_server_names_the_host() -> None:
    assert (await with_request(lambda r: str(r.url)))[0] == "http://test:80/"
    assert (await with_request(lambda r: str(r.url), server=None))[0] == "http://localhost/"


async def test_a_client_on_a_unix_socket_has_no_address() -> None:
    assert (await with_request(lambda r: r.client, client=None))[0] is None


async def test_headers_are_read_without_case() -> None:
    seen, _ = await with_request(
        lambda r: [r.headers["x-a"], r.headers.get("X-B"), r.headers.get("x-c"), "X-A" in r.headers, dict(r.headers)],
        headers={"X-A": "1", "x-b": "é"},
    )
    assert seen == ["1", "é", None, True, {"x-a": "1", "x-b": "é"}]


def test_the_first_of_a_repeated_header_counts_and_all_can_be_had() -> None:
    headers = Headers([(b"x", b"1"), (b"y", b"2"), (b"x", b"3")])
    assert [headers["x"], headers.getlist("X"), list(headers), len(headers)] == ["1", ["1", "3"], ["x", "y"], 2]


async def test_query_parameters_are_decoded() -> None:
    seen, _ = await with_request(
        lambda r: [dict(r.query_params), r.query_params.getlist("a"), len(r.query_params), "b" in r.query_params],
        target="/?a=1&a=2%2B3&b=&c=%C3%A4+x",
    )
    assert seen == [{"a": "2+3", "b": "", "c": "ä x"}, ["1", "2+3"], 3, True]


async def test_cookies_are_read_as_browsers_write_them() -> None:
    seen, _ = await with_request(lambda r: r.cookies, headers={"Cookie": 'a=1; b="x\\"y"; c=d=e; junk; =empty'})
    assert seen == {"a": "1", "b": 'x"y', "c": "d=e", "": "empty"}


@pytest.mark.parametrize("value", ['"', '""', '"a', 'a"', '"\\\\"', '"\\054\\1"', '"\\344 \\x"', '"\\"', '"\\777"'])
async def test_a_quoted_cookie_is_read_as_the_standard_library_reads_it(value: str) -> None:
    seen, _ = await with_request(lambda r: r.cookies, headers={"Cookie": f"a={value}"})
    assert seen == {"a": unquote_cookie(value)}


async def test_state_is_shared_by_everything_that_sees_the_request() -> None:
    def look(request: Request) -> Any:
        request.state.user = "ann"
        again = Request(request.scope, None)  # type: ignore[arg-type]
        return [again.state.user, again.state.pool, request.scope["state"], hasattr(request.state, "none")]

    seen, _ = await with_request(look, state={"pool": 1})
    assert seen == ["ann", 1, {"pool": 1, "user": "ann"}, False]


@pytest.mark.parametrize("is_dict", [True, False])
async def test_a_request_can_wait_for_the_stop_of_its_server(is_dict: bool) -> None:
    event = asyncio.Event()
    extensions = {"minibg.stopping": {"event": event} if is_dict else event}
    assert (await with_request(lambda r: r.stopping, extensions=extensions))[0] is event


@pytest.mark.parametrize("extensions", [None, {}])
async def test_under_another_server_the_stop_is_never_announced(extensions: Any) -> None:
    seen, _ = await with_request(lambda r: [r.stopping, r.stopping], extensions=extensions)
    assert seen[0] is seen[1] and not seen[0].is_set()


async def test_a_stream_ends_when_the_server_stops() -> None:
    app = App()

    @app.get("/")
    async def handler(request: Request) -> StreamingResponse:
        async def ticks() -> AsyncIterator[str]:
            yield "first"
            await request.stopping.wait()
            yield " last"

        return StreamingResponse(ticks())

    async with (
        serve(app, port=0) as server,
        httpx.AsyncClient() as client,
        client.stream("GET", f"http://127.0.0.1:{server.port}/") as response,
    ):
        pieces = response.aiter_text()
        assert await anext(pieces) == "first"
        stopping = asyncio.create_task(server.stop())
        assert [piece async for piece in pieces] == [" last"]
        await stopping


async def test_the_body_can_be_read_again_in_every_form() -> None:
    async def look(request: Request) -> Any:
        return [await request.body(), await request.json(), await request.body(), [c async for c in request.stream()]]

    seen, _ = await with_request(look, "POST", body=[b'{"a"', b"", b": 1}"])
    assert seen == [b'{"a": 1}', {"a": 1}, b'{"a": 1}', [b'{"a": 1}']]


async def test_a_stream_gives_the_chunks_as_they_arrive_and_only_once() -> None:
    async def look(request: Request) -> Any:
        chunks = [chunk async for chunk in request.stream()]
        with pytest.raises(RuntimeError, match="read already"):
            await request.body()
        return chunks

    seen, _ = await with_request(look, "POST", body=[b"a", b"", b"b"])
    assert seen == [b"a", b"b"]


async def test_a_body_that_ends_early_is_no_body() -> None:
    async def look(request: Request) -> Any:
        return await request.body()

    _, answer = await with_request(look, "POST", body=[b"half"], client_leaves_after=0)
    assert (type(answer.error), answer.messages) == (ClientDisconnected, [])


async def test_json_is_bounded_unless_the_handler_allows_more() -> None:
    body = b"[" + b"1," * 200_000 + b"1]"

    async def bounded(request: Request) -> Any:
        return await request.json()

    async def allowed(request: Request) -> Any:
        return len(await request.json(limit=len(body)))

    _, refused = await with_request(bounded, "POST", body=body)
    seen, answer = await with_request(allowed, "POST", body=body)
    assert (refused.status, refused.error, answer.status, seen) == (413, None, 200, 200_001)


async def test_a_body_of_several_chunks_is_put_together_in_a_thread() -> None:
    async def look(request: Request) -> Any:
        calls: list[Any] = []
        run = request.threads.run

        async def watched(function: Any, /, *args: Any) -> Any:
            calls.append(function)
            return await run(function, *args)

        request.threads.run = watched  # type: ignore[method-assign]
        return [await request.body(), len(calls)]

    assert (await with_request(look, "POST", body=[b"abc"]))[0] == [b"abc", 0]
    assert (await with_request(look, "POST", body=[b"ab", b"cd"]))[0] == [b"abcd", 1]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe{", b"[" * 100_000])
async def test_a_body_that_is_no_json_is_the_clients_fault(body: bytes) -> None:
    async def look(request: Request) -> Any:
        return await request.json()

    _, answer = await with_request(look, "POST", body=body)
    assert (answer.status, answer.error) == (400, None)
    assert answer.json["detail"].startswith("The body is not valid JSON: ")
