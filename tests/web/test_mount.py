"""Other applications below a prefix of this one."""

from pathlib import Path
from typing import Any

import fastapi
import httpx
import pytest
from starlette.staticfiles import StaticFiles

from minibg.asgi import Receive, Scope, Send
from minibg.serving import serve
from minibg.web.app import App
from minibg.web.exceptions import HTTPException
from minibg.web.request import Request
from minibg.web.response import PlainTextResponse, Response
from tests.web.driver import call


async def number(x: int) -> int:
    return x


def noting(seen: list[Any]) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["root_path"], scope["path"]))
        await PlainTextResponse("mounted")(scope, receive, send)

    return app


@pytest.mark.parametrize(
    ("prefix", "root_path", "path", "seen"),
    [
        ("/a", "", "/a/b/c", ("/a", "/a/b/c")),
        ("/a/", "", "/a/", ("/a", "/a/")),
        ("/a", "", "/a", ("/a", "/a")),
        ("/a", "/outer", "/outer/a/b", ("/outer/a", "/outer/a/b")),
        ("/", "", "/b", ("", "/b")),
        ("/a", "", "/ab", None),
        ("/a", "", "/b/a", None),
    ],
)
async def test_the_prefix_moves_from_the_path_to_the_root_path(
    prefix: str, root_path: str, path: str, seen: tuple[str, str] | None
) -> None:
    calls: list[Any] = []
    app = App()
    app.mount(prefix, noting(calls))
    answer = await call(app, "PUT", path, root_path=root_path)
    assert (answer.status, calls) == ((200, [seen]) if seen else (404, []))


async def test_a_route_is_asked_before_a_mount_and_the_first_mount_before_the_second() -> None:
    first: list[Any] = []
    second: list[Any] = []
    app = App()
    app.mount("/a/b", noting(first))
    app.mount("/a", noting(second))
    app.get("/a/{x:int}")(number)
    assert (await call(app, "GET", "/a/7")).json == 7
    assert (await call(app, "POST", "/a/7")).status == 405
    await call(app, "GET", "/a/b/c")
    await call(app, "GET", "/a/c")
    assert (first, second) == ([("/a/b", "/a/b/c")], [("/a", "/a/c")])


def test_a_prefix_begins_with_a_slash() -> None:
    with pytest.raises(ValueError, match="a path begins with a slash: 'a'"):
        App().mount("a", noting([]))


async def test_an_app_in_an_app_finds_its_routes() -> None:
    inner, middle, outer = App(), App(), App()

    @inner.get("/users/{id}")
    async def handler(request: Request, id: int) -> Any:
        return [id, str(request.url), request.path_params]

    middle.mount("/inner", inner)
    outer.mount("/middle", middle)
    answer = await call(outer, "GET", "/middle/inner/users/3")
    assert answer.json == [3, "http://test:80/middle/inner/users/3", {"id": "3"}]
    assert (await call(outer, "GET", "/middle/inner/users")).status == 404
    assert (await call(outer, "GET", "/middle/inner/users/3/")).headers["location"] == (
        "http://test:80/middle/inner/users/3"
    )


@pytest.fixture
def static(tmp_path: Path) -> Path:
    static = tmp_path / "static"
    (static / "docs").mkdir(parents=True)
    (static / "a.txt").write_text("text")
    (static / "docs" / "index.html").write_text("<p>index")
    (tmp_path / "secret").write_text("secret")
    return static


async def test_starlettes_static_files(static: Path) -> None:
    app = App()
    app.mount("/static", StaticFiles(directory=static))
    app.mount("/html", StaticFiles(directory=static, html=True))

    @app.exception_handler(404)
    async def not_found(request: Request, error: HTTPException) -> Response:
        return PlainTextResponse("nothing here", 404)

    async with serve(app, port=0) as server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        found = await client.get("/static/a.txt")
        again = await client.get("/static/a.txt", headers={"If-None-Match": found.headers["etag"]})
        part = await client.get("/static/a.txt", headers={"Range": "bytes=1-2"})
        others = [
            await client.get(path)
            for path in ("/static/none", "/static/%2e%2e/secret", "/static", "/html/docs/", "/html/docs")
        ]
        refused = await client.post("/static/a.txt")
    assert (found.status_code, found.text, again.status_code, part.text) == (200, "text", 304, "ex")
    assert [(answer.status_code, answer.text) for answer in others[:4]] == [
        (404, "nothing here"),
        (404, "nothing here"),
        (404, "nothing here"),
        (200, "<p>index"),
    ]
    assert (others[4].status_code, others[4].headers["location"]) == (307, str(others[3].url))
    assert (refused.status_code, refused.json()) == (405, {"detail": "Method Not Allowed"})


async def test_the_tasks_of_a_mounted_fastapi_run_after_the_response() -> None:
    ran: list[str] = []
    api = fastapi.FastAPI()

    @api.get("/{name}")
    async def handler(name: str, request: fastapi.Request) -> str:
        request.scope["minibg.background"].add_task(ran.append, name)
        return name

    app = App()
    app.mount("/api", api)
    async with serve(app, port=0) as server:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
            assert (await client.get("/api/ann")).json() == "ann"
            assert (await client.get("/api/a/b")).json() == {"detail": "Not Found"}
            assert (await client.get("/api/openapi.json")).status_code == 200
        await server.pool.idle()
    assert ran == ["ann"]


async def test_an_http_exception_of_starlette_is_answered_as_minibgs() -> None:
    async def handler() -> None:
        raise fastapi.HTTPException(418, "teapot", {"x-why": "tea"})

    app = App()
    app.get("/")(handler)
    answer = await call(app, "GET", "/")
    assert (answer.status, answer.json, answer.headers["x-why"]) == (418, {"detail": "teapot"}, "tea")
    assert (answer.error, answer.hold.dropped) == (None, True)
