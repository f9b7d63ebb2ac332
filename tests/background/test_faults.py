"""Faults that ended a worker for good, left a run without a status, or kept a stop or a process
from ending.

Each class of fault has the test that found it. The common rule is [isolation.4]: whatever a task,
its exception, a `Retry` rule, the logging or a follower does, the run ends FAILED, its slot is
freed, the log has one record, and the worker goes on.
"""

import asyncio
import contextvars
import gc
import logging
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

import pytest
import uvloop

from minibg.background import (
    BackgroundTasks,
    CancelOutcome,
    Event,
    NotAccepted,
    Pool,
    PoolStopped,
    Retry,
    RetryLater,
    TaskResult,
    TaskStatus,
    task,
)
from minibg.background.kept import InMemory
from minibg.background.run import Run
from tests.background.fake_clock import FakeClock
from tests.background.recording import named, nothing, reached, turn

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
LOOPS = pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])


def run_on(loop_factory: LoopFactory, main: Any) -> Any:
    """Do as `asyncio.run`: at the end, cancel every asyncio task and wait for it."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(main)


def raiser(error: BaseException | type[BaseException]) -> Callable[[], None]:
    def raises() -> None:
        raise error

    return raises


def raiser_async(error: BaseException | type[BaseException]) -> Callable[[], Any]:
    async def raises() -> None:
        raise error

    return raises


async def the_worker_goes_on(pool: Pool) -> None:
    """Check that the only worker of a pool is alive and that nothing is left of earlier runs."""
    assert (await pool.enqueue(nothing).wait(10)).status is TaskStatus.SUCCESSFUL
    await pool.idle()
    now = pool.statistics()
    assert (now.slots_taken, now.overrunning_threads) == (0, 0)
    assert (pool._ledger.unfinished, pool._workers.running) == ({}, {})
    assert pool._queue.oldest() is None


# --- exceptions ---


class Unreadable(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__module__", "__qualname__", "__name__"):
            raise RuntimeError(f"no {name}")
        return super().__getattribute__(name)

    def __instancecheck__(cls, instance: object) -> bool:
        raise RuntimeError("no instancecheck")

    def __eq__(cls, other: object) -> bool:
        raise RuntimeError("no eq")

    __hash__ = type.__hash__


class NoStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no str")

    __repr__ = __str__


class NoAttributes(Exception):
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


class NoClass(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("no class")


class NoTraceback(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


class FaultyMetaclass(Exception, metaclass=Unreadable): ...


class NotText(Exception):
    def __str__(self) -> str:
        return 3  # type: ignore[return-value]


class BadNotes(Exception):
    __notes__: Any = 3


class ExitNotes(Exception):
    @property
    def __notes__(self) -> Any:  # type: ignore[override]
        raise SystemExit(1)


class ExitClass(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise KeyboardInterrupt


class Later(RetryLater):
    """A task of an application chooses its delay itself, and does it wrong."""

    def __init__(self, after: Any) -> None:
        Exception.__init__(self)
        self.after = after


class NoAfter(RetryLater):
    def __init__(self) -> None:
        Exception.__init__(self)


#: By name: pytest asks a parameter for its own.
EXCEPTIONS: dict[str, type[Exception]] = {
    "no str": NoStr,
    "no attributes": NoAttributes,
    "no class": NoClass,
    "no traceback": NoTraceback,
    "faulty metaclass": FaultyMetaclass,
    "no text": NotText,
    "faulty notes": BadNotes,
    "notes that exit": ExitNotes,
    "a class that exits": ExitClass,
}
LATER: list[Any] = ["soon", None, float("nan"), -1, 10**400, complex(1)]


@pytest.mark.parametrize("make", [raiser, raiser_async])
@pytest.mark.parametrize("retry", [None, Retry(attempts=2, base=0), Retry(attempts=2, on=(NoStr,), base=0)])
@pytest.mark.parametrize("error", EXCEPTIONS)
async def test_an_exception_with_faulty_methods_ends_its_run_and_no_worker(
    make: Any, retry: Retry | None, error: str
) -> None:
    async with Pool(workers=1) as pool:
        result = await pool.enqueue(named("a", make(EXCEPTIONS[error]), retry=retry)).wait(10)
        assert result.status is TaskStatus.FAILED
        assert result.errors
        assert all(type(each.message) is type(each.traceback) is str for each in result.errors)
        await the_worker_goes_on(pool)


@pytest.mark.parametrize("error", [*(Later(after) for after in LATER), NoAfter()])
async def test_a_retry_later_without_a_number_of_seconds_ends_its_run_and_no_worker(error: Exception) -> None:
    async with Pool(workers=1) as pool:
        result = await pool.enqueue(named("a", raiser_async(error), retry=Retry(attempts=3))).wait(10)
        assert (result.status, len(result.errors)) == (TaskStatus.FAILED, 1)
        await the_worker_goes_on(pool)


@pytest.mark.parametrize("after", [Decimal("0.001"), Fraction(1, 1000)])
async def test_a_retry_later_with_another_number_is_understood(after: Any) -> None:
    async with Pool(workers=1) as pool:
        result = await pool.enqueue(named("a", raiser_async(Later(after)), retry=Retry(attempts=3))).wait(10)
        assert (result.status, len(result.errors)) == (TaskStatus.FAILED, 3)
        await the_worker_goes_on(pool)


async def test_a_task_that_raises_retry_later_with_an_endless_number_fails_by_that() -> None:
    def later() -> None:
        raise RetryLater(after=10**400)

    async with Pool(workers=1) as pool:
        result = await pool.enqueue(later).wait(10)
        assert result.errors[0].message.startswith("RetryLater(after=) is a number of seconds, zero or more, not 1000")
        await the_worker_goes_on(pool)


async def test_a_list_of_exceptions_is_a_rule() -> None:
    """`Retry(on=[ValueError])` ended the worker at the first failure."""
    a_list: Any = [ValueError]
    async with Pool(workers=1) as pool:
        result = await pool.enqueue(named("a", raiser(ValueError), retry=Retry(2, base=0, on=a_list))).wait(10)
        assert (result.status, result.attempts) == (TaskStatus.FAILED, 2)
        await the_worker_goes_on(pool)


@dataclass(frozen=True)
class Rule(Retry):
    """An application's own rule: its answer, or an exception that it raises."""

    answer: Any = None

    def delay(self, attempt: int, error: BaseException, random: Callable[[], float]) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "answer", [ValueError("no rule"), SystemExit(1), asyncio.CancelledError(), "soon", float("nan"), -1.0, 10**400]
)
@pytest.mark.parametrize("function", [raiser(KeyError), raiser_async(KeyError)])
async def test_a_retry_rule_that_raises_or_answers_nonsense_ends_the_run_and_no_worker(
    answer: Any, function: Any
) -> None:
    async with Pool(workers=1) as pool:
        result = await pool.enqueue(named("a", function, retry=Rule(answer=answer))).wait(10)
        assert (result.status, len(result.errors)) == (TaskStatus.FAILED, 1)
        await the_worker_goes_on(pool)


async def test_a_random_number_that_is_none_ends_the_run_and_no_worker() -> None:
    no_number: Any = lambda: "x"
    async with Pool(workers=1, random=no_number) as pool:
        result = await pool.enqueue(named("a", raiser(KeyError), retry=Retry())).wait(10)
        assert result.status is TaskStatus.FAILED
        await the_worker_goes_on(pool)


# --- options ---


@pytest.mark.parametrize("option", ["timeout", "delay"])
@pytest.mark.parametrize("value", [10**400, "3", float("nan"), True, object(), Decimal("sNaN"), -1])
def test_seconds_that_no_timer_can_wait_are_refused_where_they_are_given(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option}= is a number of seconds"):
        task(nothing).using(**{option: value})


@pytest.mark.parametrize("value", [Decimal("0.001"), Fraction(1, 1000)])
async def test_a_decimal_is_a_number_of_seconds(value: Any) -> None:
    async with Pool(workers=1) as pool:
        result = await pool.enqueue(named("a", asyncio.Event().wait, timeout=value, delay=value)).wait(10)
        assert result.errors[0].message == "a took longer than its timeout of 0.001 s"
        await the_worker_goes_on(pool)


@pytest.mark.parametrize("seconds", [float("inf"), 1e300, 10**12])
async def test_an_endless_number_of_seconds_is_waited_for(seconds: float) -> None:
    async with Pool(workers=1) as pool:
        timed = await pool.enqueue(named("a", nothing, timeout=seconds)).wait(10)
        later = pool.enqueue(named("b", nothing, delay=seconds))
        retried = pool.enqueue(named("c", raiser_async(Later(seconds)), retry=Retry()))
        await reached(pool, retried, TaskStatus.WAITING)
        assert (timed.status, later.status) == (TaskStatus.SUCCESSFUL, TaskStatus.WAITING)
        assert [pool.cancel(each.id) for each in (later, retried)] == [CancelOutcome.CANCELLED] * 2
        await the_worker_goes_on(pool)


# --- return values ---


class NoClassValue:
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("no class")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


class FaultyMetaclassValue(metaclass=Unreadable): ...


@pytest.mark.parametrize("value", ["no class", "faulty metaclass"])
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_return_value_that_cannot_be_asked_for_its_class_is_a_value(value: str, is_async: bool) -> None:
    made: Any = NoClassValue() if value == "no class" else FaultyMetaclassValue()

    async def returns() -> Any:
        return made

    async with Pool(workers=1) as pool:
        result: TaskResult[Any] = await pool.enqueue(returns if is_async else lambda: made).wait(10)
        assert (result.status, result.return_value is made) == (TaskStatus.SUCCESSFUL, True)
        await the_worker_goes_on(pool)


async def test_a_late_return_value_that_cannot_be_asked_for_its_class_frees_the_worker() -> None:
    clock, go = FakeClock(), threading.Event()

    def late() -> Any:
        go.wait(10)
        return NoClassValue()

    async with Pool(workers=1, clock=clock) as pool:
        result = pool.enqueue(named("a", late, timeout=3))
        await reached(pool, result, TaskStatus.RUNNING)
        clock.advance(3)
        assert pool.statistics().overrunning_threads == 1
        go.set()
        await the_worker_goes_on(pool)
    assert result.status is TaskStatus.FAILED


async def agenerator() -> Any:
    yield 1


@pytest.mark.parametrize("function", [lambda: (each for each in "ab"), lambda: agenerator()])
async def test_a_lambda_that_returns_a_generator_fails_with_a_sentence(function: Any) -> None:
    async with Pool(workers=1) as pool:
        result = await pool.enqueue(named("a", function)).wait(10)
        assert (result.status, result.errors[0].type) == (TaskStatus.FAILED, "TypeError")
        assert result.errors[0].message == "a returned a generator: nothing of it has run"
        await the_worker_goes_on(pool)


# --- threads ---


async def test_without_a_free_thread_a_run_fails_and_the_next_one_has_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    async with Pool(workers=1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            result = await pool.enqueue(named("a", threading.get_ident)).wait(10)
            await the_worker_goes_on(pool)
        assert (result.status, result.errors[0].message) == (TaskStatus.FAILED, "can't start new thread")
        assert (await pool.enqueue(threading.get_ident).wait(10)).status is TaskStatus.SUCCESSFUL


# --- logging ---


@pytest.fixture(params=["filter", "handler", "formatter"])
def faulty_logging(request: pytest.FixtureRequest) -> Iterator[None]:
    """A filter that reads a context variable of a request, which raises outside one; or a handler
    that raises.
    """
    request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")
    logger = logging.getLogger("minibg.background")

    def raises(*args: object) -> bool:
        return bool(request_id.get())

    handler = logging.StreamHandler()
    if request.param == "handler":
        handler.emit = raises  # type: ignore[method-assign,assignment]
    elif request.param == "formatter":
        handler.format = raises  # type: ignore[method-assign,assignment]
        handler.handleError = raises  # type: ignore[method-assign,assignment]
    else:
        logger.addFilter(raises)
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    yield
    logger.setLevel(level)
    logger.removeHandler(handler)
    logger.removeFilter(raises)


@pytest.mark.usefixtures("faulty_logging")
async def test_logging_that_raises_ends_no_worker_and_no_stop(capsys: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock()
    async with Pool(workers=1, clock=clock, drain_timeout=5) as pool:
        results = [
            pool.enqueue(named("a", function, retry=Retry(attempts=2, base=0), timeout=3))
            for function in (nothing, raiser(ValueError), raiser_async(ValueError), asyncio.Event().wait)
        ]
        hold = BackgroundTasks(pool)
        results.append(hold.add_task(nothing))
        hold.drop()
        while not all(each.is_finished for each in results):
            await turn()
            clock.advance(1)
        await the_worker_goes_on(pool)
        late = pool.enqueue(named("late", nothing, delay=60))
        report = await pool.stop()
    assert [each.status for each in results] == ["SUCCESSFUL", "FAILED", "FAILED", "FAILED", "DROPPED"]
    assert [each.id for each in report.unfinished] == [late.id]
    assert "--- Logging error" in capsys.readouterr().err


# --- a journal that refuses, or is faulty ---


class Refusing(InMemory):
    """A journal whose claims wait, and are then answered by the test."""

    def __init__(self) -> None:
        self.claims: list[asyncio.Future[bool]] = []

    async def claim(self, run: Run) -> bool:
        self.claims.append(asyncio.get_running_loop().create_future())
        return await self.claims[-1]


async def with_journal(clock: FakeClock) -> tuple[Pool, Refusing]:
    pool, journal = Pool(workers=1, clock=clock), Refusing()
    pool._workers._journal = journal
    await pool.open()
    pool.start()
    return pool, journal


@pytest.mark.parametrize("siblings", [0, 1])
async def test_a_run_that_is_cancelled_while_its_claim_is_refused_ends_no_worker(siblings: int) -> None:
    """The worker deferred the batch, of which nothing was left: IndexError."""
    clock = FakeClock()
    pool, journal = await with_journal(clock)
    hold = BackgroundTasks(pool)
    results = [hold.add_task(nothing) for _ in range(1 + siblings)]
    hold.release()
    await turn()
    pool.cancel(results[0].id)
    journal.claims[0].set_exception(NotAccepted("the disk is full"))
    await turn()
    after = pool.enqueue(nothing)
    while not all(each.is_finished for each in (*results, after)):
        await turn()
        for claim in journal.claims:
            if not claim.done():
                claim.set_result(True)
        clock.advance(1)
    assert [each.status for each in results] == [TaskStatus.CANCELLED] + [TaskStatus.SUCCESSFUL] * siblings
    await pool.stop()
    assert pool.statistics().slots_taken == 0


async def test_a_claim_that_is_refused_is_tried_again_after_a_second() -> None:
    clock = FakeClock()
    pool, journal = await with_journal(clock)
    result = pool.enqueue(nothing)
    for attempt in range(3):
        await turn()
        assert (len(journal.claims), result.attempts) == (attempt + 1, 0)
        journal.claims[-1].set_exception(NotAccepted("the disk is full"))
        await turn()
        clock.advance(1)
    await turn()
    journal.claims[-1].set_result(True)
    assert (await result.wait(10)).attempts == 1
    await pool.stop()


@pytest.mark.parametrize("error", [OSError("a fault of minibg"), RuntimeError("another")])
async def test_a_step_that_raises_where_none_should_fails_the_run_and_ends_no_worker(error: Exception) -> None:
    pool, journal = await with_journal(FakeClock())
    first, second = pool.enqueue(nothing), pool.enqueue(nothing)
    await turn()
    journal.claims[0].set_exception(error)
    await turn()
    assert (first.status, first.errors[0].message) == (TaskStatus.FAILED, str(error))
    journal.claims[1].set_result(True)
    assert (await second.wait(10)).status is TaskStatus.SUCCESSFUL
    await pool.stop()
    assert pool.statistics().slots_taken == 0


async def test_a_claim_that_the_file_does_not_allow_cancels_the_run() -> None:
    pool, journal = await with_journal(FakeClock())
    result = pool.enqueue(named("a", nothing, retry=Retry()))
    await turn()
    journal.claims[0].set_result(False)
    assert (await result.wait(10)).status is TaskStatus.CANCELLED
    assert pool.statistics().slots_taken == 0
    await pool.stop()


# --- the end of the event loop ---


def watchdogs() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "minibg-watchdog"}


class Swallows:
    """A coroutine function that swallows its cancellation once and then returns."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.swallowed = 0

    async def __call__(self) -> str:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.swallowed += 1
        return "swallowed"


@LOOPS
@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize("kind", ["coroutine", "awaitable"])
def test_the_event_loop_ends_while_a_task_runs_and_the_pool_was_not_stopped(
    loop_factory: LoopFactory, swallows: bool, kind: str
) -> None:
    """The attempt swallowed the cancellation of its worker, which waited for the next batch for
    ever.
    """

    async def main() -> TaskResult[Any]:
        pool = Pool(workers=1)
        await pool.open()
        pool.start()
        function = Swallows()
        begun = asyncio.Event()

        async def waits() -> None:
            begun.set()
            await asyncio.Event().wait()

        call: Any = function if swallows else waits
        result: TaskResult[Any] = pool.enqueue(call if kind == "coroutine" else lambda: call())
        await (function.begun if swallows else begun).wait()
        pools.append(pool)
        return result

    pools: list[Pool] = []
    before = watchdogs()
    result = run_on(loop_factory, main())
    assert (result.status, pools[0].statistics().running) == (TaskStatus.LOST, 0)
    for thread in watchdogs() - before:
        thread.join(5)
        assert not thread.is_alive()


@LOOPS
def test_the_event_loop_ends_while_a_thread_works_and_the_pool_was_not_stopped(loop_factory: LoopFactory) -> None:
    go = threading.Event()

    async def main() -> TaskResult[Any]:
        pool = Pool(workers=1)
        await pool.open()
        pool.start()
        result = pool.enqueue(named("a", go.wait))
        await reached(pool, result, TaskStatus.RUNNING)
        return result

    result = run_on(loop_factory, main())
    assert result.status is TaskStatus.LOST
    go.set()


@LOOPS
def test_a_timeout_around_a_pool_ends_it(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with asyncio.timeout(0.05):
            async with Pool(workers=1, drain_timeout=0.01) as pool:
                pool.enqueue(asyncio.Event().wait)
                await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        run_on(loop_factory, main())


@LOOPS
@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize("workers_first", [False, True])
def test_a_stop_that_the_end_of_the_event_loop_interrupts_reports_and_closes(
    loop_factory: LoopFactory, swallows: bool, workers_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[float] = []
    before = watchdogs()

    class Closes(InMemory):
        async def close(self, timeout: float, *, keep_lock: bool = False) -> None:
            closed.append(timeout)

    async def main() -> list[TaskResult[Any]]:
        pool = Pool(workers=1)
        pool._journal = Closes()
        await pool.open()
        pool.start()
        function = Swallows()
        running = pool.enqueue(named("running", function if swallows else asyncio.Event().wait))
        ready, late = pool.enqueue(named("ready", nothing)), pool.enqueue(named("late", nothing, delay=100))
        held = BackgroundTasks(pool, "GET /").add_task(named("held", nothing))
        await reached(pool, running, TaskStatus.RUNNING)
        waiting = asyncio.create_task(running.wait())
        stop = asyncio.create_task(pool.stop())
        await turn()
        added = BackgroundTasks(pool).add_task(named("added", nothing))
        if workers_first:  # Else in the order in which the event loop's end finds its asyncio tasks.
            for each in asyncio.all_tasks():
                if each.get_name().startswith("minibg-worker"):
                    each.cancel()
            await turn()
        pools.append(pool)
        del waiting, stop
        return [running, ready, late, held, added]

    pools: list[Pool] = []
    results = run_on(loop_factory, main())
    assert [result.status for result in results] == [TaskStatus.LOST] * 5
    assert len(closed) == 1
    assert pools[0].statistics().slots_taken == 0
    lines = [each.getMessage() for each in caplog.records if each.getMessage().startswith("did not finish: ")]
    assert sorted(line.split()[3] for line in lines) == ["added", "held", "late", "ready", "running"]
    assert caplog.records[-1].getMessage().endswith("0 finished, 5 did not")
    assert watchdogs() <= before


@LOOPS
def test_a_stop_that_is_interrupted_while_it_leaves_a_worker_behind_closes(loop_factory: LoopFactory) -> None:
    closed: list[float] = []
    before = watchdogs()

    class Closes(InMemory):
        async def close(self, timeout: float, *, keep_lock: bool = False) -> None:
            closed.append(timeout)

    async def main() -> TaskResult[Any]:
        pool = Pool(workers=1, drain_timeout=0)
        pool._journal = Closes()
        await pool.open()
        pool.start()
        result = pool.enqueue(named("a", go.wait))
        await reached(pool, result, TaskStatus.RUNNING)
        stop = asyncio.create_task(pool.stop())
        await result.wait()
        await turn()
        del stop
        return result

    go = threading.Event()
    assert run_on(loop_factory, main()).status is TaskStatus.LOST
    go.set()
    assert len(closed) == 1
    assert watchdogs() <= before


# --- the stop ---


async def test_a_task_that_stops_its_pool_is_cancelled_at_the_deadline_and_reported() -> None:
    async def stops(pool: Pool) -> None:
        await pool.stop()

    clock = FakeClock()
    pool = Pool(workers=1, clock=clock)
    await pool.open()
    pool.start()
    result = pool.enqueue(named("stops", stops), pool)
    while pool._drain is None:
        await turn()
    clock.advance(30)
    report = await pool.stop()
    assert [(each.name, each.was, each.became) for each in report.unfinished] == [("stops", "RUNNING", "LOST")]
    assert result.status is TaskStatus.LOST


async def test_a_caller_that_waits_for_a_slot_is_refused_when_the_pool_stops() -> None:
    """A response in flight keeps the slots that it has reserved, so the stop frees none of them."""
    clock = FakeClock()
    async with Pool(queue_limit=1, clock=clock) as pool:
        other, hold = BackgroundTasks(pool), BackgroundTasks(pool)
        await other.reserve()
        waiting: list[Any] = [asyncio.create_task(hold.reserve()), asyncio.create_task(pool.aenqueue(nothing))]
        await turn()
        await pool.stop()
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
        assert [type(outcome) for outcome in outcomes] == [PoolStopped, PoolStopped]
        with pytest.raises(PoolStopped):
            await hold.reserve()
        other.drop()
        hold.drop()
        assert pool.statistics().slots_taken == 0


async def test_a_commit_after_the_stop_raises_pool_stopped_and_the_task_is_in_the_report() -> None:
    clock = FakeClock()
    async with Pool(clock=clock, drain_timeout=0) as pool:
        hold = BackgroundTasks(pool)
        result = hold.add_task(named("a", nothing))
        stop = asyncio.create_task(pool.stop())
        await turn()
        clock.advance(0)
        report = await stop
        with pytest.raises(PoolStopped):
            await hold.commit()
        hold.drop()
        hold.release()
    assert (result.status, [each.id for each in report.unfinished]) == (TaskStatus.LOST, [result.id])


@pytest.mark.parametrize("status", ["HELD", "READY", "WAITING", "RUNNING"])
async def test_wait_returns_when_the_pool_has_stopped(status: str) -> None:
    clock = FakeClock()
    pool = Pool(workers=1, clock=clock, drain_timeout=0)
    await pool.open()
    pool.start()
    running = pool.enqueue(named("a", asyncio.Event().wait))
    await reached(pool, running, TaskStatus.RUNNING)
    made: dict[str, TaskResult[Any]] = {
        "RUNNING": running,
        "READY": pool.enqueue(nothing),
        "WAITING": pool.enqueue(named("w", nothing, delay=9)),
        "HELD": BackgroundTasks(pool).add_task(nothing),
    }
    result = made[status]
    assert result.status == status
    waiting = asyncio.create_task(result.wait())
    stop = asyncio.create_task(pool.stop())
    await turn()
    clock.advance(0)
    await stop
    assert (await waiting).status is (await result.wait()).status is TaskStatus.LOST


async def test_the_awaitable_of_a_thread_that_returns_while_tasks_are_cancelled_is_not_begun() -> None:
    """It was awaited, and nothing cancelled it: the stop took the whole of its second deadline."""
    clock, go, begun = FakeClock(), threading.Event(), []

    async def begins() -> None:
        begun.append(True)

    def returns_a_coroutine() -> Any:
        go.wait(10)
        return begins()

    async def cleans_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            go.set()
            while not late.is_finished:
                await asyncio.sleep(0)

    pool = Pool(workers=2, clock=clock, drain_timeout=0)
    await pool.open()
    pool.start()
    late = pool.enqueue(named("late", returns_a_coroutine))
    running = pool.enqueue(named("running", cleans_up))
    await reached(pool, running, TaskStatus.RUNNING)
    stop = asyncio.create_task(pool.stop())
    await turn()
    clock.advance(0)
    report = await asyncio.wait_for(stop, 10)
    assert ([(each.name, each.became) for each in report.unfinished], begun) == (
        [("late", "LOST"), ("running", "LOST")],
        [],
    )


# --- one event loop ---


@LOOPS
def test_a_pool_is_refused_in_a_second_event_loop(loop_factory: LoopFactory) -> None:
    async def opens(pool: Pool) -> None:
        await pool.open()
        pool.start()
        hold.append(BackgroundTasks(pool))

    async def uses(pool: Pool) -> None:
        uses: list[Callable[[], Any]] = [
            lambda: pool.enqueue(nothing),
            lambda: hold[0].add_task(nothing),
            lambda: pool.get("id"),
            lambda: pool.cancel("id"),
        ]
        for use in uses:
            with pytest.raises(RuntimeError, match="belongs to another event loop"):
                use()
        for wait in (lambda: pool.aenqueue(nothing), pool.idle, hold[0].reserve):
            with pytest.raises(RuntimeError, match="belongs to another event loop"):
                await asyncio.wait_for(wait(), 10)
        assert pool.statistics().by_status[TaskStatus.HELD] == 0
        assert (await pool.stop()).unfinished == ()

    hold: list[BackgroundTasks] = []
    pool = Pool(workers=1)
    run_on(loop_factory, opens(pool))
    run_on(loop_factory, uses(pool))


async def test_a_stop_in_another_event_loop_is_refused_while_the_first_one_is_open() -> None:
    """It drained the pool in the other thread, beside the workers."""
    async with Pool(workers=1) as pool:
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            await asyncio.to_thread(asyncio.run, pool.stop())
        await the_worker_goes_on(pool)


async def test_a_run_is_waited_for_in_the_event_loop_of_another_thread() -> None:
    gate, waiting = asyncio.Event(), threading.Event()

    async def waits(result: TaskResult[Any]) -> TaskStatus:
        waiter = asyncio.create_task(result.wait(30))
        await asyncio.sleep(0)
        waiting.set()
        return (await waiter).status

    async with Pool() as pool:
        result = pool.enqueue(gate.wait)
        began = time.monotonic()
        other = asyncio.create_task(asyncio.to_thread(asyncio.run, waits(result)))
        await asyncio.to_thread(waiting.wait)
        gate.set()
        assert await other is TaskStatus.SUCCESSFUL
        assert time.monotonic() - began < 20


async def test_a_waiter_whose_event_loop_is_closed_disturbs_no_transition(caplog: pytest.LogCaptureFixture) -> None:
    """The end of the run came to neither the journal nor a follower."""
    gate = asyncio.Event()
    left: list[Any] = []

    def leaves_a_waiter(result: TaskResult[Any]) -> None:
        loop = asyncio.new_event_loop()
        left.append(loop.create_task(result.wait()))
        left[0]._log_destroy_pending = False
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    async with Pool(workers=1) as pool:
        result = pool.enqueue(gate.wait)
        await asyncio.to_thread(leaves_a_waiter, result)
        gate.set()
        await result.wait()
        await the_worker_goes_on(pool)
    assert [record.levelname for record in caplog.records if record.levelno > logging.INFO] == []


class Unusable(InMemory):
    def __init__(self, gate: asyncio.Event) -> None:
        self.gate = gate
        self.fails = True

    async def open(self) -> list[list[Run]]:
        await self.gate.wait()
        if self.fails:
            raise OSError("no file")
        return []


@pytest.mark.parametrize("end", ["fails", "cancelled"])
async def test_an_open_that_fails_or_is_cancelled_leaves_a_new_pool_and_no_thread(end: str) -> None:
    before = threading.active_count()
    pool, gate = Pool(), asyncio.Event()
    pool._journal = journal = Unusable(gate)
    opening = asyncio.create_task(pool.open())
    await turn()
    opening.cancel() if end == "cancelled" else gate.set()
    assert isinstance((await asyncio.gather(opening, return_exceptions=True))[0], OSError | asyncio.CancelledError)
    assert (pool.is_new, threading.active_count()) == (True, before)
    assert (await pool.stop()).unfinished == ()
    gate.set()
    journal.fails = False
    async with pool:
        assert (await pool.enqueue(nothing).wait()).status is TaskStatus.SUCCESSFUL


async def test_a_second_open_beside_the_first_is_refused() -> None:
    """With a journal it closed the file of the first."""
    pool, gate = Pool(), asyncio.Event()
    pool._journal = journal = Unusable(gate)
    journal.fails = False
    opening = asyncio.create_task(pool.open())
    await turn()
    with pytest.raises(RuntimeError, match="a pool is opened once: this one is being opened"):
        await pool.open()
    gate.set()
    await opening
    await pool.stop()


# --- the first reason is the last word ---


class CleansUp:
    """A coroutine function whose clean-up waits, and counts how often it is interrupted."""

    def __init__(self, raises: bool = False) -> None:
        self.begun, self.cleaning, self.go = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.interrupted = 0
        self.raises = raises

    async def __call__(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.interrupted += 1
            self.cleaning.set()
            while not self.go.is_set():
                try:
                    await self.go.wait()
                except asyncio.CancelledError:
                    self.interrupted += 1
            if self.raises:
                raise OSError("the clean-up failed") from None
            raise


#: The final status by the first reason; one exception: a request replaces a timeout.
LAST_WORD = {
    "timeout": TaskStatus.WAITING,
    "request": TaskStatus.CANCELLED,
    "stop": TaskStatus.LOST,
    "timeout request": TaskStatus.CANCELLED,
}
ORDERS = [
    *("timeout", "request", "stop"),
    *("timeout request", "timeout stop", "request timeout", "request stop", "stop timeout", "stop request"),
    *("timeout request stop", "timeout stop request", "request timeout stop"),
    *("request stop timeout", "stop timeout request", "stop request timeout"),
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("raises", [False, True])
async def test_the_first_reason_is_the_last_word_and_the_clean_up_is_interrupted_once(order: str, raises: bool) -> None:
    clock, function = FakeClock(), CleansUp(raises)
    pool = Pool(workers=1, clock=clock, drain_timeout=0, random=lambda: 0.5)
    await pool.open()
    pool.start()
    result = pool.enqueue(named("a", function, timeout=1, retry=Retry()))
    await function.begun.wait()
    stop: asyncio.Task[Any] | None = None
    for reason in order.split():
        if reason == "timeout":
            clock.advance(1)
        elif reason == "request":
            assert pool.cancel(result.id) is CancelOutcome.REQUESTED
        else:
            stop = asyncio.create_task(pool.stop())
            await turn()
            clock.advance(0)
        await function.cleaning.wait()
        await turn()
    function.go.set()
    await turn()
    assert function.interrupted == 1
    first = order.split()[0]
    expected = LAST_WORD["timeout request"] if first == "timeout" and "request" in order else LAST_WORD[first]
    if stop is not None:
        await stop
        if expected is TaskStatus.WAITING:  # Its next attempt would have come after the deadline.
            expected = TaskStatus.LOST
    if raises and expected is TaskStatus.CANCELLED or (raises and first == "stop"):
        expected = TaskStatus.FAILED  # It did not end by the cancellation. There is no other attempt all the same.
    assert (result.status, result.attempts) == (expected, 1)
    if stop is None:
        pool.cancel(result.id)
        await pool.stop()


async def test_a_run_that_was_told_to_end_gives_up_its_key_and_never_comes_back() -> None:
    clock, function = FakeClock(), CleansUp(raises=True)
    async with Pool(workers=2, clock=clock) as pool:
        keyed = named("a", function, retry=Retry(base=0), key="k")
        first = pool.enqueue(keyed)
        await function.begun.wait()
        assert pool.enqueue(keyed) is first
        pool.cancel(first.id)
        second = pool.enqueue(named("a", nothing, key="k"))
        assert second is not first
        await second.wait()
        function.go.set()
        await first.wait()
    assert (first.status, first.attempts, second.status) == (TaskStatus.FAILED, 1, TaskStatus.SUCCESSFUL)


async def test_a_timeout_that_comes_when_the_coroutine_has_returned_comes_too_late() -> None:
    """Under uvloop timers run before the worker wakes, when another task has blocked the event
    loop.
    """
    clock, begun = FakeClock(), asyncio.Event()

    async def returns_in_time() -> str:
        begun.set()
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(clock.advance, 3)  # Before the worker wakes.
        return "in time"

    async with Pool(workers=1, clock=clock) as pool:
        result = await pool.enqueue(named("a", returns_in_time, timeout=3)).wait(10)
    assert (result.status, result.return_value) == (TaskStatus.SUCCESSFUL, "in time")


# --- bounds ---


@pytest.mark.parametrize("status", ["READY", "WAITING"])
async def test_tasks_that_are_added_and_cancelled_behind_a_busy_worker_leave_the_queue(status: str) -> None:
    go = asyncio.Event()
    async with Pool(workers=1, queue_limit=10, keep_finished=10) as pool:
        await reached(pool, pool.enqueue(go.wait), TaskStatus.RUNNING)
        delay = {"READY": None, "WAITING": 3600.0}[status]
        added = named("a", nothing, delay=delay)

        def add_and_cancel(number: int) -> None:
            for _ in range(number):
                pool.cancel(pool.enqueue(added).id)

        add_and_cancel(1000)
        gc.collect()
        tracemalloc.start()
        add_and_cancel(5_000)
        await asyncio.sleep(0)  # asyncio removes the cancelled timers.
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 200_000
        assert (len(pool._queue._normal), len(pool._queue.deferred), len(pool._ledger._finished)) == (0, 0, 10)
        go.set()


@pytest.mark.parametrize("make", [raiser, raiser_async])
async def test_two_thousand_characters_are_kept_of_a_message_of_a_megabyte(make: Any) -> None:
    async with Pool(workers=1) as pool:
        error = ValueError("x" * 1_000_000)
        result = await pool.enqueue(named("a", make(error), retry=Retry(attempts=3, base=0))).wait(10)
    assert [len(each.message) for each in result.errors] == [2_000] * 3
    assert [len(each.traceback) <= 20_000 for each in result.errors] == [True] * 3
