"""A task: a function with a name and options.

`add_task` takes any function. `@task` is for functions that need more than the defaults::

    @task(retry=Retry(attempts=3), timeout=10)
    def send_welcome_email(address: str) -> None: ...

    background_tasks.add_task(send_welcome_email, "a@example.org")
    background_tasks.add_task(send_welcome_email.using(delay=60), "a@example.org")

The rules of this file:

- A decorated function is still called as a function. [options.3] The call runs at once, without the
  options.
- Options never share a namespace with the function's arguments. [options.1] SAQ and taskiq take
  both in one call, so a function with a parameter named ``timeout`` cannot be given one. In minibg
  options are set on the function or by ``using``, which returns a copy [options.2], and every
  keyword of ``add_task`` belongs to the function. PEP 612 asks for the same: no parameter may
  follow ``P.kwargs``.
- An object that can never run is refused in the handler, which can still answer with an error: a
  coroutine object, a generator function, an object that is not callable. [adding.4] In Starlette
  the error comes after the 200.
- Options are checked and converted where they are given. The queue finds only floats for seconds.
- Functions at the top of a module are entered in `TASKS` when they are decorated, under their task
  name. A name in a log, a `TaskResult` or a journal identifies one function, so a second function
  with the same name is refused. `TASKS` is the one global of the folder that changes, and only at
  import.

Rejected: deriving sync or async from the return annotation (it may be missing or wrong), and
options as keywords with a leading underscore (a function may have such a parameter too).
"""

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum, auto
from pathlib import Path
from types import MethodType
from typing import Any, Generic, Literal, ParamSpec, TypedDict, TypeVar, Unpack, overload

from minibg.background.clock import seconds
from minibg.background.retry import Retry

P = ParamSpec("P")
R = TypeVar("R")

Priority = Literal["high", "normal"]

#: The decorated functions by their task names.
TASKS: "dict[str, Task[..., Any]]" = {}

#: The allowed values of an option whose type is too wide: a check, and its description for the
#: error.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "retry": (lambda value: isinstance(value, Retry), "a Retry(...)"),
    "priority": (lambda value: value in ("high", "normal"), "'high' or 'normal'"),
    "key": (lambda value: isinstance(value, str) and value != "", "a string that is not empty"),
    "run_at": (
        lambda value: isinstance(value, datetime) and value.utcoffset() is not None,
        "a datetime with a time zone",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a task. Raises a ValueError that names the option for an invalid value."""

    #: The rule for retries; None: one attempt.
    retry: Retry | None = None
    #: Seconds that an attempt may take; None: no limit.
    timeout: float | None = None
    #: The lane of the queue: "high" is taken first.
    priority: Priority = "normal"
    #: At most one unfinished run of the task has this key; adding a second returns the first (see
    #: `admission.py`).
    key: str | None = None
    #: Whether its runs are kept in the pool's journal, if there is one.
    durable: bool = True
    #: Seconds between the end of the response and the run.
    delay: float | None = None
    #: The time of the run: an aware datetime.
    run_at: datetime | None = None
    #: Whether it runs although its response was never produced.
    always: bool = False

    def __post_init__(self) -> None:
        for name, (makes_sense, meaning) in RULES.items():
            value = getattr(self, name)
            if value is not None and not makes_sense(value):
                raise ValueError(f"{name}= is {meaning}, not {value!r}")
        for name, positive in (("timeout", True), ("delay", False)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, seconds(f"{name}=", value, positive=positive))
        if self.delay is not None and self.run_at is not None:
            raise ValueError("delay= and run_at= mean the same: set one of them")


class TaskOptions(TypedDict, total=False):
    """The keywords of `task`."""

    retry: Retry | None
    timeout: float | None
    priority: Priority
    key: str | None
    durable: bool


class CallOptions(TaskOptions, total=False):
    """The keywords of `Task.using`: the options of `task`, and the options of a single call."""

    delay: float | None
    run_at: datetime | None
    always: bool


DEFAULTS = Options()


@dataclass(frozen=True, eq=False)
class Task(Generic[P, R]):
    """A function with a name and options. Made by `task`; called like the function itself."""

    function: Callable[P, R]
    name: str
    options: Options = field(default=DEFAULTS)
    kind: "CallKind" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", kind_of(self.function))
        # As functools.wraps does: documentation tools and debuggers see the function.
        copied: dict[str, object] = {name: getattr(self.function, name, None) for name in functools.WRAPPER_ASSIGNMENTS}
        self.__dict__.update(copied, __wrapped__=self.function)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> "Task[..., R]":
        """Bind a decorated method to its instance, as a function would be."""
        return self if instance is None else replace(self, function=MethodType(self.function, instance))

    def using(self, **changes: Unpack[CallOptions]) -> "Task[P, R]":
        """Return a copy with other options: the options of `task`, and ``delay`` (seconds),
        ``run_at`` (datetime), ``always``.

        Raises TypeError for an unknown option, ValueError for an invalid value.
        """
        return replace(self, options=replace(self.options, **changes))


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(*, name: str | None = None, **options: Unpack[TaskOptions]) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def task(function: Any = None, /, *, name: str | None = None, **options: Unpack[TaskOptions]) -> Any:
    """Make a function a `Task`: ``@task``, ``@task(retry=..., timeout=...)``, or
    ``task(function_of_a_library)``.

    - ``name``: the task's name; ``module.function`` by default.
    - ``retry``: a `Retry`; without one the task has one attempt.
    - ``timeout``: seconds that an attempt may take; no limit by default.
    - ``priority``: ``"high"`` or ``"normal"``, the default.
    - ``key``: at most one unfinished run of the task has this key; usually set by
      ``using(key=...)``.
    - ``durable``: False keeps its runs out of the pool's journal.

    Raises ValueError when another function has the name already or an option is invalid, TypeError
    for an object that cannot be run.
    """
    if function is None:
        return lambda function: _register(function, name, Options(**options))
    return _register(function, name, Options(**options))


def _register(function: Callable[P, R], name: str | None, options: Options) -> Task[P, R]:
    kind_of(function)  # First: an object that cannot be run may have no name either.
    made = Task(function, name or name_of(function), options)
    if not has_own_name(function):
        return made
    registered = TASKS.setdefault(made.name, made)
    ours, theirs = _qualified_name(function), _qualified_name(registered.function)
    if ours != theirs:
        raise ValueError(f"two functions have the task name {made.name!r}: {theirs} and {ours}")
    if name is not None or registered.function is not function:
        # The function was decorated again with its own options, or its module was reloaded: the
        # newest has the name.
        TASKS[made.name] = made
    return made


def _qualified_name(function: Any) -> str:
    return f"{_importable(function.__module__)}.{function.__qualname__}"


def _importable(module: str) -> str:
    """Return the name under which a module can be imported, also for a script that runs as
    ``__main__``.

    A script that calls ``run("shop:app")`` is imported a second time, as ``shop``: its tasks have
    one name.
    """
    if module != "__main__":
        return module
    main: Any = sys.modules[module]
    if main.__spec__ is not None:  # python -m
        return str(main.__spec__.name)
    return Path(main.__file__).stem if hasattr(main, "__file__") else module


def as_task(function: Callable[P, R]) -> Task[P, R]:
    """Return a function as a task, without entering it in `TASKS`. Raises TypeError for a callable
    that cannot be run as a task.
    """
    kind_of(function)
    return function if isinstance(function, Task) else Task(function, name_of(function))


def has_own_name(function: object) -> bool:
    """Return whether a function can be found by its name. A lambda and a function made inside
    another function cannot.
    """
    return inspect.isfunction(function) and "<" not in function.__qualname__


def innermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the callable inside any number of partials."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def name_of(function: Callable[..., object]) -> str:
    """Return the name of a callable for logs and records: its task name, or
    ``module.qualified_name``.
    """
    function = innermost(function)
    if isinstance(function, Task):
        return function.name
    named = function if hasattr(function, "__qualname__") else type(function)
    return _qualified_name(named)


class CallKind(Enum):
    """Where a callable is called."""

    #: On the event loop: calling it returns a coroutine at once.
    COROUTINE = auto()
    #: In a thread: calling it may block.
    PLAIN = auto()


def kind_of(function: object) -> CallKind:
    """Return where a callable is called. Raises a TypeError that names the object if it cannot be
    run as a task.
    """
    if isinstance(function, Task):
        return function.kind
    if inspect.iscoroutine(function):
        name = function.__qualname__
        function.close()  # Closed, because Python warns of a coroutine that was never awaited.
        raise TypeError(f"a task is a function, not the coroutine it returns: add_task({name}, ...), not {name}(...)")
    if not callable(function):
        raise TypeError(f"a task is a function or another callable, not {function!r}")
    flags = _code_flags(function)
    if flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR):
        raise TypeError(f"{name_of(function)} is a generator function: calling it runs nothing")
    if flags & inspect.CO_COROUTINE or inspect.iscoroutinefunction(function):
        return CallKind.COROUTINE
    return CallKind.PLAIN


def _code_flags(function: Any) -> int:
    """Return the flags of the code object that a call runs, found through partials, tasks, bound
    methods and ``__call__``.
    """
    while isinstance(function := innermost(function), Task):
        function = function.function
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return code.co_flags if code is not None else 0
