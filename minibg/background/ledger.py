"""The ledger: every run of a pool, its record, and the counts; the only writer of a status.

Every change of a status goes through `Ledger.note`. It looks the event up in `TRANSITIONS`, writes
the record and the counts, and then passes the transition on to the journal on disk, the log, the
followers, and the callers that wait for a condition. All of them get their transitions here, so
they agree with each other and with the workers.

Guarantees:

- Each run that was added is counted in exactly one status, at every moment: ``by_status`` adds up.
  [statistics.2]
- At most one unfinished run of a task has a given key.
- Memory is bounded. Unfinished runs are bounded by the queue's slots and the number of workers.
  Records of finished runs are limited in number and forgotten in the order they ended [status.1];
  they are also limited in age. [status.2] A plain dictionary of job states, as in most tutorials,
  grows without bound.
- `get` returns None for an id that is unknown. [status.3]
- Logging and followers never disturb a transition: see `minibg.log` and `follow.py`.

**The log.** The end of a run is one line: INFO when the run was successful or cancelled, ERROR with
the traceback when it failed. Each attempt that is followed by a retry is a WARNING with the
traceback. The other transitions are DEBUG. DROP is one of them, because the hold logs one WARNING
for all runs that it drops together. A line is logged in the context of its run, so a filter that
reads a request id from a context variable finds it.

All methods are for the event loop's thread.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from weakref import WeakSet

from minibg.background.clock import Clock
from minibg.background.errors import IllegalTransition
from minibg.background.follow import Follower, Transition
from minibg.background.kept import Journal
from minibg.background.result import ERRORS_KEPT, TRANSITIONS, Event, TaskError, TaskResult, TaskStatus
from minibg.background.run import Run
from minibg.log import SafeLogger

logger = SafeLogger("minibg.background")

#: The log level of each event that is not logged at DEBUG.
LEVELS = {
    Event.SUCCEED: logging.INFO,
    Event.CANCEL: logging.INFO,
    Event.RETRY: logging.WARNING,
    Event.FAIL: logging.ERROR,
}


class Ledger:
    """The unfinished runs, the records of recently finished runs, and the counts of all runs."""

    def __init__(self, clock: Clock, keep_finished: int, keep_for: float, journal: Journal) -> None:
        #: The runs without a final status, by id.
        self.unfinished: dict[str, Run] = {}
        #: The number of runs in each status, including runs that ended in it.
        self.by_status: dict[TaskStatus, int] = dict.fromkeys(TaskStatus, 0)
        self._clock = clock
        self._keep_finished = keep_finished
        self._keep_for = keep_for
        self._journal = journal
        #: The records of finished runs by id, in the order they ended.
        self._finished: OrderedDict[str, TaskResult[Any]] = OrderedDict()
        #: The unfinished runs with a key, by task name, key, and whether the journal keeps them.
        self._keys: dict[tuple[str, str | None, bool], Run] = {}
        self._followers: WeakSet[Follower] = WeakSet()
        #: Whether there ever was a follower. Reading the set costs more than the rest of a
        #: transition without followers.
        self._is_followed = False
        self._conditions: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._closed = False

    # --- writing ---

    def add(self, run: Run) -> None:
        """Enter a run as HELD."""
        result = run.result
        self.unfinished[result.id] = run
        self.by_status[result.status] += 1
        if run.options.key is not None:
            self._keys[_key_of(run)] = run
        self._publish(run, Event.ADD, None, result.added)

    def note(self, run: Run, event: Event, *, error: BaseException | None = None, value: object = None) -> None:
        """Change the status of a run by an event; the only function that does. [status.4]

        ``error`` is the exception of a failed attempt, ``value`` the return value of a successful
        one. Raises IllegalTransition, and changes nothing, when the run's status does not allow the
        event.
        """
        result = run.result
        before = result.status
        if event not in TRANSITIONS[before]:
            raise IllegalTransition(f"{event} is not allowed for {run.describe()}, which is {before}")
        result.status = after = TRANSITIONS[before][event]
        self.by_status[before] -= 1
        self.by_status[after] += 1
        now = self._clock.time()
        self._update_record(result, event, now, error, value)
        if not TRANSITIONS[after]:
            self._finish(run, now)
        if run.stored is not None:
            self._journal.record(run, event)
        self._log(run, event, error)
        self._publish(run, event, before, now)

    def _update_record(
        self, result: TaskResult[Any], event: Event, now: float, error: BaseException | None, value: object
    ) -> None:
        if event is Event.START:
            result.attempts += 1
            result.started = result.started or now
        elif event is Event.SUCCEED:
            result.return_value = value
        elif event in (Event.RELEASE, Event.DEFER):
            result.released = now
        elif event in (Event.FAIL, Event.RETRY) and error is not None:
            described = TaskError.of(error, result.attempts, now)
            result.errors = (*result.errors[1 - ERRORS_KEPT :], described)

    def _finish(self, run: Run, now: float) -> None:
        result = run.result
        result.finished = now
        del self.unfinished[result.id]
        self.free_key(run)
        self._finished[result.id] = result
        self._forget_the_oldest(now)
        result._settle()

    def _forget_the_oldest(self, now: float) -> None:
        horizon = now - self._keep_for
        while self._finished:
            oldest = next(iter(self._finished.values()))
            if len(self._finished) <= self._keep_finished and (oldest.finished or 0.0) >= horizon:
                return
            del self._finished[oldest.id]

    def _log(self, run: Run, event: Event, error: BaseException | None) -> None:
        level = LEVELS.get(event, logging.DEBUG)
        if logger.isEnabledFor(level):
            log(run, level, f"{run.describe()}: {_story(run, event)}", event, error)

    def _publish(self, run: Run, event: Event, before: TaskStatus | None, now: float) -> None:
        if self._is_followed:
            result, at = run.result, datetime.fromtimestamp(now, UTC)
            who = (result.id, result.name, result.origin)
            transition = Transition(at, *who, event, before, result.status, result.attempts)
            for follower in self._followers:
                follower.put_nowait(transition)
        if self._conditions:
            self.recheck()

    # --- keys ---

    def unfinished_with_key(self, run: Run) -> Run | None:
        """Return the unfinished run of the same task that has the same key, if there is one."""
        return self._keys.get(_key_of(run)) if run.options.key is not None else None

    def free_key(self, run: Run) -> None:
        """Free the key of a run that has ended or is being cancelled, so that another run can have
        it.
        """
        if run.options.key is not None and self._keys.get(_key_of(run)) is run:
            del self._keys[_key_of(run)]

    # --- reading ---

    def get(self, id: str) -> TaskResult[Any] | None:
        """Return the record of a run; None when the id is unknown or the record was forgotten."""
        if id in self.unfinished:
            return self.unfinished[id].result
        self._forget_the_oldest(self._clock.time())
        return self._finished.get(id) or self._journal.get(id)

    def forget(self, id: str) -> None:
        """Forget the record of a finished run that is about to be retried."""
        self._finished.pop(id, None)

    def ended(self) -> int:
        """Return the number of runs that have reached a final status."""
        return sum(number for status, number in self.by_status.items() if status.is_final)

    def follow(self) -> Follower:
        """Return a follower of the transitions from now on."""
        follower = Follower()
        self._followers.add(follower)
        self._is_followed = True
        if self._closed:
            follower.close()
        return follower

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition()`` is true. It is evaluated now, and after every transition; and
        once more when the caller is awake: another asyncio task may have added a run before it.
        """
        while not condition():
            waiting = (condition, asyncio.get_running_loop().create_future())
            self._conditions.append(waiting)
            try:
                await waiting[1]
            finally:
                self._conditions.remove(waiting)

    def recheck(self) -> None:
        """Evaluate the conditions of the waiting callers, after a change that is not a transition."""
        for condition, future in self._conditions:
            if not future.done() and condition():
                future.set_result(None)

    def close(self) -> None:
        """End the followers and every `TaskResult.wait`. No transition follows in this process."""
        self._closed = True
        for follower in self._followers:
            follower.close()
        for run in self.unfinished.values():
            run.result._settle()
        self.recheck()


def _key_of(run: Run) -> tuple[str, str | None, bool]:
    return run.result.name, run.options.key, run.stored is not None


def _story(run: Run, event: Event) -> str:
    """Return the description of a transition for the log."""
    result = run.result
    attempt = f"attempt {result.attempts}"
    if event is Event.RETRY:
        return f"{attempt} failed, the next is in {run.wait_seconds:.1f} s"
    if event is Event.DROP:
        return f"{result.status}, because its response was not produced"
    if not result.is_finished:
        return f"{event}, now {result.status}"
    seconds = (result.finished or 0.0) - (result.started or result.finished or 0.0)
    return f"{result.status} after {seconds:.3f} s, {attempt}"


def log(run: Run, level: int, message: str, event: Event | None = None, error: BaseException | None = None) -> None:
    """Log a line about a run, in a copy of the run's context. The record has the attributes task,
    id, origin and attempt, and, for a transition, event.
    """
    result = run.result
    fields: dict[str, object] = {"task": result.name, "id": result.id, "origin": result.origin}
    fields["attempt"] = result.attempts
    if event is not None:
        fields["event"] = event.value
    run.context.copy().run(logger.log, level, "%s", message, exc_info=error, extra=fields)
