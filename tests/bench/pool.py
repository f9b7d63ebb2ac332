"""The pool alone, without HTTP: no-op tasks from the call that adds them to their end, which is noted.

Coroutine tasks against ``aiojobs.Scheduler(limit=100)``, sync tasks against ``loop.run_in_executor``. Each case
is a process of its own on uvloop, in turn. A thousand tasks are added, then their end is waited for, and
again; the figure is the process's user and system time, all threads, divided by the tasks.
"""

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from minibg import Pool, TaskStatus
from minibg.serving import loop_factory
from tests.bench.harness import ROOT, Row, environment, installed, options, ratios

TASKS = 20_000
AT_ONCE = 1000
#: As many coroutine tasks run at the same time here as there.
LIMIT = 100
#: As many threads here as there.
THREADS = 8


async def noop() -> None:
    pass


def sync_noop() -> None:
    pass


async def rounds(tasks: int, some: Callable[[], Awaitable[object]]) -> float:
    """Call ``some``, which runs `AT_ONCE` tasks, until ``tasks`` have run; return microseconds of CPU a task."""
    await some()  # It warms.
    before = time.process_time()
    for _ in range(tasks // AT_ONCE):
        await some()
    return (time.process_time() - before) / (tasks // AT_ONCE * AT_ONCE) * 1e6


async def minibg(tasks: int, function: Callable[[], object], workers: int) -> float:
    async with Pool(workers=workers, queue_limit=AT_ONCE) as pool:

        async def some() -> None:
            for _ in range(AT_ONCE):
                pool.enqueue(function)
            await pool.idle()

        used = await rounds(tasks, some)
        assert pool.statistics().by_status[TaskStatus.SUCCESSFUL] == tasks + AT_ONCE
        return used


async def aiojobs(tasks: int) -> float:
    from aiojobs import Scheduler

    async with Scheduler(limit=LIMIT, pending_limit=AT_ONCE) as scheduler:

        async def some() -> None:
            for _ in range(AT_ONCE):
                await scheduler.spawn(noop())
            while len(scheduler):
                await asyncio.sleep(0)

        return await rounds(tasks, some)


async def executor(tasks: int) -> float:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(THREADS) as threads:

        async def some() -> None:
            await asyncio.wait([loop.run_in_executor(threads, sync_noop) for _ in range(AT_ONCE)])

        return await rounds(tasks, some)


CASES: dict[str, Callable[[int], Awaitable[float]]] = {
    "aiojobs": aiojobs,
    "minibg, coroutines": lambda tasks: minibg(tasks, noop, LIMIT),
    "run_in_executor": executor,
    "minibg, sync": lambda tasks: minibg(tasks, sync_noop, THREADS),
}


async def once(case: str, tasks: int) -> float:
    return await CASES[case](tasks)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m tests.bench pool", add_help=False)
    parser.add_argument("--case", choices=CASES, help="run this one only, once, and print its figure")
    own, rest = parser.parse_known_args(arguments)
    chosen = options("pool", __doc__, rest)
    if own.case:
        with asyncio.Runner(loop_factory=loop_factory("auto")) as runner:
            print(runner.run(once(own.case, chosen.scaled(TASKS))))
        return
    cases = [case for case in CASES if case != "aiojobs" or installed("aiojobs")]
    if "aiojobs" not in cases:
        print("skipped: aiojobs is not installed")
    figures: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(chosen.rounds):
        for case in cases:
            call = [sys.executable, "-m", "tests.bench", "pool", "--case", case, *(["--quick"] if chosen.quick else [])]
            figures[case].append(float(subprocess.run(call, cwd=ROOT, check=True, capture_output=True).stdout))
    print(environment("aiojobs", "uvloop"))
    rows = [Row("no-op sync tasks", "run_in_executor", figures["run_in_executor"], figures["minibg, sync"], 1.0)]
    if "aiojobs" in figures:
        work = f"no-op coroutine tasks, {LIMIT} at a time"
        rows.insert(0, Row(work, "aiojobs", figures["aiojobs"], figures["minibg, coroutines"], 1.0))
    ratios("us a task", rows)
