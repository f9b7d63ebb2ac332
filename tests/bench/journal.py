"""Tasks accepted to disk and finished per second, against Huey on SQLite, in alternating rounds of one run."""

import argparse
import asyncio
import random
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

CLIENTS = 64
ROUNDS = 5

finished = counter()


@task
async def count(number: int) -> None:
    """Do next to nothing: the way to the task is measured, not the task."""
    next(finished)


def minibg(folder: Path, tasks: int, durability: str, each: int = 1, pause: float = 0.0) -> tuple[float, list[float]]:
    """Let 64 clients add tasks as responses do, ``each`` at a time: add, commit, release.

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


CASES: dict[str, tuple[Callable[[Path], tuple[float, list[float]]], str]] = {
    "minibg, power": (lambda folder: minibg(folder, 40_000, "power"), "huey, fsync"),
    "minibg, power, 3": (lambda folder: minibg(folder, 40_000, "power", each=3), "huey, fsync"),
    "huey, fsync": (lambda folder: huey(folder, 4_000, fsync=True), "huey, fsync"),
    "minibg, process": (lambda folder: minibg(folder, 40_000, "process"), "huey, no fsync"),
    "huey, no fsync": (lambda folder: huey(folder, 8_000, fsync=False), "huey, no fsync"),
    "minibg, 1,000/s": (lambda folder: minibg(folder, 4_000, "power", pause=CLIENTS / 1000), "huey, fsync"),
    "minibg, memory": (lambda folder: minibg(folder, 40_000, "memory"), "huey, fsync"),
}


def main(arguments: Sequence[str]) -> None:
    """Each case in a process of its own, in turn, a few rounds."""
    parser = argparse.ArgumentParser("python -m tests.bench journal")
    parser.add_argument("--case", choices=CASES, help="run this one only, once, and print its figures")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    if options.case:
        with tempfile.TemporaryDirectory() as folder:
            rate, accepts = CASES[options.case][0](Path(folder))
        accepts.sort()
        print(rate, accepts[len(accepts) // 2], accepts[len(accepts) * 99 // 100])
        return
    measured: dict[str, list[tuple[float, float, float]]] = {case: [] for case in CASES}
    for _ in range(options.rounds):
        for case, figures in measured.items():
            call = [sys.executable, "-m", "tests.bench", "journal", "--case", case]
            rate, median, late = map(
                float, subprocess.run(call, check=True, capture_output=True, text=True).stdout.split()
            )
            figures.append((rate, median, late))
    print(f"{CLIENTS} clients, {options.rounds} rounds: median (least to greatest)")
    for case, figures in measured.items():
        against = measured[CASES[case][1]]
        ratios = [mine[0] / theirs[0] for mine, theirs in zip(figures, against, strict=True)]
        print(f"{case:16} tasks/s {spread([rate for rate, _, _ in figures], '8.0f')}", end="  ")
        print(f"accept p50 ms {spread([1000 * value for _, value, _ in figures], '.2f')}", end="  ")
        print(f"p99 ms {spread([1000 * value for _, _, value in figures], '.2f')}", end="  ")
        print(f"of {CASES[case][1]}: {spread(ratios, '.2f')}")


def spread(values: Sequence[float], form: str) -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
