"""The threads of sync tasks.

A function that blocks must not run on the loop's thread. It gets one of these: made when it is needed, at most as many
as there are workers, because a worker has one task at a time.

They are the tasks' own. Starlette runs sync tasks in the threads of its sync handlers, forty in all: the fortieth
blocked task stops every sync handler (measured: 1 ms becomes 1.8 s). Here no number of blocked tasks delays a handler.

They are daemons. A thread cannot be told to stop, and one that hangs in a system call must not keep the process from
exiting. `concurrent.futures` joins its threads at exit, so a stuck one holds the process for ever; that is one reason
for not using it. The other is cost: ``run_in_executor`` takes 10 microseconds of the loop's time a call. Here a call
goes out through one `queue.SimpleQueue`, and what is done comes back through one deque: the thread that fills it
first wakes the loop once, and the loop takes all that is there (0.4 to 1 microsecond, measured).

CPU-bound tasks share the interpreter with the loop: it may wait for the switch interval (5 ms) each time it wants to
run. More is not promised.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar, TypeVarTuple

Ts = TypeVarTuple("Ts")
T = TypeVar("T")

#: Seconds between two looks at whether the loop is still there, for a thread that waits for it. Only a process that is
#: ending gets that far, so the number only bounds how long such a thread lingers.
LOOP_CHECK = 1.0
#: What a thread is given: a call that does not raise, and the future of what it returns.
Errand = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class Threads:
    """Daemon threads that make calls for the loop. ``close`` ends those that are idle."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str = "minibg-task") -> None:
        self.loop = loop
        self.busy = 0
        self._name = name
        self._errands: SimpleQueue[Errand | None] = SimpleQueue()
        self._done: deque[tuple[asyncio.Future[Any], Any]] = deque()
        self._collecting = False
        self._threads = 0

    def call(self, function: Callable[[], T]) -> "asyncio.Future[T]":
        """Call ``function``, which must not raise, in a thread. The future gets what it returns."""
        future: asyncio.Future[T] = self.loop.create_future()
        self.busy += 1
        if self.busy > self._threads:
            self._threads += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()
        self._errands.put((function, future))
        return future

    def close(self) -> None:
        for _ in range(self._threads):
            self._errands.put(None)

    def _work(self) -> None:
        while (errand := self._errands.get()) is not None:
            function, future = errand
            self._done.append((future, function()))
            del errand, function, future  # An idle thread keeps nothing alive.
            if not self._collecting:
                self._collecting = True
                try:
                    self.loop.call_soon_threadsafe(self._collect)
                except RuntimeError:
                    return  # The loop is closed: this call outlived the pool, and the drain has reported it.

    def _collect(self) -> None:
        # The flag first: a thread that appends from here on wakes the loop once more.
        self._collecting = False
        while self._done:
            future, value = self._done.popleft()
            self.busy -= 1
            if not future.done():
                future.set_result(value)


def on_loop(loop: asyncio.AbstractEventLoop, function: Callable[[*Ts], T], *args: *Ts) -> T:
    """Call a function on the loop's thread, from another thread, and give back what it returns or raises.

    This is how a sync handler adds a task. The alternative, a lock around every transition for the sake of the rare
    call from outside, was rejected: what only one thread touches needs no proof.

    Raises RuntimeError when the loop has ended.
    """
    answer: Future[T] = Future()
    loop.call_soon_threadsafe(_answer, answer, function, args)
    while not answer.done():
        wait([answer], timeout=LOOP_CHECK)
        if loop.is_closed() and not answer.done():
            raise RuntimeError("the loop ended before the call was made: the pool has stopped")
    return answer.result()


def _answer(answer: "Future[T]", function: Callable[[*Ts], T], args: tuple[*Ts]) -> None:
    try:
        answer.set_result(function(*args))
    except BaseException as error:  # noqa: BLE001 - it is raised in the thread that asked.
        answer.set_exception(error)
