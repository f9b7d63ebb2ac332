"""What a handler's parameters are filled with: values of the request, dependencies, and minibg's own objects.

A signature is read once, at registration, and becomes a `Plan`: a flat list of steps in the order they run. A step is
a function and, for each of its parameters, a reader. Steps put their values into slots; a dependency that two
functions share has one slot, and that is how "once per request" is kept: nothing is looked up while a request runs.

What a parameter means is decided in this order, as in FastAPI:

1. ``Depends(f)`` as its default or in ``Annotated[...]``: what f gives.
2. Annotated `Request`, `BackgroundTasks` or `Pool`: that object, also where ``| None`` is added.
3. Named in the path: that part of the path, converted.
4. Anything else: a query parameter; a ``list[...]`` takes every one of that name.

Annotations may be strings. What cannot be filled is refused with a TypeError that names handler, parameter and type.

The rules while a request runs: steps run in order; a step whose values are bad does not run, nor does any that needs
it, and the handler runs only when nothing is bad: then all that is bad is said at once (`RequestValidationError`).
Generators stay open until the response has been sent, and are closed in reverse; what the handler raises is thrown into
them first. Sync functions run in the application's threads.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin
from uuid import UUID

from minibg.asgi import Scope
from minibg.background import BackgroundTasks, Pool
from minibg.web.exceptions import Problem, RequestValidationError
from minibg.web.request import Request
from minibg.web.threads import Threads

#: Reads one argument: the request, the slots filled so far, and where to put what is wrong with it.
Read = Callable[[Request, list[Any], list[Problem]], Any]
#: Calls a step's function in its own way, with these arguments.
Call = Callable[[Request, AsyncExitStack, dict[str, Any]], Awaitable[Any]]

#: In the place of a value that could not be read.
INVALID: Any = object()
#: What pydantic takes for a bool, without case.
BOOLEANS = {"true": True, "1": True, "on": True, "yes": True, "t": True, "y": True} | dict.fromkeys(
    ["false", "0", "off", "no", "f", "n"], False
)


def _to_bool(text: str) -> bool:
    return BOOLEANS[text.lower()]


#: How a value is read from text, and FastAPI's words for a text that is none.
SCALARS: dict[object, tuple[Callable[[str], Any], str, str]] = {
    str: (str, "", ""),
    int: (int, "int_parsing", "Input should be a valid integer, unable to parse string as an integer"),
    float: (float, "float_parsing", "Input should be a valid number, unable to parse string as a number"),
    bool: (_to_bool, "bool_parsing", "Input should be a valid boolean, unable to interpret input"),
    UUID: (UUID, "uuid_parsing", "Input should be a valid UUID"),
}


@dataclass(frozen=True, slots=True)
class Dependency:
    """What `Depends` marks a parameter with."""

    #: None means the parameter's own type.
    dependency: Callable[..., Any] | None
    use_cache: bool


def Depends(dependency: Callable[..., Any] | None = None, *, use_cache: bool = True) -> Any:  # noqa: N802 - FastAPI's
    """Fill this parameter with what `dependency` gives: once per request, or once per use without `use_cache`."""
    return Dependency(dependency, use_cache)


def hold_of(scope: Scope) -> BackgroundTasks:
    """The background tasks of a request or lifespan. Raises RuntimeError when nothing would run them."""
    if "minibg.background" not in scope:
        raise RuntimeError("nothing runs background tasks here: serve this with minibg, or wrap it in AfterResponse")
    hold: BackgroundTasks = scope["minibg.background"]
    return hold


#: What is filled in by type.
INJECTED: dict[object, Read] = {
    Request: lambda request, *_: request,
    BackgroundTasks: lambda request, *_: hold_of(request.scope),
    Pool: lambda request, *_: hold_of(request.scope).pool,
}


class Plan:
    """A handler with its dependencies, ready to run."""

    def __init__(
        self, handler: Callable[..., Any], path_names: Iterable[str], dependencies: Iterable[Dependency]
    ) -> None:
        if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
            raise TypeError(f"{_name(handler)} is a generator: return a StreamingResponse of one instead")
        self._path_names = frozenset(path_names)
        self._slots: dict[Callable[..., Any], int] = {}
        self._steps: list[tuple[Call, dict[str, Read]]] = []
        for mark in dependencies:
            self._slot(mark, handler)
        self._steps.append(self._step(handler))

    async def __call__(self, request: Request, stack: AsyncExitStack) -> Any:
        """What the handler returns. Generators are closed with the stack."""
        values: list[Any] = []
        problems: list[Problem] = []
        for call, readers in self._steps:
            arguments = {name: read(request, values, problems) for name, read in readers.items()}
            if problems and len(values) == len(self._steps) - 1:
                raise RequestValidationError(problems)
            spoiled = problems and any(value is INVALID for value in arguments.values())
            values.append(INVALID if spoiled else await call(request, stack, arguments))
        return values[-1]

    # What follows happens at registration.

    def _slot(self, mark: Dependency, own_type: Callable[..., Any]) -> int:
        """The slot of a dependency; its step comes after those that it needs itself."""
        func = mark.dependency or own_type
        if mark.use_cache and func in self._slots:
            return self._slots[func]
        self._steps.append(self._step(func))
        if mark.use_cache:
            self._slots[func] = len(self._steps) - 1
        return len(self._steps) - 1

    def _step(self, func: Callable[..., Any]) -> tuple[Call, dict[str, Read]]:
        try:
            parameters = inspect.signature(func, eval_str=True).parameters
        except (NameError, ValueError) as error:
            raise TypeError(f"the signature of {_name(func)} cannot be read: {error}") from error
        return _call(func), {name: self._read(func, parameter) for name, parameter in parameters.items()}

    def _read(self, func: Callable[..., Any], parameter: inspect.Parameter) -> Read:
        """Where a parameter's value comes from, by the rules above."""
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            _refuse(func, parameter, "it cannot be passed by name")
        annotation, marks = parameter.annotation, [parameter.default]
        if get_origin(annotation) is Annotated:
            annotation, *extras = get_args(annotation)
            marks += extras
        for mark in marks:
            if isinstance(mark, Dependency):
                slot = self._slot(mark, annotation)
                return lambda _request, values, _problems: values[slot]
        if get_origin(annotation) in {Union, UnionType}:
            options = [option for option in get_args(annotation) if option is not NoneType]
            annotation = options[0] if len(options) == 1 else annotation
        injected = [read for cls, read in INJECTED.items() if cls is annotation]
        return injected[0] if injected else self._value(func, parameter, annotation)

    def _value(self, func: Callable[..., Any], parameter: inspect.Parameter, annotation: Any) -> Read:
        """A reader of what the request says, in its path or in its query."""
        name, default, empty = parameter.name, parameter.default, parameter.empty
        place = "path" if name in self._path_names else "query"
        many = place == "query" and (annotation is list or get_origin(annotation) is list)
        kind = (get_args(annotation) or [str])[0] if many else annotation
        if kind is not empty and kind not in SCALARS:
            _refuse(func, parameter, "it is no str, int, float, bool, UUID or list of these, and nothing minibg knows")
        convert, kind_of_problem, message = SCALARS.get(kind, SCALARS[str])

        def read(request: Request, _values: list[Any], problems: list[Problem]) -> Any:
            texts = [str(request.path_params[name])] if place == "path" else request.query_params.getlist(name)
            if not texts and default is not empty:
                return list(default) if isinstance(default, list) else default  # no request changes the next one's
            if not texts:
                problems.append({"type": "missing", "loc": (place, name), "msg": "Field required", "input": None})
                return INVALID
            values, problems_before = [], len(problems)
            for index, text in enumerate(texts if many else texts[-1:]):
                try:
                    values.append(convert(text))
                except (ValueError, KeyError):
                    loc = (place, name, index) if many else (place, name)
                    problems.append({"type": kind_of_problem, "loc": loc, "msg": message, "input": text})
            if len(problems) > problems_before:
                return INVALID
            return values if many else values[0]

        return read


def _call(func: Callable[..., Any]) -> Call:
    """How a function is called: awaited, in a thread, or entered and closed later."""
    target = inspect.unwrap(func)
    if not inspect.isroutine(target) and not isinstance(target, type | partial):
        target = target.__call__
    if inspect.isasyncgenfunction(target):
        opened = asynccontextmanager(func)
        return lambda _request, stack, arguments: stack.enter_async_context(opened(**arguments))
    if inspect.isgeneratorfunction(target):
        entered = contextmanager(func)
        return lambda request, stack, arguments: stack.enter_async_context(
            _in_threads(request.threads, entered(**arguments))
        )
    if inspect.iscoroutinefunction(target):
        return lambda _request, _stack, arguments: func(**arguments)
    return lambda request, _stack, arguments: request.threads.run(func, **arguments)


@asynccontextmanager
async def _in_threads(threads: Threads, context: AbstractContextManager[Any]) -> AsyncIterator[Any]:
    """A sync generator, opened and closed in threads."""
    value = await threads.run(context.__enter__)
    try:
        yield value
    except BaseException as error:
        if not await threads.run(context.__exit__, type(error), error, error.__traceback__):
            raise
    else:
        await threads.run(context.__exit__, None, None, None)


def _refuse(func: Callable[..., Any], parameter: inspect.Parameter, why: str) -> NoReturn:
    raise TypeError(f"{_name(func)}: the parameter `{parameter}` cannot be filled: {why}")


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__qualname__", repr(func))
