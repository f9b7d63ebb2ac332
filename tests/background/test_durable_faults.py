"""What the durable journal promises, against real processes: killed, stopped, refused by the disk, given a wrong file.

Each life is a process of its own (`durable_process.py`), and opens the file as the one before has left it. What is true is read
from two places: the lines its tasks have written to a log that all lives share, and the file itself.
"""

import asyncio
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
#: Seconds after which a test gives up on a process. Nothing takes that long but a fault.
PATIENCE = 30.0


@dataclass
class Lives:
    """A journal, and the processes that own it one after another."""

    folder: Path
    pool: dict[str, Any]
    listener: socket.socket
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def journal(self) -> Path:
        return Path(self.pool["journal"])

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def begin(self, *, serving: bool = False, **options: Any) -> subprocess.Popen[bytes]:
        """Begin a life: one that serves, or one that works until nothing is left."""
        options = {"pool": self.pool, "log": str(self.log), **options}
        if serving:
            options["fd"] = self.listener.fileno()
        with Path(self.folder / f"stderr-{len(self.processes)}").open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.background.durable_process", json.dumps(options)],
                cwd=ROOT,
                pass_fds=[self.listener.fileno()] if serving else (),
                stderr=stderr,
            )
        self.processes.append(process)
        return process

    def serve(self, **options: Any) -> subprocess.Popen[bytes]:
        """Begin a life that serves, and wait until it does."""
        process = self.begin(serving=True, **options)
        self.wait_for(f"serving - {process.pid}")
        return process

    def finish(self, **options: Any) -> str:
        """Live until nothing is left to do. Gives what that life said on stderr."""
        process = self.begin(**options)
        code = process.wait(PATIENCE)
        assert code == 0, self.said()
        return self.said()

    def fail(self, **options: Any) -> tuple[int, str]:
        """Begin a life that cannot be. Gives its exit code, and what it said last."""
        code = self.begin(**options).wait(PATIENCE)
        return code, self.said().splitlines()[-1]

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        self.note(f"kill - {process.pid}")
        process.kill()
        process.wait(PATIENCE)

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0, self.said()

    def said(self, number: int = -1) -> str:
        number %= len(self.processes)
        return (self.folder / f"stderr-{number}").read_text()

    def note(self, line: str) -> None:
        with self.log.open("a") as log:
            log.write(f"{line}\n")

    def lines(self) -> list[tuple[str, str, int]]:
        """What was told: the event, the id of a task, the process."""
        text = self.log.read_text() if self.log.exists() else ""
        return [(what, id, int(pid)) for what, id, pid in (line.rsplit(" ", 2) for line in text.splitlines())]

    def events(self) -> list[tuple[str, str]]:
        """What the tasks told."""
        return [(what, id) for what, id, _ in self.lines() if what in ("start", "end")]

    def wait_for(self, line: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while line not in (self.log.read_text().splitlines() if self.log.exists() else ()):
            assert time.monotonic() < deadline, (line, self.lines(), self.said())
            assert self.processes[-1].poll() is None, self.said()
            time.sleep(0.005)

    def rows(self) -> list[dict[str, Any]]:
        """The runs in the file, in order."""
        with closing(sqlite3.connect(f"file:{self.journal}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute("SELECT * FROM runs ORDER BY seq")]

    def statuses(self) -> list[tuple[str, str]]:
        """The first argument of each run, and its status."""
        return [(json.loads(row["payload"])[0][0], row["status"]) for row in self.rows()]

    def edit(self, statement: str, *values: object) -> None:
        with closing(sqlite3.connect(self.journal)) as database, database:
            database.execute(statement, values)

    def post(self, *tasks: Any, **wish: Any) -> tuple[int, list[str]]:
        return asyncio.run(post(self.listener, {"tasks": tasks, **wish}))

    def end(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        lives = Lives(tmp_path, {"journal": str(tmp_path / "tasks.db"), "drain_timeout": 0}, listener)
        yield lives
        lives.end()


def call(name: str, *args: Any, **options: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """A call as the processes read it."""
    return name, args, options


async def post(listener: socket.socket, wish: dict[str, Any]) -> tuple[int, list[str]]:
    """Ask for tasks. Gives the status and the ids of their runs. Raises OSError when the answer does not come whole."""
    body = json.dumps(wish).encode()
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    try:
        writer.write(
            b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        answer = await reader.read()
    finally:
        writer.close()
    head, found, content = answer.partition(b"\r\n\r\n")
    if not found:
        raise ConnectionError(answer)
    status = int(head.split()[1])
    if status != 200:
        return status, []
    if not content.endswith(b"\r\n0\r\n\r\n"):  # RFC 9112 §7.1: without its last chunk it is cut.
        raise ConnectionError(answer)
    return status, json.loads(b"".join(content.split(b"\r\n")[1:-3:2]))


# Killed.


class Load:
    """Clients that ask for random tasks, and what became of it."""

    def __init__(self, listener: socket.socket, seed: str) -> None:
        self.listener = listener
        self.seed = seed
        #: The ids of the runs that were acknowledged: their answer came whole.
        self.acknowledged: list[str] = []
        #: The tasks (the first argument of each) that were refused, or whose handler failed.
        self.refused: list[str] = []
        #: The tasks of each response, in order, but for those that do not stand in line with the others.
        self.responses: list[list[str]] = []
        #: The key of each task that has one.
        self.keys: dict[str, str] = {}
        self.answered = asyncio.Event()
        self.ended = False

    async def ask(self, client: int) -> None:
        chance = random.Random(f"{self.seed} client {client}")
        number = 0
        while not self.ended:
            wish = self.wish(chance, f"{client}.{number}")
            number += 1
            tasks = [args[0] for _, args, _ in wish["tasks"] + wish["late"]]
            # Some clients do not wait for their answer.
            patience = chance.uniform(0, 0.005) if chance.random() < 0.05 else PATIENCE
            try:
                status, ids = await asyncio.wait_for(post(self.listener, wish), patience)
            except TimeoutError:
                assert patience < PATIENCE, f"{wish} got no answer"
                continue
            except OSError:
                continue
            if status == 200:
                self.acknowledged += ids
                self.answered.set()
            else:
                self.refused += tasks

    def wish(self, chance: random.Random, name: str) -> dict[str, Any]:
        if chance.random() < 0.1:
            self.keys[f"{name}.key"] = key = f"key {chance.randrange(4)}"
            return {"tasks": [call("work", f"{name}.key", 0.002, key=key)], "late": []}
        tasks = []
        for n in range(chance.randrange(1, 5)):
            kind = chance.choice(("work", "work", "work in a thread", "fail", "fail three times"))
            delay = {"delay": chance.uniform(0, 0.1)} if chance.random() < 0.1 else {}
            tasks.append(call(kind, f"{name}.{n}", chance.choice((0, 0, 0.002, 0.02)), **delay))
        self.responses.append([args[0] for _, args, options in tasks if "delay" not in options])
        first = chance.choice((len(tasks), len(tasks), len(tasks) // 2))  # The others are added while it streams.
        return {"tasks": tasks[:first], "late": tasks[first:], "raise": chance.random() < 0.02}


async def kill_again_and_again(lives: Lives, load: Load, kills: int) -> None:
    """Serve the load with one life after another, each killed at a random moment; the next begins before that, or after."""
    chance = random.Random(load.seed)
    clients = [asyncio.create_task(load.ask(client)) for client in range(6)]
    process = lives.begin(serving=True, loop="asyncio")
    for number in range(kills):
        load.answered.clear()
        if chance.random() < 0.8:  # In the middle of its work; else at some moment of its start, or soon after.
            async with asyncio.timeout(PATIENCE):
                await load.answered.wait()
        await asyncio.sleep(chance.uniform(0, 0.2))
        loop, successor = ("uvloop", "asyncio")[number % 2], None
        if chance.random() < 0.3:
            successor = lives.begin(serving=True, loop=loop)
            await asyncio.sleep(chance.uniform(0, 0.3))
        lives.kill(process)
        process = successor or lives.begin(serving=True, loop=loop)
    load.ended = True
    lives.kill(process)
    lives.listener.close()
    for client in clients:
        client.cancel()
    for outcome in await asyncio.gather(*clients, return_exceptions=True):
        assert isinstance(outcome, asyncio.CancelledError | None), outcome


#: How many attempts of each task count: all of them, but those a kill has ended.
COUNTED = {"work": 1, "work in a thread": 1, "fail": 1, "fail three times": 3}
WORKERS = 8


@pytest.mark.parametrize(("durability", "kills"), [("power", 50), ("process", 15)])
def test_what_was_acknowledged_is_run_however_often_the_process_is_killed(
    lives: Lives, durability: str, kills: int
) -> None:
    """The seed is in every message. The same seed gives the same wishes, not the same moments."""
    lives.pool |= {"durability": durability, "workers": WORKERS, "queue_limit": 200}
    seed = os.environ.get("MINIBG_FAULT_SEED", str(random.randrange(10**9)))
    load = Load(lives.listener, seed)
    asyncio.run(kill_again_and_again(lives, load, kills))
    lives.finish()
    rows, lines = lives.rows(), lives.lines()
    assert len(load.acknowledged) > 10 * kills, f"seed {seed}: hardly a load"
    problems = [*not_kept(load, rows, lines), *run_by_two(lines), *out_of_order(load, lines), *run_again(rows, lines)]
    assert problems == [], f"seed {seed}: {len(problems)} problems"


Lines = list[tuple[str, str, int]]


def task_of(row: dict[str, Any]) -> str:
    return str(json.loads(row["payload"])[0][0])


def died(row: dict[str, Any]) -> bool:
    """Whether it was in progress at three kills, and so is not run any more."""
    return row["crashes"] == 3 and "WorkerDied" in row["errors"]


def not_kept(load: Load, rows: list[dict[str, Any]], lines: Lines) -> Iterator[str]:
    """What was acknowledged is in the file, finished, and told its end; what was refused never began."""
    by_id = {row["id"]: row for row in rows}
    ended = {task for what, task, _ in lines if what == "end"}
    begun = {task for what, task, _ in lines if what == "start"}
    for id in load.acknowledged:
        row = by_id.get(id)
        if row is None:
            yield f"{id} was acknowledged and is not in the file"
        elif not died(row) and task_of(row) not in ended:
            yield f"{task_of(row)} was acknowledged and has not ended: {row}"
    acknowledged = set(load.acknowledged)
    for row in rows:
        if row["status"] == "DROPPED":  # Its stream found no place for a late task, and was cut.
            if row["id"] in acknowledged or task_of(row) in begun:
                yield f"{task_of(row)} was dropped: {row}"
        elif not died(row) and row["status"] != ("FAILED" if row["name"].startswith("fail") else "SUCCESSFUL"):
            yield f"{task_of(row)} has not ended as it should: {row}"
    yield from (f"{task} was refused and has run" for task in load.refused if task in begun)


def run_by_two(lines: Lines) -> Iterator[str]:
    """The lives do not overlap: each tells its first line after the kill of the one before was decided, and no line later.

    So no task can be run by two: what the one before had begun ended with it.
    """
    owner, killed = None, set()
    for number, (what, _, pid) in enumerate(lines):
        if what == "kill":
            killed.add(pid)
        elif what in ("start", "end") and pid != owner:
            if pid in killed or (owner is not None and owner not in killed):
                yield f"line {number}: {pid} works, and {owner} has not been killed"
            owner = pid


def out_of_order(load: Load, lines: Lines) -> Iterator[str]:
    """A task begins when its elder sibling has told its last line, over all lives; and one with a key like a sibling.

    That is also true when the end of the elder was not in the file at the kill: a worker has its next task
    counted in the transaction that ends the one before, or in a later one.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for number, (_, task, _) in enumerate(lines):
        first.setdefault(task, number)
        last[task] = number
    for response in load.responses:
        begun = [task for task in response if task in first]
        for elder, younger in zip(begun, begun[1:], strict=False):
            if last[elder] > first[younger]:
                yield f"{younger} began before {elder} had ended"
    for key in set(load.keys.values()):
        begun = sorted((task for task in load.keys if load.keys[task] == key and task in first), key=first.__getitem__)
        for elder, younger in zip(begun, begun[1:], strict=False):
            if last[elder] > first[younger]:
                yield f"{younger} began before {elder} had ended, which has the same key"


def run_again(rows: list[dict[str, Any]], lines: Lines) -> Iterator[str]:
    """Only what was in progress at a kill is run again, and at each kill that is at most a task for each worker.

    In progress is what the file calls RUNNING: an attempt that was counted, and whose end was not written. A task can have
    told its end by then. It is no more than one for each worker, because a worker's next attempt is counted
    in the transaction that ends the one before, or in a later one.
    """
    starts: dict[str, list[int]] = defaultdict(list)
    ends: dict[str, list[int]] = defaultdict(list)
    for what, task, pid in lines:
        if what == "start":
            starts[task].append(pid)
        elif what == "end":
            ends[task].append(pid)
    interrupted: dict[int, int] = defaultdict(int)
    for row in rows:
        task, counted = task_of(row), row["attempts"] - row["excused"]
        cut = len(starts[task]) - len(ends[task])
        story = f"{task}: {row['attempts']} attempts, {row['crashes']} crashes, {starts[task]}, {ends[task]}"
        due = 0 if row["status"] == "DROPPED" else COUNTED[row["name"]]
        if row["excused"] != row["crashes"] or (not died(row) and counted != due):
            yield f"{story}: another number of attempts counts"
        if len(starts[task]) > row["attempts"] or cut > row["crashes"] or len(ends[task]) - counted > row["crashes"]:
            yield f"{story}: it was run again without a crash"
        if row["name"] != "fail three times":
            if len(set(starts[task])) != len(starts[task]):
                yield f"{story}: it was run twice in one life"
            for pid in starts[task][:-1]:
                interrupted[pid] += 1
    yield from (f"{pid}: {number} were run again" for pid, number in interrupted.items() if number > WORKERS)
    kills = sum(what == "kill" for what, _, _ in lines)
    if sum(row["crashes"] for row in rows) > kills * WORKERS:
        yield f"more crashes than {kills} kills can make"
