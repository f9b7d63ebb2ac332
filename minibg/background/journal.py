"""The list of what happened: the only place that changes a run's status.

Every change goes through `Journal.note`. It looks the event up in `TRANSITIONS`, writes the record, keeps the counts,
and tells whoever follows. So the followers, the counts and the tests all read one list, and
none of them can differ from what the workers did.

Guarantees:

- ``by_status`` adds up: every run that was added is counted in exactly one status, at every moment.
- At most one unfinished run of a task has a given key. Two tasks may use the same key for different things.
- Memory stays bounded. Unfinished runs are bounded by the queue's limit and the number of workers. Finished ones are
  kept by count and by age, whichever bites first, and forgotten in the order they ended. A dictionary of job states,
  which most tutorials teach, grows for ever.
- A follower cannot hold anybody up. Each has a line of bounded length; a slow one loses the oldest transitions and is
  told how many. One that raises, or is no longer held by anybody, is gone: the journal refers to it weakly.

There are no callbacks: a signal or hook framework would let a listener's exception or delay into the middle of a
transition. Followers pull.

All methods are for the loop's thread.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from weakref import WeakSet

from minibg.background.clock import Clock
from minibg.background.queue import NotAccepted
from minibg.background.result import TRANSITIONS, Event, TaskError, TaskResult, TaskStatus
from minibg.background.run import Run

#: Transitions kept for one follower: some seconds of a busy pool, and under 200 KiB.
FOLLOWER_ROOM = 1000


class IllegalTransition(RuntimeError):
    """An event that the run's status does not allow: a fault of minibg, never of a task."""

    def __init__(self, result: TaskResult[Any], event: Event) -> None:
        super().__init__(f"{event} is not allowed for {result.name} {result.id}, which is {result.status}")
        self.result = result
        self.event = event


class JournalUnusable(Exception):
    """A file cannot be the durable journal of this process; the message names it and says why."""


class JournalFailed(NotAccepted):
    """The tasks could not be written to disk, so they were not taken on."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One line of the journal."""

    #: When, in UTC.
    at: datetime
    id: str
    name: str
    origin: str
    event: Event
    #: The status it left; None for `Event.ADD`.
    before: TaskStatus | None
    after: TaskStatus
    #: Number of the attempt, 0 before the first.
    attempt: int
    #: How many transitions this follower lost just before this one, because it was too slow.
    missed: int = 0


class Follower:
    """The transitions from now on: an asynchronous iterator that ends when the pool has stopped."""

    def __init__(self) -> None:
        self._line: deque[Transition] = deque()
        self._missed = 0
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> "Follower":
        return self

    async def __anext__(self) -> Transition:
        while not self._line:
            if self._closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        transition, missed = self._line.popleft(), self._missed
        self._missed = 0
        return replace(transition, missed=missed) if missed else transition

    def put_nowait(self, transition: Transition) -> None:
        if len(self._line) == FOLLOWER_ROOM:
            self._line.popleft()
            self._missed += 1
        self._line.append(transition)
        self._wake()

    def close(self) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Journal:
    """The runs that are unfinished, the records of those that finished lately, and the counts of both."""

    def __init__(self, clock: Clock, keep_finished: int, keep_for: float) -> None:
        #: The runs that are not in a final status, by id.
        self.unfinished: dict[str, Run] = {}
        #: How many runs are in each status, or ended in it.
        self.by_status: dict[TaskStatus, int] = dict.fromkeys(TaskStatus, 0)
        self._clock = clock
        self._keep_finished = keep_finished
        self._keep_for = keep_for
        self._results: dict[str, TaskResult[Any]] = {}
        self._keys: dict[tuple[str, str | None], Run] = {}
        #: When each finished run ended (monotonic), and its id: oldest first.
        self._finished: deque[tuple[float, str]] = deque()
        self._followers: WeakSet[Follower] = WeakSet()
        #: Whether there ever was one: to ask the set costs more than the rest of a transition that nobody follows.
        self._is_followed = False
        self._watches: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._closed = False

    def add(self, run: Run) -> None:
        """Enter a run. It is HELD."""
        result = run.result
        self.unfinished[result.id] = run
        self._results[result.id] = result
        self.by_status[result.status] += 1
        self._tell(result, Event.ADD, None, result.added_at)

    def note(self, run: Run, event: Event, *, error: TaskError | None = None, value: object = None) -> None:
        """Let ``event`` happen to a run. Raises IllegalTransition when its status does not allow that."""
        result = run.result
        before = result.status
        try:
            after = TRANSITIONS[before][event]
        except KeyError:
            raise IllegalTransition(result, event) from None
        result.status = after
        self.by_status[before] -= 1
        self.by_status[after] += 1
        now = self._clock.now()
        _write(result, event, now, error, value)
        if not TRANSITIONS[after]:
            self._end(run, now)
        self._tell(result, event, before, now)

    def refuse(self, run: Run) -> None:
        """Drop a run that was never entered, because no place was found for it."""
        run.result.status = TaskStatus.DROPPED
        run.result.finished_at = self._clock.now()
        self._free_key(run)
        run.result.announce()

    def _end(self, run: Run, now: datetime) -> None:
        run.result.finished_at = now
        del self.unfinished[run.result.id]
        self._free_key(run)
        monotonic = self._clock.monotonic()
        self._finished.append((monotonic, run.result.id))
        self._forget_the_oldest(monotonic)
        run.result.announce()

    def _forget_the_oldest(self, monotonic: float) -> None:
        horizon = monotonic - self._keep_for
        while self._finished and (len(self._finished) > self._keep_finished or self._finished[0][0] < horizon):
            _, id = self._finished.popleft()
            del self._results[id]

    def _tell(self, result: TaskResult[Any], event: Event, before: TaskStatus | None, now: datetime) -> None:
        if self._is_followed:
            transition = Transition(
                now, result.id, result.name, result.origin, event, before, result.status, result.attempts
            )
            for follower in self._followers:
                follower.put_nowait(transition)
        if self._watches:
            self.look()

    # Keys.

    def twin_of(self, run: Run) -> Run | None:
        """Find the unfinished run of the same task that has the same key."""
        return self._keys.get((run.result.name, run.options.key))

    def take_key(self, run: Run) -> None:
        if run.options.key is not None:
            self._keys[run.result.name, run.options.key] = run

    def _free_key(self, run: Run) -> None:
        key = (run.result.name, run.options.key)
        if self._keys.get(key) is run:
            del self._keys[key]

    # Reading.

    def get(self, id: str) -> TaskResult[Any] | None:
        """Give the record of a run; None for one that is unknown, or was finished too long ago."""
        self._forget_the_oldest(self._clock.monotonic())
        return self._results.get(id)

    def follow(self) -> Follower:
        """Follow the transitions from now on."""
        follower = Follower()
        self._followers.add(follower)
        self._is_followed = True
        if self._closed:
            follower.close()
        return follower

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition()`` is true. It is looked at now and after every transition."""
        if condition():
            return
        watch = (condition, asyncio.get_running_loop().create_future())
        self._watches.append(watch)
        try:
            await watch[1]
        finally:
            self._watches.remove(watch)

    def look(self) -> None:
        """Look at the conditions that are waited for: something else than a transition may have made one true."""
        for condition, future in self._watches:
            if not future.done() and condition():
                future.set_result(None)

    # What a journal on disk does here: see `durable.py`. In memory a promise needs nothing.

    async def open(
        self,
        resume: Callable[[list[Run]], object],  # noqa: ARG002
        cancel: Callable[[str], object],  # noqa: ARG002
    ) -> list[list[Run]]:
        """Begin. Gives the batches an earlier life has left; ``resume`` and ``cancel`` do what is asked for from outside."""
        return []

    def vet(self, run: Run) -> None:
        """Refuse, with a TypeError, a call that cannot be kept."""

    async def commit(self, runs: Sequence[Run]) -> None:
        """Promise these. Raises NotAccepted."""

    async def claim(self, run: Run) -> bool:  # noqa: ARG002
        """Ask whether an attempt may begin. Raises NotAccepted: not now."""
        return True

    async def close(self) -> None:
        """End the followers, and whatever waits: nothing will happen any more."""
        self._closed = True
        for follower in self._followers:
            follower.close()
        for run in self.unfinished.values():
            run.result.announce()
        self.look()


def _write(result: TaskResult[Any], event: Event, now: datetime, error: TaskError | None, value: object) -> None:
    """Write into a record what the event means for it."""
    match event:
        case Event.RELEASE | Event.DEFER:
            result.released_at = result.released_at or now
        case Event.START:
            result.attempts += 1
            result.started_at = result.started_at or now
        case Event.SUCCEED:
            result.return_value = value
    if error is not None:
        result.add_error(error)
