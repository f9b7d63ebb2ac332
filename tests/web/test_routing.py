"""Which handler answers which path and method."""

from uuid import UUID

import pytest

from starlette.applications import Starlette
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response as StarletteResponse
from starlette.routing import Route as StarletteRoute

from minibg.web.app import App
from minibg.web.request import Request
from tests.web.driver import call


def answering(*routes: str, methods: tuple[str, ...] = ("GET",)) -> App:
    """An application whose routes answer with their own path and parameters."""
    app = App()
    for path in routes:

        def handler(request: Request, path: str = path) -> object:
            return {"path": path, **{k: repr(v) for k, v in request.path_params.items()}}

        app.route(path, methods=methods)(handler)
    return app


@pytest.mark.parametrize(
    ("path", "target", "parameters"),
    [
        ("/a/{x}", "/a/b", {"x": "b"}),
        ("/a/{x:str}/c", "/a/b/c", {"x": "b"}),
        ("/a/{x:int}", "/a/42", {"x": 42}),
        ("/a/{x:float}", "/a/4.5", {"x": 4.5}),
        ("/a/{x:path}", "/a/b/c/d", {"x": "b/c/d"}),
        ("/a/{x:path}", "/a/", {"x": ""}),
        ("/a/{x:uuid}", "/a/12345678-1234-5678-1234-567812345678", {"x": UUID("12345678-1234-5678-1234-567812345678")}),
        ("/a.b/{x}-{y:int}", "/a.b/c-1", {"x": "c", "y": 1}),
    ],
)
async def test_a_pattern_gives_its_converted_parameters(path: str, target: str, parameters: dict[str, object]) -> None:
    app = App()
    seen: list[dict[str, object]] = []

    @app.get(path)
    async def handler(request: Request) -> None:
        seen.append(request.path_params)

    answer = await call(app, "GET", target)
    assert (answer.status, seen) == (200, [parameters])


@pytest.mark.parametrize(
    ("path", "target", "parameters"),
    [
        ("/{name}.{extension}", "/a.tar.gz", {"name": "a.tar", "extension": "gz"}),
        ("/{id:int}-{slug}", "/42-hello-world", {"id": 42, "slug": "hello-world"}),
        ("/{id:uuid}-{slug}", f"/{UUID(int=7)}-a-b", {"id": UUID(int=7), "slug": "a-b"}),
        ("/{a:int}-{b}-{c}", "/1-2-3-4", {"a": 1, "b": "2-3", "c": "4"}),
        ("/{slug}-{id:int}", "/hello-world-42", {"slug": "hello-world", "id": 42}),
        ("/{y:int}-{m:int}-{d:int}", "/2026-01-02", {"y": 2026, "m": 1, "d": 2}),
        ("/{a}^{b}]{c}", "/1^2]3", {"a": "1", "b": "2", "c": "3"}),
        ("/{a}/{b}-{c}", "/x-y/1-2", {"a": "x-y", "b": "1", "c": "2"}),
        ("/{p:path}/{name}.{extension}", "/a/b.c/d.e", {"p": "a/b.c", "name": "d", "extension": "e"}),
        ("/{a}.{x:float}", "/v.1.5", {"a": "v.1", "x": 5.0}),
    ],
)
async def test_a_segment_with_several_parameters_is_divided_as_starlette_does(
    path: str, target: str, parameters: dict[str, object]
) -> None:
    seen: list[object] = []

    async def starlette_handler(request: StarletteRequest) -> StarletteResponse:
        seen.append(dict(request.path_params))
        return StarletteResponse()

    async def handler(request: Request) -> None:
        seen.append(request.path_params)

    app = App()
    app.get(path)(handler)
    await call(app, "GET", target)
    await call(Starlette(routes=[StarletteRoute(path, starlette_handler)]), "GET", target)
    assert seen == [parameters, parameters]


@pytest.mark.parametrize("target", ["/a/x", "/a/-1", "/a/", "/b", "/a/1/2", "/a/" + "9" * 5000])
async def test_a_path_that_no_pattern_matches_is_not_found(target: str) -> None:
    answer = await call(answering("/a/{x:int}"), "GET", target)
    assert (answer.status, answer.json) == (404, {"detail": "Not Found"})


async def test_a_dot_in_a_path_is_a_dot() -> None:
    assert (await call(answering("/a.{x}"), "GET", "/abc")).status == 404


async def test_a_literal_path_wins_over_a_pattern_that_came_first() -> None:
    app = answering("/users/{name}", "/users/me")
    assert (await call(app, "GET", "/users/me")).json["path"] == "/users/me"
    assert (await call(app, "GET", "/users/{name}")).json == {"path": "/users/{name}", "name": "'{name}'"}


async def test_patterns_are_tried_in_order() -> None:
    app = answering("/{x:int}", "/{y}")
    assert (await call(app, "GET", "/1")).json == {"path": "/{x:int}", "x": "1"}
    assert (await call(app, "GET", "/a")).json == {"path": "/{y}", "y": "'a'"}


async def test_another_method_is_405_and_says_which_there_are() -> None:
    app = answering("/a")
    app.post("/a")(lambda: None)
    answer = await call(app, "PUT", "/a")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, POST")
    assert answer.json == {"detail": "Method Not Allowed"}


async def test_the_methods_of_every_matching_pattern_are_allowed() -> None:
    app = App()
    app.delete("/{x:int}")(lambda x: None)
    app.patch("/{y}")(lambda y: None)
    assert (await call(app, "PATCH", "/1")).status == 200
    assert (await call(app, "GET", "/1")).headers["allow"] == "DELETE, PATCH"


async def test_every_verb_has_its_decorator() -> None:
    app = App()
    for verb in ("get", "post", "put", "patch", "delete", "head", "options"):

        def handler(name: str = verb) -> str:
            return name

        getattr(app, verb)("/")(handler)
    for verb in ("get", "post", "put", "patch", "delete", "head", "options"):
        assert (await call(app, verb.upper(), "/")).json == verb


async def test_head_is_answered_by_get() -> None:
    assert (await call(answering("/a"), "HEAD", "/a")).status == 200


async def test_a_path_that_differs_by_its_last_slash_is_redirected() -> None:
    app = answering("/a", "/b/", "/c/{x}/")
    locations = [(await call(app, "GET", path)).headers["location"] for path in ("/a/?q=1&q=%20", "/b", "/c/ä")]
    assert locations == ["http://test:80/a?q=1&q=%20", "http://test:80/b/", "http://test:80/c/%C3%A4/"]
    assert (await call(app, "GET", "/a/")).status == 307


async def test_a_redirect_never_names_another_host() -> None:
    answer = await call(answering("/{p:path}/end"), "GET", "//evil.example/end/")
    assert answer.headers["location"] == "http://test:80//evil.example/end"


async def test_the_root_path_is_not_part_of_the_route() -> None:
    answer = await call(answering("/a"), "GET", "/mounted/a", root_path="/mounted")
    assert answer.json == {"path": "/a"}


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("a", "begins with a slash"),
        ("", "begins with a slash"),
        ("/{x}/{x}", "two parameters named 'x'"),
        ("/{x:date}", "unknown converter 'date'"),
        ("/{x", "brace"),
        ("/{1}", "brace"),
        ("/{a}{b}", "'b' needs a text before it"),
        ("/{a:int}1{b:int}", "'b' needs a text before it"),
        ("/{a:int}{b}", "'b' needs a text before it"),
        ("/{a}1{b:int}", "'b' needs a text before it"),
        ("/{a}-{b:path}", "'b' needs a text before it"),
        ("/{a:path}/{b:path}", "'b' needs a text before it"),
    ],
)
def test_a_path_that_makes_no_sense_is_refused_at_registration(path: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        App().get(path)(lambda: None)


def test_a_second_handler_for_one_path_and_method_is_refused() -> None:
    app = answering("/a")
    with pytest.raises(ValueError, match="GET /a has a handler already: handler"):
        app.get("/a")(lambda: None)
