"""The two lanes of the queue: high before normal.

Run it::

    python -m examples.priority

You will see::

    a password is reset
    a login is confirmed
    newsletter 1
    newsletter 2
    newsletter 3

``priority="high"`` puts a task into the lane that workers empty first. Within a lane the order is
first in, first out. A running task is not interrupted.

There are two lanes and not ten, because a middle number has no meaning that two teams agree on. The
price: as long as high tasks keep coming, normal ones wait. ``pool.statistics().oldest_ready`` shows
for how many seconds. The tasks of one response stay together, in the lane of the first.
"""

import asyncio

from minibg import Pool, task


@task
async def say(words: str) -> None:
    print(words)


async def main() -> None:
    async with Pool(workers=1) as pool:
        for number in (1, 2, 3):
            pool.enqueue(say, f"newsletter {number}")
        pool.enqueue(say.using(priority="high"), "a password is reset")
        pool.enqueue(say.using(priority="high"), "a login is confirmed")


if __name__ == "__main__":
    asyncio.run(main())
