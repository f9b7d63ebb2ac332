"""Keys: at most one unfinished run of a task has a given key.

Run it::

    python -m examples.keys

You will see::

    three calls for shop 1 got the same run: True
    refreshed shop 1
    refreshed shop 2
    a later call got a new run: True
    refreshed shop 1

A call with the key of an unfinished run adds nothing and returns that run's `TaskResult`. A hundred
registrations in a second need one cache refresh, not a hundred. A finished run frees its key, so
the next change is seen. A limit: a run that has started may have read the old data already, and it
still has the key.
"""

import asyncio

from minibg import Pool, task


@task
async def refresh(shop: int) -> None:
    print("refreshed shop", shop)


async def main() -> None:
    async with Pool(workers=1) as pool:
        same = [pool.enqueue(refresh.using(key="shop 1"), 1) for _ in range(3)]
        pool.enqueue(refresh.using(key="shop 2"), 2)
        print("three calls for shop 1 got the same run:", same[0] is same[1] is same[2])
        await pool.idle()
        print("a later call got a new run:", pool.enqueue(refresh.using(key="shop 1"), 1) is not same[0])


if __name__ == "__main__":
    asyncio.run(main())
