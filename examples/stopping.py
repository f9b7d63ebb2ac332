"""The end: what is worked off, what is cancelled, and what the report says.

Run it::

    python -m examples.stopping

You will see::

    endless: cleaned up
    short: SUCCESSFUL
    finished: 1
    endless was RUNNING, became LOST
    tomorrow was WAITING, became LOST

A pool that stops works off what is there, for ``drain_timeout`` seconds at the most: half a second here, 30 unless told
otherwise. Then it cancels the coroutines that still run and *awaits* them, so that their cleanup finds everything open.
What is due after the deadline is not waited for. `Pool.stop` gives back the report, and the log has the same, a line
per task: nothing is lost in silence. But it is lost: the queue lives in memory.

A signal ends a server around it in phases, after its tasks and with 0: no new connections, then a response in flight
finishes and the application after it, then the tasks. An application finds that the pool is open during startup, works
after it, and is drained before the shutdown. A second signal gives up the phase that is waited for, and the third has its
default effect. When a second signal gives up the drain, what still runs is cancelled, and a stuck task is named LOST. It
does not keep the process: the threads of tasks are daemons.
"""

import asyncio

from minibg import Pool, task


@task(name="short")
async def short() -> None:
    await asyncio.sleep(0.05)


@task(name="endless")
async def endless() -> None:
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        print("endless: cleaned up")


@task(name="tomorrow")
async def tomorrow() -> None: ...


async def main() -> None:
    async with Pool(workers=2, drain_timeout=0.5) as pool:
        pool.enqueue(endless)
        result = pool.enqueue(short)
        pool.enqueue(tomorrow.using(delay=86400))
        report = await pool.stop()
    print(f"short: {result.status}")
    print(f"finished: {report.finished}")
    for each in report.unfinished:
        print(f"{each.name} was {each.was}, became {each.became}")


if __name__ == "__main__":
    asyncio.run(main())
