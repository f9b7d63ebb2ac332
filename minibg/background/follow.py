"""Following the ledger: every transition of every run, as an asynchronous iterator.

    async for transition in pool.follow(): print(transition.at, transition.name, transition.before,
    transition.after)

The rules of this file:

- A follower pulls. The ledger puts each transition into the follower's buffer and goes on: no code
  of a reader runs inside a transition, so no exception and no delay of a reader can reach a worker.
  A framework of signals or hooks was rejected for that.
- The buffer is bounded. A slow follower loses the oldest transitions, and the next one that it gets
  says how many.
- The ledger refers to its followers weakly: a follower that is not used any more is gone.
- The iterator ends when the pool has stopped.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from datetime import datetime

from minibg.background.result import Event, TaskStatus

#: Transitions that are kept for one follower: some seconds of a busy pool, and under 200 KiB.
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
    #: How many transitions this follower lost just before this one, because it was too slow.
    missed: int = 0


class Follower:
    """The transitions from now on. Made by `Pool.follow`; an asynchronous iterator for one reader."""

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
        """Add a transition for the reader. The ledger calls it; the oldest one goes when the buffer
        is full.
        """
        if len(self._buffer) == BUFFER:
            self._buffer.popleft()
            self._missed += 1
        self._buffer.append(transition)
        self._wake()

    def close(self) -> None:
        """End the iterator after the buffer. The ledger calls it when the pool has stopped."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
