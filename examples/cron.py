"""Cron expressions: a library computes the next moment, ``run_at`` takes it.

It needs APScheduler, of which it uses the trigger and nothing else: ``pip install
'apscheduler>=3.11,<4'``.

Run it::

    python -m examples.cron

You will see::

    weekdays at half past four, after Friday noon: Monday 2026-01-05 04:30
    every second: run 1
    every second: run 2

minibg has no parser for cron expressions and no calendar: months, leap years and summer time are
the work of a library. The loop in ``cron`` below is all that connects the two: compute a moment,
wait for its run, compute the next one. It never overlaps itself, and moments that pass during a run
are skipped, as with ``every``.

Each moment has a time zone; ``run_at`` refuses one without.
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
    """Run a task at each moment of the trigger, until this coroutine is cancelled."""
    now = datetime.now(UTC)
    while True:
        moment = trigger.get_next_fire_time(None, now)
        await pool.enqueue(work.using(run_at=moment)).wait()
        # A timer may fire a little early, and each moment counts once.
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
