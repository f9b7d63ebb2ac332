"""The time that one request may take from the event loop: 20 ms, whatever it is made of.

Each case is a request within the server's default limits, of the shape that costs most. What is
measured is the time of the loop's thread; the best of three, because the machine is shared. Work in
a thread is not counted, so the test of what runs there is that it is Python code, which lets the
loop in every 5 ms.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from minibg.server import Limits
from minibg.web import forms, request
from minibg.web.app import App
from minibg.web.request import Request
from minibg.web.response import FileResponse
from tests.shared import Stopwatch
from tests.web.driver import call

BOUND = 0.020
LIMITS = Limits()
TARGET, HEAD = LIMITS.max_target, LIMITS.max_header_bytes - 100
URLENCODED = {"Content-Type": "application/x-www-form-urlencoded"}


def filled(unit: str, size: int, end: str = "") -> str:
    """As many repetitions as fit."""
    return unit * ((size - len(end)) // len(unit)) + end


async def seconds(app: App, method: str, target: str, **options: Any) -> float:
    """The processor time that a request takes on this thread: the best of three."""
    best = float("inf")
    for _ in range(3):
        with Stopwatch() as watch:
            await call(app, method, target, **options)
        best = min(best, watch.seconds)
    return best


def looking(look: Callable[[Request], Any]) -> App:
    app = App()

    @app.route("/{rest:path}", methods=["GET", "POST"])
    async def handler(request: Request) -> str:
        value = look(request)
        if isinstance(value, Awaitable):
            await value
        return "done"

    return app


QUERIES = {
    "separators": "&",
    "names": "a&",
    "one name": "a=&",
    "escapes": "%41",
    "bad escapes": "%",
    "escaped pairs": "%41=%42&",
    "pluses": "+",
}


@pytest.mark.parametrize("unit", QUERIES.values(), ids=QUERIES)
async def test_a_query(unit: str) -> None:
    app = looking(lambda r: [r.query_params.getlist("a"), str(r.url), r.url.port, r.url.hostname])
    assert await seconds(app, "GET", "/?" + filled(unit, TARGET)) < BOUND


@pytest.mark.parametrize("unit", QUERIES.values(), ids=QUERIES)
async def test_the_parameters_of_a_handler(unit: str) -> None:
    async def handler(a: list[int], b: float, c: bool, d: list[str]) -> None: ...

    app = App()
    app.get("/")(handler)
    assert await seconds(app, "GET", "/?b=x&c=x&" + filled(unit, TARGET)) < BOUND
    assert await seconds(app, "GET", "/?" + "b=" + "1" * TARGET + "&c=1") < BOUND


COOKIES = {
    "escapes": 'a="' + filled("\\\\", HEAD - 3, '"'),
    "octal escapes": 'a="' + filled("\\012", HEAD - 3, '"'),
    "bad escapes": 'a="' + filled("\\9", HEAD - 3, '"'),
    "no end": 'a="' + filled("\\0", HEAD - 3),
    "many": filled("a=1;", HEAD),
    "many quoted": filled('="";', HEAD),
    "separators": filled(";", HEAD),
    "blanks": filled(" ", HEAD),
}


@pytest.mark.parametrize("value", COOKIES.values(), ids=COOKIES)
async def test_cookies(value: str) -> None:
    assert await seconds(looking(lambda r: r.cookies), "GET", "/", headers={"Cookie": value}) < BOUND


CONTENT_TYPES = {
    "parameters": "multipart/form-data" + filled(";a=b", HEAD),
    "separators": "multipart/form-data" + filled(";", HEAD),
    "blanks": "multipart/form-data;" + filled(" ", HEAD),
    "blanks and separators": "multipart/form-data" + filled("; ", HEAD),
    "boundaries": "multipart/form-data" + filled(";boundary=a b", HEAD),
    "quotes": "multipart/form-data" + filled(';boundary="', HEAD),
    "escapes": 'multipart/form-data; boundary="' + filled("\\\\", HEAD),
    "continuations": "multipart/form-data" + "".join(f"; a*{n}*=b" for n in range(3000)),
    "a type": filled("a/", HEAD),
}


@pytest.mark.parametrize("value", CONTENT_TYPES.values(), ids=CONTENT_TYPES)
async def test_a_content_type(value: str) -> None:
    assert await seconds(looking(lambda r: r.form()), "POST", "/", headers={"Content-Type": value[:HEAD]}) < BOUND


@pytest.mark.parametrize("name", ["If-None-Match", "If-Modified-Since", "Range", "If-Range", "Host", "X"])
@pytest.mark.parametrize("unit", ["a", ",", '"",', "W/", "bytes=", "0-0,", "9", " ", "[", ":"])
async def test_the_headers_of_a_file(name: str, unit: str) -> None:
    app = App()
    app.get("/a/")(lambda: FileResponse(__file__))
    assert await seconds(app, "GET", "/a/", headers={name: filled(unit, HEAD)}) < BOUND
    assert await seconds(app, "GET", "/a", headers={name: filled(unit, HEAD)}) < BOUND  # A redirect with that Host.


async def anything(request: Request) -> None: ...


PATHS = [
    "/{a}-{b}-{c}",
    "/{a}-{b}-{c}/end",
    "/{a}-{b}.{c}-{d}/end",
    "/{a}--{b}--{c}/end",
    "/{a}-{b:int}-{c:float}/end",
    "/{a}-{b:uuid}-{c:uuid}/end",
    "/{a:path}/{b}-{c}/{d}/end",
    "/{a:path}-{b}-{c}/end",
    "/{a}/{b}/{c}/{d}/{e:path}/end",
    "/{a:int}-{b}-{c}/end",
    "/{a:int}-{b}/end",
    "/{a:uuid}-{b}-{c}/end",
    "/{a:int}.{b:float}.{c}/end",
    "/{a:float}.{b:float}.{c:float}.{d:float}.{e}/end",
    "/{a:int}",
    "/{a:float}",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("unit", ["-", "/", "a-", "a/", "-/", "1", "1-", "1.", ".", "-.", "/-", "a", "-1.1", "--a"])
async def test_a_path(path: str, unit: str) -> None:
    app = App()
    app.get(path)(anything)
    app.get("/z" + path)(anything)
    assert await seconds(app, "POST", "/" + filled(unit, TARGET)) < BOUND
    assert await seconds(app, "POST", "/" + filled(unit, TARGET - 9) + "/x/en") < BOUND


JSON = {
    "nested": "[[]],",
    "arrays": "[],",
    "objects": '{"":[]},',
    "integers": "1,",
    "text": '"\\u00e4",',
    "floats": "1e5,",
}


@pytest.mark.parametrize("unit", JSON.values(), ids=JSON)
async def test_json(unit: str) -> None:
    body = ("[" + filled(unit, request.MAX_JSON - 1, "0]")).encode()
    assert len(body) <= request.MAX_JSON
    app = looking(lambda r: r.json())
    assert await seconds(app, "POST", "/", body=body) < BOUND
    assert await seconds(app, "POST", "/", body=[body] * 100) < BOUND  # Refused.


async def test_a_large_body() -> None:
    chunks = [bytes(65536)] * (LIMITS.max_body // 65536)
    assert await seconds(looking(lambda r: r.body()), "POST", "/", body=chunks) < BOUND


FORMS = {"separators": "&", "names": "a&", "escapes": "%41", "pluses": "+", "pairs": "a=%41%41" + "%41" * 340 + "&"}


@pytest.mark.parametrize("unit", FORMS.values(), ids=FORMS)
async def test_an_urlencoded_form(unit: str) -> None:
    app = looking(lambda r: r.form())
    body = filled(unit, forms.MAX_TEXT).encode()
    assert await seconds(app, "POST", "/", headers=URLENCODED, body=body) < BOUND
    assert await seconds(app, "POST", "/", headers=URLENCODED, body=[body] * 8) < BOUND  # Refused.


async def test_a_form_in_parts() -> None:
    head = b'--x\r\ncontent-disposition: form-data; name="a"\r\n' + (b"y: " + b"z" * 4000 + b"\r\n") * 6 + b"\r\n\r\n"
    body = head * forms.MAX_PARTS + b"--x--"
    chunks = [body[start : start + 65536] for start in range(0, len(body), 65536)]
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    app = looking(lambda r: r.form())
    # Each chunk costs a call in a thread; the loop is free between two of them.
    assert await seconds(app, "POST", "/", headers=headers, body=chunks) / len(chunks) < BOUND
