"""Tasks accepted to disk and finished per second, against Huey on SQLite, in alternating rounds.

64 clients add the smallest task there is and wait until it is on disk: in minibg as a response does, in Huey by
calling the task from 64 threads, with two worker threads, its fastest setting here. Each case is a process
of its own, in turn. Here the figure is time and not processor time: a disk is waited for.
"""

import argparse
import asyncio
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count as counter
from pathlib import Path

from minibg import BackgroundTasks, Pool, task
from minibg.serving import loop_factory
from tests.bench.harness import ROOT, environment, installed, options, spread, table, verdict

CLIENTS = 64
#: Tasks of a case, in minibg and in Huey. Huey writes a fifth as many a second.
TASKS, HUEYS = 40_000, 4_000
#: The rate that issue 13 asks for, in Huey's with the same promise.
TARGET = 15.0

finished = counter()


@task
async def count(number: int) -> None:
    """Do next to nothing: the way to the task is measured, not the task."""
    next(finished)


def minibg(folder: Path, tasks: int, durability: str, each: int = 1, pause: float = 0.0) -> tuple[float, list[float]]:
    """Let the clients add tasks as responses do, ``each`` at a time: add, commit, release.

    ``pause`` is the mean of the seconds between two responses of a client. Returns tasks a second, and
    the seconds of each commit.
    """
    accepts: list[float] = []

    async def client(pool: Pool, numbers: "counter[int]") -> None:
        while (number := next(numbers)) * each < tasks:
            if pause:  # Before the first task too: else all clients would begin at once.
                await asyncio.sleep(random.uniform(0, 2 * pause))
            began = time.perf_counter()
            hold = BackgroundTasks(pool, "POST /count")
            for _ in range(each):
                hold.add_task(count, number)
            await hold.commit()
            accepts.append(time.perf_counter() - began)
            hold.release()

    async def run() -> float:
        journal = None if durability == "memory" else folder / "minibg.db"
        options = {} if durability == "memory" else {"durability": durability}
        async with Pool(journal=journal, workers=CLIENTS, queue_limit=100_000, **options) as pool:  # type: ignore[arg-type]
            began, numbers = time.perf_counter(), counter()
            await asyncio.gather(*(client(pool, numbers) for _ in range(CLIENTS)))
            await pool.idle()
            return tasks / (time.perf_counter() - began)

    with asyncio.Runner(loop_factory=loop_factory("auto")) as runner:
        return runner.run(run()), accepts


def huey(folder: Path, tasks: int, fsync: bool) -> tuple[float, list[float]]:
    """64 threads enqueue; Huey's consumer works with two threads, its fastest setting here."""
    from huey import SqliteHuey

    queue = SqliteHuey(filename=str(folder / "huey.db"), fsync=fsync, results=False)
    done = threading.Event()
    left, numbers, accepts = counter(1), counter(), list[float]()

    @queue.task()  # type: ignore[untyped-decorator]
    def count(number: int) -> None:
        if next(left) == tasks:
            done.set()

    def client() -> None:
        while next(numbers) < tasks:
            began = time.perf_counter()
            count(1)
            accepts.append(time.perf_counter() - began)

    consumer = queue.create_consumer(workers=2, periodic=False, initial_delay=0.001, backoff=1.0, max_delay=0.001)
    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    consumer.start()
    began = time.perf_counter()
    for thread in clients:
        thread.start()
    if not done.wait(120):
        raise RuntimeError("Huey did not finish in two minutes")
    seconds = time.perf_counter() - began
    for thread in clients:
        thread.join()
    consumer.stop(graceful=True)
    return tasks / seconds, accepts


Figures = tuple[float, list[float]]
#: case -> (how it is run with so much of its tasks, the case it is compared with)
CASES: dict[str, tuple[Callable[[Path, float], Figures], str]] = {
    "minibg, power": (lambda folder, part: minibg(folder, int(TASKS * part), "power"), "huey, fsync"),
    "minibg, power, 3 a response": (lambda folder, part: minibg(folder, int(TASKS * part), "power", 3), "huey, fsync"),
    "huey, fsync": (lambda folder, part: huey(folder, int(HUEYS * part), fsync=True), "huey, fsync"),
    "minibg, process": (lambda folder, part: minibg(folder, int(TASKS * part), "process"), "huey, no fsync"),
    "huey, no fsync": (lambda folder, part: huey(folder, int(2 * HUEYS * part), fsync=False), "huey, no fsync"),
    "minibg, power, 1,000 accepts a second": (
        lambda folder, part: minibg(folder, int(4000 * part), "power", 1, CLIENTS / 1000),
        "huey, fsync",
    ),
    "minibg, memory": (lambda folder, part: minibg(folder, int(TASKS * part), "memory"), "huey, fsync"),
}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m tests.bench journal", add_help=False)
    parser.add_argument("--case", choices=CASES, help="run this one only, once, and print its figures")
    own, rest = parser.parse_known_args(arguments)
    chosen = options("journal", __doc__, rest)
    if own.case:
        with tempfile.TemporaryDirectory() as folder:
            rate, accepts = CASES[own.case][0](Path(folder), 0.2 if chosen.quick else 1.0)
        accepts.sort()
        print(rate, accepts[len(accepts) // 2], accepts[len(accepts) * 99 // 100])
        return
    cases = [case for case in CASES if not case.startswith("huey") or installed("huey")]
    if "huey, fsync" not in cases:
        print("skipped: huey is not installed")
    rates, medians, lates = ({case: list[float]() for case in cases} for _ in range(3))
    for _ in range(chosen.rounds):
        for case in cases:
            call = [
                sys.executable,
                "-m",
                "tests.bench",
                "journal",
                "--case",
                case,
                *(["--quick"] if chosen.quick else []),
            ]
            output = subprocess.run(call, cwd=ROOT, check=True, capture_output=True, text=True).stdout
            for figures, figure in zip((rates, medians, lates), output.split(), strict=True):
                figures[case].append(float(figure))
    print(environment("huey", "uvloop"), f"SQLite {sqlite3.sqlite_version}", sep=", ")
    lines = []
    for case in cases:
        against = CASES[case][1]
        times = [mine / theirs for mine, theirs in zip(rates[case], rates.get(against, []))]
        delays = [spread([1000 * value for value in figures[case]]) for figures in (medians, lates)]
        target = TARGET if case == "minibg, power" and times else None
        reached = verdict(None if target is None else statistics.median(times) >= target)
        lines.append((case, spread(rates[case], ".0f"), *delays, spread(times) if times else "", target or "", reached))
    table(["case", "tasks/s", "accept, p50 ms", "accept, p99 ms", "times Huey", "at least", ""], lines)
