"""Following the ledger: every transition of every run, as an asynchronous iterator.

    async for transition in pool.follow():
        print(transition.at, transition.name, transition.before, transition.after)

The rules of this file:

- A follower pulls. The ledger puts each transition into the follower's buffer and goes on. The
  reader's code never runs inside a transition, so its exceptions and delays cannot reach a worker.
  Signals and hooks were rejected for this reason.
- The buffer is bounded. A slow follower loses the oldest transitions. The next transition that it
  gets has the number of lost ones in ``missed``.
- The ledger holds weak references to its followers: a follower without a reader is
  garbage-collected.
- The iterator ends when the pool has stopped.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from datetime import datetime

from minibg.background.result import Event, TaskStatus

#: The number of transitions kept for one follower: some seconds of a busy pool, under 200 KiB.
BUFFER = 1000


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of a run's status."""

    #: When, in UTC.
    at: datetime
    #: The run: its id, the task's name, and the request that added it.
    id: str
    name: str
    origin: str
    #: What happened.
    event: Event
    #: The status before; None for `Event.ADD`.
    before: TaskStatus | None
    #: The status from now on.
    after: TaskStatus
    #: The number of the attempt, 0 before the first.
    attempt: int
    #: The number of transitions that this slow follower lost just before this one.
    missed: int = 0


class Follower:
    """An asynchronous iterator over future transitions, for one reader. Made by `Pool.follow`."""

    def __init__(self) -> None:
        self._buffer: deque[Transition] = deque()
        self._missed = 0
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> "Follower":
        return self

    async def __anext__(self) -> Transition:
        while not self._buffer:
            if self._closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        transition, missed = self._buffer.popleft(), self._missed
        self._missed = 0
        return replace(transition, missed=missed) if missed else transition

    def put_nowait(self, transition: Transition) -> None:
        """Add a transition for the reader. Discards the oldest one when the buffer is full. Called
        by the ledger.
        """
        if len(self._buffer) == BUFFER:
            self._buffer.popleft()
            self._missed += 1
        self._buffer.append(transition)
        self._wake()

    def close(self) -> None:
        """End the iterator once the buffer is empty. The ledger calls it when the pool has stopped."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
