"""The durable journal: the list of what happened, kept in a file, so that accepted means kept.

`DurableJournal` is a `Journal`. What happens to a run happens in memory as ever, through `Journal.note`; what is new is that
each line is then written to a file, and two lines before they count:

- ``commit``: a response's tasks are on disk before its head leaves. If the disk refuses, `JournalFailed` makes it a 503.
- ``claim``: an attempt is counted in the file before the task's first line runs.

Everything else is written behind: an end some moments later; that a run is in line with its claim, or, when no worker
comes for it, a second later. If the process is killed in between, the file knows less than had happened, and the task
runs once more: **at least once**, so write tasks for which twice does no harm.

**One group at a time.** While a group is written by the one thread, the next one gathers here. There is no timer: a lone
accept is written at once, and sixty-four that come together share one flush. The loop's thread alone touches what
gathers, the other thread alone what is written, so nothing is locked. The other thread gets a head start: the loop waits until
SQLite is at work. If it went on at once, with all that the last group has set free, it would keep the interpreter's lock
until that is done, and the two would work one after the other (measured: 1.3 times slower).

**What can be kept**: a call of a `@task` function that can be found again by its name, with arguments that are JSON: what comes
back from JSON equals what went in. The task gets what came back, at its first run as after a crash. Everything else is
refused in ``add_task`` with a TypeError that names the culprit. ``durable=False`` opts a task out, and `TaskResult.durable` says so.

**A new life.** `open` gives the unfinished runs of the last one, in their order, as runs that are HELD again; the pool
releases them when it starts. A delay goes on from where it was: if the clock was set back meanwhile, nobody waits
longer than was said. Rows whose task is not known any more stay where they are, and the log names them.

**The end.** A stop puts back what has not finished, and lets go of the file: another process may begin. Only when a thread goes on
with a task, which nobody can stop, is the file kept until this process ends, so that no task is ever run by two.

An ``enqueue`` cannot wait for a disk. It is written in the next group, at the latest with its claim.
"""

import asyncio
import contextvars
import functools
import inspect
import json
import logging
import os
import reprlib
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from minibg.background.attempt import Outcome
from minibg.background.clock import Clock
from minibg.background.journal import Journal, JournalFailed
from minibg.background.result import Event, TaskError, TaskResult, TaskStatus
from minibg.background.retry import Retry
from minibg.background.run import Cut, Run
from minibg.background.sqlite import BY_ID, SWEEP, Durability, File, Group, Row, connect
from minibg.background.task import TASKS, Options, Task, innermost, kind_of
from minibg.background.threads import Threads

logger = logging.getLogger("minibg.background")

#: Seconds between two looks for what `minibg tasks` asks for and what is too old; and before a failed write is tried again.
TICK = 1.0
#: Seconds the loop gives the other thread to begin, at most: it takes a tenth of that.
HEAD_START = 0.001
#: Seconds after which a client may try again whose tasks the disk refused: somebody has to make room first.
RETRY_AFTER = 10
#: A return value is kept in the file when it is JSON of at most so many characters. It is there to be looked at.
VALUE_KEPT = 10_000
#: Seconds: what waits longer waits ten thousand years. Infinity is no JSON, and a group that has it could never be written.
FOR_EVER = 3e11
#: NaN and Infinity are not JSON (RFC 8259 §6). What contains itself ends in a RecursionError, at no cost for the others.
STRICT = json.JSONEncoder(allow_nan=False, check_circular=False)
#: Reads what STRICT has written, with no space around it: a quarter of what `json.loads` costs.
READ = json.JSONDecoder().raw_decode


class _Gathering(Group):
    """A group that gathers, or is being written."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []
        self._waiters: list[asyncio.Future[None]] = []

    def written(self, loop: asyncio.AbstractEventLoop) -> "asyncio.Future[None]":
        """A future for when it has been tried. What came of it stands in the group."""
        waiter = loop.create_future()
        self._waiters.append(waiter)
        return waiter

    def announce(self) -> None:
        """It has been tried."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


class DurableJournal(Journal):
    """A journal that is kept in the file at ``path``."""

    def __init__(
        self, path: str | os.PathLike[str], durability: Durability, clock: Clock, keep_finished: int, keep_for: float
    ) -> None:
        super().__init__(clock, keep_finished, keep_for)
        if not os.fspath(path) or durability not in ("power", "process"):
            raise ValueError(
                f"journal= is the path of a file, durability= 'power' or 'process': {path!r}, {durability!r}"
            )
        self._path = os.fspath(path)
        self._file = File(self._path, durability)
        self._reader: sqlite3.Connection | None = None
        self._seq = 0
        #: The group that each run is in which is being entered.
        self._entering: dict[Run, _Gathering] = {}
        #: The runs in line, longest first, that are not claimed and of which the file does not know it: it has them as
        #: HELD, or the disk has refused them.
        self._in_line: dict[Run, None] = {}
        self._failing = False

    # What the pool calls.

    async def open(self, resume: Callable[[list[Run]], object], cancel: Callable[[str], object]) -> list[list[Run]]:
        """Become the owner of the file. Raises JournalUnusable."""
        self._loop = asyncio.get_running_loop()
        self._resume, self._cancel = resume, cancel
        self._thread = Threads(self._loop, "minibg-journal")
        rows, self._seq = await self._call(self._file.open, self._now())
        self._reader = connect(self._path, "ro")
        self._gathering = _Gathering()
        self._wake = asyncio.Event()
        self._closing = False
        self._writer = self._loop.create_task(self._write(), name="minibg-journal", context=contextvars.Context())
        self._timer = self._clock.call_later(TICK, self._tick)
        return self._recovered(rows)

    def vet(self, run: Run) -> None:
        """Refuse a call that cannot be kept; make the others ready for it. Raises TypeError."""
        if not run.options.durable:
            return
        task = TASKS.get(run.result.name)
        called = innermost(run.function)
        if task is None or not isinstance(called, Task) or called.function is not task.function:
            raise TypeError(
                f"{run.result.name} cannot be found again by its name, which a durable journal needs: decorate it with @task"
                " at the top of its module, or opt out with @task(durable=False)"
            )
        run.payload, (args, run.kwargs) = _kept(run)
        if run.options is not task.options:
            run.changes = json.dumps(_changes(run.options, task.options))
            _check_key(run.options.key)
        run.function, run.args = called, tuple(args)
        run.result.durable = True

    async def commit(self, runs: Sequence[Run]) -> None:
        """Have these on disk. Raises JournalFailed; then none is there that was not there before."""
        first, entering = None, set()
        for run in runs:
            if run.payload is None or run.result.finished_at is not None:
                continue
            if run.result.status is TaskStatus.HELD:
                self._enter(run, first := first or run)
            else:  # It is shared with a response that went before: this one's tasks do not stand behind it.
                self._enter(run, run)
            if run in self._entering:
                entering.add(self._entering[run])
        for gathering in entering:
            await gathering.written(self._loop)
            if gathering.refused is not None:
                raise JournalFailed(
                    f"the tasks could not be written to disk: {gathering.refused}", retry_after=RETRY_AFTER
                )

    async def claim(self, run: Run) -> bool:
        """Count an attempt before it begins. False: the file says that it must not. Raises JournalFailed."""
        if run.payload is None:
            return True
        self._enter(run, run)
        self._in_line.pop(run, None)
        gathering = self._gathering
        gathering.claims.append(run.seq)
        self._wake.set()
        await gathering.written(self._loop)
        if gathering.failed is not None or not run.seq:
            error = gathering.failed or gathering.refused
            raise JournalFailed(f"an attempt could not be written to disk: {error}", retry_after=RETRY_AFTER)
        return run.seq in gathering.claimed

    def note(self, run: Run, event: Event, *, error: TaskError | None = None, value: object = None) -> None:
        super().note(run, event, error=error, value=value)
        if event is Event.PUT_BACK and (run.attempt is not None or run.cut is not Cut.STOP):
            self._file.outlasted = True  # It runs in a thread, or swallows even the end: it goes on.
        if run.payload is not None:
            if not run.seq and event in (Event.RELEASE, Event.DEFER):
                self._enter(run, run)
            if run.seq:
                self._change(run, event)

    def get(self, id: str) -> TaskResult[Any] | None:
        result = super().get(id)
        if result is None and self._reader is not None and id.isascii():  # It may be any text, from a path.
            row = self._reader.execute(BY_ID, (id,)).fetchone()
            return None if row is None else _result_of(Row(*row))
        return result

    async def close(self) -> None:
        """Write what is left, and let go of the file."""
        self._timer.cancel()
        self._gather_the_line()
        self._closing = True
        self._wake.set()
        await self._writer
        assert self._reader is not None
        self._reader.close()
        self._reader = None
        try:
            await self._call(self._file.close)
        except sqlite3.Error:
            logger.exception("%s was not closed in order; the next start counts what ran as a crash", self._path)
        self._thread.close()
        await super().close()

    # Gathering.

    def _enter(self, run: Run, first: Run) -> None:
        """Put a run into the file that is not in it yet. ``first`` is the first of its response."""
        if run.seq:
            return
        self._seq += 1
        run.seq = self._seq
        run.response = first.response or first.seq
        result = run.result
        origin = result.origin
        if not origin.isascii():  # It may have halves of surrogate pairs, which no file can hold.
            origin = origin.encode(errors="backslashreplace").decode()
        call = (result.name, run.payload, run.changes, run.options.key, origin, result.added_at.timestamp())
        self._gathering.entered[run.seq] = (run.seq, result.id, run.response, *call)
        self._gathering.runs.append(run)
        self._entering[run] = self._gathering
        self._wake.set()
        if result.status is not TaskStatus.HELD:  # The disk had refused it when it was released.
            self._change(run, Event.RELEASE)

    def _change(self, run: Run, event: Event) -> None:
        """Gather the row of what has happened to a run. START is the claim, PUT_BACK the close."""
        gathering, result = self._gathering, run.result
        if event in (Event.START, Event.PUT_BACK):
            return
        if event in (Event.RELEASE, Event.DUE):  # Its claim says so too, and comes in a moment, if there is a worker.
            self._in_line[run] = None
            return
        self._in_line.pop(run, None)
        due_at, wait = self._due(run) if result.status is TaskStatus.WAITING else (None, None)
        if event is Event.DEFER:
            if not result.attempts:
                run.response = -run.seq  # It leaves its batch.
            self._gather_move(run, due_at, wait)
        elif run.seq in gathering.entered:  # It ends before it was written: there is nothing to keep.
            del gathering.entered[run.seq]
            gathering.moved.pop(run.seq, None)
            run.seq = 0
        else:
            ended = (_seconds(result.finished_at), _errors(result.errors), _short_json(result.return_value))
            gathering.ended[run.seq] = (run.seq, result.attempts, result.status, due_at, wait, *ended)
        self._wake.set()

    def _gather_move(self, run: Run, due_at: float | None = None, wait: float | None = None) -> None:
        moved = (run.seq, run.response, run.result.status, due_at, wait, _seconds(run.result.released_at))
        self._gathering.moved[run.seq] = moved

    def _gather_the_line(self, most: int | None = None) -> None:
        """Gather who has come into line and stands there still: it may be long until a worker is free."""
        for run in list(self._in_line)[:most]:
            del self._in_line[run]
            if run.seq:
                self._gather_move(run)
            elif run.result.status is TaskStatus.READY:  # The disk may have room by now.
                self._enter(run, run)

    def _due(self, run: Run) -> tuple[float, float | None]:
        """When a run is due, and how long it was to wait, if not for a time of day."""
        at_a_time = run.options.run_at is not None and not run.result.attempts
        wait = min(run.wait, FOR_EVER)
        return self._now() + wait, None if at_a_time else wait

    # Writing.

    async def _write(self) -> None:
        """Write group after group, until the journal closes and nothing is left."""
        while not self._closing or self._wake.is_set():
            await self._wake.wait()
            self._wake.clear()
            group, self._gathering = self._gathering, _Gathering()
            self._file.begun.clear()
            written = self._thread.call(functools.partial(self._file.write, group, self._now()))
            self._file.begun.wait(HEAD_START)
            await written
            self._settle(group)

    def _settle(self, group: _Gathering) -> None:
        """Take note of what came of a group."""
        for run in group.runs:
            del self._entering[run]
            if group.refused is not None:
                run.seq = 0
                if run.result.status is TaskStatus.READY:
                    self._in_line[run] = None
        if group.failed is not None:  # Written again with the next, which know better where they speak of the same.
            self._gathering.ended = group.ended | self._gathering.ended
            self._gathering.moved = group.moved | self._gathering.moved
        self._say_how_it_goes(group.failed or group.refused)
        group.announce()
        for what, row in group.asked:
            self._heed(what, row)
        if group.more and not self._closing:
            self._gathering.tick = True
            self._wake.set()

    def _say_how_it_goes(self, error: Exception | None) -> None:
        if error is not None and not self._failing:
            logger.error("%s cannot be written: %s; its tasks are refused, or wait", self._path, error)
        elif error is None and self._failing:
            logger.info("%s is written again", self._path)
        self._failing = error is not None

    def _tick(self) -> None:
        self._gather_the_line(SWEEP)
        self._gathering.tick = True
        self._wake.set()
        self._timer = self._clock.call_later(TICK, self._tick)

    def _heed(self, what: str, row: Row) -> None:
        """Do in memory what `minibg tasks` has asked for."""
        if what == "cancel":
            self._cancel(row.id)
        elif row.status == TaskStatus.READY and row.id not in self.unfinished:
            # Its record begins anew: the end it had in this life is not the one to forget it by.
            self._finished = deque(end for end in self._finished if end[1] != row.id)
            for runs in self._recovered([row]):
                self._resume(runs)

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        outcome = await self._thread.call(lambda: _outcome(function, args))
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def _now(self) -> float:
        return self._clock.now().timestamp()

    # Recovering.

    def _recovered(self, rows: Sequence[Row]) -> list[list[Run]]:
        """Make runs of rows, those of one batch together."""
        batches: dict[int, list[Run]] = {}
        unknown: list[str] = []
        for row in rows:
            try:
                run = self._run_of(row)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one row, the others run.
                unknown.append(f"{row.describe()} ({type(error).__name__}: {error})")
            else:
                batches.setdefault(run.response, []).append(run)
        if unknown:
            logger.warning("%s keeps what cannot be run: %s", self._path, ", ".join(unknown))
        return list(batches.values())

    def _run_of(self, row: Row) -> Run:
        task = TASKS[row.name]
        options = _options(task.options, row)
        response = row.response
        if row.status == TaskStatus.WAITING:
            left = (row.due_at or 0.0) - self._now()
            options = replace(options, delay=max(0.0, left if row.wait is None else min(left, row.wait)), run_at=None)
        elif row.status != TaskStatus.HELD:
            options = replace(options, delay=None, run_at=None)
        elif options.delay is not None or options.run_at is not None:
            response = -row.seq
        args, kwargs = _loaded(row.payload)
        result = _result_of(row, TaskStatus.HELD)
        run = Run(task, kind_of(task), args, kwargs, options, contextvars.Context(), result)
        run.payload, run.changes = row.payload, row.options
        run.seq, run.response, run.excused = row.seq, response, row.excused
        return run


def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
    try:
        return Outcome(function(*args))
    except Exception as error:  # noqa: BLE001 - raised again on the loop's thread.
        return Outcome(error=error)


# A call as JSON, and back.


def _kept(run: Run) -> tuple[str, Any]:
    """Give the arguments of a call as JSON, and what comes back. Raises TypeError for what does not come back as it was."""
    function, args, kwargs = run.function, list(run.args), run.kwargs
    while isinstance(function, functools.partial):
        args, kwargs = [*function.args, *args], {**function.keywords, **kwargs}
        function = function.func
    kept = _json([args, kwargs])
    if kept is not None:
        return kept
    # Which one is it? A call that fits nothing raises a TypeError of its own here.
    call = inspect.signature(function).bind(*args, **kwargs)
    for name, value in call.arguments.items():
        several = call.signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        if _json(list(value) if several else value) is None:
            shown = reprlib.repr(value)
            raise TypeError(f"argument {name} of {run.result.name} is not JSON: {shown} would not come back")
    raise TypeError(f"the arguments of {run.result.name} are not JSON")


def _json(value: object) -> tuple[str, Any] | None:
    """Give a value as JSON, and what comes back; None when that is something else."""
    try:
        text = STRICT.encode(value)
        back, _ = READ(text)
        return (text, back) if back == value else None
    except (TypeError, ValueError, RecursionError):
        return None


def _loaded(payload: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = json.loads(payload)
    return tuple(args), dict(kwargs)


def _changes(options: Options, own: Options) -> dict[str, Any]:
    """Give the options of a call that differ from its task's own, as JSON. Raises TypeError."""
    changes = {name: getattr(options, name) for name in ("timeout", "priority", "delay", "run_at", "retry")}
    changes = {name: value for name, value in changes.items() if value != getattr(own, name)}
    if isinstance(changes.get("run_at"), datetime):
        changes["run_at"] = changes["run_at"].isoformat()
    if isinstance(retry := changes.get("retry"), Retry):
        usual = own.retry or Retry()
        if (retry.on, retry.give_up_on) != (usual.on, usual.give_up_on):
            raise TypeError("using(retry=) with other exceptions than the task's own: a file cannot hold classes")
        changes["retry"] = {"attempts": retry.attempts, "base": retry.base, "cap": retry.cap}
    return changes


def _options(own: Options, row: Row) -> Options:
    changes = json.loads(row.options)
    if changes.get("run_at") is not None:
        changes["run_at"] = datetime.fromisoformat(changes["run_at"])
    if changes.get("retry") is not None:
        changes["retry"] = replace(
            own.retry or Retry(), **{name: changes["retry"][name] for name in ("attempts", "base", "cap")}
        )
    return replace(own, key=row.key, **changes)


def _check_key(key: str | None) -> None:
    if key is not None and ("\0" in key or key.encode(errors="replace").decode() != key):
        raise TypeError(f"key={key!r} is no text that a file can hold")


def _short_json(value: object) -> str | None:
    if value is None:
        return None
    text = ""
    try:
        for part in STRICT.iterencode(value):
            text += part
            if len(text) > VALUE_KEPT:
                return None
    except Exception:  # noqa: BLE001 - it is the task's own object, which may raise anything, or be changing.
        return None
    return text


# A record as a row, and back.


def _result_of(row: Row, status: TaskStatus | None = None) -> TaskResult[Any]:
    return TaskResult(
        row.id,
        row.name,
        row.origin,
        datetime.fromtimestamp(row.added_at, UTC),
        status or TaskStatus(row.status),
        row.attempts,
        _time(row.released_at),
        _time(row.started_at),
        _time(row.finished_at),
        [_error_of(**error) for error in json.loads(row.errors)],
        None if row.value is None else json.loads(row.value),
        durable=True,
    )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()


def _errors(errors: Sequence[TaskError]) -> str:
    return json.dumps([{**asdict(error), "at": error.at.timestamp()} for error in errors]) if errors else "[]"


def _error_of(at: float, **texts: Any) -> TaskError:
    return TaskError(at=datetime.fromtimestamp(at, UTC), **texts)
