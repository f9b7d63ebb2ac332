"""Threads for calls that would block the event loop: daemons, bounded, with errors and contexts carried across.

`background` has one set of them for sync tasks, `web` one for sync handlers, and the journal a single thread for its
file. They are separate on purpose: Starlette runs sync tasks in the threads of its sync handlers, forty in all, and
the fortieth blocked task stops every sync handler (measured: 1 ms becomes 1.8 s).

The rules of this file:

- **Daemons.** A thread cannot be stopped from outside, and one that hangs in a system call must not keep the process
  from exiting. `concurrent.futures` joins its threads at exit, so one stuck call holds the process for ever; asyncio's
  default executor is one of those, and shared with every library.
- **Bounded.** A thread is started when there are more calls than threads, up to ``limit``. Further calls are queued.
- **Counted on the loop.** The loop's thread counts, the other threads work, and a `queue.SimpleQueue` lies between, so
  no count has two writers and nothing is locked.
- **Results in batches.** The thread that finishes first wakes the loop, once, and the loop takes every result that is
  there. ``run_in_executor`` wakes it for each call: 10 microseconds of the loop's time, here 0.4 to 1 (measured).
- **Contexts.** A call runs in the context it is given, by default a copy of the caller's.
- **Cancellation.** A call whose future is cancelled before a thread takes it is never made. One that has begun cannot be
  stopped; its result is thrown away.

CPU-bound calls share the interpreter with the event loop, which may wait for the switch interval (5 ms) each time it
wants to run. More is not promised.
"""

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from concurrent.futures import Future, wait
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar, TypeVarTuple

Ts = TypeVarTuple("Ts")
T = TypeVar("T")

#: Seconds between two checks whether the loop is still open, in a thread that waits for it. Only a process that is
#: ending gets that far, so the number bounds how long such a thread lingers, and nothing else.
LOOP_CHECK_SECONDS = 1.0
#: What `next` returns for an iterator that has ended: a StopIteration cannot pass through a future.
END: Any = object()


class _Results:
    """What the threads have finished for one loop, on its way back."""

    __slots__ = ("finished", "loop", "notified")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.finished: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        #: The loop has been woken and has not collected yet.
        self.notified = False


class Threads:
    """At most ``limit`` daemon threads, started on demand. All methods are for a loop's thread."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._calls: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any], _Results] | None] = SimpleQueue()
        self._results: _Results | None = None
        self._started = self._unfinished = 0

    def call(
        self, function: Callable[..., T], /, *args: Any, context: contextvars.Context | None = None
    ) -> "asyncio.Future[T]":
        """Call ``function(*args)`` in a thread; the future gets what it returns or raises.

        A StopIteration arrives as a RuntimeError (PEP 479). Raises RuntimeError when the system has no thread left, and
        none of these runs.
        """
        loop = asyncio.get_running_loop()
        if self._results is None or self._results.loop is not loop:
            self._results = _Results(loop)
        future: asyncio.Future[T] = loop.create_future()
        if self._started < min(self._unfinished + 1, self._limit):
            self._start_thread()
        self._unfinished += 1
        context = context or contextvars.copy_context()
        self._calls.put((partial(context.run, function, *args), future, self._results))
        return future

    async def run(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call ``function(*args, **kwargs)`` in a thread, and wait for what it returns or raises."""
        return await self.call(partial(function, *args, **kwargs))

    async def iterate(self, iterable: Iterable[T]) -> AsyncGenerator[T, None]:
        """Yield the items of ``iterable``, each fetched in a thread; a generator is closed there when its reader stops.

        A reader that is cancelled while a thread is inside the generator cannot close it: it is closed when it is
        garbage.
        """
        iterator = iter(iterable)
        try:
            while (item := await self.run(next, iterator, END)) is not END:
                yield item
        except GeneratorExit:
            if isinstance(iterator, Generator):
                await self.run(iterator.close)
            raise

    def close(self) -> None:
        """End each thread when it has finished its call, without waiting. A later call starts new ones."""
        for _ in range(self._started):
            self._calls.put(None)
        self._started = 0

    def _start_thread(self) -> None:
        try:
            threading.Thread(target=self._work, name=f"{self._name}-{self._started + 1}", daemon=True).start()
        except RuntimeError:  # "can't start new thread": fewer threads make the same calls, later.
            if not self._started:
                raise
        else:
            self._started += 1

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future, results = call
            if not future.cancelled():
                results.finished.append((future, *_outcome(function)))
            else:
                results.finished.append((future, None, None))
            del call, function, future  # A thread without a call keeps nothing of its last one alive.
            if not results.notified:
                results.notified = True
                try:
                    results.loop.call_soon_threadsafe(self._collect, results)
                except RuntimeError:
                    continue  # That loop is closed: the call outlived it. The thread serves the next loop.

    def _collect(self, results: _Results) -> None:
        results.notified = False  # First: a thread that appends from here on wakes the loop once more.
        while results.finished:
            future, value, error = results.finished.popleft()
            self._unfinished -= 1
            if future.done():
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)


def _outcome(function: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return function(), None
    except StopIteration:  # A future takes none.
        return None, RuntimeError("a function in a thread raised StopIteration")
    except BaseException as error:  # noqa: BLE001 - it is raised where the call is awaited.
        return None, error


def on_loop(loop: asyncio.AbstractEventLoop, function: Callable[[*Ts], T], *args: *Ts) -> T:
    """Call ``function(*args)`` on the thread of ``loop``, from another thread, and return or raise what it does.

    This is how a sync handler adds a task. A lock around every transition, for the sake of the rare call from another
    thread, was rejected: what only one thread touches needs no proof.

    Raises RuntimeError when the loop is closed.
    """
    answer: Future[T] = Future()
    loop.call_soon_threadsafe(_answer, answer, function, args)
    while not answer.done():
        wait([answer], timeout=LOOP_CHECK_SECONDS)
        if loop.is_closed() and not answer.done():
            raise RuntimeError("the event loop was closed before the call was made: the pool has stopped")
    return answer.result()


def _answer(answer: "Future[T]", function: Callable[[*Ts], T], args: tuple[*Ts]) -> None:
    try:
        answer.set_result(function(*args))
    except BaseException as error:  # noqa: BLE001 - it is raised in the thread that asked.
        answer.set_exception(error)
