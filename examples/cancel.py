"""Cancelling, and the honest answer to it.

Run it::

    python -m examples.cancel

You will see::

    one that stands in line: CANCELLED, then CANCELLED
    one that is due later: CANCELLED, then CANCELLED
    a coroutine that runs: REQUESTED, then CANCELLED
    a thread that runs: RUNNING_IN_THREAD, then SUCCESSFUL
    one that has finished: FINISHED, then SUCCESSFUL
    one that nobody knows: UNKNOWN

In each status ``cancel`` has its honest answer. What has not begun is cancelled for certain. A coroutine gets a
CancelledError at the ``await`` where it stands, and may clean up. A thread cannot be stopped, so nothing is promised: it
goes on, and its result counts.
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


async def cancel(pool: Pool, what: str, result: TaskResult[Any], end: threading.Event | None = None) -> None:
    outcome = pool.cancel(result.id)
    if end is not None:
        end.set()
    print(f"{what}: {outcome.name}, then {(await result.wait()).status}")


async def main() -> None:
    async with Pool(workers=1) as pool:
        begun, in_thread, end = asyncio.Event(), threading.Event(), threading.Event()
        coroutine = pool.enqueue(rest, begun)
        await begun.wait()  # The only worker is taken.
        await cancel(pool, "one that stands in line", pool.enqueue(nothing))
        await cancel(pool, "one that is due later", pool.enqueue(nothing.using(delay=60)))
        await cancel(pool, "a coroutine that runs", coroutine)
        thread = pool.enqueue(work, in_thread, end)
        await asyncio.to_thread(in_thread.wait)
        await cancel(pool, "a thread that runs", thread, end)
        await cancel(pool, "one that has finished", thread)
        print(f"one that nobody knows: {pool.cancel('?').name}")


if __name__ == "__main__":
    asyncio.run(main())
