"""The timeout of a task: what it does to a coroutine, and what it cannot do to a thread.

Run it::

    python -m examples.timeouts

You will see::

    coroutine: FAILED, cleaned up: True
    thread: FAILED, still at work: 1, the next is READY
    thread has returned, still at work: 0, the next is SUCCESSFUL

A coroutine is cancelled at its timeout, and awaited: its ``finally`` has run before its result is
there. Python cannot cancel a thread. Its run is FAILED at once, so a caller that waits for it
knows; its worker stays busy until the thread returns, and ``statistics().overrunning_threads``
counts it. So give blocking calls a timeout of their own (``smtplib.SMTP(timeout=10)``), and make
the one of the task longer.

A task has no timeout unless it asks for one [timeout.1]. One that runs for a minute is named in a warning.
"""

import asyncio
import threading

from minibg import Pool, task

cleaned_up = asyncio.Event()
answer = threading.Event()


@task(timeout=0.05)
async def wait_for_ever() -> None:
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        cleaned_up.set()


@task(timeout=0.05)
def wait_for_an_answer() -> None:
    answer.wait()


async def nothing() -> None: ...


async def main() -> None:
    async with Pool(workers=1) as pool:
        coroutine = await pool.enqueue(wait_for_ever).wait()
        print(f"coroutine: {coroutine.status}, cleaned up: {cleaned_up.is_set()}")

        thread, next_one = pool.enqueue(wait_for_an_answer), pool.enqueue(nothing)
        await thread.wait()
        print(f"thread: {thread.status}, still at work: {at_work(pool)}, the next is {next_one.status}")
        answer.set()
        await next_one.wait()
        print(f"thread has returned, still at work: {at_work(pool)}, the next is {next_one.status}")


def at_work(pool: Pool) -> int:
    return pool.statistics().overrunning_threads


if __name__ == "__main__":
    asyncio.run(main())
