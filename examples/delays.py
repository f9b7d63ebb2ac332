"""A task that runs later: after some seconds, or at a time of day.

Run it::

    python -m examples.delays

You will see::

    at once
    in 0.1 s
    at a time
    not waited for: LOST

``using`` returns a copy of a task with other options, which are never mixed with the function's own
arguments. A task that is due later has a slot of the queue and occupies no worker. It leaves its
batch [order.5]: the other tasks of its response do not wait for it. Times of day are aware datetimes. A time
without a zone is refused, because it means something else on the next machine.

A task that repeats is shown in `examples.every`.

The last line: a pool that stops does not wait for a run that is due after its drain timeout. The
log says so too.
"""

import asyncio
from datetime import UTC, datetime, timedelta

from minibg import Pool, task


@task
async def say(words: str) -> None:
    print(words)


async def main() -> None:
    async with Pool(drain_timeout=0.1) as pool:
        soon = datetime.now(UTC) + timedelta(seconds=0.2)
        pool.enqueue(say.using(run_at=soon), "at a time")
        pool.enqueue(say.using(delay=0.1), "in 0.1 s")
        pool.enqueue(say, "at once")
        await pool.idle()

        tomorrow = pool.enqueue(say.using(delay=86400), "tomorrow")
    print("not waited for:", tomorrow.status)


if __name__ == "__main__":
    asyncio.run(main())
