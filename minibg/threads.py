"""Threads for calls that would block the event loop: daemons, bounded, with errors and contexts
carried across.

`background` has threads for sync tasks, `web` has threads for sync handlers, and the journal has
one thread for its file. They are separate, so that no number of blocked tasks delays a handler
[threads.1]. Starlette runs sync tasks in the forty threads of its sync handlers, so forty blocked
tasks stop every sync handler (measured: 1 ms becomes 1.8 s).

The rules of this file:

- **Daemons.** A thread cannot be stopped from outside, and a thread that hangs in a system call
  must not keep the process from exiting. `concurrent.futures` joins its threads at exit, so one
  stuck call keeps the process running for ever. asyncio's default executor does so too, and is
  shared with every library.
- **Bounded.** A thread is started when there are more calls than threads, up to ``limit``. Further
  calls are queued. A pool's limit is the number of its workers [threads.2].
- **Counted on the loop.** Only the loop's thread counts, and a `queue.SimpleQueue` passes the calls
  to the other threads. No count has two writers, so no lock is needed.
- **One crew per loop.** Threads, queue and counts belong to one event loop and end with it. A call
  that is stuck when its loop ends, or when the threads are closed, delays no later call. Two loops
  in two threads share nothing.
- **Results in batches.** The first thread that finishes wakes the loop once, and the loop collects
  all results that have arrived by then. It costs the loop 0.4 to 1 microseconds a call, against 10
  with ``run_in_executor``, which wakes the loop for each call (measured).
- **Contexts.** A call runs in the context it is given, by default in a copy of the caller's.
- **Cancellation.** A call whose future is cancelled before a thread takes it is never made. A call
  that has begun cannot be stopped; its result is discarded.

CPU-bound calls share the interpreter with the event loop, which may wait for the switch interval (5
ms) each time it wants to run. A single C call that keeps the interpreter's lock, such as
``json.loads`` of a large text, blocks the event loop even from a thread.
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

#: Seconds between two checks whether the loop is still open, in a thread that waits for it. In
#: practice only a process that is ending closes its loop, so this bounds how long the thread
#: lingers.
LOOP_CHECK_SECONDS = 1.0
#: The default of `next` at the end of an iterator: a StopIteration cannot pass through a future.
END: Any = object()


class Threads:
    """At most ``limit`` daemon threads, started on demand. Every method is for the thread of an
    event loop.

    The threads are called ``name-1``, ``name-2`` and so on.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._crews: dict[asyncio.AbstractEventLoop, _Crew] = {}

    def call(
        self, function: Callable[..., T], /, *args: Any, context: contextvars.Context | None = None
    ) -> "asyncio.Future[T]":
        """Call ``function(*args)`` in a thread, and return a future of its result or exception.

        A StopIteration arrives as a RuntimeError (PEP 479). Raises RuntimeError when no event loop
        is running, and when the system refuses the first thread.
        """
        loop = asyncio.get_running_loop()
        crew = self._crews.get(loop)
        if crew is None:
            self.close()
            crew = self._crews[loop] = _Crew(loop)
        if crew.started < min(crew.unfinished + 1, self._limit):
            crew.start_thread(f"{self._name}-{crew.started + 1}")
        crew.unfinished += 1
        future: asyncio.Future[T] = loop.create_future()
        if context is None:  # An empty context is false.
            context = contextvars.copy_context()
        crew.calls.put((partial(context.run, function, *args), future))
        return future

    async def run(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call ``function(*args, **kwargs)`` in a thread, and wait for its result or exception."""
        return await self.call(partial(function, *args, **kwargs))

    async def iterate(self, iterable: Iterable[T]) -> AsyncGenerator[T, None]:
        """Yield the items of ``iterable``, each fetched in a thread. If the reader stops early,
        close a generator in a thread.

        A reader that is cancelled while a thread is inside the generator cannot close it. The
        generator is then closed when that thread releases it.
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
        """End the threads of this event loop, each after the calls that are queued.

        Does not wait for them. A later call starts new threads. The threads of closed loops are
        ended too.
        """
        running = asyncio._get_running_loop()  # noqa: SLF001 - documented, and None outside a loop.
        for loop in list(self._crews):
            if loop is running or loop.is_closed():
                self._crews.pop(loop).end_threads()


class _Crew:
    """The threads of one event loop, the queued calls, and the results to be collected."""

    __slots__ = ("calls", "finished", "loop", "notified", "started", "unfinished")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        #: The loop's thread writes both counts.
        self.started = self.unfinished = 0
        #: Calls from the loop's thread to the other threads; None ends the thread that takes it.
        self.calls: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        #: Results from the threads to the loop's thread: a future, and a value or an exception.
        self.finished: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        #: Whether the loop has been woken and has not collected the results yet.
        self.notified = False

    def start_thread(self, name: str) -> None:
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError:  # "can't start new thread": the threads that exist make the same calls, later.
            if not self.started:
                raise
        else:
            self.started += 1

    def end_threads(self) -> None:
        for _ in range(self.started):
            self.calls.put(None)

    def _work(self) -> None:
        while (call := self.calls.get()) is not None:
            function, future = call
            self.finished.append((future, None, None) if future.cancelled() else (future, *_outcome(function)))
            del call, function, future  # An idle thread keeps nothing of its last call alive.
            if self.notified:
                continue
            self.notified = True
            try:
                self.loop.call_soon_threadsafe(self._collect)
            except RuntimeError:  # The loop was closed during the call, so it can end no thread itself.
                self.end_threads()

    def _collect(self) -> None:
        self.notified = False  # First, so that a thread that appends from here on wakes the loop again.
        while self.finished:
            future, value, error = self.finished.popleft()
            self.unfinished -= 1
            if future.done():  # It was cancelled.
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)


def _outcome(function: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return function(), None
    except StopIteration:  # A future refuses it.
        return None, RuntimeError("a function in a thread raised StopIteration")
    except BaseException as error:  # noqa: BLE001 - it is raised where the call is awaited.
        return None, error


def on_loop(loop: asyncio.AbstractEventLoop, function: Callable[[*Ts], T], *args: *Ts) -> T:
    """Call ``function(*args)`` on the thread of ``loop``, from another thread, and return its
    result or raise its error.

    A sync handler adds its tasks this way. Rejected: a lock around every transition. Calls from
    other threads are rare, and state that only one thread touches needs no lock.

    Raises RuntimeError when the loop is closed before the call is made.
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
