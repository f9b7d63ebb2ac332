"""`python -m tests.bench.chains QUEUED TASKS`: microseconds of CPU a task while as many are always queued.

Each task adds the next one before it ends, so the queue keeps its length. Used by the bench `scale`.
"""

import asyncio
import sys
import time

from minibg import Pool
from minibg.serving import loop_factory


async def measure(queued: int, tasks: int) -> float:
    left = queued // 2 + 1000 + tasks
    began = 0.0

    async with Pool(queue_limit=queued + 100, drain_timeout=0.0) as pool:

        async def link() -> None:
            nonlocal left, began
            left -= 1
            if left == tasks:  # It is warm.
                began = time.process_time()
            if left > 0:
                pool.enqueue(link)
            if left == 0:
                end.set_result(time.process_time() - began)

        end: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        for _ in range(queued):
            pool.enqueue(link)
        return await end / tasks * 1e6


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory("auto")) as runner:
        print(runner.run(measure(int(sys.argv[1]), int(sys.argv[2]))))
