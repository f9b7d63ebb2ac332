"""The queue and its workers in a script: no server, no application, no HTTP.

Run it::

    python -m examples.pool_alone

You will see::

    on the loop: 1 4 9
    in threads: True
    a failure stops no other task: FAILED ZeroDivisionError
    finished: 7

``async with`` opens the pool, and drains it at the end: the seventh task still runs when the block
ends. ``enqueue`` does not wait. It returns a `TaskResult`, which can be awaited or ignored.
Coroutine functions run on the event loop, all others in threads. The traceback of the failure is in
the log, on stderr.
"""

import asyncio
import threading

from minibg import Pool


async def square(number: int) -> int:
    await asyncio.sleep(0)
    return number * number


def divide(number: int, by: int) -> float:
    return number / by


def thread() -> int:
    return threading.get_ident()


async def main() -> None:
    async with Pool(workers=4) as pool:
        squares = [pool.enqueue(square, number) for number in (1, 2, 3)]
        print("on the loop:", *[(await each.wait()).return_value for each in squares])
        threads = [pool.enqueue(thread), pool.enqueue(thread)]
        idents = {(await each.wait()).return_value for each in threads}
        print("in threads:", threading.get_ident() not in idents)
        failed = await pool.enqueue(divide, 1, by=0).wait()
        print("a failure stops no other task:", failed.status, failed.errors[0].type)
        pool.enqueue(square, 4)
    by_status = pool.statistics().by_status
    print("finished:", sum(count for status, count in by_status.items() if status.is_final))


if __name__ == "__main__":
    asyncio.run(main())
