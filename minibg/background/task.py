"""What can be run: a function, its name, and its options.

`add_task` takes any function. `@task` is for those that want more than the defaults::

    @task(retry=Retry(attempts=3), timeout=10)
    def send_welcome_email(address: str) -> None: ...

    background_tasks.add_task(send_welcome_email, "a@example.org")
    background_tasks.add_task(send_welcome_email.using(delay=60), "a@example.org")

The rules of this file:

- A decorated function is still called as a function. Calling it runs it, here and now, with none of its options.
- Options never share a namespace with the function's arguments. SAQ and taskiq pass both in one call, so a function
  with a parameter named ``timeout`` cannot be given one. Here options are set on the function or by ``using``, which
  gives a copy, and every keyword of ``add_task`` belongs to the function. PEP 612 asks for the same: nothing may stand
  next to ``P.kwargs``.
- What can never run is refused in the handler, while there is still a response to change: coroutine objects, generator
  functions, things that cannot be called. Starlette finds out after the 200.
- Functions that live in a module under a name of their own are entered in `TASKS` when they are decorated, under their
  task name. So a name in a log or a `TaskResult` means one function: a second one that wants it is refused. It is the one
  global here that changes, and only at import.

Rejected: deriving sync or async from the return annotation (it may be missing or wrong), and options as keywords with
an underscore in front (they are keywords all the same).
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum, auto
from typing import Any, Generic, Literal, ParamSpec, TypedDict, TypeVar, Unpack, overload

from minibg.background.retry import Retry

P = ParamSpec("P")
R = TypeVar("R")

Priority = Literal["high", "normal"]

#: The decorated functions by their task names.
TASKS: "dict[str, Task[..., Any]]" = {}


#: What an option's value has to be, where it has to be more than its type.
RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("retry", lambda value: isinstance(value, Retry), "a Retry(...)"),
    ("timeout", lambda value: value > 0, "a number of seconds above zero"),
    ("priority", lambda value: value in ("high", "normal"), "'high' or 'normal'"),
    ("key", lambda value: isinstance(value, str) and value != "", "a string that is not empty"),
    ("delay", lambda value: value >= 0, "a number of seconds, zero or more"),
    ("run_at", lambda value: value.tzinfo is not None, "a datetime with a time zone"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a task is run. Raises ValueError for a value that makes no sense, and names it."""

    #: How it is tried again. None: it is not.
    retry: Retry | None = None
    #: Seconds an attempt may take. None: as long as it likes.
    timeout: float | None = None
    #: The lane of the queue.
    priority: Priority = "normal"
    #: At most one unfinished run of the task at a time has this key.
    key: str | None = None
    #: Whether a durable journal keeps its runs, if the pool has one.
    durable: bool = True
    #: Seconds between the response and the run.
    delay: float | None = None
    #: The time of the run: aware.
    run_at: datetime | None = None
    #: Whether it runs although the handler failed.
    always: bool = False

    def __post_init__(self) -> None:
        for name, makes_sense, meaning in RULES:
            value = getattr(self, name)
            if value is not None and not makes_sense(value):
                raise ValueError(f"{name}= is {meaning}, not {value!r}")
        if self.delay is not None and self.run_at is not None:
            raise ValueError("delay= and run_at= say the same thing: give one of them")


class TaskOptions(TypedDict, total=False):
    """The keywords of `task`."""

    retry: Retry | None
    timeout: float | None
    priority: Priority
    key: str | None
    durable: bool


class CallOptions(TaskOptions, total=False):
    """The keywords of `Task.using`: those of `task`, and those that only make sense for one call."""

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
    kind: "Kind" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", kind_of(self.function))
        # What functools.wraps does: documentation tools and debuggers see the function.
        copied: dict[str, object] = {name: getattr(self.function, name, None) for name in functools.WRAPPER_ASSIGNMENTS}
        self.__dict__.update(copied, __wrapped__=self.function)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def using(self, **changes: Unpack[CallOptions]) -> "Task[P, R]":
        """Give a copy with other options. Raises TypeError for an option that does not exist."""
        return replace(self, options=replace(self.options, **changes))


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(*, name: str | None = None, **options: Unpack[TaskOptions]) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def task(function: Any = None, /, *, name: str | None = None, **options: Unpack[TaskOptions]) -> Any:
    """Make a function a `Task`: ``@task``, ``@task(retry=..., timeout=...)``, or ``task(theirs)`` for one of others.

    The name is ``module.function`` unless given. Raises ValueError when another function has it already, TypeError
    for what cannot be a task.
    """
    if function is None:
        return lambda function: _register(function, name, Options(**options))
    return _register(function, name, Options(**options))


def _register(function: Callable[P, R], name: str | None, options: Options) -> Task[P, R]:
    kind_of(function)  # First: what cannot be run may have no name either.
    made = Task(function, name or name_of(function), options)
    if not has_own_name(function):
        return made
    holder = TASKS.setdefault(made.name, made)
    if _place(holder.function) != _place(function):
        raise ValueError(
            f"two functions want the task name {made.name!r}: {_place(holder.function)} and {_place(function)}"
        )
    if name is not None or holder.function is not function:
        # Decorated with its own words, or its module was loaded again: the newest holds the name.
        TASKS[made.name] = made
    return made


def _place(function: Callable[..., object]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def as_task(function: Callable[P, R]) -> Task[P, R]:
    """Give a function as a task, without entering it anywhere. Raises TypeError for what cannot be one."""
    kind_of(function)
    return function if isinstance(function, Task) else Task(function, name_of(function))


def has_own_name(function: object) -> bool:
    """Whether a function can be found again by its name: it is neither a lambda nor made inside another."""
    return inspect.isfunction(function) and "<" not in function.__qualname__


def innermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give what a partial is a partial of."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def name_of(function: Callable[..., object]) -> str:
    """Name a callable for logs and results: its task name, or ``module.qualified_name``."""
    function = innermost(function)
    if isinstance(function, Task):
        return function.name
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


class Kind(Enum):
    """How a callable is called."""

    #: Calling it gives a coroutine at once: on the loop.
    COROUTINE = auto()
    #: Calling it may block: in a thread.
    PLAIN = auto()


def kind_of(function: object) -> Kind:
    """Tell how a callable is called. Raises TypeError, with the culprit's name, for what cannot be run as a task."""
    if isinstance(function, Task):
        return function.kind
    if inspect.iscoroutine(function):
        name = function.__qualname__
        function.close()  # It will never be awaited; closing it keeps Python from warning of that.
        raise TypeError(f"a task is a function, not the coroutine it returns: add_task({name}, ...), not {name}(...)")
    if not callable(function):
        raise TypeError(f"a task is a function or another callable, not {function!r}")
    flags = _code_flags(function)
    if flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR):
        raise TypeError(f"{name_of(function)} is a generator function: calling it runs nothing")
    if flags & inspect.CO_COROUTINE or inspect.iscoroutinefunction(function):
        return Kind.COROUTINE
    return Kind.PLAIN


def _code_flags(function: Any) -> int:
    """Give the flags of the code that a call runs: through partials, tasks, bound methods and ``__call__``."""
    while isinstance(function := innermost(function), Task):
        function = function.function
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return code.co_flags if code is not None else 0
