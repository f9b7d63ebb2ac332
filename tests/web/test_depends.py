"""What a handler's parameters are filled with."""

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, Optional
from uuid import UUID

import pytest

from minibg.background import BackgroundTasks, Pool
from minibg.web.app import App
from minibg.web.depends import Depends
from minibg.web.exceptions import HTTPException
from minibg.web.request import Request
from minibg.web.response import StreamingResponse
from tests.web.driver import Answer, call
from tests.web.string_annotations import add_by_string

WITHOUT_HOLD: dict[str, Any] = {"minibg.background": None}
INT = "Input should be a valid integer, unable to parse string as an integer"


async def answer_of(handler: Any, target: str = "/", path: str = "/", **options: Any) -> Answer:
    app = App()
    app.get(path)(handler)
    return await call(app, "GET", target, **options)


# Values of the request.


async def test_query_parameters_are_converted_by_annotation() -> None:
    async def handler(s: str, i: int, f: float, b: bool, u: UUID, n, many: list[int], words: list) -> Any:  # type: ignore[no-untyped-def, type-arg]
        return [s, i, f, b, u, n, many, words]

    uuid = "12345678-1234-5678-1234-567812345678"
    answer = await answer_of(handler, f"/?s=a+b%C3%A4&i=-3&f=1e3&b=On&u={uuid}&n=1&many=1&many=2&words=w")
    assert answer.json == ["a bä", -3, 1000.0, True, uuid, "1", [1, 2], ["w"]]


async def test_defaults_and_optional_parameters_may_be_absent() -> None:
    def handler(
        a: int = 1, b: str | None = None, c: Optional[int] = None, d: list[str] | None = None, e: list[int] = [5]
    ) -> Any:
        e.append(6)
        return [a, b, c, d, e]

    app = App()
    app.get("/")(handler)
    assert (await call(app, "GET", "/")).json == [1, None, None, None, [5, 6]]
    assert (await call(app, "GET", "/")).json == [1, None, None, None, [5, 6]]
    assert (await call(app, "GET", "/?a=2&b=x&c=3&d=y&e=7")).json == [2, "x", 3, ["y"], [7, 6]]


async def test_the_last_of_a_repeated_parameter_counts() -> None:
    assert (await answer_of(lambda x: x, "/?x=1&x=2")).json == "2"


async def test_a_part_of_the_path_is_converted_by_annotation_too() -> None:
    async def handler(a: int, b: float, c) -> Any:  # type: ignore[no-untyped-def]
        return [a, b, c]

    assert (await answer_of(handler, "/3/4/5", "/{a}/{b:int}/{c}")).json == [3, 4.0, "5"]


async def test_every_bad_parameter_is_named_with_its_reason() -> None:
    def dependency(d: bool) -> None:
        raise AssertionError("not called")

    def handler(
        n: int, missing: str, u: UUID, f: float, many: list[int], d: Annotated[None, Depends(dependency)]
    ) -> None:
        raise AssertionError("not called")

    answer = await answer_of(handler, "/x?u=1&f=z&many=1&many=b&d=maybe", "/{n}")
    assert answer.status == 422
    assert answer.json == {
        "detail": [
            {
                "type": "bool_parsing",
                "loc": ["query", "d"],
                "msg": "Input should be a valid boolean, unable to interpret input",
                "input": "maybe",
            },
            {"type": "int_parsing", "loc": ["path", "n"], "msg": INT, "input": "x"},
            {"type": "missing", "loc": ["query", "missing"], "msg": "Field required", "input": None},
            {"type": "uuid_parsing", "loc": ["query", "u"], "msg": "Input should be a valid UUID", "input": "1"},
            {
                "type": "float_parsing",
                "loc": ["query", "f"],
                "msg": "Input should be a valid number, unable to parse string as a number",
                "input": "z",
            },
            {"type": "int_parsing", "loc": ["query", "many", 1], "msg": INT, "input": "b"},
        ]
    }
    assert answer.hold.dropped


async def test_a_dependency_of_a_bad_dependency_does_not_run_but_the_others_do() -> None:
    ran: list[str] = []

    def good() -> None:
        ran.append("good")

    def bad(x: int) -> None:
        ran.append("bad")

    def above(bad: None = Depends(bad)) -> None:
        ran.append("above")

    async def handler(a: None = Depends(above), b: None = Depends(good)) -> None:
        ran.append("handler")

    assert ((await answer_of(handler)).status, ran) == (422, ["good"])


async def test_a_dependency_that_refuses_does_so_before_the_handlers_parameters_are_judged() -> None:
    def guard() -> None:
        raise HTTPException(401)

    async def handler(x: int, _: None = Depends(guard)) -> None: ...

    assert (await answer_of(handler)).status == 401


# What is injected by type.


async def test_request_tasks_and_pool_are_injected() -> None:
    seen: list[Any] = []

    async def handler(
        a: Request,
        b: BackgroundTasks,
        c: Pool,
        d: "BackgroundTasks",
        e: BackgroundTasks | None,
        f: Annotated[BackgroundTasks, "doc"],
    ) -> None:
        seen.extend([a.method, b, c, d, e, f])

    hold = (answer := await answer_of(handler)).hold
    assert (answer.error, seen) == (None, ["GET", hold, hold.pool, hold, hold, hold])


async def test_annotations_that_are_strings_are_resolved() -> None:
    answer = await answer_of(add_by_string, "/?word=hello")
    assert (answer.json, answer.hold.added) == ("GET", [(print, "hello"), (print, "from a dependency")])


async def test_without_anything_that_runs_tasks_the_error_says_what_to_do() -> None:
    async def handler(tasks: BackgroundTasks) -> None: ...

    answer = await answer_of(handler, **WITHOUT_HOLD)
    assert (answer.status, type(answer.error)) == (500, RuntimeError)
    assert "wrap it in AfterResponse" in str(answer.error)


# Dependencies.


async def test_a_shared_dependency_runs_once_per_request() -> None:
    calls: list[str] = []

    def base() -> int:
        calls.append("base")
        return len(calls)

    def left(x: int = Depends(base)) -> int:
        return x

    async def right(x: Annotated[int, Depends(base)]) -> int:
        return x

    def handler(
        a: int = Depends(left), b: int = Depends(right), c: int = Depends(base), d: int = Depends(base, use_cache=False)
    ) -> Any:
        return [a, b, c, d]

    app = App()
    app.get("/")(handler)
    assert (await call(app, "GET", "/")).json == [1, 1, 1, 2]
    assert (await call(app, "GET", "/")).json == [3, 3, 3, 4]


async def test_dependencies_may_be_classes_partials_methods_and_callables() -> None:
    class Page:
        def __init__(self, size: int = 10) -> None:
            self.size = size

    class Adder:
        def __init__(self, by: int) -> None:
            self.by = by

        def __call__(self, x: int) -> int:
            return self.by + x

        async def method(self, x: int) -> int:
            return self.by * x

    class Opener:
        async def __call__(self, x: int) -> AsyncIterator[int]:
            yield x

    class Awaited:
        async def __call__(self) -> str:
            return "awaited"

    async def power(x: int, y: int) -> Any:
        return x**y

    async def handler(
        page: Annotated[Page, Depends()],
        plus: int = Depends(Adder(1)),
        times: int = Depends(Adder(2).method),
        square: int = Depends(functools.partial(power, y=2)),
        opened: int = Depends(Opener()),
        awaited: str = Depends(Awaited()),
    ) -> Any:
        return [page.size, plus, times, square, opened, awaited]

    assert (await answer_of(handler, "/?x=3&size=7")).json == [7, 4, 6, 9, 3, "awaited"]


async def test_a_decorated_function_is_read_through_its_decorator() -> None:
    def decorated(func: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(func)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return func(*args, **kwargs)

        return wrapper

    @decorated
    async def handler(x: int) -> int:
        return x + 1

    assert (await answer_of(handler, "/?x=1")).json == 2


async def test_the_dependencies_of_a_route_run_first_and_in_order() -> None:
    ran: list[str] = []

    async def handler(_: None = Depends(lambda: ran.append("own"))) -> None:
        ran.append("handler")

    app = App()
    app.get("/", dependencies=[Depends(lambda: ran.append("1")), Depends(lambda: ran.append("2"))])(handler)
    await call(app, "GET", "/")
    assert ran == ["1", "2", "own", "handler"]


# Generators.


def recording(log: list[str], name: str, kind: str) -> Callable[..., Any]:
    """A generator dependency that notes when it is opened, failed and closed."""

    def sync() -> Iterator[str]:
        log.append(f"open {name}")
        try:
            yield name
        except Exception as error:
            log.append(f"{name} sees {error!r}")
            raise
        finally:
            log.append(f"close {name}")

    async def asynchronous() -> AsyncIterator[str]:
        log.append(f"open {name}")
        try:
            yield name
        except Exception as error:
            log.append(f"{name} sees {error!r}")
            raise
        finally:
            log.append(f"close {name}")

    return sync if kind == "sync" else asynchronous


@pytest.mark.parametrize("kinds", [("sync", "async"), ("async", "sync")])
async def test_generators_are_closed_in_reverse_after_the_response_was_sent(kinds: tuple[str, str]) -> None:
    log: list[str] = []

    async def stream() -> AsyncIterator[str]:
        log.append("first chunk")
        yield "a"
        log.append("last chunk")

    async def handler(
        a: str = Depends(recording(log, "a", kinds[0])), b: str = Depends(recording(log, "b", kinds[1]))
    ) -> Any:
        log.append("handler")
        return StreamingResponse(stream())

    assert (await answer_of(handler)).body == b"a"
    assert log == ["open a", "open b", "handler", "first chunk", "last chunk", "close b", "close a"]


@pytest.mark.parametrize("kinds", [("sync", "async"), ("async", "sync")])
async def test_what_the_handler_raises_is_thrown_into_the_generators_first(kinds: tuple[str, str]) -> None:
    log: list[str] = []

    async def handler(
        a: str = Depends(recording(log, "a", kinds[0])), b: str = Depends(recording(log, "b", kinds[1]))
    ) -> Any:
        raise HTTPException(418, "teapot")

    answer = await answer_of(handler)
    seen = "sees HTTPException('418: teapot')"
    assert log == ["open a", "open b", f"b {seen}", "close b", f"a {seen}", "close a"]
    assert (answer.status, answer.json, answer.hold.dropped) == (418, {"detail": "teapot"}, True)


@pytest.mark.parametrize("is_sync", [True, False])
async def test_a_generator_may_translate_an_exception(is_sync: bool) -> None:
    def translating() -> Iterator[None]:
        try:
            yield
        except KeyError as error:
            raise HTTPException(404, "no such user") from error

    async def translating_async() -> AsyncIterator[None]:
        try:
            yield
        except KeyError as error:
            raise HTTPException(404, "no such user") from error

    def handler(_: None = Depends(translating if is_sync else translating_async)) -> None:
        raise KeyError("x")

    answer = await answer_of(handler)
    assert (answer.status, answer.json, answer.error) == (404, {"detail": "no such user"}, None)


async def test_a_generator_that_swallows_the_exception_leaves_nothing_to_answer() -> None:
    def swallowing() -> Iterator[None]:
        try:
            yield
        except KeyError:
            pass

    def handler(_: None = Depends(swallowing)) -> None:
        raise KeyError("x")

    answer = await answer_of(handler)
    assert answer.status == 500
    assert str(answer.error).startswith(f"a dependency of handler ({__file__}:")
    assert str(answer.error).endswith(") swallowed its exception: there is nothing to answer")


async def test_an_exception_in_a_later_dependency_closes_the_earlier_one() -> None:
    log: list[str] = []

    def failing() -> None:
        raise HTTPException(403)

    async def handler(a: str = Depends(recording(log, "a", "sync")), b: None = Depends(failing)) -> None: ...

    assert (await answer_of(handler)).status == 403
    assert log == ["open a", "a sees HTTPException('403: Forbidden')", "close a"]


async def test_an_exception_while_closing_comes_too_late_to_be_answered() -> None:
    def failing() -> Iterator[None]:
        yield
        raise HTTPException(500, "too late")

    async def handler(_: None = Depends(failing)) -> str:
        return "done"

    answer = await answer_of(handler)
    assert (answer.status, answer.json, answer.hold.dropped) == (200, "done", False)
    assert "too late to answer" in str(answer.error)


# What is refused at registration.


def positional(x: int, /) -> None: ...
def variadic(*args: int) -> None: ...
def keywords(**kwargs: int) -> None: ...
def unsupported(x: dict[str, int]) -> None: ...
def unsupported_list(x: list[bytes]) -> None: ...
def two_types(x: int | str) -> None: ...
def list_in_path(p: list[int]) -> None: ...
def unresolved(x: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821
def generator() -> Iterator[int]:
    yield 1


def with_bad_dependency(x: Any = Depends(unsupported)) -> None: ...


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (positional, ["positional", "x: int", "by name"]),
        (variadic, ["variadic", "*args: int", "by name"]),
        (keywords, ["keywords", "**kwargs: int", "by name"]),
        (unsupported, ["unsupported", "x: dict[str, int]", "a query has str, int"]),
        (unsupported_list, ["unsupported_list", "x: list[bytes]", "a query has str, int"]),
        (two_types, ["two_types", "x: int | str", "a query has str, int"]),
        (list_in_path, ["list_in_path", "p: list[int]"]),
        (unresolved, ["unresolved", "Nowhere"]),
        (generator, ["generator", "StreamingResponse"]),
        (with_bad_dependency, ["unsupported", "x: dict[str, int]"]),
    ],
)
def test_what_cannot_be_filled_is_refused_and_named(handler: Callable[..., Any], words: list[str]) -> None:
    with pytest.raises(TypeError) as refused:
        App().get("/{p}")(handler)
    assert [word for word in words if word not in str(refused.value)] == []
