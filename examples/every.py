"""Tasks on a schedule, and the moments that are missed.

Run it::

    python -m examples.every

You will see::

    run 1
    run 2 takes more than three intervals
    run 3
    missed more than one moment: True

``pool.every(f, seconds=60)`` enqueues ``f()`` like any other task, the first time one interval
after the start. In an application it is ``@app.every(seconds=60)`` above the function.

- Runs do not overlap: while one goes on, its next moments are missed.
- Moments are counted from the schedule, not from the end of a run: 3 s of work every 60 s stay on
  the minute.
- A missed moment is skipped, counted in ``missed``, and logged on stderr. It is not made up for.

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
