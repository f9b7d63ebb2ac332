"""What the durable journal promises, against real processes: killed, stopped, refused by the disk, given a wrong file.

Each life is a process of its own (`durable_process.py`), and opens the file as the one before has left it. What is true is read
from two places: the lines its tasks have written to a log that all lives share, and the file itself.
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

    @property
    def gate(self) -> Path:
        """What the tasks stand before."""
        return self.folder / "gate"

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

    def events(self) -> list[str]:
        """What the tasks told."""
        return [f"{what} {id}" for what, id, _ in self.lines() if what in ("start", "end")]

    def wait_for(self, line: str) -> None:
        """Wait until somebody has told that."""
        self.wait_until(lambda: self.log.exists() and line in self.log.read_text().splitlines())

    def wait_for_events(self, *events: str) -> None:
        """Wait until the tasks have told this, and nothing else."""
        self.wait_until(lambda: len(self.events()) >= len(events))
        assert self.events() == [*events]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Look every few milliseconds: there is nothing else to wait on in another process that may die."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, (self.lines(), self.said())
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
            await asyncio.sleep(chance.uniform(0, 0.7))  # It waits up to a second for its turn.
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


# A task that ends its process.


def test_a_task_that_kills_its_process_is_run_three_times_and_its_younger_siblings_then(lives: Lives) -> None:
    server = lives.serve()
    assert lives.post(call("kill its process", "poison"), call("work", "younger"))[0] == 200
    assert server.wait(PATIENCE) == -signal.SIGKILL
    assert [lives.begin().wait(PATIENCE) for _ in range(2)] == [-signal.SIGKILL] * 2
    said = lives.finish()
    assert lives.events() == ["start poison"] * 3 + ["start younger", "end younger"]
    assert lives.statuses() == [("poison", "FAILED"), ("younger", "SUCCESSFUL")]
    poison = lives.rows()[0]
    assert (poison["attempts"], poison["crashes"]) == (3, 3)
    [error] = json.loads(poison["errors"])
    assert error["message"].startswith("worker died: ")
    assert f"kill its process {poison['id']} failed: {error['message']}" in said
    lives.finish()
    assert len(lives.events()) == 5


# Stopped.


@pytest.mark.parametrize("name", ["stand", "stand in a thread"])
def test_ten_stops_in_the_middle_of_a_task_are_neither_crashes_nor_attempts(lives: Lives, name: str) -> None:
    for number in range(1, 11):
        server = lives.serve()
        if number == 1:
            assert lives.post(call(name, "a", str(lives.gate)), call("work", "b"))[0] == 200
        lives.wait_for_events(*["start a"] * number)
        lives.stop(server)
        row, younger = lives.rows()
        assert (row["status"], row["attempts"], row["excused"], row["crashes"]) == ("READY", number, number, 0)
        assert (younger["status"], younger["attempts"]) == ("READY", 0)
    lives.gate.touch()
    lives.finish()
    assert lives.events() == ["start a"] * 10 + ["start a", "end a"] * 3 + ["start b", "end b"]
    assert lives.statuses() == [("a", "FAILED"), ("b", "SUCCESSFUL")]


def test_a_thread_that_outlasts_the_stop_keeps_its_task_from_the_next_process(lives: Lives) -> None:
    leave = lives.folder / "leave"
    server = lives.serve(linger=str(leave))
    assert lives.post(call("stand in a thread", "a", str(lives.gate)))[0] == 200
    lives.wait_for_events("start a")
    server.send_signal(signal.SIGTERM)
    lives.wait_for(f"stopped - {server.pid}")
    code, message = lives.fail()
    assert (code, lives.events()) == (1, ["start a"])
    assert message == f"JournalUnusable: {lives.journal} is in use by process {server.pid}: a journal has one owner"
    leave.touch()
    assert server.wait(PATIENCE) == 0
    lives.gate.touch()
    lives.finish()
    assert lives.events() == ["start a"] + ["start a", "end a"] * 3


# A full disk.


@dataclass
class Disk:
    """Where the journal is, and what makes it full for a process."""

    lives: Lives
    mounted: bool

    def fill(self, process: subprocess.Popen[bytes]) -> None:
        if not self.mounted:
            size = Path(f"{self.lives.journal}-wal").stat().st_size
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            return
        with suppress(OSError), (self.lives.journal.parent / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(512)):
                pass

    def make_room(self, process: subprocess.Popen[bytes]) -> None:
        if self.mounted:
            (self.lives.journal.parent / "filler").unlink()
        else:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.fixture(params=["a small file system", "a limit of the process"])
def disk(lives: Lives, request: pytest.FixtureRequest) -> Iterator[Disk]:
    mounted = request.param == "a small file system"
    folder = lives.folder / "disk"
    folder.mkdir()
    lives.pool["journal"] = str(folder / "tasks.db")
    if mounted:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "minibg-test", str(folder)]
        outcome = subprocess.run(mount, capture_output=True, text=True, check=False)
        if outcome.returncode:
            pytest.skip(f"nothing can be mounted here: {outcome.stderr}")
    yield Disk(lives, mounted)
    lives.end()
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_full_disk_refuses_new_tasks_keeps_the_accepted_ones_and_is_forgotten_when_there_is_room(
    disk: Disk, durability: str
) -> None:
    lives = disk.lives
    lives.pool["durability"] = durability
    server = lives.serve()
    assert lives.post(call("stand", "a", str(lives.gate)), call("work", "b"))[0] == 200
    lives.wait_for_events("start a")
    disk.fill(server)
    for _ in range(3):
        assert lives.post(call("work", "refused"), call("work", "refused too"))[0] == 503
    lives.gate.touch()
    lives.wait_until(lambda: "end a" in lives.events())
    assert lives.post(call("work", "refused"))[0] == 503
    disk.make_room(server)
    assert lives.post(call("work", "c"))[0] == 200
    lives.wait_until(lambda: {"end b", "end c"} <= {*lives.events()})
    lives.stop(server)
    lives.finish()
    assert sorted(lives.events()) == sorted(["start a", "end a"] * 3 + ["start b", "end b", "start c", "end c"])
    assert lives.statuses() == [("a", "FAILED"), ("b", "SUCCESSFUL"), ("c", "SUCCESSFUL")]
    assert "; its tasks are refused, or wait" in lives.said(0)
    assert f"{lives.journal} is written again" in lives.said(0)


def test_a_process_killed_while_the_disk_is_full_loses_nothing_that_it_had_accepted(disk: Disk) -> None:
    lives = disk.lives
    server = lives.serve()
    assert lives.post(call("stand", "a", str(lives.gate)), call("work", "b"))[0] == 200
    lives.wait_for_events("start a")
    disk.fill(server)
    assert lives.post(call("work", "refused"))[0] == 503
    lives.kill(server)
    if disk.mounted:
        code, message = lives.fail()
        assert (code, message.startswith(f"JournalUnusable: {lives.journal} cannot be used as a journal: ")) == (
            1,
            True,
        )
        disk.make_room(server)
    lives.gate.touch()
    lives.finish()
    assert lives.events() == ["start a"] + ["start a", "end a"] * 3 + ["start b", "end b"]
    assert lives.statuses() == [("a", "FAILED"), ("b", "SUCCESSFUL")]


# A file that cannot be used.


def a_text(lives: Lives) -> str:
    lives.journal.write_text("Dear diary,\n" * 1000)
    return f"{lives.journal} cannot be used as a journal: file is not a database"


def a_database_of_another_application(lives: Lives) -> str:
    with closing(sqlite3.connect(lives.journal)) as database, database:
        database.execute("CREATE TABLE runs (miles REAL)")
    return f"{lives.journal} is a database of another application"


def a_database_of_another_application_that_was_killed(lives: Lives) -> str:
    message = a_database_of_another_application(lives)
    script = (
        "import os, sqlite3; database = sqlite3.connect('tasks.db', isolation_level=None);"
        "database.execute('PRAGMA journal_mode = WAL'); database.execute('INSERT INTO runs VALUES (26.2)'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=lives.folder, check=True)
    assert Path(f"{lives.journal}-wal").stat().st_size > 0
    return message


def a_journal(lives: Lives) -> bytes:
    lives.finish(enqueue=[call("work", f"{number}: {'x' * 500}") for number in range(100)])
    return lives.journal.read_bytes()


def a_journal_of_a_newer_version(lives: Lives) -> str:
    a_journal(lives)
    lives.edit("PRAGMA user_version = 4000")
    return f"{lives.journal} has schema 4000, of a newer minibg: this one reads up to "


def a_journal_that_ends_in_its_middle(lives: Lives) -> str:
    content = a_journal(lives)
    lives.journal.write_bytes(content[: len(content) // 2])
    return f"{lives.journal} cannot be used as a journal: database disk image is malformed"


def the_head_of_a_journal(lives: Lives) -> str:
    lives.journal.write_bytes(a_journal(lives)[:100])
    return f"{lives.journal} cannot be used as a journal: "


def a_journal_with_a_page_of_something_else(lives: Lives) -> str:
    content = a_journal(lives)
    lives.journal.write_bytes(content[:8192] + b"x" * 4096 + content[12288:])
    return f"{lives.journal} "


def a_folder(lives: Lives) -> str:
    lives.journal.mkdir()
    return f"{lives.journal} cannot be used as a journal: [Errno 21] Is a directory: "


@pytest.mark.parametrize(
    "make",
    [
        a_text,
        a_database_of_another_application,
        a_database_of_another_application_that_was_killed,
        a_journal_of_a_newer_version,
        a_journal_that_ends_in_its_middle,
        the_head_of_a_journal,
        a_journal_with_a_page_of_something_else,
        a_folder,
    ],
)
def test_a_file_that_is_no_journal_is_refused_with_its_name_and_left_as_it_is(
    lives: Lives, make: Callable[[Lives], str]
) -> None:
    message = make(lives)
    before = None if lives.journal.is_dir() else lives.journal.read_bytes()
    refused(lives, message)
    if before is not None:
        assert lives.journal.read_bytes() == before


def refused(lives: Lives, message: str, **options: Any) -> None:
    """A pool on the journal raises JournalUnusable, and the command ends with 3, with the same message."""
    code, said = lives.fail(**options)
    assert (code, said[: len(message) + 17]) == (1, f"JournalUnusable: {message}")
    command = ["__main__:app", "--journal", str(lives.journal), "--port", "0", "--loop", "asyncio"]
    code, said = lives.fail(command=command, **options)
    assert (code, message in said) == (3, True), said


def test_a_file_that_may_not_be_written_is_refused_and_left_as_it_is(lives: Lives) -> None:
    """By a user to whom modes apply; in a folder that this user can reach."""
    content = a_journal(lives)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        lives.pool["journal"] = f"{folder}/tasks.db"
        lives.journal.write_bytes(content)
        lives.journal.chmod(0o444)
        user = {"user": 65534} if os.getuid() == 0 else {}
        refused(lives, f"{lives.journal} cannot be used as a journal: [Errno 13] Permission denied: ", **user)
        assert lives.journal.read_bytes() == content


# A file that others use.


def test_a_second_owner_is_refused_with_the_name_of_the_file_and_of_the_first_who_goes_on(lives: Lives) -> None:
    server = lives.serve()
    refused(lives, f"{lives.journal} is in use by process {server.pid}: a journal has one owner")
    lives.processes.append(server)
    assert lives.post(call("work", "a"))[0] == 200
    lives.wait_for_events("start a", "end a")
    lives.stop(server)
    lives.finish()
    assert lives.statuses() == [("a", "SUCCESSFUL")]


def test_a_lock_on_the_database_refuses_a_start_and_leaves_the_file_as_it_is(lives: Lives) -> None:
    content = a_journal(lives)
    with closing(sqlite3.connect(lives.journal, isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        refused(lives, f"{lives.journal} cannot be used as a journal: database is locked", busy_timeout=0.1)
    assert lives.journal.read_bytes() == content


def test_a_lock_on_the_database_refuses_tasks_while_it_lasts_and_none_that_was_accepted_is_lost(lives: Lives) -> None:
    server = lives.serve(busy_timeout=0.1)
    assert lives.post(call("stand", "a", str(lives.gate)), call("work", "b"))[0] == 200
    lives.wait_for_events("start a")
    with closing(sqlite3.connect(lives.journal, isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        assert lives.post(call("work", "refused"))[0] == 503
        lives.gate.touch()
        lives.wait_for("end a " + str(server.pid))
        assert lives.post(call("work", "refused"))[0] == 503
    assert lives.post(call("work", "c"))[0] == 200
    lives.wait_until(lambda: {"end b", "end c"} <= {*lives.events()})
    lives.stop(server)
    assert sorted(lives.events()) == sorted(["start a", "end a"] * 3 + ["start b", "end b", "start c", "end c"])
    assert lives.statuses() == [("a", "FAILED"), ("b", "SUCCESSFUL"), ("c", "SUCCESSFUL")]


# A clock that was set back.


def test_nobody_waits_longer_than_was_said_when_the_clock_was_set_back(lives: Lives) -> None:
    server = lives.serve()
    assert lives.post(call("work", "a", delay=1.0))[0] == 200
    lives.wait_until(lambda: lives.rows()[0]["status"] == "WAITING")
    lives.kill(server)
    for hours in (1, 2):  # Killed while it waits, and again.
        server = lives.serve(shift=-3600 * hours)
        assert lives.rows()[0]["status"] == "WAITING"
        lives.kill(server)
    lives.finish(shift=-3600 * 3)  # Within seconds, or this gives up.
    assert lives.events() == ["start a", "end a"]


def test_the_order_is_that_of_acceptance_though_the_clock_was_set_back(lives: Lives) -> None:
    lives.pool["workers"] = 1
    server = lives.serve()
    assert lives.post(call("stand", "a", str(lives.gate)))[0] == 200
    assert lives.post(call("work", "b"), call("work", "c"))[0] == 200
    lives.wait_for_events("start a")
    lives.kill(server)
    server = lives.serve(shift=-3600)
    lives.wait_for_events("start a", "start a")
    assert lives.post(call("work", "d"))[0] == 200
    lives.kill(server)
    assert [row["added_at"] for row in lives.rows()] != sorted(row["added_at"] for row in lives.rows())
    lives.gate.touch()
    lives.finish(shift=-7200)
    told = [event for event in lives.events() if not event.endswith(" a")]
    assert told == ["start b", "end b", "start c", "end c", "start d", "end d"]


def test_what_is_kept_for_a_day_goes_a_day_later_and_not_because_a_clock_was_set_back(lives: Lives) -> None:
    lives.finish(enqueue=[call("work", "a"), call("fail", "b")])
    lives.finish(enqueue=[call("work", "c")], shift=-3600)
    server = lives.serve(shift=-7200)
    lives.wait_until(lambda: ticked(lives))
    lives.stop(server)
    assert lives.statuses() == [("a", "SUCCESSFUL"), ("b", "FAILED"), ("c", "SUCCESSFUL")]
    lives.serve(shift=24.5 * 3600)
    lives.wait_until(lambda: len(lives.rows()) < 3)
    lives.wait_until(lambda: lives.statuses() == [("b", "FAILED")])


def ticked(lives: Lives) -> bool:
    """Whether the owner has looked for what is asked and what is old. The first call asks it something."""
    asked = [row["asked"] for row in lives.rows()]
    if not any(asked) and not lives.gate.exists():
        lives.edit("UPDATE runs SET asked = 'cancel' WHERE seq = 1")
        lives.gate.touch()
        return False
    return not any(asked)


# A request that is repeated.


def test_a_request_that_is_repeated_with_a_key_after_a_lost_answer_gets_the_same_run(lives: Lives) -> None:
    wanted = call("stand", "a", str(lives.gate), key="order 66")
    server = lives.begin(serving=True, die=True)
    with pytest.raises(OSError):
        lives.post(wanted)
    assert server.wait(PATIENCE) == -signal.SIGKILL
    [id] = [row["id"] for row in lives.rows()]
    for starts in (1, 2):
        server = lives.serve()
        assert [lives.post(wanted) for _ in range(3)] == [(200, [id])] * 3
        lives.wait_for_events(*["start a"] * starts)
        lives.kill(server)
    lives.gate.touch()
    lives.finish()
    assert [row["id"] for row in lives.rows()] == [id]
    assert lives.events() == ["start a"] * 2 + ["start a", "end a"] * 3
    lives.serve()
    assert lives.post(wanted)[1] != [id]  # The run has ended: this is another order.


def test_a_client_that_hung_up_and_asks_again_with_its_key_gets_the_same_run(lives: Lives) -> None:
    wanted = call("stand", "a", str(lives.gate), key="order 66")
    body = json.dumps({"tasks": [wanted]}).encode()
    lives.serve()
    with socket.create_connection(lives.listener.getsockname()) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    lives.wait_for_events("start a")
    [id] = [row["id"] for row in lives.rows()]
    assert lives.post(wanted) == (200, [id])
    assert len(lives.rows()) == 1


# A file that somebody has changed.


@pytest.mark.parametrize(
    ("status", "column", "value"),
    [
        ("READY", "name", "os.system"),
        ("READY", "name", "tests.background.durable_process.later"),
        ("READY", "name", "a name\nERROR forged"),
        ("READY", "payload", '[["x"'),
        ("READY", "payload", "null"),
        ("READY", "payload", '["x", {}, 3]'),
        ("READY", "payload", "[" * 100_000),
        ("READY", "options", "[]"),
        ("READY", "options", "{"),
        ("READY", "options", '{"delay": "soon"}'),
        ("READY", "options", '{"retry": {"on": ["Exception"]}}'),
        ("READY", "options", '{"function": "os.system"}'),
        ("READY", "errors", "{"),
        ("READY", "errors", "[1]"),
        ("READY", "value", "{"),
        ("READY", "added_at", 1e300),
        ("RUNNING", "name", "os.system"),
        ("RUNNING", "payload", "null"),
    ],
)
def test_a_row_that_cannot_be_run_is_kept_and_reported_and_runs_when_it_can_be(
    lives: Lives, status: str, column: str, value: object
) -> None:
    server = lives.serve()
    assert lives.post(call("stand", "a", str(lives.gate)), call("work", "x", 0))[0] == 200
    lives.wait_for_events("start a")
    lives.kill(server)
    lives.gate.touch()
    _, sound = lives.rows()
    if status == "RUNNING":
        lives.edit("UPDATE runs SET status = 'RUNNING', owner = 'process 1', attempts = 1 WHERE seq = 2")
    else:  # It was released a moment ago, which the file may not know yet.
        lives.edit("UPDATE runs SET status = 'READY' WHERE seq = 2")
    lives.edit(f"UPDATE runs SET {column} = ? WHERE seq = 2", value)
    said = lives.finish()
    assert lives.events() == ["start a"] + ["start a", "end a"] * 3
    _, kept = lives.rows()
    crashes = {"attempts": 1, "excused": 1, "crashes": 1} if status == "RUNNING" else {}
    assert kept == sound | {"status": "READY", column: value} | crashes
    [report] = [line for line in said.splitlines() if "keeps what cannot be run" in line]
    assert kept["id"] in report
    assert "\nERROR forged" not in said
    if value == "tests.background.durable_process.later":
        lives.edit("UPDATE runs SET payload = '[[\"x\"], {}]'")
        lives.finish(register=[value])
    else:
        lives.edit(f"UPDATE runs SET {column} = ? WHERE seq = 2", sound[column])
        lives.finish()
    assert lives.events()[-2:] == ["start x", "end x"]
    assert lives.rows()[1]["status"] == "SUCCESSFUL"


def test_a_poisonous_row_whose_errors_cannot_be_read_is_failed_all_the_same(lives: Lives) -> None:
    lives.finish(enqueue=[call("work", "a", 0), call("work", "b", 0)])
    lives.edit(
        "UPDATE runs SET status = 'RUNNING', owner = 'process 1', finished_at = NULL, crashes = 2, errors = '{'"
        " WHERE seq = 1"
    )
    lives.finish()
    row = lives.rows()[0]
    assert (row["status"], row["crashes"], died(row)) == ("FAILED", 3, True)


def test_a_row_that_cannot_be_run_and_has_a_key_refuses_nobody_else(lives: Lives) -> None:
    server = lives.serve()
    assert lives.post(call("work", "x", 0, delay=60, key="order 66"))[0] == 200
    lives.kill(server)
    lives.edit("UPDATE runs SET payload = '{'")
    lives.serve()

    async def ask_together() -> list[tuple[int, list[str]]]:
        wishes = [{"tasks": [call("work", "x", 0, key="order 66")]}, {"tasks": [call("work", "innocent", 0)]}]
        return await asyncio.gather(*(post(lives.listener, wish) for _ in range(20) for wish in wishes))

    answers = asyncio.run(ask_together())
    assert {status for status, _ in answers[1::2]} == {200}
