"""The timeline: every transition of every run, as it happens.

Run it::

    python -m examples.follow

You will see::

    mail    add       -> HELD
    mail    release  HELD -> READY
    mail    start    READY -> RUNNING
    mail    retry    RUNNING -> WAITING
    mail    due      WAITING -> READY
    mail    start    READY -> RUNNING
    mail    succeed  RUNNING -> SUCCESSFUL

``pool.follow()`` is an asynchronous iterator of the transitions from now on. It ends when the pool
has stopped. A slow follower delays nothing: it loses the oldest transitions, and the next one says
in ``missed`` how many.
"""

import asyncio

from minibg import Pool, Retry, task

attempts = iter(range(1, 3))


@task(name="mail", retry=Retry(attempts=2, base=0.01))
async def send_mail() -> None:
    if next(attempts) == 1:
        raise ConnectionError("the mail server is away")


async def main() -> None:
    async with Pool() as pool:
        follower = pool.follow()
        pool.enqueue(send_mail)
    async for transition in follower:
        print(f"{transition.name:7} {transition.event.value:8} {transition.before or ''} -> {transition.after}")


if __name__ == "__main__":
    asyncio.run(main())
