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
from types import NoneType, UnionType
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin
from uuid import UUID

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


@dataclass(frozen=True, slots=True)
class Dependency:
    """What `Depends` marks a parameter with."""

    #: None means the parameter's own type.
    dependency: Callable[..., Any] | None
    use_cache: bool


def Depends(dependency: Callable[..., Any] | None = None, *, use_cache: bool = True) -> Any:  # noqa: N802 - FastAPI's name
    """Fill this parameter with what `dependency` gives: once per request, or once per use without `use_cache`."""
    return Dependency(dependency, use_cache)


def hold_of(request: Request) -> BackgroundTasks:
    """The background tasks of a request. Raises RuntimeError when nothing would run them."""
    hold = request.scope.get("minibg.background")
    if hold is None:
        raise RuntimeError(
            "nothing runs background tasks here: serve the application with minibg, or wrap it in AfterResponse"
        )
    tasks: BackgroundTasks = hold
    return tasks


#: What is filled in by type.
INJECTED: dict[object, Read] = {
    Request: lambda request, _values, _problems: request,
    BackgroundTasks: lambda request, _values, _problems: hold_of(request),
    Pool: lambda request, _values, _problems: hold_of(request).pool,
}

#: What pydantic takes for a bool, without case.
BOOLEANS = dict.fromkeys(("true", "1", "on", "yes", "t", "y"), True) | dict.fromkeys(
    ("false", "0", "off", "no", "f", "n"), False
)


@dataclass(frozen=True, slots=True)
class Scalar:
    """How one value is read from text. Raises ValueError or KeyError when it cannot be."""

    convert: Callable[[str], Any]
    #: FastAPI's words for a text that is none.
    type: str = ""
    message: str = ""

    def read(self, text: str, place: tuple[str | int, ...], problems: list[Problem]) -> Any:
        try:
            return self.convert(text)
        except (ValueError, KeyError):
            problems.append({"type": self.type, "loc": place, "msg": self.message, "input": text})
            return INVALID


SCALARS: dict[object, Scalar] = {
    str: Scalar(str),
    int: Scalar(int, "int_parsing", "Input should be a valid integer, unable to parse string as an integer"),
    float: Scalar(
        float, "float_parsing", "Input should be a valid number, unable to parse string as a number"
    ),
    bool: Scalar(
        lambda text: BOOLEANS[text.lower()],
        "bool_parsing",
        "Input should be a valid boolean, unable to interpret input",
    ),
    UUID: Scalar(UUID, "uuid_parsing", "Input should be a valid UUID"),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One function to call, and what to call it with."""

    call: Call
    arguments: dict[str, Read]


class Plan:
    """A handler with its dependencies, ready to run."""

    __slots__ = ("_handler", "_path_names", "_slots", "_steps")

    def __init__(
        self, handler: Callable[..., Any], path_names: Iterable[str], dependencies: Iterable[Dependency]
    ) -> None:
        if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
            raise TypeError(f"{_name(handler)} is a generator: return a StreamingResponse of one instead")
        self._path_names = frozenset(path_names)
        self._slots: dict[Callable[..., Any], int] = {}
        self._steps: list[Step] = []
        for dependency in dependencies:
            if dependency.dependency is None:
                raise TypeError(f"{_name(handler)}: Depends() in dependencies= needs a function")
            self._slot(dependency.dependency, dependency.use_cache)
        self._handler = self._step(handler)

    async def __call__(self, request: Request, stack: AsyncExitStack) -> Any:
        """What the handler returns. Generators are closed with the stack."""
        values: list[Any] = []
        problems: list[Problem] = []
        for step in self._steps:
            arguments = {name: read(request, values, problems) for name, read in step.arguments.items()}
            if any(value is INVALID for value in arguments.values()):
                values.append(INVALID)
            else:
                values.append(await step.call(request, stack, arguments))
        arguments = {name: read(request, values, problems) for name, read in self._handler.arguments.items()}
        if problems:
            raise RequestValidationError(problems)
        return await self._handler.call(request, stack, arguments)

    # What follows happens at registration.

    def _slot(self, func: Callable[..., Any], use_cache: bool) -> int:
        """The slot of a dependency, after those that it needs itself."""
        if use_cache and func in self._slots:
            return self._slots[func]
        self._steps.append(self._step(func))
        return self._slots.setdefault(func, len(self._steps) - 1) if use_cache else len(self._steps) - 1

    def _step(self, func: Callable[..., Any]) -> Step:
        try:
            parameters = inspect.signature(func, eval_str=True).parameters.values()
        except (NameError, ValueError) as error:
            raise TypeError(f"the signature of {_name(func)} cannot be read: {error}") from error
        return Step(_call(func), {parameter.name: self._read(func, parameter) for parameter in parameters})

    def _read(self, func: Callable[..., Any], parameter: inspect.Parameter) -> Read:
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            _refuse(func, parameter, "it cannot be passed by name")
        annotation, marks = parameter.annotation, [parameter.default]
        if get_origin(annotation) is Annotated:
            annotation, *extras = get_args(annotation)
            marks += extras
        for mark in marks:
            if isinstance(mark, Dependency):
                slot = self._slot(mark.dependency or annotation, mark.use_cache)
                return lambda _request, values, _problems: values[slot]
        if get_origin(annotation) in {Union, UnionType}:
            annotation, *more = [option for option in get_args(annotation) if option is not NoneType]
            if more:
                _refuse(func, parameter, "a value has one type, or that type and None")
        for cls, read in INJECTED.items():
            if annotation is cls:
                return read
        return self._value(func, parameter, annotation)

    def _value(self, func: Callable[..., Any], parameter: inspect.Parameter, annotation: Any) -> Read:
        """A reader of what the request says: in its path or in its query."""
        name, default = parameter.name, parameter.default
        many = annotation is list or get_origin(annotation) is list
        inner = (get_args(annotation) or (str,))[0] if many else annotation
        scalar = SCALARS.get(str if inner is inspect.Parameter.empty else inner)
        if scalar is None:
            _refuse(
                func,
                parameter,
                "it is no str, int, float, bool, UUID or list of them, and nothing minibg knows",
            )
        if name in self._path_names:
            if many:
                _refuse(func, parameter, "a part of the path is one value")
            return lambda request, _values, problems: scalar.read(
                str(request.path_params[name]), ("path", name), problems
            )
        if many:
            return _every(name, scalar, default)

        def read(request: Request, _values: list[Any], problems: list[Problem]) -> Any:
            text = request.query_params.get(name)
            if text is None:
                return _default(name, default, problems)
            return scalar.read(text, ("query", name), problems)

        return read


def _every(name: str, scalar: Scalar, default: Any) -> Read:
    """A reader of every query parameter of that name."""

    def read(request: Request, _values: list[Any], problems: list[Problem]) -> Any:
        texts = request.query_params.getlist(name)
        if not texts:
            return _default(name, default, problems)
        items = [scalar.read(text, ("query", name, index), problems) for index, text in enumerate(texts)]
        return INVALID if any(item is INVALID for item in items) else items

    return read


def _default(name: str, default: Any, problems: list[Problem]) -> Any:
    if default is not inspect.Parameter.empty:
        return (
            list(default) if isinstance(default, list) else default
        )  # a request must not change the next one's
    problems.append({"type": "missing", "loc": ("query", name), "msg": "Field required", "input": None})
    return INVALID


def _call(func: Callable[..., Any]) -> Call:
    """How a function is called: awaited, in a thread, or entered and closed later."""
    target: Any = inspect.unwrap(func) if inspect.isroutine(func) else func
    while hasattr(target, "func"):  # functools.partial
        target = target.func
    if not inspect.isroutine(target) and not inspect.isclass(target):
        target = type(target).__call__
    if inspect.isasyncgenfunction(target):
        opened = asynccontextmanager(func)
        return lambda _request, stack, arguments: stack.enter_async_context(opened(**arguments))
    if inspect.isgeneratorfunction(target):
        opened_in_thread = contextmanager(func)
        return lambda request, stack, arguments: stack.enter_async_context(
            _in_threads(request.threads, opened_in_thread(**arguments))
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
