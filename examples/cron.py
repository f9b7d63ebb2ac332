"""Cron expressions: a library computes the next moment, ``run_at`` takes it.

It needs APScheduler, of which it uses the trigger and nothing else: ``pip install 'apscheduler>=3.11,<4'``.

Run it::

    python -m examples.cron

You will see::

    weekdays at half past four, after Friday noon: Monday 2026-01-05 04:30
    every second: run 1
    every second: run 2

minibg has no parser for cron expressions, and no calendar: months, leap years and summer time are a library's work.
What it has is ``run_at``, and the loop below is all that lies between: compute a moment, wait for the run, compute the
next. It never overlaps itself, and moments that go by during a run are skipped, as with ``every``.

A moment is computed with its time zone; ``run_at`` refuses one that has none.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from apscheduler.triggers.cron import CronTrigger

from minibg import Pool, task
from minibg.background import Task

weekdays = CronTrigger.from_crontab("30 4 * * mon-fri", timezone=UTC)
secondly = CronTrigger(second="*", timezone=UTC)
numbers = count(1)
enough = asyncio.Event()


@task
async def report() -> None:
    number = next(numbers)
    print("every second: run", number)
    if number == 2:
        enough.set()


async def cron(pool: Pool, trigger: CronTrigger, work: Task[[], Any]) -> None:
    """Run a task at each moment of a trigger, until it is cancelled."""
    now = datetime.now(UTC)
    while True:
        moment = trigger.get_next_fire_time(None, now)
        await pool.enqueue(work.using(run_at=moment)).wait()
        # A timer may be a little early, and a moment comes once.
        now = max(datetime.now(UTC), moment + timedelta(microseconds=1))


async def main() -> None:
    friday = datetime(2026, 1, 2, 12, tzinfo=UTC)
    print(
        f"weekdays at half past four, after Friday noon: {weekdays.get_next_fire_time(None, friday):%A %Y-%m-%d %H:%M}"
    )
    async with Pool() as pool:
        reporting = asyncio.create_task(cron(pool, secondly, report))
        await enough.wait()
        reporting.cancel()


if __name__ == "__main__":
    asyncio.run(main())
