"""First of all: the two lanes of the queue.

Run it::

    python -m examples.priority

You will see::

    a password is reset
    a login is confirmed
    newsletter 1
    newsletter 2
    newsletter 3

``priority="high"`` goes to the other of two lanes, which is always emptied first. Within a lane it is first in, first
out. What runs already is not interrupted: high is the next, not the only.

There are two lanes and not ten, because nobody can say what a 6 is. The price: as long as high work keeps coming,
normal work waits. ``pool.statistics().oldest_ready`` shows for how many seconds. It is the lane of the first task of a
response that counts: the tasks of one response stay together.
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
