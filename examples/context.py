"""Context variables: a task sees those of its own request, and of no other.

Run it::

    python -m examples.context

You will see::

    thread: request 1
    loop: request 1
    retried: request 1
    retried: request 1
    thread: request 2
    loop: request 2
    retried: request 2
    retried: request 2
    outside: none

A task runs in a copy of the context in which ``add_task`` or ``enqueue`` was called [context.1]. A request id
that middleware has set is therefore in the log lines of the tasks, without being passed along: on
the event loop and in a thread, at the first attempt and at the second, and whatever the worker has
run before. Changes that a task makes end with its attempt.
"""

import asyncio
from contextvars import ContextVar

from minibg import Pool, Retry, task

request_id: ContextVar[str] = ContextVar("request_id", default="none")


def in_a_thread() -> None:
    print("thread:", request_id.get())
    request_id.set("forgotten at the end of the task")


async def on_the_loop() -> None:
    print("loop:", request_id.get())
    request_id.set("forgotten at the end of the task")


@task(retry=Retry(attempts=2, base=0.0))
async def retried() -> None:
    print("retried:", request_id.get())
    request_id.set("forgotten at the end of the attempt")
    raise ConnectionError


async def request(pool: Pool, number: int) -> None:
    request_id.set(f"request {number}")
    for function in (in_a_thread, on_the_loop, retried):
        pool.enqueue(function)


async def main() -> None:
    async with Pool(workers=1) as pool:
        for number in (1, 2):
            await asyncio.create_task(request(pool, number))  # A task of its own has a context of its own.
            await pool.idle()
        print("outside:", request_id.get())


if __name__ == "__main__":
    asyncio.run(main())
