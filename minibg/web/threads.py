"""The threads of an application: where sync handlers, sync dependencies and file reads run.

A function that blocks must not run on the loop, so it runs here: at most forty threads per application, started when
there is more to do than threads to do it. Forty is what Starlette and anyio allow, and handlers written for them
expect no less. These threads are never those of background tasks: a queue full of slow mail leaves handlers fast, and
the other way round.

The rules of this file:

- Counting happens on the loop, working happens in the threads, and one `SimpleQueue` lies between them. No lock is
  needed because no count has two writers.
- A call runs in a copy of the caller's context, so a request id set by middleware is seen in a sync handler.
- A call that is cancelled while it waits is never started. One that has started cannot be stopped, and nobody waits
  for it: its thread comes back when it does.
- The threads are daemons. `concurrent.futures.ThreadPoolExecutor` was rejected for that: Python joins its threads at
  exit, so one stuck handler would keep the process for ever. asyncio's default executor was rejected because every
  library shares it.
"""

import asyncio
import contextvars
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

#: What `next` gives for an iterator that has ended: a StopIteration cannot pass through a future.
END: Any = object()


class Threads:
    """At most `limit` threads, started on demand. One per application."""

    def __init__(self, limit: int = 40) -> None:
        self._limit = limit
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._started = self._unfinished = 0

    async def run(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call `func` in a thread and wait for what it returns or raises."""
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        outcome: asyncio.Future[T] = loop.create_future()

        def perform() -> None:
            settle: Callable[[], object] = bool  # nothing, when it was cancelled before it began
            try:
                if not outcome.cancelled():
                    settle = partial(outcome.set_result, context.run(func, *args, **kwargs))
            except StopIteration:  # no future takes it
                settle = partial(outcome.set_exception, RuntimeError("a function in a thread raised StopIteration"))
            except BaseException as error:  # noqa: BLE001 - whoever waits for the call gets it, whatever it is
                settle = partial(outcome.set_exception, error)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._settle, outcome, settle)

        self._unfinished += 1
        if self._started < min(self._unfinished, self._limit):
            self._started += 1
            threading.Thread(target=self._work, name="minibg-handler", daemon=True).start()
        self._calls.put(perform)
        return await outcome

    async def iterate(self, iterable: Iterable[T]) -> AsyncGenerator[T, None]:
        """The items of `iterable`, each fetched in a thread; a generator is closed there when its reader stops early.

        A reader that is cancelled while a thread is inside the generator cannot close it. It is closed when that
        thread lets go of it.
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
        """Let every thread go when it has finished what it does; wait for none. A later `run` starts new ones."""
        for _ in range(self._started):
            self._calls.put(None)
        self._started = 0

    def _work(self) -> None:
        while (perform := self._calls.get()) is not None:
            perform()
            del perform  # a thread that waits keeps nothing of its last call alive

    def _settle(self, outcome: asyncio.Future[T], settle: Callable[[], object]) -> None:
        self._unfinished -= 1
        if not outcome.done():
            settle()
