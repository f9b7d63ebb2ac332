"""The arguments of a handler: values of the request, results of dependencies, and minibg's own
objects.

A signature is read once, at registration, and becomes a `Plan`: a flat list of steps in the order
they run. A step is a function and a reader for each of its parameters. Each step puts its result
into a slot, and a dependency that two functions share has one slot: that is how "once per request"
is kept. Nothing is looked up while a request runs. FastAPI walks a tree of dependencies during each
request instead.

The meaning of a parameter is decided in this order, as in FastAPI:

1. ``Depends(f)`` as its default or in ``Annotated[...]``: the result of f.
2. Annotated `Request`, `BackgroundTasks` or `Pool`: that object, also where ``| None`` is added.
3. Named in the path: that part of the path, converted.
4. Otherwise a query parameter. A ``list[...]`` takes every value of that name.

Annotations may be strings. A parameter that cannot be filled is refused with a TypeError that names
the handler, its file and line, the parameter, and what to write instead. So is a handler that does
not take a parameter of its path: FastAPI finds out at the first request, or never. One that takes
the `Request`, itself or in a dependency, may read it from ``path_params``.

While a request runs:

- Steps run in order. A step with a bad value does not run, nor does any step that needs it. The
  handler runs only when no value is bad; otherwise every bad value is reported at once
  (`RequestValidationError`).
- Sync functions run in the application's threads.
- Generators stay open until the response has been sent, and are closed in reverse order. An
  exception of the handler is thrown into them first.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, NoReturn, Union, get_args, get_origin
from uuid import UUID

from minibg.asgi import Scope
from minibg.background import BackgroundTasks, Pool
from minibg.web.exceptions import Problem, RequestValidationError, place_of
from minibg.web.request import Request

#: A handler or dependency.
Function = Callable[..., Any]

#: The value of a step that did not run, and of a parameter that could not be read.
INVALID: Any = object()
#: The texts that pydantic reads as a bool, without case.
BOOLEANS = dict.fromkeys(["true", "1", "on", "yes", "t", "y"], True)
BOOLEANS |= dict.fromkeys(["false", "0", "off", "no", "f", "n"], False)

#: How a value is read from text, and FastAPI's type and message for a text that cannot be read.
SCALARS: dict[object, tuple[Callable[[str], Any], str, str]] = {
    str: (str, "", ""),
    int: (int, "int_parsing", "Input should be a valid integer, unable to parse string as an integer"),
    float: (float, "float_parsing", "Input should be a valid number, unable to parse string as a number"),
    bool: (lambda t: BOOLEANS[t.lower()], "bool_parsing", "Input should be a valid boolean, unable to interpret input"),
    UUID: (UUID, "uuid_parsing", "Input should be a valid UUID"),
}


class Dependency(NamedTuple):
    """The mark that `Depends` puts on a parameter."""

    #: None means the parameter's own type.
    dependency: Function | None
    use_cache: bool


def Depends(dependency: Function | None = None, *, use_cache: bool = True) -> Any:  # noqa: N802 - FastAPI's
    """Mark a parameter as the result of ``dependency``, by default of the parameter's own type.

    ``dependency`` is a function, coroutine function, generator or async generator function, class,
    partial, or another callable; its parameters are filled as a handler's are. It is called once
    per request, or once per use without ``use_cache``. A generator is closed after the response has
    been sent and before the first task starts.
    """
    return Dependency(dependency, use_cache)


def hold_of(scope: Scope) -> BackgroundTasks:
    """Return the background tasks of a request or lifespan.

    Raises RuntimeError when no `AfterResponse` runs any.
    """
    if "minibg.background" not in scope:
        raise RuntimeError("nothing runs background tasks here: serve this with minibg, or wrap it in AfterResponse")
    hold: BackgroundTasks = scope["minibg.background"]
    return hold


class Resolution(NamedTuple):
    """One request on its way through a plan."""

    request: Request
    #: The open generators.
    stack: AsyncExitStack
    #: The result of each step that has run, by its slot.
    values: list[Any]
    problems: list[Problem]


#: Reads one argument. A bad one is added to the problems, and INVALID.
Read = Callable[[Resolution], Any]
#: Calls a step's function in its own way, with these arguments.
Call = Callable[[Resolution, dict[str, Any]], Awaitable[Any]]

#: The parameters that are filled by their type.
INJECTED: dict[type, Read] = {
    Request: lambda resolution: resolution.request,
    BackgroundTasks: lambda resolution: hold_of(resolution.request.scope),
    Pool: lambda resolution: hold_of(resolution.request.scope).pool,
}

#: The names that these parameters have in every tutorial, where their type may be forgotten.
USUAL = {"request": Request, "background_tasks": BackgroundTasks}


class Plan:
    """A handler with its dependencies, ready to run.

    ``path_names`` are the parameters of its path, ``dependencies`` the ones to run before its own.
    Raises TypeError for a signature that cannot be filled, and for a generator function.
    """

    def __init__(self, handler: Function, path_names: Iterable[str], dependencies: Iterable[Dependency]) -> None:
        if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
            raise TypeError(f"{place_of(handler)} is a generator: return a StreamingResponse of one instead")
        self._path_names = frozenset(path_names)
        #: The names and types of all parameters, of the handler and of its dependencies.
        self._taken: set[Any] = set()
        #: By the dependency, or by an object of its own for one that is not shared.
        self._slots: dict[object, int] = {}
        self._steps: list[tuple[Call, dict[str, Read]]] = []
        for mark in (*dependencies, Dependency(handler, use_cache=False)):
            self._slot(mark, handler)
        if (missing := self._path_names - self._taken) and Request not in self._taken:
            takes = ", ".join(inspect.signature(handler).parameters) or "nothing"
            how = f"it takes {takes}: add or rename a parameter, or take `request: Request`"
            raise TypeError(f"{place_of(handler)} does not take {', '.join(sorted(missing))} of its path; {how}")

    async def __call__(self, request: Request, stack: AsyncExitStack) -> Any:
        """Return the handler's result.

        Generators are closed with the stack. Raises RequestValidationError.
        """
        resolution = Resolution(request, stack, [], [])
        for call, readers in self._steps:
            arguments = {name: read(resolution) for name, read in readers.items()}
            if resolution.problems and len(resolution.values) == len(self._steps) - 1:  # The last step is the handler.
                raise RequestValidationError(resolution.problems)
            spoiled = resolution.problems and any(value is INVALID for value in arguments.values())
            resolution.values.append(INVALID if spoiled else await call(resolution, arguments))
        return resolution.values[-1]

    # --- at registration ---

    def _slot(self, mark: Dependency, own_type: Function) -> int:
        """Return the slot of a dependency.

        Its step is added behind the steps that it needs itself.
        """
        func = mark.dependency or own_type
        key = func if mark.use_cache else object()
        if key in self._slots:
            return self._slots[key]
        try:
            parameters = inspect.signature(func, eval_str=True).parameters
        except (NameError, ValueError) as error:
            raise TypeError(f"the signature of {place_of(func)} cannot be read: {error}") from error
        readers = {name: self._reader(func, parameter) for name, parameter in parameters.items()}
        self._steps.append((_call(func), readers))
        return self._slots.setdefault(key, len(self._steps) - 1)

    def _reader(self, func: Function, parameter: inspect.Parameter) -> Read:
        """Return where a parameter's value comes from, by the order in the essay."""
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            _refuse(func, parameter, "it cannot be passed by name")
        annotated = get_origin(parameter.annotation) is Annotated
        annotation, *marks = get_args(parameter.annotation) if annotated else [parameter.annotation]
        for mark in [parameter.default, *marks]:
            if isinstance(mark, Dependency):
                slot = self._slot(mark, annotation)
                return lambda resolution: resolution.values[slot]
            if type(mark).__module__.startswith("fastapi."):
                _refuse(func, parameter, "FastAPI's marks are not minibg's: import Depends from minibg, or use Request")
        if get_origin(annotation) in {Union, UnionType}:
            options = [option for option in get_args(annotation) if option is not NoneType]
            annotation = options[0] if len(options) == 1 else annotation
        self._taken |= {parameter.name, annotation}
        return INJECTED.get(annotation) or self._value(func, parameter, annotation)

    def _value(self, func: Function, parameter: inspect.Parameter, annotation: Any) -> Read:
        """Return the reader of a value, or of a list of values, in a request's path or query."""
        name, default, empty = parameter.name, parameter.default, parameter.empty
        location = "path" if name in self._path_names else "query"
        is_list = location == "query" and (annotation is list or get_origin(annotation) is list)
        kind = (get_args(annotation) or [str])[0] if is_list else annotation
        if kind is empty and location == "query":
            kind = USUAL.get(name, empty)
        if kind is not empty and kind not in SCALARS:
            _refuse(func, parameter, _instead(name, kind))
        convert, problem, message = SCALARS.get(kind, SCALARS[str])

        def read(resolution: Resolution) -> Any:
            request, loc, values = resolution.request, (location, name), []
            texts = [str(request.path_params[name])] if location == "path" else request.query_params.getlist(name)
            if not texts and default is not empty:
                # A copy: what a request does to its list is not the default of the next one.
                return list(default) if isinstance(default, list) else default
            bad: list[Problem] = [] if texts else [_problem(loc, "missing", "Field required", None)]
            for index, text in enumerate(texts if is_list else texts[-1:]):
                try:
                    values.append(convert(text))
                except (ValueError, KeyError):
                    bad.append(_problem((*loc, index) if is_list else loc, problem, message, text))
            resolution.problems.extend(bad)
            return INVALID if bad else values if is_list else values[0]

        return read


def _instead(parameter: str, kind: Any) -> str:
    """Return what to write instead of a parameter of this type."""
    name = getattr(kind, "__name__", str(kind))
    if name in {injected.__name__ for injected in INJECTED}:
        return f"write `{parameter}: {name}`, and import {name} from minibg"
    body = f"{name}(**await request.json())" if getattr(kind, "__annotations__", None) else "await request.json()"
    return f"a query has str, int, float, bool, UUID or lists of these; for a body take `request: Request`, `{body}`"


def _problem(loc: tuple[object, ...], kind: str, message: str, text: str | None) -> Problem:
    return {"type": kind, "loc": loc, "msg": message, "input": text}


def _call(func: Function) -> Call:
    """Return how a function is called: awaited, in a thread, or entered and closed later."""
    target = inspect.unwrap(func)
    if not inspect.isroutine(target) and not isinstance(target, type | partial):
        target = target.__call__
    if inspect.isasyncgenfunction(target):
        return lambda at, arguments: at.stack.enter_async_context(asynccontextmanager(func)(**arguments))
    if inspect.isgeneratorfunction(target):
        return lambda at, arguments: _enter_in_threads(at, contextmanager(func)(**arguments))
    if inspect.iscoroutinefunction(target):
        return lambda _, arguments: func(**arguments)
    return lambda at, arguments: at.request.threads.run(func, **arguments)


async def _enter_in_threads(resolution: Resolution, context: AbstractContextManager[Any]) -> Any:
    """Enter a sync context manager in a thread, and have it exited in one when the stack is closed."""
    run = resolution.request.threads.run
    value = await run(context.__enter__)
    resolution.stack.push_async_exit(partial(run, context.__exit__))
    return value


def _refuse(func: Function, parameter: inspect.Parameter, why: str) -> NoReturn:
    raise TypeError(f"{place_of(func)}: the parameter `{parameter}` cannot be filled: {why}")
