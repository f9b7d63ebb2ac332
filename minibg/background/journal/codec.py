"""A call, its options and its record as JSON and columns, and back: pure functions, no I/O.

**Calls.** A call can be stored if its `@task` function can be found again by its name, and if its
arguments are equal after a round trip through JSON. A tuple, a set, a datetime, NaN and a dict with
keys that are not strings are not equal after it; ``add_task`` refuses them with a TypeError that
names the argument. At every attempt, the first one included, the task gets the decoded arguments.
So a task that works in a test works after a restart, and a list that the handler changes later is
not changed in the task.

**Options.** Only options that differ from the task's own are stored. So a deploy that changes the
timeout of a task changes it for the stored runs too. The exception classes of a `Retry` are code
and are not stored; they are taken from the decorated function.

**Return values.** A return value is stored for the operator if it is short JSON. It may be any
object, and its methods may raise any exception; it is not stored then.

Pickle was rejected: a pickle can run any code when it is read, and a renamed class makes a row
unreadable.
"""

import contextvars
import functools
import inspect
import json
import reprlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from minibg.background.journal.schema import Row
from minibg.background.result import TaskError, TaskResult, TaskStatus
from minibg.background.retry import Retry
from minibg.background.run import Run, StoredRun
from minibg.background.task import TASKS, Options, Task, innermost, kind_of

#: NaN and Infinity are not JSON (RFC 8259 §6). A value that contains itself raises RecursionError;
#: a check in advance would slow down every other value.
STRICT = json.JSONEncoder(allow_nan=False, check_circular=False)
#: Decodes the output of STRICT, which has no white space around it, in a quarter of the time of
#: `json.loads`.
READ = json.JSONDecoder().raw_decode
#: The maximum length of a stored return value, in characters of JSON.
VALUE_CHARACTERS = 10_000
#: Options of a call that are stored if they differ from the task's own. ``key`` has a column;
#: ``always`` and ``durable`` have no effect on a stored run.
OVERRIDES = ("timeout", "priority", "delay", "run_at", "retry")
#: Seconds that stand for an infinite wait (ten thousand years). Infinity is not JSON, so a group
#: that contains it could never be written.
FOREVER = 3e11


# --- a call ---


def encode_call(run: Run) -> None:
    """Set ``stored`` and the decoded arguments of a run. Raises TypeError if it cannot be stored."""
    name, called = run.result.name, innermost(run.function)
    task = TASKS.get(name)
    if task is None or not isinstance(called, Task) or called.function is not task.function:
        raise TypeError(
            f"{name} cannot be found again by its name, which a durable journal needs: decorate it with @task at the top of"
            " its module, or opt out with @task(durable=False)"
        )
    key = run.options.key
    if key is not None and ("\0" in key or key.encode(errors="replace").decode() != key):
        raise TypeError(f"key={key!r} is not a text that the journal can store")
    text, (args, kwargs) = _encode_arguments(run)
    overrides = "{}" if run.options is task.options else encode_overrides(run.options, task.options)
    run.function, run.args, run.kwargs = called, tuple(args), kwargs
    run.stored, run.result.durable = StoredRun(text, overrides), True


def _encode_arguments(run: Run) -> tuple[str, Any]:
    """Return the arguments as JSON, and decoded from it. Raises TypeError that names the argument."""
    function, args, kwargs = run.function, list(run.args), run.kwargs
    while isinstance(function, functools.partial):
        args, kwargs = [*function.args, *args], {**function.keywords, **kwargs}
        function = function.func
    if (encoded := _round_trip([args, kwargs])) is not None:
        return encoded
    # Find the faulty argument. If the call does not fit the signature, `bind` raises its own
    # TypeError.
    call = inspect.signature(function).bind(*args, **kwargs)
    for name, value in call.arguments.items():
        variadic = call.signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        if _round_trip(list(value) if variadic else value) is None:
            shown = reprlib.repr(value)
            raise TypeError(f"argument {name} of {run.result.name} is not JSON: {shown} would not come back")
    raise TypeError(f"the arguments of {run.result.name} are not JSON")


def _round_trip(value: object) -> tuple[str, Any] | None:
    """Return a value as JSON, and decoded from it; None if the two values are not equal."""
    try:
        text = STRICT.encode(value)
        back, _ = READ(text)
        return (text, back) if back == value else None
    except (TypeError, ValueError, RecursionError):
        return None


def encode_overrides(options: Options, own: Options) -> str:
    """Return the options of a call that differ from its task's own, as JSON. Raises TypeError."""
    overrides = {name: getattr(options, name) for name in OVERRIDES}
    overrides = {name: value for name, value in overrides.items() if value != getattr(own, name)}
    if isinstance(overrides.get("run_at"), datetime):
        overrides["run_at"] = overrides["run_at"].isoformat()
    if isinstance(retry := overrides.get("retry"), Retry):
        usual = own.retry or Retry()
        if (retry.on, retry.give_up_on) != (usual.on, usual.give_up_on):
            raise TypeError("using(retry=) with other exceptions than the task's own: a file cannot hold classes")
        overrides["retry"] = {"attempts": retry.attempts, "base": retry.base, "cap": retry.cap}
    return json.dumps(overrides)


def decode_options(own: Options, row: Row, now: float) -> Options:
    """Return a stored run's options, with the rest of its wait. Raises for a row edited by hand."""
    overrides = json.loads(row.overrides)
    if overrides.get("run_at") is not None:
        overrides["run_at"] = datetime.fromisoformat(overrides["run_at"])
    if overrides.get("retry") is not None:
        numbers = {name: overrides["retry"][name] for name in ("attempts", "base", "cap")}
        overrides["retry"] = replace(own.retry or Retry(), **numbers)
    options = replace(own, key=row.key, **overrides)
    if row.status == TaskStatus.HELD:  # Its delay begins with its release.
        return options
    if row.status != TaskStatus.WAITING or row.due_at is None:
        return replace(options, delay=None, run_at=None)
    if row.wait_seconds is None:
        return replace(options, delay=None, run_at=datetime.fromtimestamp(row.due_at, UTC))
    # Even if the clock was set back meanwhile, the run waits no longer than its delay.
    return replace(options, delay=max(0.0, min(row.due_at - now, row.wait_seconds)), run_at=None)


# --- a run ---


def decode_run(row: Row, now: float) -> Run:
    """Return the run of a row, HELD. Raises for a row edited by hand, or without a registered task."""
    if (task := TASKS.get(row.name)) is None:
        raise LookupError("its task is not registered")
    args, kwargs = json.loads(row.arguments)
    run = Run(
        function=task,
        kind=kind_of(task),
        args=tuple(args),
        kwargs=dict(kwargs),
        options=decode_options(task.options, row, now),
        context=contextvars.Context(),
        result=decode_result(row, TaskStatus.HELD),
        stored=StoredRun(row.arguments, row.overrides, row.row, row.batch, row.uncounted_attempts),
    )
    _ = run.result.added_at  # A time that is out of range raises here, and not later in the log.
    return run


def insert_fields(run: Run, stored: StoredRun) -> dict[str, Any]:
    """Return the fields of the insert of a run."""
    result, origin = run.result, run.result.origin
    if not origin.isascii():  # It may contain lone surrogates, which SQLite cannot store.
        origin = origin.encode(errors="backslashreplace").decode()
    fields = {
        "row": stored.row,
        "id": result.id,
        "batch": stored.batch,
        "name": result.name,
        "arguments": stored.arguments_json,
        "overrides": stored.option_overrides,
        "origin": origin,
        "added_at": result.added,
    }
    if run.options.key is not None:
        fields["key"] = run.options.key
    return fields


def update_fields(run: Run, stored: StoredRun, now: float) -> dict[str, Any]:
    """Return the fields of an update to READY or WAITING."""
    fields = {"row": stored.row, "batch": stored.batch, "status": run.result.status, "released_at": run.result.released}
    return fields | _wait_fields(run, now)


def end_fields(run: Run, stored: StoredRun, now: float) -> dict[str, Any]:
    """Return the fields that end an attempt: with a final status, or WAITING for a retry."""
    result = run.result
    fields: dict[str, Any] = {"row": stored.row, "attempts": result.attempts, "status": result.status}
    if result.finished is not None:
        fields["finished_at"] = result.finished
    if result.errors:
        fields["errors"] = _encode_errors(result.errors)
    if (value := _short_json(result.return_value)) is not None:
        fields["return_value"] = value
    return fields | _wait_fields(run, now)


def _wait_fields(run: Run, now: float) -> dict[str, Any]:
    """Return the due time of a WAITING run, and the length of its wait unless it has ``run_at``."""
    if run.result.status is not TaskStatus.WAITING:
        return {}
    if run.options.run_at is not None and not run.result.attempts:
        return {"due_at": run.options.run_at.timestamp()}
    wait_seconds = min(run.wait_seconds, FOREVER)
    return {"due_at": now + wait_seconds, "wait_seconds": wait_seconds}


# --- a record ---


def decode_result(row: Row, status: TaskStatus | None = None) -> TaskResult[Any]:
    """Return the record of a row. Raises if the row was edited by hand.

    ``status``: the status with which the run starts in this process. Without it the record is a
    copy that does not change any more, and its `TaskResult.wait` returns at once.
    """
    return TaskResult(
        id=row.id,
        name=row.name,
        origin=row.origin,
        added=row.added_at,
        status=status or TaskStatus(row.status),
        attempts=row.attempts,
        released=row.released_at,
        started=row.started_at,
        finished=row.finished_at,
        errors=tuple(_decode_error(**error) for error in json.loads(row.errors)),
        return_value=None if row.return_value is None else json.loads(row.return_value),
        durable=True,
        _waiters=None if status is None else [],
    )


def _encode_errors(errors: Sequence[TaskError]) -> str:
    return json.dumps([{**asdict(error), "at": error.at.timestamp()} for error in errors])


def _decode_error(at: float, **texts: Any) -> TaskError:
    return TaskError(at=datetime.fromtimestamp(at, UTC), **texts)


def _short_json(value: object) -> str | None:
    if value is None:
        return None
    text = ""
    try:
        for part in STRICT.iterencode(value):
            text += part
            if len(text) > VALUE_CHARACTERS:
                return None
    except Exception:  # noqa: BLE001 - an object of the task may raise any exception, or change meanwhile.
        return None
    return text
