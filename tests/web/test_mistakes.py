"""The errors that teach: each mistake, and the sentence that it gets.

A sentence names the function, its file and line, and what to write instead. The lines are those of
this file, so each mistake is a function below whose line is known.
"""

import dataclasses
import inspect
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, TypedDict

import fastapi
import pydantic
import pytest
from fastapi import BackgroundTasks as FastAPIBackgroundTasks, Request as FastAPIRequest
from starlette.middleware.gzip import GZipMiddleware

from minibg.background import BackgroundTasks
from minibg.web.app import App
from minibg.web.depends import Depends
from minibg.web.exceptions import HTTPException
from minibg.web.request import Request
from minibg.web.response import JSONResponse, PlainTextResponse
from tests.web.driver import call


@dataclasses.dataclass
class Item:
    name: str


class Model(pydantic.BaseModel):
    name: str


class Fields(TypedDict):
    name: str


# --- at registration ---


def without_the_path() -> None: ...
def under_another_name(user_id: int, q: str = "") -> None: ...
def untyped_request(id: int, request) -> None: ...  # type: ignore[no-untyped-def]
def untyped_tasks(id: int, background_tasks) -> None: ...  # type: ignore[no-untyped-def]
def foreign_request(id: int, request: FastAPIRequest) -> None: ...
def foreign_tasks(id: int, tasks: FastAPIBackgroundTasks) -> None: ...
def foreign_mark(id: int, q: str = fastapi.Query("x")) -> None: ...
def foreign_depends(id: int, q: Annotated[str, fastapi.Depends(str)]) -> None: ...
def form_mark(id: int, name: Annotated[str, fastapi.Form()]) -> None: ...
def a_dataclass(id: int, item: Item) -> None: ...
def a_model(id: int, item: Model) -> None: ...
def a_typed_dict(id: int, item: Fields) -> None: ...
def a_dict(id: int, item: dict[str, Any]) -> None: ...
def a_union(id: int, q: int | str) -> None: ...
async def a_generator(id: int) -> Any:
    yield id


BODY = "a query has str, int, float, bool, UUID or lists of these; for a body take `request: Request`, "
MARK = "cannot be filled: FastAPI's marks are not minibg's: import Depends from minibg, or use Request"

AT_REGISTRATION: list[tuple[Callable[..., Any], str]] = [
    (
        without_the_path,
        " does not take id of its path; it takes nothing: add or rename a parameter, or take `request: Request`",
    ),
    (
        under_another_name,
        " does not take id of its path; it takes user_id, q: add or rename a parameter, or take `request: Request`",
    ),
    (
        untyped_request,
        ": the parameter `request` cannot be filled: write `request: Request`, and import Request from minibg",
    ),
    (
        untyped_tasks,
        ": the parameter `background_tasks` cannot be filled: write `background_tasks: BackgroundTasks`,"
        " and import BackgroundTasks from minibg",
    ),
    (
        foreign_request,
        ": the parameter `request: starlette.requests.Request` cannot be filled: write `request: Request`,"
        " and import Request from minibg",
    ),
    (
        foreign_tasks,
        ": the parameter `tasks: fastapi.background.BackgroundTasks` cannot be filled: write `tasks: BackgroundTasks`,"
        " and import BackgroundTasks from minibg",
    ),
    (foreign_mark, MARK),
    (foreign_depends, MARK),
    (form_mark, MARK),
    (a_dataclass, f"cannot be filled: {BODY}`Item(**await request.json())`"),
    (a_model, f"cannot be filled: {BODY}`Model(**await request.json())`"),
    (a_typed_dict, f"cannot be filled: {BODY}`Fields(**await request.json())`"),
    (a_dict, f"cannot be filled: {BODY}`await request.json()`"),
    (a_union, f": the parameter `q: int | str` cannot be filled: {BODY}`await request.json()`"),
    (a_generator, " is a generator: return a StreamingResponse of one instead"),
]


@pytest.mark.parametrize(("handler", "end"), AT_REGISTRATION, ids=lambda value: getattr(value, "__name__", ""))
def test_a_handler_that_cannot_be_called_is_refused_when_it_is_registered(
    handler: Callable[..., Any], end: str
) -> None:
    with pytest.raises(TypeError) as refused:
        App().get("/users/{id}")(handler)
    message = str(refused.value)
    assert message.startswith(f"{handler.__name__} ({__file__}:{inspect.getsourcelines(handler)[1]})")
    assert message.endswith(end)


def test_a_handler_or_its_dependency_may_read_the_path_from_the_request() -> None:
    def dependency(request: Request) -> None: ...

    App().get("/{id}", dependencies=[Depends(dependency)])(lambda: None)
    App().get("/{id}")(dependency)


def line() -> int:
    """The line that calls this function."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


def test_a_verb_without_a_path() -> None:
    app: Any = App()
    with pytest.raises(TypeError) as refused:
        app.get(without_the_path)
    first = inspect.getsourcelines(without_the_path)[1]
    assert str(refused.value) == (
        f'without_the_path ({__file__}:{first}) is decorated without a path: write `@app.get("/path")`'
    )


def test_an_option_that_a_route_does_not_have() -> None:
    app: Any = App()
    with pytest.raises(TypeError) as refused:
        here = line() + 1
        app.post("/", tags=["a"], response_model=Item)
    assert str(refused.value) == (
        f"test_an_option_that_a_route_does_not_have ({__file__}:{here}): a route has no option response_model, tags"
    )


async def as_in_fastapi(request: Any, call_next: Any) -> None: ...


@pytest.mark.parametrize(
    ("middleware", "name"), [(GZipMiddleware(App()), "GZipMiddleware"), (as_in_fastapi, "as_in_fastapi")]
)
def test_middleware_that_is_no_class(middleware: Any, name: str) -> None:
    with pytest.raises(TypeError) as refused:
        here = line() + 1
        App().add_middleware(middleware)
    assert str(refused.value) == (
        f"test_middleware_that_is_no_class ({__file__}:{here}) adds middleware that is no class:"
        f" write `add_middleware({name}, option=...)`"
    )


def test_middleware_may_be_a_function_that_makes_it() -> None:
    App().add_middleware(lambda app: app)
    App().add_middleware(GZipMiddleware, minimum_size=1)


# --- while a request runs ---


async def helper() -> str:
    return "x"


async def returns_a_coroutine() -> Any:
    return helper()


def returns_a_coroutine_from_a_thread() -> Any:
    return helper()


async def returns_a_body_and_a_status() -> Any:
    return {"id": 1}, 201


async def returns_a_text_and_a_status() -> Any:
    return "created", 201


async def returns_a_response_and_a_status() -> Any:
    return PlainTextResponse("created"), 201


async def returns_an_object() -> Any:
    return {"users": [{"name": "ann", "price": Decimal(1)}]}


async def returns_nan() -> Any:
    return [1.5, {"ratio": float("nan")}]


async def returns_a_strange_key() -> Any:
    return {"a": {(1, 2): 3}}


async def returns_a_circle() -> Any:
    circle: list[Any] = [1]
    circle.append(circle)
    return circle


async def raises_the_class() -> None:
    raise HTTPException


WHILE_A_REQUEST_RUNS: list[tuple[Callable[..., Any], str]] = [
    (returns_a_coroutine, " returns coroutine, no response: write `return await ...`"),
    (returns_a_coroutine_from_a_thread, " returns coroutine, no response: write `return await ...`"),
    (returns_a_body_and_a_status, " returns a body and a status: write `return JSONResponse(body, 201)`"),
    (returns_a_text_and_a_status, " returns a body and a status: write `return JSONResponse(body, 201)`"),
    (returns_a_response_and_a_status, " returns a body and a status: write `return JSONResponse(body, 201)`"),
    (
        returns_an_object,
        " returns dict, no response: Decimal cannot be rendered as JSON: write it as a str, a number or a dict;"
        """ it follows '{"users":[{"name":"ann","price":'""",
    ),
    (returns_nan, """; it follows '[1.5,{"ratio":'"""),
    (returns_a_strange_key, """ not tuple; it follows '{"a":{'"""),
    (returns_a_circle, " returns list, no response: Circular reference detected; it follows '[1,'"),
]


@pytest.mark.filterwarnings("ignore:coroutine 'helper' was never awaited")
@pytest.mark.parametrize(("handler", "end"), WHILE_A_REQUEST_RUNS, ids=lambda value: getattr(value, "__name__", ""))
async def test_a_result_that_is_no_response(handler: Callable[..., Any], end: str) -> None:
    app = App()
    app.get("/")(handler)
    answer = await call(app, "GET", "/")
    assert (answer.status, type(answer.error), answer.hold.dropped) == (500, TypeError, True)
    message = str(answer.error)
    assert message.startswith(f"{handler.__name__} ({__file__}:{inspect.getsourcelines(handler)[1]}) returns ")
    assert message.endswith(end)


@pytest.mark.parametrize("result", [(640, 480), ("ann", 7), [{"id": 1}, 201], ("a", "b"), ({}, True)])
async def test_other_pairs_are_json(result: Any) -> None:
    app = App()
    app.get("/")(lambda: result)
    assert (await call(app, "GET", "/")).json == list(result)


async def test_an_exception_that_is_raised_without_a_status() -> None:
    app = App()
    app.get("/")(raises_the_class)
    answer = await call(app, "GET", "/")
    here = inspect.getsourcelines(raises_the_class)[1] + 1
    assert (answer.status, str(answer.error)) == (
        500,
        f"raises_the_class ({__file__}:{here}) raises HTTPException without a status: write `raise HTTPException(404)`",
    )


def test_json_that_is_made_in_a_handler_says_where_it_ends() -> None:
    with pytest.raises(ValueError, match=r"""; it follows '\{"a":'$"""):
        JSONResponse({"a": float("inf")})


async def reads_the_body(request: Request) -> Any:
    return await request.body()


@pytest.mark.parametrize("fails", [True, False])
async def test_a_body_that_is_read_after_the_response(fails: bool) -> None:
    requests: list[Request] = []
    app = App()

    @app.post("/")
    async def handler(request: Request, background_tasks: BackgroundTasks) -> None:
        requests.append(request)
        if fails:
            raise HTTPException(400)

    await call(app, "POST", "/", body=b"x")
    with pytest.raises(RuntimeError) as refused:
        await reads_the_body(requests[0])
    here = inspect.getsourcelines(reads_the_body)[1] + 1
    assert str(refused.value) == (
        f"reads_the_body ({__file__}:{here}) reads a body after the response: write `add_task(f, await request.body())`"
    )


async def test_a_body_that_the_handler_has_read_stays() -> None:
    requests: list[Request] = []
    app = App()

    @app.post("/")
    async def handler(request: Request) -> None:
        requests.append(request)
        await request.body()

    await call(app, "POST", "/", body=b"[1]")
    assert [await requests[0].body(), await requests[0].json()] == [b"[1]", [1]]


async def test_an_exception_handler_still_reads_the_body() -> None:
    async def handler(error: Request) -> None:
        raise KeyError

    async def answer(request: Request, error: KeyError) -> PlainTextResponse:
        return PlainTextResponse(await request.body())

    app = App(exception_handlers={KeyError: answer})
    app.post("/")(handler)
    assert (await call(app, "POST", "/", body=b"text")).body == b"text"
