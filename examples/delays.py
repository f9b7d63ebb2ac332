"""Later: in so many seconds, or at a time of day.

Run it::

    python -m examples.delays

You will see::

    at once
    in 0.1 s
    at a time
    not waited for: LOST

``using`` gives a copy of a task with other options; the function's own arguments are never mixed with them. A task
that waits takes a place in the queue and no worker. A task with a delay leaves its batch: the others of its response do
not wait for it. Times of day are aware datetimes: a time without a zone is refused, because it means something else on
the next machine.

Again and again is `examples.every`.

The last line: when the pool stops, it does not wait for what is due after its drain timeout. It says so in the log.
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
