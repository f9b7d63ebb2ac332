"""A call and its record as JSON and back: through a journal's own functions, without a file."""

import functools
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from minibg.background import Retry, TaskError, TaskStatus, task
from minibg.background.journal import codec
from minibg.background.journal.schema import Row
from minibg.background.run import Ids, Run
from minibg.background.task import TASKS
from tests.background.fake_clock import FakeClock
from tests.background.journal.files import NOW
from tests.background.journal.tasks import insist, note, play

CLOCK = FakeClock()


def run_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Run:
    return Run.of(function, args, kwargs, "POST /register", CLOCK, Ids())


def encoded(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Run:
    run = run_of(function, *args, **kwargs)
    codec.encode_call(run)
    return run


def row_of(run: Run, **columns: Any) -> Row:
    """The row of a run as the file has it after an insert, with some columns changed."""
    assert run.stored is not None
    run.stored.row = run.stored.row or 1
    empty: dict[str, Any] = dict.fromkeys(Row.__dataclass_fields__)
    empty |= {"status": "HELD", "attempts": 0, "uncounted_attempts": 0, "crashes": 0, "errors": "[]"}
    return Row(**(empty | codec.insert_fields(run, run.stored) | columns))


# --- what can be stored ---


def local(what: int) -> None: ...


ANYTHING: Any = object()
CIRCULAR: list[Any] = []
CIRCULAR.append(CIRCULAR)


@pytest.mark.parametrize(
    ("function", "arguments", "culprit"),
    [
        (local, (1,), "tests.background.journal.test_codec.local cannot be found again by its name"),
        (lambda: None, (), "<lambda>"),
        ([].append, (1,), "list.append"),
        (note, ((1, 2),), "argument what of note"),
        (note, ({1},), "argument what of note"),
        (note, (float("nan"),), "argument what of note"),
        (note, ({1: 2},), "argument what of note"),
        (note, (CIRCULAR,), "argument what of note"),
        (play, (b"bytes",), "argument name of play is not JSON: b'bytes' would not come back"),
        (play, (datetime(2026, 1, 1),), "argument name of play"),
        (functools.partial(play, ANYTHING), (), "argument name of play"),
        (insist.using(retry=Retry(on=(KeyError,))), ("a",), "other exceptions than the task's own"),
        (play.using(key="\ud800"), ("a",), "not a text that the journal can store"),
        (play.using(key="a\0b"), ("a",), "not a text that the journal can store"),
    ],
)
def test_a_call_that_would_not_come_back_is_refused_and_names_the_culprit(
    function: Callable[..., Any], arguments: tuple[Any, ...], culprit: str
) -> None:
    run = run_of(function, *arguments)
    with pytest.raises(TypeError, match=culprit):
        codec.encode_call(run)
    assert (run.stored, run.result.durable) == (None, False)


def test_a_key_of_the_decorator_is_checked_too() -> None:
    """On the old code it was not: every group with such a run was refused, and its innocent neighbours with it."""
    keyed = task(name="keyed", key="\ud800")(local)
    with pytest.raises(TypeError, match="not a text that the journal can store"):
        encoded(keyed, 1)


def test_another_function_of_the_same_name_is_refused() -> None:
    TASKS["play"] = note
    with pytest.raises(TypeError, match="play cannot be found again"):
        encoded(play, "a")


def test_the_task_gets_the_arguments_that_come_back_whatever_the_handler_does_with_its_own() -> None:
    wish: dict[str, Any] = {"to": ["a"], "n": 1.5, "none": None, "text": "ä\U0001f600\x00"}
    run = encoded(functools.partial(note, 1, flag=True), wish, flag=False, key="k")
    wish["to"].append("b")
    assert (run.args, run.kwargs) == ((1, wish | {"to": ["a"]}), {"flag": False, "key": "k"})
    assert run.function is note
    again = codec.decode_run(row_of(run), NOW)
    assert (again.args, again.kwargs, again.result.durable) == (run.args, run.kwargs, True)


# --- options ---


@pytest.mark.parametrize(
    ("options", "stored"),
    [
        ({}, {}),
        ({"timeout": 3.5, "priority": "high"}, {"timeout": 3.5, "priority": "high"}),
        ({"delay": 50}, {"delay": 50}),
        ({"run_at": datetime(2026, 5, 1, tzinfo=UTC)}, {"run_at": "2026-05-01T00:00:00+00:00"}),
        ({"retry": Retry(attempts=2, base=7, cap=8)}, {"retry": {"attempts": 2, "base": 7.0, "cap": 8.0}}),
        ({"retry": Retry(attempts=3, base=10.0, cap=10.0)}, {}),  # The task's own.
        ({"key": "k"}, {}),
        ({"always": True}, {}),
    ],
    ids=str,
)
def test_the_options_that_differ_from_the_tasks_own_are_stored_and_come_back(
    options: dict[str, Any], stored: dict[str, Any]
) -> None:
    run = encoded(insist.using(**options), "a")
    assert run.stored is not None
    assert json.loads(run.stored.option_overrides) == stored
    again = codec.decode_run(row_of(run), NOW).options
    for name in ("timeout", "priority", "delay", "run_at", "retry", "key"):
        assert getattr(again, name) == getattr(run.options, name)


@pytest.mark.parametrize(
    ("columns", "delay", "run_at"),
    [
        ({"status": "HELD"}, 50.0, None),  # It begins with the release.
        ({"status": "READY"}, None, None),
        ({"status": "WAITING", "due_at": NOW + 20, "wait_seconds": 50}, 20.0, None),
        ({"status": "WAITING", "due_at": NOW - 20, "wait_seconds": 50}, 0.0, None),
        # The clock was set back by a day: the run does not wait longer than its delay was.
        ({"status": "WAITING", "due_at": NOW + 86_420, "wait_seconds": 50}, 50.0, None),
        # A time of day follows the wall clock.
        ({"status": "WAITING", "due_at": NOW + 86_420}, None, datetime.fromtimestamp(NOW + 86_420, UTC)),
    ],
    ids=str,
)
def test_a_wait_goes_on_from_where_it_was(
    columns: dict[str, Any], delay: float | None, run_at: datetime | None
) -> None:
    row = row_of(encoded(play.using(delay=50), "a"), **columns)
    options = codec.decode_run(row, NOW).options
    assert (options.delay, options.run_at) == (delay, run_at)


# --- records ---


def test_a_record_comes_back_as_it_was() -> None:
    run = encoded(insist, "a")
    result = run.result
    result.attempts, result.status, result.released, result.started, result.finished = (
        2,
        TaskStatus.FAILED,
        1.0,
        2.5,
        3.0,
    )
    result.errors = (
        TaskError(2, "ValueError", "no\n", "Traceback", datetime(2026, 1, 1, 1, 2, 3, 456789, tzinfo=UTC)),
    )
    assert run.stored is not None
    run.stored.row = 7
    ended = codec.end_fields(run, run.stored, NOW)
    again = codec.decode_result(row_of(run, **ended, released_at=1.0, started_at=2.5))
    names = (
        "id",
        "name",
        "origin",
        "added_at",
        "status",
        "attempts",
        "released_at",
        "started_at",
        "finished_at",
        "errors",
    )
    assert [getattr(again, name) for name in names] == [getattr(result, name) for name in names]


def test_an_origin_that_a_file_cannot_hold_is_escaped() -> None:
    run = Run.of(play, ("a",), {}, "GET /\udcff/\u00e9", CLOCK, Ids())
    codec.encode_call(run)
    assert row_of(run).origin == "GET /\\udcff/\u00e9"


def test_a_wait_without_end_is_a_wait_of_ten_thousand_years() -> None:
    """Infinity is not JSON: a group with it could never be written, nor any group after it."""
    run = encoded(play.using(delay=1), "a")
    run.result.status, run.wait_seconds = TaskStatus.WAITING, float("inf")
    assert run.stored is not None
    fields = codec.update_fields(run, run.stored, NOW)
    assert (fields["due_at"], fields["wait_seconds"]) == (NOW + 3e11, 3e11)
    assert codec.decode_run(row_of(run, **fields), NOW).options.delay == 3e11


class Moody(list[int]):
    def __iter__(self) -> Any:
        raise KeyError("not today")


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (None, None),
        ({"a": [1, None, "ä"]}, {"a": [1, None, "ä"]}),
        ("x" * 9_998, "x" * 9_998),
        ("x" * 9_999, None),
        (float("nan"), None),
        (b"bytes", None),
        (Moody([1]), None),
        (CIRCULAR, None),
    ],
    ids=lambda value: "moody" if isinstance(value, Moody) else repr(value)[:20],
)
def test_a_return_value_is_stored_if_it_is_short_json(value: Any, kept: Any) -> None:
    run = encoded(play, "a")
    run.result.status, run.result.finished, run.result.return_value = TaskStatus.SUCCESSFUL, 1.0, value
    assert run.stored is not None
    ended = codec.end_fields(run, run.stored, NOW)
    assert codec.decode_result(row_of(run, **ended)).return_value == kept


@pytest.mark.parametrize(
    "columns",
    [
        {"name": "os.system"},
        {"arguments": "no JSON"},
        {"arguments": "null"},
        {"arguments": "7"},
        {"arguments": '["x", {}, 3]'},
        {"arguments": "[" * 100_000},
        {"overrides": "[]"},
        {"overrides": "{"},
        {"overrides": '{"timeout": -1}'},
        {"overrides": '{"delay": "soon"}'},
        {"overrides": '{"surprise": 1}'},
        {"overrides": '{"run_at": "soon"}'},
        {"overrides": '{"retry": {"attempts": 0}}'},
        {"overrides": '{"retry": {"on": ["Exception"]}}'},
        {"overrides": '{"function": "os.system"}'},
        {"errors": "{"},
        {"errors": "[7]"},
        {"return_value": "{"},
        {"added_at": 1e300},
    ],
    ids=lambda columns: str(columns)[:40],
)
def test_a_row_that_was_edited_by_hand_raises_when_it_cannot_be_a_run(columns: dict[str, Any]) -> None:
    row = row_of(encoded(play, "a"), **columns)
    with pytest.raises(Exception) as error:  # noqa: PT011
        codec.decode_run(row, NOW)
    assert isinstance(
        error.value, TypeError | ValueError | LookupError | RecursionError | OverflowError | AttributeError
    )
