"""A journal whose owners are real processes: killed, stopped, refused by the disk, given a wrong file.

Each owner is a process (`process.py`) that opens the file as the one before has left it. The truth is read from two places: the
lines that the tasks have written to a log of all processes, and the file itself.

MINIBG_FAULT_KILLS is the number of kills under load (15), MINIBG_FAULT_SEED repeats the wishes of a run.
"""

import asyncio
import json
import os
import random
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
#: Seconds after which a test gives up on a process. Nothing takes that long but a fault.
PATIENCE = 30.0


@dataclass
class Owners:
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

    @property
    def gate(self) -> Path:
        """The file for which tasks wait."""
        return self.folder / "gate"

    def begin(self, *, serving: bool = False, **options: Any) -> subprocess.Popen[bytes]:
        """Start a process: one that serves, or one that runs until nothing is left."""
        options = {"pool": self.pool, "log": str(self.log), **options}
        if serving:
            options["fd"] = self.listener.fileno()
        with Path(self.folder / f"stderr-{len(self.processes)}").open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.background.journal.process", json.dumps(options)],
                cwd=ROOT,
                pass_fds=[self.listener.fileno()] if serving else (),
                stderr=stderr,
            )
        self.processes.append(process)
        return process

    def serve(self, **options: Any) -> subprocess.Popen[bytes]:
        """Start a process that serves, and wait until it does."""
        process = self.begin(serving=True, **options)
        self.wait_for(f"serving - {process.pid}")
        return process

    def finish(self, **options: Any) -> str:
        """Run until nothing is left to do. Return what the process has written to stderr."""
        process = self.begin(**options)
        code = process.wait(PATIENCE)
        assert code == 0, self.said()
        return self.said()

    def fail(self, **options: Any) -> tuple[int, str]:
        """Start a process that cannot own the file. Return its exit code, and its last line on stderr."""
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
        """Return the log: the event, the id of a task, the process."""
        text = self.log.read_text() if self.log.exists() else ""
        return [(what, id, int(pid)) for what, id, pid in (line.rsplit(" ", 2) for line in text.splitlines())]

    def events(self) -> list[str]:
        """Return the lines of the tasks."""
        return [f"{what} {id}" for what, id, _ in self.lines() if what in ("start", "end")]

    def wait_for(self, line: str) -> None:
        """Wait until the log has a line."""
        self.wait_until(lambda: self.log.exists() and line in self.log.read_text().splitlines())

    def wait_for_events(self, *events: str) -> None:
        """Wait until the tasks have written these lines, and no other."""
        self.wait_until(lambda: len(self.events()) >= len(events))
        assert self.events() == [*events]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Look every few milliseconds: another process that may die gives nothing else to wait for."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, (self.lines(), self.said())
            assert self.processes[-1].poll() is None, self.said()
            time.sleep(0.005)

    def rows(self) -> list[dict[str, Any]]:
        """The runs in the file, in order."""
        with closing(sqlite3.connect(f"file:{self.journal}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute("SELECT * FROM runs ORDER BY row")]

    def statuses(self) -> list[tuple[str, str]]:
        """The first argument of each run, and its status."""
        return [(json.loads(row["arguments"])[0][0], row["status"]) for row in self.rows()]

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
def owners(tmp_path: Path) -> Iterator[Owners]:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        owners = Owners(tmp_path, {"journal": str(tmp_path / "tasks.db"), "drain_timeout": 0}, listener)
        yield owners
        owners.end()


def call(name: str, *args: Any, **options: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """A call as the processes read it."""
    return name, args, options


async def post(listener: socket.socket, wish: dict[str, Any]) -> tuple[int, list[str]]:
    """Ask for tasks. Return the status and the ids of their runs. Raises OSError when the answer is not whole."""
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
    if b"\r\ntransfer-encoding: chunked" in head:
        whole = content.endswith(b"\r\n0\r\n\r\n")
        content = b"".join(content.split(b"\r\n")[1:-3:2]) if whole else b""
    elif b"\r\ncontent-length: %d\r\n" % len(content) not in head:
        content = b""
    if not content:  # RFC 9112 §8: an answer that ends before its end.
        raise ConnectionError(answer)
    return status, json.loads(content)


# Killed.


class Load:
    """Clients that ask for random tasks, and their answers."""

    def __init__(self, listener: socket.socket, seed: str) -> None:
        self.listener = listener
        self.seed = seed
        #: The ids of the runs that were acknowledged: their answer came whole.
        self.acknowledged: list[str] = []
        #: The tasks (the first argument of each) that were refused, or whose handler failed.
        self.refused: list[str] = []
        #: The tasks of each response, in order, but for those with a delay.
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


async def kill_again_and_again(owners: Owners, load: Load, kills: int) -> None:
    """Serve the load with one process after another, each killed at a random moment; the next starts before that, or after."""
    chance = random.Random(load.seed)
    clients = [asyncio.create_task(load.ask(client)) for client in range(6)]
    process = owners.begin(serving=True, loop="asyncio")
    for number in range(kills):
        load.answered.clear()
        if chance.random() < 0.8:  # In the middle of its work; else at some moment of its start, or soon after.
            async with asyncio.timeout(PATIENCE):
                await load.answered.wait()
        await asyncio.sleep(chance.uniform(0, 0.2))
        loop, successor = ("uvloop", "asyncio")[number % 2], None
        if chance.random() < 0.3:
            successor = owners.begin(serving=True, loop=loop)
            await asyncio.sleep(chance.uniform(0, 0.7))  # It waits up to a second for its turn.
        owners.kill(process)
        process = successor or owners.begin(serving=True, loop=loop)
    load.ended = True
    owners.kill(process)
    owners.listener.close()
    for client in clients:
        client.cancel()
    for outcome in await asyncio.gather(*clients, return_exceptions=True):
        assert isinstance(outcome, asyncio.CancelledError | None), outcome


#: How many attempts of each task count: all of them, but those a kill has ended.
COUNTED = {"work": 1, "work in a thread": 1, "fail": 1, "fail three times": 3}
WORKERS = 8


@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_run_that_was_acknowledged_is_run_however_often_the_process_is_killed(
    owners: Owners, durability: str
) -> None:
    """The seed is in every message. The same seed gives the same wishes, not the same moments."""
    kills = int(os.environ.get("MINIBG_FAULT_KILLS", "15"))
    owners.pool |= {"durability": durability, "workers": WORKERS, "queue_limit": 200}
    seed = os.environ.get("MINIBG_FAULT_SEED", str(random.randrange(10**9)))
    load = Load(owners.listener, seed)
    asyncio.run(kill_again_and_again(owners, load, kills))
    owners.finish()
    rows, lines = owners.rows(), owners.lines()
    assert len(load.acknowledged) > 10 * kills, f"seed {seed}: hardly a load"
    problems = [*not_kept(load, rows, lines), *run_by_two(lines), *out_of_order(load, lines), *run_again(rows, lines)]
    assert problems == [], f"seed {seed}: {len(problems)} problems"


Lines = list[tuple[str, str, int]]


def task_of(row: dict[str, Any]) -> str:
    return str(json.loads(row["arguments"])[0][0])


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
    """The owners do not overlap: each tells its first line after the kill of the one before was decided, and no line later.

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
    """A task begins when its elder sibling has told its last line, over all owners; and one with a key like a sibling.

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
        task, counted = task_of(row), row["attempts"] - row["uncounted_attempts"]
        cut = len(starts[task]) - len(ends[task])
        story = f"{task}: {row['attempts']} attempts, {row['crashes']} crashes, {starts[task]}, {ends[task]}"
        due = 0 if row["status"] == "DROPPED" else COUNTED[row["name"]]
        if row["uncounted_attempts"] != row["crashes"] or (not died(row) and counted != due):
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


# A task that ends its process.


def test_a_task_that_kills_its_process_is_run_three_times_and_takes_no_other_along(owners: Owners) -> None:
    """On the old code every task that ran beside it at the three crashes was FAILED with it."""
    innocents = [f"innocent-{n}" for n in range(4)]
    server = owners.serve()
    for name in innocents:
        assert owners.post(call("wait", name, str(owners.gate)), call("work", f"{name}-sibling"))[0] == 200
    owners.wait_until(lambda: len(owners.events()) == len(innocents))
    assert owners.post(call("kill its process", "poison"), call("work", "younger"))[0] == 200
    assert server.wait(PATIENCE) == -signal.SIGKILL
    assert {row["crashes"] for row in owners.rows() if row["status"] == "RUNNING"} == {0}
    owners.gate.touch()
    assert [owners.begin().wait(PATIENCE) for _ in range(2)] == [-signal.SIGKILL] * 2
    stderr = owners.finish()
    assert owners.events()[-3:] == ["start poison", "start younger", "end younger"]
    by_name = {json.loads(row["arguments"])[0][0]: row for row in owners.rows()}
    assert (by_name["poison"]["status"], by_name["poison"]["attempts"], by_name["poison"]["crashes"]) == (
        "FAILED",
        3,
        3,
    )
    [error] = json.loads(by_name["poison"]["errors"])
    assert error["message"] == "worker died: its process ended 3 times in the middle of it"
    assert f"kill its process {by_name['poison']['id']} failed: {error['message']}" in stderr
    # The innocents ran again, to the end: they fail three times, as `wait` does, and each was beside one crash.
    assert {(by_name[name]["crashes"], by_name[name]["attempts"]) for name in innocents} == {(1, 4)}
    assert [by_name[f"{name}-sibling"]["status"] for name in innocents] == ["SUCCESSFUL"] * 4
    assert "WorkerDied" not in "".join(by_name[name]["errors"] for name in innocents)


# Stopped.


@pytest.mark.parametrize("name", ["wait", "wait in a thread"])
def test_stops_in_the_middle_of_a_task_are_neither_crashes_nor_attempts(owners: Owners, name: str) -> None:
    for number in range(1, 5):
        server = owners.serve()
        if number == 1:
            assert owners.post(call(name, "a", str(owners.gate)), call("work", "b"))[0] == 200
        owners.wait_for_events(*["start a"] * number)
        owners.stop(server)
        row, younger = owners.rows()
        assert (row["status"], row["attempts"], row["uncounted_attempts"], row["crashes"]) == (
            "READY",
            number,
            number,
            0,
        )
        assert (younger["status"], younger["attempts"]) == ("READY", 0)
    owners.gate.touch()
    owners.finish()
    assert owners.events() == ["start a"] * 4 + ["start a", "end a"] * 3 + ["start b", "end b"]
    assert owners.statuses() == [("a", "FAILED"), ("b", "SUCCESSFUL")]


def test_a_thread_that_outlasts_the_stop_keeps_its_task_from_the_next_process(owners: Owners) -> None:
    leave = owners.folder / "leave"
    server = owners.serve(linger=str(leave))
    assert owners.post(call("wait in a thread", "a", str(owners.gate)))[0] == 200
    owners.wait_for_events("start a")
    server.send_signal(signal.SIGTERM)
    owners.wait_for(f"stopped - {server.pid}")
    code, message = owners.fail()
    assert (code, owners.events()) == (1, ["start a"])
    assert message == f"JournalUnusable: {owners.journal} is in use by process {server.pid}: a journal has one owner"
    leave.touch()
    assert server.wait(PATIENCE) == 0
    owners.gate.touch()
    owners.finish()
    assert owners.events() == ["start a"] + ["start a", "end a"] * 3


# A full disk.


@dataclass
class Disk:
    """Where the journal is, and what makes it full for a process."""

    owners: Owners
    mounted: bool

    def fill(self, process: subprocess.Popen[bytes]) -> None:
        if not self.mounted:
            size = Path(f"{self.owners.journal}-wal").stat().st_size
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            return
        with suppress(OSError), (self.owners.journal.parent / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(512)):
                pass

    def make_room(self, process: subprocess.Popen[bytes]) -> None:
        if self.mounted:
            (self.owners.journal.parent / "filler").unlink()
        else:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.fixture(params=["a small file system", "a limit of the process"])
def disk(owners: Owners, request: pytest.FixtureRequest) -> Iterator[Disk]:
    mounted = request.param == "a small file system"
    folder = owners.folder / "disk"
    folder.mkdir()
    owners.pool["journal"] = str(folder / "tasks.db")
    if mounted:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "minibg-test", str(folder)]
        outcome = subprocess.run(mount, capture_output=True, text=True, check=False)
        if outcome.returncode:
            pytest.skip(f"nothing can be mounted here: {outcome.stderr}")
    yield Disk(owners, mounted)
    owners.end()
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_full_disk_refuses_new_tasks_keeps_the_accepted_ones_and_is_forgotten_when_there_is_room(
    disk: Disk, durability: str
) -> None:
    owners = disk.owners
    owners.pool["durability"] = durability
    server = owners.serve()
    assert owners.post(call("wait", "a", str(owners.gate)), call("work", "b"))[0] == 200
    owners.wait_for_events("start a")
    disk.fill(server)
    for _ in range(3):
        assert owners.post(call("work", "refused"), call("work", "refused too"))[0] == 503
    owners.gate.touch()
    owners.wait_until(lambda: "end a" in owners.events())
    assert owners.post(call("work", "refused"))[0] == 503
    disk.make_room(server)
    assert owners.post(call("work", "c"))[0] == 200
    owners.wait_until(lambda: {"end b", "end c"} <= {*owners.events()})
    owners.stop(server)
    owners.finish()
    assert sorted(owners.events()) == sorted(["start a", "end a"] * 3 + ["start b", "end b", "start c", "end c"])
    assert owners.statuses() == [("a", "FAILED"), ("b", "SUCCESSFUL"), ("c", "SUCCESSFUL")]
    assert "; its tasks are refused, or wait" in owners.said(0)
    assert f"{owners.journal} is written again" in owners.said(0)


def test_a_process_killed_while_the_disk_is_full_loses_nothing_that_it_had_accepted(disk: Disk) -> None:
    owners = disk.owners
    server = owners.serve()
    assert owners.post(call("wait", "a", str(owners.gate)), call("work", "b"))[0] == 200
    owners.wait_for_events("start a")
    disk.fill(server)
    assert owners.post(call("work", "refused"))[0] == 503
    owners.kill(server)
    if disk.mounted:
        code, message = owners.fail()
        assert (code, message.startswith(f"JournalUnusable: {owners.journal} cannot be used as a journal: ")) == (
            1,
            True,
        )
        disk.make_room(server)
    owners.gate.touch()
    owners.finish()
    assert owners.events() == ["start a"] + ["start a", "end a"] * 3 + ["start b", "end b"]
    assert owners.statuses() == [("a", "FAILED"), ("b", "SUCCESSFUL")]


# A file that cannot be used: `test_file.py` has the others.


def a_journal(owners: Owners) -> bytes:
    owners.finish(enqueue=[call("work", f"{number}: {'x' * 500}") for number in range(100)])
    return owners.journal.read_bytes()


def refused(owners: Owners, message: str, **options: Any) -> None:
    """A pool on the journal raises JournalUnusable, and the command ends with 3, with the same message."""
    code, last = owners.fail(**options)
    assert (code, last[: len(message) + 17]) == (1, f"JournalUnusable: {message}")
    command = ["__main__:app", "--journal", str(owners.journal), "--port", "0", "--loop", "asyncio"]
    code, last = owners.fail(command=command, **options)
    assert (code, message in last) == (3, True), last


def test_a_database_of_another_application_that_was_killed_is_refused_and_left_as_it_is(owners: Owners) -> None:
    with closing(sqlite3.connect(owners.journal)) as database, database:
        database.execute("CREATE TABLE runs (miles REAL)")
    script = (
        "import os, sqlite3; database = sqlite3.connect('tasks.db', isolation_level=None);"
        "database.execute('PRAGMA journal_mode = WAL'); database.execute('INSERT INTO runs VALUES (26.2)'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=owners.folder, check=True)
    before = owners.journal.read_bytes(), Path(f"{owners.journal}-wal").read_bytes()
    refused(owners, f"{owners.journal} is a database of another application")
    assert before == (owners.journal.read_bytes(), Path(f"{owners.journal}-wal").read_bytes())


def test_a_file_that_may_not_be_written_is_refused_and_left_as_it_is(owners: Owners) -> None:
    """By a user to whom modes apply; in a folder that this user can reach."""
    content = a_journal(owners)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        owners.pool["journal"] = f"{folder}/tasks.db"
        owners.journal.write_bytes(content)
        owners.journal.chmod(0o444)
        user = {"user": 65534} if os.getuid() == 0 else {}
        refused(owners, f"{owners.journal} cannot be used as a journal: [Errno 13] Permission denied: ", **user)
        assert owners.journal.read_bytes() == content


# A file that other processes use.


def test_a_second_owner_is_refused_with_the_name_of_the_file_and_of_the_first_who_goes_on(owners: Owners) -> None:
    server = owners.serve()
    refused(owners, f"{owners.journal} is in use by process {server.pid}: a journal has one owner")
    owners.processes.append(server)
    assert owners.post(call("work", "a"))[0] == 200
    owners.wait_for_events("start a", "end a")
    owners.stop(server)
    owners.finish()
    assert owners.statuses() == [("a", "SUCCESSFUL")]


def test_a_lock_on_the_database_refuses_a_start_and_leaves_the_file_as_it_is(owners: Owners) -> None:
    content = a_journal(owners)
    with closing(sqlite3.connect(owners.journal, isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        refused(owners, f"{owners.journal} cannot be used as a journal: database is locked", busy_timeout=0.1)
    assert owners.journal.read_bytes() == content


def test_a_lock_on_the_database_refuses_tasks_while_it_lasts_and_none_that_was_accepted_is_lost(owners: Owners) -> None:
    server = owners.serve(busy_timeout=0.1)
    assert owners.post(call("wait", "a", str(owners.gate)), call("work", "b"))[0] == 200
    owners.wait_for_events("start a")
    with closing(sqlite3.connect(owners.journal, isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        assert owners.post(call("work", "refused"))[0] == 503
        owners.gate.touch()
        owners.wait_for("end a " + str(server.pid))
        assert owners.post(call("work", "refused"))[0] == 503
    assert owners.post(call("work", "c"))[0] == 200
    owners.wait_until(lambda: {"end b", "end c"} <= {*owners.events()})
    owners.stop(server)
    assert sorted(owners.events()) == sorted(["start a", "end a"] * 3 + ["start b", "end b", "start c", "end c"])
    assert owners.statuses() == [("a", "FAILED"), ("b", "SUCCESSFUL"), ("c", "SUCCESSFUL")]


# A clock that was set back.


def test_a_delay_is_not_longer_because_the_clock_was_set_back(owners: Owners) -> None:
    server = owners.serve()
    assert owners.post(call("work", "a", delay=1.0))[0] == 200
    owners.wait_until(lambda: owners.rows()[0]["status"] == "WAITING")
    owners.kill(server)
    for hours in (1, 2):  # Killed while it waits, and again.
        server = owners.serve(shift=-3600 * hours)
        assert owners.rows()[0]["status"] == "WAITING"
        owners.kill(server)
    owners.finish(shift=-3600 * 3)  # Within seconds, or this gives up.
    assert owners.events() == ["start a", "end a"]


def test_the_order_is_that_of_acceptance_though_the_clock_was_set_back(owners: Owners) -> None:
    owners.pool["workers"] = 1
    server = owners.serve()
    assert owners.post(call("wait", "a", str(owners.gate)))[0] == 200
    assert owners.post(call("work", "b"), call("work", "c"))[0] == 200
    owners.wait_for_events("start a")
    owners.kill(server)
    server = owners.serve(shift=-3600)
    owners.wait_for_events("start a", "start a")
    assert owners.post(call("work", "d"))[0] == 200
    owners.kill(server)
    assert [row["added_at"] for row in owners.rows()] != sorted(row["added_at"] for row in owners.rows())
    owners.gate.touch()
    owners.finish(shift=-7200)
    told = [event for event in owners.events() if not event.endswith(" a")]
    assert told == ["start b", "end b", "start c", "end c", "start d", "end d"]


def test_a_finished_run_is_deleted_a_day_later_and_not_because_a_clock_was_set_back(owners: Owners) -> None:
    owners.finish(enqueue=[call("work", "a"), call("fail", "b")])
    owners.finish(enqueue=[call("work", "c")], shift=-3600)
    server = owners.serve(shift=-7200)
    owners.wait_until(lambda: ticked(owners))
    owners.stop(server)
    assert owners.statuses() == [("a", "SUCCESSFUL"), ("b", "FAILED"), ("c", "SUCCESSFUL")]
    owners.serve(shift=24.5 * 3600)
    owners.wait_until(lambda: len(owners.rows()) < 3)
    owners.wait_until(lambda: owners.statuses() == [("b", "FAILED")])


def ticked(owners: Owners) -> bool:
    """Whether the owner has looked for what is asked and what is old. The first call asks it something."""
    asked = [row["request"] for row in owners.rows()]
    if not any(asked) and not owners.gate.exists():
        owners.edit("UPDATE runs SET request = 'cancel' WHERE row = 1")
        owners.gate.touch()
        return False
    return not any(asked)


# A request that is repeated.


def test_a_request_that_is_repeated_with_a_key_after_a_lost_answer_gets_the_same_run(owners: Owners) -> None:
    wanted = call("wait", "a", str(owners.gate), key="order 66")
    server = owners.begin(serving=True, die=True)
    with pytest.raises(OSError):
        owners.post(wanted)
    assert server.wait(PATIENCE) == -signal.SIGKILL
    [id] = [row["id"] for row in owners.rows()]
    for starts in (1, 2):
        server = owners.serve()
        assert [owners.post(wanted) for _ in range(3)] == [(200, [id])] * 3
        owners.wait_for_events(*["start a"] * starts)
        owners.kill(server)
    owners.gate.touch()
    owners.finish()
    assert [row["id"] for row in owners.rows()] == [id]
    assert owners.events() == ["start a"] * 2 + ["start a", "end a"] * 3
    owners.serve()
    assert owners.post(wanted)[1] != [id]  # The run has ended: this is another order.


def test_a_client_that_hung_up_and_asks_again_with_its_key_gets_the_same_run(owners: Owners) -> None:
    wanted = call("wait", "a", str(owners.gate), key="order 66")
    body = json.dumps({"tasks": [wanted]}).encode()
    owners.serve()
    with socket.create_connection(owners.listener.getsockname()) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    owners.wait_for_events("start a")
    [id] = [row["id"] for row in owners.rows()]
    assert owners.post(wanted) == (200, [id])
    assert len(owners.rows()) == 1


# A file that was edited by hand.

LATER = "tests.background.journal.process.later"
EDITS: list[tuple[str, str, Any]] = [
    ("READY", "name", "os.system"),
    ("READY", "name", LATER),
    ("READY", "name", "a name\nERROR forged"),
    ("READY", "arguments", '[["x"'),
    ("READY", "arguments", "[" * 100_000),
    ("READY", "overrides", '{"function": "os.system"}'),
    ("READY", "errors", "{"),
    ("READY", "return_value", "{"),
    ("READY", "added_at", 1e300),
    ("RUNNING", "name", "os.system"),
    ("RUNNING", "arguments", "null"),
]


def test_rows_that_cannot_be_run_are_kept_and_reported_and_run_when_they_can_be(owners: Owners) -> None:
    """One process with all of them: the sound run between them is run. `test_codec.py` has more of such rows."""
    server = owners.serve()
    sound = call("wait", "a", str(owners.gate))
    assert owners.post(sound, *(call("work", f"x{n}", 0) for n in range(len(EDITS))))[0] == 200
    owners.wait_for_events("start a")
    owners.kill(server)
    owners.gate.touch()
    before = owners.rows()[1:]
    for row, (status, column, value) in zip(before, EDITS, strict=True):
        owners.edit("UPDATE runs SET status = 'READY' WHERE row = ?", row["row"])
        if status == "RUNNING":
            owners.edit(
                "UPDATE runs SET status = ?, owner = 'process 1', attempts = 1 WHERE row = ?", status, row["row"]
            )
        owners.edit(f"UPDATE runs SET {column} = ? WHERE row = ?", value, row["row"])
    stderr = owners.finish()
    assert owners.events() == ["start a"] + ["start a", "end a"] * 3
    crashed = {"attempts": 1, "uncounted_attempts": 1, "crashes": 1}
    assert owners.rows()[1:] == [
        row | {"status": "READY", column: value} | (crashed if status == "RUNNING" else {})
        for row, (status, column, value) in zip(before, EDITS, strict=True)
    ]
    [report] = [line for line in stderr.splitlines() if "keeps runs that cannot be run" in line]
    assert [row["id"] for row in before if row["id"] not in report] == []
    assert "\nERROR forged" not in stderr
    for row, (_, column, value) in zip(before, EDITS, strict=True):
        if value == LATER:
            owners.edit("UPDATE runs SET arguments = '[[\"later\"], {}]' WHERE row = ?", row["row"])
        else:
            owners.edit(f"UPDATE runs SET {column} = ? WHERE row = ?", row[column], row["row"])
    owners.finish(register=[LATER])
    assert sorted(owners.events()[7:]) == sorted(
        f"{what} {'later' if value == LATER else f'x{n}'}"
        for n, (_, _, value) in enumerate(EDITS)
        for what in ("start", "end")
    )
    assert {row["status"] for row in owners.rows()[1:]} == {"SUCCESSFUL"}


def test_a_row_that_cannot_be_run_and_has_a_key_refuses_no_other_run(owners: Owners) -> None:
    server = owners.serve()
    assert owners.post(call("work", "x", 0, delay=60, key="order 66"))[0] == 200
    owners.kill(server)
    owners.edit("UPDATE runs SET arguments = '{'")
    owners.serve()

    async def ask_together() -> list[tuple[int, list[str]]]:
        wishes = [{"tasks": [call("work", "x", 0, key="order 66")]}, {"tasks": [call("work", "innocent", 0)]}]
        return await asyncio.gather(*(post(owners.listener, wish) for _ in range(20) for wish in wishes))

    answers = asyncio.run(ask_together())
    assert {status for status, _ in answers} == {200}
