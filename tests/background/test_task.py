"""What can be run as a task, how it is called, and what it is named."""

import functools
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, tzinfo
from typing import Any

import pytest

from minibg.background import BackgroundTasks, Pool, Retry, Task, task
from minibg.background.task import TASKS, CallKind, as_task, has_own_name, kind_of, name_of


def plain(address: str) -> str:
    """Send."""
    return address.upper()


async def coroutine(address: str) -> str:
    return address.upper()


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


class Mailer:
    def send(self, address: str) -> str:
        return address

    async def send_async(self, address: str) -> str:
        return address

    def stream(self) -> Iterator[int]:
        yield 1

    @staticmethod
    async def static() -> None: ...

    @classmethod
    async def of_class(cls) -> None: ...


class PlainCallable:
    def __call__(self) -> int:
        return 1


class AsyncCallable:
    async def __call__(self) -> int:
        return 1


class GeneratorCallable:
    def __call__(self) -> Iterator[int]:
        yield 1


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (plain, CallKind.PLAIN),
        (coroutine, CallKind.COROUTINE),
        (functools.partial(plain, "a"), CallKind.PLAIN),
        (functools.partial(coroutine, "a"), CallKind.COROUTINE),
        (functools.partial(functools.partial(coroutine), "a"), CallKind.COROUTINE),
        (Mailer().send, CallKind.PLAIN),
        (Mailer().send_async, CallKind.COROUTINE),
        (Mailer.static, CallKind.COROUTINE),
        (Mailer.of_class, CallKind.COROUTINE),
        (PlainCallable(), CallKind.PLAIN),
        (AsyncCallable(), CallKind.COROUTINE),
        (functools.partial(AsyncCallable()), CallKind.COROUTINE),
        (lambda: coroutine("a"), CallKind.PLAIN),
        (print, CallKind.PLAIN),
        (dict, CallKind.PLAIN),
        (Mailer, CallKind.PLAIN),
        (task(coroutine), CallKind.COROUTINE),
        (task(plain).using(timeout=1), CallKind.PLAIN),
        (functools.partial(task(coroutine), "a"), CallKind.COROUTINE),
    ],
)
def test_where_a_callable_is_called(function: Any, kind: CallKind) -> None:
    assert kind_of(function) is kind


@pytest.mark.parametrize("made_by", [kind_of, task, as_task])
def test_a_coroutine_object_is_refused_and_closed(made_by: Any) -> None:
    """Were it not closed, Python would warn that it was never awaited, and the test would fail."""
    with pytest.raises(TypeError, match=re.escape("add_task(coroutine, ...), not coroutine(...)")):
        made_by(coroutine("a"))


@pytest.mark.parametrize(
    "function", [generator, async_generator, functools.partial(generator), Mailer().stream, GeneratorCallable()]
)
def test_a_generator_function_is_refused(function: Any) -> None:
    with pytest.raises(TypeError, match="is a generator function: calling it runs nothing"):
        kind_of(function)


@pytest.mark.parametrize("thing", [None, 3, "send", ["send"]])
def test_an_object_that_cannot_be_called_is_refused_with_its_name(thing: Any) -> None:
    with pytest.raises(TypeError, match=f"not {re.escape(repr(thing))}"):
        kind_of(thing)


@pytest.mark.parametrize("culprit", [lambda: coroutine("a"), lambda: generator, lambda: async_generator, lambda: None])
async def test_a_callable_that_can_never_run_is_refused_in_the_handler(culprit: Any) -> None:
    async with Pool() as pool:
        hold = BackgroundTasks(pool)
        with pytest.raises(TypeError):
            pool.enqueue(culprit())
        with pytest.raises(TypeError):
            hold.add_task(culprit())
        assert (len(hold), pool.statistics().slots_taken) == (0, 0)


def test_a_decorated_function_is_still_called_as_a_function() -> None:
    shout = task(retry=Retry(), timeout=1)(plain)
    assert shout("a") == "A"
    assert (shout.__name__, shout.__doc__, shout.__wrapped__) == ("plain", "Send.", plain)  # type: ignore[attr-defined]


def test_options_are_set_on_the_function_or_by_using_which_returns_a_copy() -> None:
    made = task(plain)
    copy = made.using(timeout=3, priority="high").using(delay=60)
    assert (copy.function, copy.name) == (made.function, made.name)
    assert (copy.options.timeout, copy.options.priority, copy.options.delay) == (3, "high", 60)
    assert (made.options.timeout, made.options.priority, made.options.delay) == (None, "normal", None)


def test_an_option_that_does_not_exist_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        task(plain).using(retries=3)  # type: ignore[call-arg]


class Nowhere(tzinfo):
    """A time zone that knows no offset: a datetime in it is naive all the same."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> None:
        return None


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"retry": 3}, "retry"),
        ({"timeout": 0}, "timeout"),
        ({"priority": "low"}, "priority"),
        ({"key": ""}, "key"),
        ({"key": 3}, "key"),
        ({"delay": -1}, "delay"),
        ({"run_at": datetime(2026, 1, 1)}, "run_at"),
        ({"run_at": datetime(2026, 1, 1, tzinfo=Nowhere())}, "run_at"),
        ({"delay": 1, "run_at": datetime(2026, 1, 1, tzinfo=UTC)}, "delay"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}="):
        task(plain).using(**options)


def test_names() -> None:
    module = __name__
    assert name_of(plain) == f"{module}.plain"
    assert name_of(functools.partial(functools.partial(plain), "a")) == f"{module}.plain"
    assert name_of(functools.partial(task(name="mail")(lambda: None))) == "mail"
    assert name_of(Mailer().send) == f"{module}.Mailer.send"
    assert name_of(AsyncCallable()) == f"{module}.AsyncCallable"
    assert task(plain).name == f"{module}.plain"


def test_only_functions_with_a_name_of_their_own_are_entered() -> None:
    assert has_own_name(plain)
    assert not has_own_name(lambda: None)
    assert not has_own_name(functools.partial(plain))
    task(name="test_task.unnamed")(lambda: None)
    assert "test_task.unnamed" not in TASKS


def test_a_named_task_is_entered_and_so_are_its_copies() -> None:
    made = task(name="test_task.entered")(plain)
    assert TASKS["test_task.entered"] is made
    made.using(timeout=1)
    assert TASKS["test_task.entered"] is made


def test_two_functions_cannot_have_one_name() -> None:
    task(name="test_task.twice")(plain)
    with pytest.raises(
        ValueError, match=r"two functions have the task name 'test_task.twice': .*plain and .*coroutine"
    ):
        task(name="test_task.twice")(coroutine)


def test_the_last_decoration_with_own_options_has_the_name() -> None:
    first = task(name="test_task.again")(plain)
    second = task(name="test_task.again", timeout=1)(plain)
    assert TASKS["test_task.again"] is second
    assert first is not second


def test_a_decoration_in_passing_does_not_take_the_name_from_the_first() -> None:
    TASKS.pop(f"{__name__}.plain", None)
    first = task(plain)
    assert task(plain) is not first
    assert TASKS[first.name] is first


def test_a_function_that_cannot_be_a_task_is_refused_when_it_is_decorated() -> None:
    with pytest.raises(TypeError, match="generator function"):
        task(generator)


def test_a_task_is_a_value_that_can_be_a_key() -> None:
    made: Task[[str], str] = task(plain)
    assert {made: 1}[made] == 1


# --- methods ---


class Post:
    def __init__(self, name: str) -> None:
        self.name = name

    @task(retry=Retry(attempts=2, base=0))
    def send(self, address: str) -> str:
        """Send."""
        return f"{self.name} {address}"

    @task
    async def send_async(self, address: str) -> str:
        return f"{self.name} {address}"

    @staticmethod
    @task
    def static(address: str) -> str:
        return address

    @classmethod
    def of_class(cls, address: str) -> str:
        return f"{cls.__name__} {address}"


@pytest.mark.parametrize(
    ("method", "value"),
    [
        (Post("smtp").send, "smtp a@b"),
        (Post("smtp").send.using(timeout=3), "smtp a@b"),
        (Post("smtp").send_async, "smtp a@b"),
        (Post("smtp").static, "a@b"),
        (task(Post.of_class), "Post a@b"),
    ],
)
async def test_a_decorated_method_runs_with_its_instance_and_its_options(method: Any, value: str) -> None:
    async with Pool(workers=1) as pool:
        result = await pool.enqueue(method, "a@b").wait(10)
    assert (result.status, result.return_value, result.errors) == ("SUCCESSFUL", value, ())


def test_a_decorated_method_is_called_as_a_method() -> None:
    assert Post("smtp").send("a@b") == Post.send(Post("smtp"), "a@b") == "smtp a@b"
    assert (Post.send.__doc__, Post("x").send.options.retry) == ("Send.", Retry(attempts=2, base=0))
