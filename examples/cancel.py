"""Cancelling a run, and how far that is possible in each status.

Run it::

    python -m examples.cancel

You will see::

    a queued run: CANCELLED, then CANCELLED
    a run that is due later: CANCELLED, then CANCELLED
    a running coroutine: REQUESTED, then CANCELLED
    a running thread: RUNNING_IN_THREAD, then SUCCESSFUL
    a finished run: FINISHED, then SUCCESSFUL
    an unknown id: UNKNOWN

``pool.cancel(id)`` returns a `CancelOutcome`: what it could do in that status [cancel.1]. A run that has not started is cancelled for certain.
A running coroutine gets a CancelledError at its ``await`` and may clean up; `REQUESTED` says that
it has been told. A thread cannot be stopped, so its run goes on, and its result counts.
"""

import asyncio
import threading
from typing import Any

from minibg import Pool, TaskResult, task


async def rest(begun: asyncio.Event) -> None:
    begun.set()
    await asyncio.get_running_loop().create_future()


def work(begun: threading.Event, end: threading.Event) -> str:
    begun.set()
    end.wait()
    return "done"


@task
async def nothing() -> None: ...


async def cancel(pool: Pool, described: str, result: TaskResult[Any], end: threading.Event | None = None) -> None:
    outcome = pool.cancel(result.id)
    if end is not None:
        end.set()
    print(f"{described}: {outcome.name}, then {(await result.wait()).status}")


async def main() -> None:
    async with Pool(workers=1) as pool:
        begun, in_thread, end = asyncio.Event(), threading.Event(), threading.Event()
        coroutine = pool.enqueue(rest, begun)
        await begun.wait()  # The only worker is busy.
        await cancel(pool, "a queued run", pool.enqueue(nothing))
        await cancel(pool, "a run that is due later", pool.enqueue(nothing.using(delay=60)))
        await cancel(pool, "a running coroutine", coroutine)
        thread = pool.enqueue(work, in_thread, end)
        await asyncio.to_thread(in_thread.wait)
        await cancel(pool, "a running thread", thread, end)
        await cancel(pool, "a finished run", thread)
        print(f"an unknown id: {pool.cancel('?').name}")


if __name__ == "__main__":
    asyncio.run(main())
