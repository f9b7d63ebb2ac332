"""One of a kind: at most one unfinished run of a task has a key.

Run it::

    python -m examples.keys

You will see::

    three asked for the cache of shop 1, all got the same run: True
    refreshed shop 1
    refreshed shop 2
    asked again, a new run: True
    refreshed shop 1

At most one unfinished run of a task has a given key; who adds a second gets the first one's `TaskResult`. A hundred
registrations in a second need one cache refresh, not a hundred. A finished run frees its key, so the next change is
seen. One thing to know: a run that has begun may have read the old data already, and still holds the key.
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
        print("three asked for the cache of shop 1, all got the same run:", same[0] is same[1] is same[2])
        await pool.idle()
        print("asked again, a new run:", pool.enqueue(refresh.using(key="shop 1"), 1) is not same[0])


if __name__ == "__main__":
    asyncio.run(main())
