"""The stop of a pool: which runs finish, which are cancelled, and what the report says.

Run it::

    python -m examples.stopping

You will see::

    endless: cleaned up
    short: SUCCESSFUL
    finished: 1
    endless was RUNNING, became LOST
    tomorrow was WAITING, became LOST

A pool that stops is drained: it finishes accepted runs for at most ``drain_timeout`` seconds, half
a second here and 30 unless told otherwise. Then it cancels the running coroutines and *awaits*
them, so that their cleanup finds everything open. Runs that are due after the deadline are not
waited for. `Pool.stop` returns a report, and the log has the same, one line for each run that did
not finish. Here those are LOST, because the queue is in memory; with a journal they would run at
the next start.

A signal stops a server in phases: no new connections, then the responses in flight finish, and their
applications after them [drain.2]; then the tasks are finished before the application shuts down
[drain.6], and the process exits with 0 [drain.1]. A second signal goes on to the next phase: when it
ends the drain, running tasks are cancelled and a stuck one is reported as LOST [threads.3]. A third
signal exits at once. A thread that never returns does not keep the process.
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
