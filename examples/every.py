"""Every so often: tasks on a schedule, and what becomes of the moments that are missed.

Run it::

    python -m examples.every

You will see::

    run 1
    run 2 takes more than three intervals
    run 3
    missed more than one moment: True

``pool.every(f, seconds=60)`` enqueues ``f()`` like any other task, the first time one interval from the start. In an
application it is ``@app.every(seconds=60)`` above the function.

- No overlap: while a run goes on, its next moments are missed.
- The moments are counted from the schedule and not from the end of a run: 3 s every 60 s stay on the minute.
- What is missed is skipped, counted in ``missed``, and named in the log, on stderr. It is never made up for.

For "weekdays at half past four" see `examples.cron`.
"""

import asyncio
from itertools import count

from minibg import Pool

numbers = count(1)
enough = asyncio.Event()


async def main() -> None:
    async def run() -> None:
        match next(numbers):
            case 1:
                print("run 1")
            case 2:
                print("run 2 takes more than three intervals")
                await asyncio.sleep(0.17)
            case 3:
                print("run 3")
                periodic.cancel()
                enough.set()

    async with Pool() as pool:
        periodic = pool.every(run, seconds=0.05)
        await enough.wait()
    print("missed more than one moment:", periodic.missed > 1)


if __name__ == "__main__":
    asyncio.run(main())
