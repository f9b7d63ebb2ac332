"""A task that is tried again: how often, after which errors, and when.

Run it::

    python -m examples.retries

You will see::

    away twice: SUCCESSFUL after 3 attempts
        attempt 1: ConnectionError the mail server is away
        attempt 2: ConnectionError the mail server is away
    away for good: FAILED after 3 attempts
    wrong address: FAILED after 1 attempts
    chooses its own delay: SUCCESSFUL after 2 attempts

- ``attempts`` counts the first. The delay before the next is random between zero and ``base``
  seconds, then between zero and twice that, and so on up to ``cap``: tasks that failed together do
  not come back together.
- ``give_up_on`` names the errors that another attempt cannot cure.
- ``RetryLater(after=seconds)`` is for a task that was told when to come back.

Without ``retry=`` there is one attempt. While a task waits for its retry, its worker is free, and
the later tasks of the same response wait for it. The errors of all attempts are in the
`TaskResult`. The log, on stderr, has their tracebacks [isolation.3] with the task's name, its id, the number of
the attempt and the request that added it.
"""

import asyncio
from typing import Any

from minibg import Pool, Retry, RetryLater, TaskResult, task

RETRY = Retry(attempts=3, base=0.05, cap=1.0, give_up_on=(ValueError,))


class MailServer:
    """A mail server that refuses its first connections."""

    def __init__(self, away: int) -> None:
        self.away = away

    def connect(self) -> None:
        self.away -= 1
        if self.away >= 0:
            raise ConnectionError("the mail server is away")


@task(retry=RETRY)
async def send(server: MailServer, address: str) -> None:
    if "@" not in address:
        raise ValueError(f"{address!r} is not an address")
    server.connect()


@task(retry=RETRY)
async def send_politely(server: MailServer) -> None:
    try:
        server.connect()
    except ConnectionError as error:
        raise RetryLater("come back in a moment", after=0.01) from error


def show(described: str, result: TaskResult[Any]) -> None:
    print(f"{described}: {result.status} after {result.attempts} attempts")


async def main() -> None:
    async with Pool() as pool:
        result = await pool.enqueue(send, MailServer(away=2), "a@example.org").wait()
        show("away twice", result)
        for error in result.errors:
            print(f"    attempt {error.attempt}: {error.type} {error.message}")
        show("away for good", await pool.enqueue(send, MailServer(away=9), "a@example.org").wait())
        show("wrong address", await pool.enqueue(send, MailServer(away=0), "example").wait())
        show("chooses its own delay", await pool.enqueue(send_politely, MailServer(away=1)).wait())


if __name__ == "__main__":
    asyncio.run(main())
