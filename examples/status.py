"""What became of it: looking up a run, waiting for it, and counting all of them.

Run it::

    python -m examples.status

You will see::

    at once: READY, 0 attempts
    a wait that is too short: TimeoutError, and it is RUNNING
    in the end: SUCCESSFUL, 1 attempts, returned 42
    looked up by its id: the same record
    counted: 1 ready, 1 running, 1 successful
    two runs later the first is forgotten: None
    an id that nobody has heard of: None

``enqueue`` and ``add_task`` give back a `TaskResult`, which changes as its run goes on. Its ``id`` is what a response
gives to a client; ``pool.get(id)`` finds the record again, from any thread. ``wait`` waits for the end, and a timeout of
``wait`` ends the waiting only. ``pool.statistics()`` is a frozen count of everything at one moment.

Finished runs are kept by count and by age: 10,000 of them and an hour, unless told otherwise; two of them here. So
memory stays bounded, and an unknown id is None, whether it is old or was never there.
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
            print(f"a wait that is too short: TimeoutError, and it is {result.status}")
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
        print("an id that nobody has heard of:", pool.get("?"))


if __name__ == "__main__":
    asyncio.run(main())
