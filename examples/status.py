"""The record of a run: looking it up, waiting for it, and counting all runs.

Run it::

    python -m examples.status

You will see::

    at once: READY, 0 attempts
    a wait that is too short: TimeoutError, and the run is RUNNING
    in the end: SUCCESSFUL, 1 attempts, returned 42
    looked up by its id: the same record
    counted: 1 ready, 1 running, 1 successful
    two runs later the first is forgotten: None
    an unknown id: None

``enqueue`` and ``add_task`` return a `TaskResult`, which changes as its run goes on. A response may
contain its ``id``; ``pool.get(id)`` returns the record again, from any thread. ``wait`` waits for
the end of the run, and its timeout ends the waiting only. ``pool.statistics()`` is a frozen count
of everything at one moment [statistics.1].

Finished runs are kept by count and by age: 10,000 of them for an hour, unless told otherwise; here
two of them. So memory stays bounded, and `get` returns None both for a forgotten id and for one
that never existed.
"""

import asyncio

from minibg import Pool


async def work(begun: asyncio.Event, finish: asyncio.Event) -> int:
    begun.set()
    await finish.wait()
    return 42


async def nothing() -> None: ...


async def main() -> None:
    begun, finish = asyncio.Event(), asyncio.Event()
    async with Pool(workers=1, keep_finished=2) as pool:
        result = pool.enqueue(work, begun, finish)
        print(f"at once: {result.status}, {result.attempts} attempts")
        await begun.wait()
        try:
            await result.wait(timeout=0.01)
        except TimeoutError:
            print(f"a wait that is too short: TimeoutError, and the run is {result.status}")
        finish.set()
        await result.wait()
        print(f"in the end: {result.status}, {result.attempts} attempts, returned {result.return_value}")
        print("looked up by its id:", "the same record" if pool.get(result.id) is result else "another")

        begun.clear()
        finish.clear()
        pool.enqueue(work, begun, finish)
        await begun.wait()
        pool.enqueue(nothing)
        now = pool.statistics()
        print(f"counted: {now.ready} ready, {now.running} running, {now.by_status[result.status]} successful")
        finish.set()
        await pool.idle()
        print("two runs later the first is forgotten:", pool.get(result.id))
        print("an unknown id:", pool.get("?"))


if __name__ == "__main__":
    asyncio.run(main())
