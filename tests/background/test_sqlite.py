"""The file of the durable journal, without a pool: what is written in which transaction, and what a new owner finds.

`Story` writes the rows of runs by hand, group by group, in the words of the journal: enter, release, claim, end.
"""

import asyncio
import json
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minibg.background import sqlite
from minibg.background.journal import JournalUnusable
from minibg.background.sqlite import APPLICATION_ID, CRASHES, File, Group, Lock, Row, connect, network_file_system
from tests.background.durable_tasks import as_a_kill_leaves_it, change, rows

NOW = 1_000_000.0
FINAL = ("SUCCESSFUL", "FAILED", "CANCELLED", "DROPPED")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def file(path: Path) -> Iterator[File]:
    file = File(str(path), "power")
    file.open(NOW)
    yield file
    file.release()


def enter(*seqs: int, response: int | None = None, key: str | None = None) -> dict[int, tuple[Any, ...]]:
    return {seq: (seq, f"id{seq}", response or seq, "mail", "[[], {}]", "{}", key, "GET /", NOW) for seq in seqs}


def move(*seqs: int, status: str = "READY", due: float | None = None) -> dict[int, tuple[Any, ...]]:
    return {seq: (seq, seq, status, due, None, NOW) for seq in seqs}


def end(*seqs: int, status: str, attempts: int = 1, value: str | None = None) -> dict[int, tuple[Any, ...]]:
    waits = status == "WAITING"
    due, finished = (NOW + 10, None) if waits else (None, NOW)
    return {seq: (seq, attempts, status, due, 10.0 if waits else None, finished, "[]", value) for seq in seqs}


def group(**parts: Any) -> Group:
    return Group(**parts)


def write(file: File, *groups: Group, now: float = NOW) -> Group:
    for each in groups:
        file.write(each, now)
        assert (each.refused, each.failed) == (None, None)
    return groups[-1]


def transactions(path: Path) -> int:
    """How many transactions stand in the write-ahead log: each ends with a frame that says how large the file then is.

    https://sqlite.org/fileformat.html#the_write_ahead_log
    """
    log = Path(f"{path}-wal").read_bytes()
    page = int.from_bytes(log[8:12], "big")
    salt, count, at = log[16:24], 0, 32
    while at + 24 + page <= len(log) and log[at + 8 : at + 16] == salt:
        count += int.from_bytes(log[at + 4 : at + 8], "big") > 0
        at += 24 + page
    return count


# --- what the file is ---


def test_the_file_and_all_that_lies_beside_it_is_for_its_user_alone(file: File, path: Path) -> None:
    before = os.umask(0)
    try:
        write(file, group(entered=enter(1)))
    finally:
        os.umask(before)
    modes = {each.name: oct(each.stat().st_mode & 0o777) for each in path.parent.iterdir()}
    assert modes == dict.fromkeys(["tasks.db", "tasks.db-wal", "tasks.db-shm", "tasks.db.lock"], "0o600")


def test_the_file_says_whose_it_is_and_which_schema_it_has_and_writes_ahead(file: File, path: Path) -> None:
    database = connect(str(path), "ro")
    marks = [database.execute(f"PRAGMA {mark}").fetchone()[0] for mark in ("application_id", "user_version")]
    assert [*marks, database.execute("PRAGMA journal_mode").fetchone()[0]] == [0x6D626731, 1, "wal"]
    database.close()
    file.close()
    assert path.read_bytes()[68:72] == b"mbg1"


def test_an_empty_file_becomes_a_journal(path: Path) -> None:
    path.touch()
    file = File(str(path), "power")
    assert file.open(NOW) == ([], 0)
    file.close()


def inserted(path: Path, **columns: Any) -> None:
    given = {"id": os.urandom(4).hex(), "response": 1, "name": "mail", "payload": "", "options": "", "origin": ""}
    given |= {"added_at": NOW, **columns}
    marks = ", ".join("?" * len(given))
    change(path, f"INSERT INTO runs ({', '.join(given)}) VALUES ({marks})", *given.values())


@pytest.mark.parametrize(
    "columns",
    [
        *({"status": status} for status in FINAL),
        *({"status": status, "finished_at": NOW} for status in ("HELD", "READY")),
        {"status": "RUNNING", "owner": "process 1", "finished_at": NOW},
        {"status": "WAITING", "due_at": NOW, "finished_at": NOW},
        {"status": "RUNNING"},
        {"status": "READY", "owner": "process 1"},
        {"status": "SUCCESSFUL", "finished_at": NOW, "owner": "process 1"},
        {"status": "WAITING"},
        {"status": "READY", "due_at": NOW},
        {"status": "FAILED", "finished_at": NOW, "due_at": NOW},
        {"status": "LOST"},
        {"status": "ready"},
        {"status": "READY", "asked": "delete"},
        {"status": None},
        {"status": "READY", "payload": None},
        {"status": "READY", "attempts": "one"},
        {"status": "READY", "added_at": "yesterday"},
        {"status": "READY", "payload": b"\x80\x04pickle"},
    ],
    ids=str,
)
def test_a_row_that_makes_no_sense_cannot_be_written(file: File, path: Path, columns: dict[str, Any]) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        inserted(path, **columns)
    assert rows(path) == []


@pytest.mark.parametrize(
    "columns",
    [
        {"status": "HELD"},
        {"status": "READY"},
        {"status": "RUNNING", "owner": "process 1"},
        {"status": "WAITING", "due_at": NOW},
        *({"status": status, "finished_at": NOW} for status in FINAL),
        {"status": "FAILED", "finished_at": NOW, "asked": "retry"},
    ],
    ids=str,
)
def test_a_row_that_makes_sense_can_be_written(file: File, path: Path, columns: dict[str, Any]) -> None:
    inserted(path, **columns)
    assert rows(path) == [("mail", columns["status"], 0)]


def test_one_unfinished_run_of_a_task_has_a_key(file: File, path: Path) -> None:
    for _ in range(2):
        inserted(path, status="FAILED", finished_at=NOW, key="k")
    inserted(path, status="READY", key="k")
    inserted(path, status="READY", key="k", name="other")
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        inserted(path, status="WAITING", due_at=NOW, key="k")


# --- schemas, old and new ---

ONE_MORE = "ALTER TABLE runs ADD COLUMN colour TEXT; CREATE INDEX colours ON runs (colour)"


def left_behind(path: Path) -> None:
    file = File(str(path), "power")
    file.open(NOW)
    write(file, group(entered=enter(1, 2)))
    file.close()


def version(path: Path) -> int:
    database = connect(str(path), "ro")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    database.close()
    return int(version)


def test_a_file_of_an_older_schema_is_brought_up_and_keeps_its_runs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(path)
    monkeypatch.setattr(sqlite, "MIGRATIONS", (*sqlite.MIGRATIONS, ONE_MORE + ";"))
    for _ in range(2):  # The second time there is nothing to do.
        file = File(str(path), "power")
        assert [row.seq for row in file.open(NOW)[0]] == [1, 2]
        file.close()
        assert (version(path), rows(path, "seq, colour")) == (2, [(1, None), (2, None)])


def test_a_new_file_goes_through_all_schemas(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "MIGRATIONS", (*sqlite.MIGRATIONS, ONE_MORE + ";"))
    left_behind(path)
    assert (version(path), rows(path, "seq, colour")) == (2, [(1, None), (2, None)])


def test_a_migration_that_fails_in_the_middle_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(path)
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "MIGRATIONS", (*sqlite.MIGRATIONS, ONE_MORE + "; SELECT nonsense;"))
        with pytest.raises(JournalUnusable, match="no such column: nonsense"):
            File(str(path), "power").open(NOW)
    assert version(path) == 1
    file = File(str(path), "power")
    assert [row.seq for row in file.open(NOW)[0]] == [1, 2]
    file.close()


def test_a_file_of_a_newer_schema_is_refused_and_not_touched(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "MIGRATIONS", (*sqlite.MIGRATIONS, ONE_MORE + ";"))
        left_behind(path)
    before = path.read_bytes()
    with pytest.raises(JournalUnusable, match=r"tasks\.db has schema 2, of a newer minibg: this one reads up to 1"):
        File(str(path), "power").open(NOW)
    assert path.read_bytes() == before


def _of_another_application(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE mine (a)")
    database.close()


def _marked_by_another_application(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA application_id = 7")
    database.close()


def _with_a_schema_and_no_mark(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 1")
    database.close()


def _truncated(path: Path) -> None:
    left_behind(path)
    path.write_bytes(path.read_bytes()[:-4096])


def _overwritten(path: Path) -> None:
    left_behind(path)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"x" * (len(content) - 4096))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_of_another_application, "is a database of another application"),
        (_marked_by_another_application, "is a database of another application"),
        (_with_a_schema_and_no_mark, "is a database of another application"),
        (lambda path: path.write_text("dear diary, this is a text\n" * 100), "file is not a database"),
        (_truncated, "is malformed|is damaged"),
        (_overwritten, "is malformed|is damaged"),
        (Path.mkdir, "cannot be used as a journal: .*[Dd]irectory"),
    ],
)
def test_what_is_no_whole_journal_is_refused_by_name_and_its_lock_is_let_go(
    path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(JournalUnusable, match=f"{re.escape(str(path))}.*({message})"):
        File(str(path), "power").open(NOW)
    assert before == (path.read_bytes() if path.is_file() else b"")
    other = Lock(str(path))
    assert other.acquire(patience=0)
    other.release()


def test_a_file_in_a_folder_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "none" / "tasks.db"
    with pytest.raises(JournalUnusable, match=f"{re.escape(str(path))} cannot be used as a journal: .*No such file"):
        File(str(path), "power").open(NOW)
    path.parent.mkdir()
    file = File(str(path), "power")
    assert file.open(NOW) == ([], 0)
    file.release()


@pytest.mark.parametrize(("kind", "warned"), [("nfs4", True), ("fuse.sshfs", True), ("ext4", False), ("tmpfs", False)])
def test_a_network_file_system_is_warned_of(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str, warned: bool
) -> None:
    mounts = f"/dev/a / ext4 rw 0 0\nserver:/b {path.parent} {kind} rw 0 0\nc {path.parent}/deeper nfs rw 0 0\n"
    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, *a, **k: mounts if str(self) == "/proc/self/mounts" else read(self, *a, **k)
    )
    left_behind(path)
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said == [f"{path} is on a network file system ({kind}): locks do not hold there, tasks may be lost"] * warned


def test_a_system_that_does_not_tell_its_mounts_is_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_file(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", no_file)
    assert network_file_system("tasks.db") is None


# --- the owner's lock ---

HOLD = """
import sys
from minibg.background.sqlite import Lock
lock = Lock(sys.argv[1])
print(lock.acquire(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_process(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that has the lock until it ends, or its standard input does."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_the_lock_is_a_file_beside_the_journal_that_names_its_holder(file: File, path: Path) -> None:
    assert Path(f"{path}.lock").read_text() == f"process {os.getpid()}\n"


def test_a_file_that_this_process_uses_is_refused_to_it_a_second_time(file: File, path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    for same in (str(path), str(link), os.path.relpath(path)):
        with pytest.raises(
            JournalUnusable, match=f"^{re.escape(same)} is in use by this process: a journal has one owner$"
        ):
            File(same, "power").open(NOW)
    write(file, group(entered=enter(1)))  # The first owner has lost nothing by that, above all not its lock:
    code = f"import sys; from minibg.background.sqlite import Lock; sys.exit(Lock({str(path)!r}).acquire(0))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_that_another_process_uses_is_refused(path: Path, other_process: "subprocess.Popen[str]") -> None:
    with pytest.raises(
        JournalUnusable, match=rf"tasks\.db is in use by process {other_process.pid}: a journal has one owner"
    ):
        File(str(path), "power").open(NOW)
    assert not path.exists()


def test_a_killed_owner_has_let_go(path: Path, other_process: "subprocess.Popen[str]") -> None:
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    lock = Lock(str(path))
    assert lock.acquire(patience=0)
    lock.release()


def test_a_lock_that_becomes_free_in_time_is_taken(path: Path, other_process: "subprocess.Popen[str]") -> None:
    tried, attempt = threading.Event(), Lock._try

    class Impatient(Lock):
        def _try(self, descriptor: int) -> bool:
            got = attempt(self, descriptor)
            tried.set()
            return got

    lock, got = Impatient(str(path)), []
    thread = threading.Thread(target=lambda: got.append(lock.acquire(patience=60)))
    thread.start()
    assert tried.wait(60)
    assert other_process.stdin is not None
    other_process.stdin.close()
    thread.join(60)
    assert got == [True]
    assert Path(f"{path}.lock").read_text() == f"process {os.getpid()}\n"
    lock.release()


def test_a_lock_is_free_for_the_next_when_it_was_released(path: Path) -> None:
    for _ in range(2):
        lock = Lock(str(path))
        assert lock.acquire(patience=0)
        lock.release()
        lock.release()  # Once more does nothing.


def test_of_two_threads_that_want_one_file_one_gets_it(path: Path) -> None:
    """Between them the kernel does not decide: both are the same process."""
    second: list[bool] = []

    class Overtaken(Lock):
        def _try(self, descriptor: int) -> bool:
            second.append(Lock(str(path)).acquire(patience=0))
            return super()._try(descriptor)

    first = Overtaken(str(path))
    assert (first.acquire(patience=0), second) == (True, [False])
    first.release()


# --- a group is one transaction ---


def test_whatever_stands_in_a_group_is_one_transaction(file: File, path: Path) -> None:
    write(file, group(entered=enter(1, 2, 3)), group(claims=[1]))
    before = transactions(path)
    write(
        file,
        group(
            entered=enter(*range(10, 60)),
            ended=end(1, status="SUCCESSFUL") | end(2, status="DROPPED"),
            moved=move(*range(10, 30), 3),
            claims=[3, *range(10, 20)],
        ),
    )
    assert transactions(path) - before == 1
    assert [
        rows(path, "count(*)", f"status = '{status}'") for status in ("RUNNING", "READY", "HELD", "SUCCESSFUL")
    ] == [[11], [10], [30], [1]]


def test_a_reader_sees_all_of_a_group_or_nothing(file: File, path: Path) -> None:
    """While the groups are written, one hundred runs each, another connection counts."""
    counts: list[int] = []
    done, begun = threading.Event(), threading.Event()

    def count() -> None:
        reader = connect(str(path), "ro")
        while not done.is_set():
            counts.append(reader.execute("SELECT count(*) FROM runs").fetchone()[0])
            begun.set()
        reader.close()

    thread = threading.Thread(target=count)
    thread.start()
    begun.wait(60)
    for first in range(1, 3000, 100):
        write(file, group(entered=enter(*range(first, first + 100))))
    done.set()
    thread.join(60)
    assert {number % 100 for number in counts} == {0}


def synchronous(file: File) -> int:
    assert file._database is not None
    (level,) = file._database.execute("PRAGMA synchronous").fetchone()
    return int(level)


NORMAL, FULL = 1, 2


@pytest.mark.parametrize(("durability", "accepting"), [("power", FULL), ("process", NORMAL)])
def test_only_what_is_accepted_is_flushed(path: Path, durability: Any, accepting: int) -> None:
    file = File(str(path), durability)
    file.open(NOW)
    levels = []
    for each in (
        group(entered=enter(1, 2)),
        group(moved=move(1)),
        group(claims=[1]),
        group(entered=enter(3), ended=end(1, status="SUCCESSFUL")),
        group(ended=end(2, status="DROPPED")),
        group(claims=[3], tick=True),
    ):
        write(file, each)
        levels.append(synchronous(file))
    assert levels == [accepting, NORMAL, NORMAL, accepting, NORMAL, NORMAL]
    file.release()


RUNNING_1 = [group(entered=enter(1)), group(moved=move(1)), group(claims=[1])]


@pytest.mark.parametrize(
    ("before", "last", "became", "claimed"),
    [
        ([], dict(entered=enter(1)), ("HELD", 0, None), set()),
        ([], dict(entered=enter(1), moved=move(1)), ("READY", 0, None), set()),
        ([], dict(entered=enter(1), moved=move(1), claims=[1]), ("RUNNING", 1, None), {1}),
        (["held"], dict(moved=move(1), claims=[1]), ("RUNNING", 1, None), {1}),
        (["held"], dict(moved=move(1, status="WAITING", due=NOW + 5)), ("WAITING", 0, NOW + 5), set()),
        (["held"], dict(ended=end(1, status="DROPPED", attempts=0)), ("DROPPED", 0, None), set()),
        (["held"], dict(moved=move(1), ended=end(1, status="CANCELLED", attempts=0)), ("CANCELLED", 0, None), set()),
        (["ready"], dict(claims=[1], ended=end(1, status="CANCELLED", attempts=0)), ("CANCELLED", 0, None), set()),
        (["ready"], dict(claims=[1]), ("RUNNING", 1, None), {1}),
        (["ready"], dict(claims=[1, 1]), ("RUNNING", 1, None), {1}),
        (["running"], dict(ended=end(1, status="SUCCESSFUL")), ("SUCCESSFUL", 1, None), set()),
        (["running"], dict(ended=end(1, status="FAILED")), ("FAILED", 1, None), set()),
        (["running"], dict(ended=end(1, status="WAITING")), ("WAITING", 1, NOW + 10), set()),
        # Cancelled while the claim was written: the journal had counted no attempt then.
        (["running"], dict(ended=end(1, status="CANCELLED", attempts=0)), ("CANCELLED", 1, None), set()),
        (["running"], dict(ended=end(1, status="WAITING"), moved=move(1)), ("READY", 1, None), set()),
        (["running"], dict(ended=end(1, status="WAITING"), moved=move(1), claims=[1]), ("RUNNING", 2, None), {1}),
        (["waiting"], dict(moved=move(1), claims=[1]), ("RUNNING", 2, None), {1}),
        (["waiting"], dict(ended=end(1, status="CANCELLED")), ("CANCELLED", 1, None), set()),
        # What is late, or speaks of another attempt, changes nothing.
        (["running"], dict(ended=end(1, status="SUCCESSFUL", attempts=2)), ("RUNNING", 1, None), set()),
        (["waiting", "again"], dict(ended=end(1, status="SUCCESSFUL", attempts=1)), ("RUNNING", 2, None), set()),
        (["ready"], dict(ended=end(1, status="SUCCESSFUL", attempts=0)), ("READY", 0, None), set()),
        (["ready"], dict(ended=end(1, status="FAILED", attempts=1)), ("READY", 0, None), set()),
        (["cancelled"], dict(claims=[1]), ("CANCELLED", 0, None), set()),
        (["cancelled"], dict(moved=move(1), claims=[1]), ("CANCELLED", 0, None), set()),
        (["running", "successful"], dict(ended=end(1, status="FAILED")), ("SUCCESSFUL", 1, None), set()),
        (["running", "successful"], dict(ended=end(1, status="CANCELLED")), ("SUCCESSFUL", 1, None), set()),
        (["running", "successful"], dict(moved=move(1), claims=[1]), ("SUCCESSFUL", 1, None), set()),
        # What a full disk has refused is not there.
        (["held"], dict(moved=move(2), claims=[2], ended=end(3, status="DROPPED")), ("HELD", 0, None), set()),
    ],
    ids=str,
)
def test_a_group_makes_of_a_row_what_has_happened_to_its_run(
    file: File,
    path: Path,
    before: list[str],
    last: dict[str, Any],
    became: tuple[str, int, float | None],
    claimed: set[int],
) -> None:
    steps = {
        "held": [group(entered=enter(1))],
        "ready": [group(entered=enter(1), moved=move(1))],
        "running": [group(entered=enter(1), moved=move(1)), group(claims=[1])],
        "waiting": [group(entered=enter(1), moved=move(1)), group(claims=[1]), group(ended=end(1, status="WAITING"))],
        "again": [group(moved=move(1), claims=[1])],
        "cancelled": [group(entered=enter(1)), group(ended=end(1, status="CANCELLED", attempts=0))],
        "successful": [group(ended=end(1, status="SUCCESSFUL"))],
    }
    for word in before:
        write(file, *steps[word])
    assert write(file, group(**last)).claimed == claimed
    assert rows(path, "status, attempts, due_at") == [became]


def test_a_key_that_one_run_frees_another_takes_in_the_same_group(file: File, path: Path) -> None:
    write(file, group(entered=enter(1, key="k"), moved=move(1)), group(claims=[1]))
    write(file, group(ended=end(1, status="SUCCESSFUL"), entered=enter(2, key="k")))
    assert rows(path, "seq, key, status") == [(1, "k", "SUCCESSFUL"), (2, "k", "HELD")]


def test_the_texts_of_a_run_come_back_as_they_were(file: File, path: Path) -> None:
    text = "ä \U0001f600 \" \\ ' \n \x01 null"
    row = (1, "id1", 1, text, json.dumps([[text], {}]), json.dumps({"a": text}), text, text, NOW + 0.123456)
    write(file, group(entered={1: row}), group(claims=[1], moved=move(1)))
    errors = json.dumps([{"message": text}])
    write(file, group(ended={1: (1, 1, "FAILED", None, None, NOW + 0.654321, errors, json.dumps(text))}))
    columns = "name, payload, options, key, origin, added_at, finished_at, errors, value"
    assert rows(path, columns) == [(*row[3:], NOW + 0.654321, errors, json.dumps(text))]


# --- when the disk does not want to ---


def full(file: File, pages: int = 0) -> None:
    """Let the file not grow any more; with pages, let it."""
    assert file._database is not None
    file._database.execute(f"PRAGMA max_page_count = {pages or 1}")  # It is never less than what is used.


def test_a_full_disk_refuses_new_runs_and_nothing_of_them_is_there(file: File, path: Path) -> None:
    write(file, group(entered=enter(1, 2), moved=move(1, 2)), group(claims=[1]))
    full(file)
    refused = group(entered=enter(*range(3, 500)), ended=end(1, status="SUCCESSFUL"), claims=[2, 3])
    file.write(refused, NOW)
    assert str(refused.refused) == "database or disk is full"
    assert (refused.failed, refused.claimed) == (None, {2})
    assert rows(path, "seq, status") == [(1, "SUCCESSFUL"), (2, "RUNNING")]
    full(file, pages=10_000)
    write(file, group(entered=enter(*range(3, 500))))
    assert rows(path, "count(*)") == [499]


def test_a_file_that_somebody_else_has_locked_is_waited_for_and_then_refuses(
    file: File, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert file._database is not None
    file._database.execute("PRAGMA busy_timeout = 50")
    shell = connect(str(path), "rw")
    shell.execute("BEGIN IMMEDIATE")
    locked = group(entered=enter(1), claims=[1], tick=True)
    file.write(locked, NOW)
    assert [str(locked.refused), str(locked.failed)] == ["database is locked"] * 2
    file._database.execute("PRAGMA busy_timeout = 60000")
    threading.Timer(0.1, shell.execute, ("ROLLBACK",)).start()
    write(file, group(entered=enter(1)))
    assert rows(path, "seq") == [1]
    shell.close()


# --- the end of a life, and the next one ---


def next_life(path: Path, now: float = NOW) -> tuple[File, list[tuple[Any, ...]], int]:
    file = File(str(path), "power")
    unfinished, last = file.open(now)
    return file, [(row.seq, row.status, row.attempts, row.excused, row.crashes) for row in unfinished], last


def test_a_new_owner_gets_the_unfinished_in_order_and_the_last_number(file: File, path: Path) -> None:
    write(
        file,
        group(entered=enter(1, 2, 3, 4, 5, 6), moved=move(2, 3, 4, 5)),
        group(claims=[2, 3]),
        group(ended=end(2, status="SUCCESSFUL") | end(3, status="WAITING") | end(6, status="CANCELLED")),
    )
    file.close()
    file, found, last = next_life(path)
    assert found == [(1, "HELD", 0, 0, 0), (3, "WAITING", 1, 0, 0), (4, "READY", 0, 0, 0), (5, "READY", 0, 0, 0)]
    assert last == 6
    file.close()


def test_a_clean_end_puts_back_what_was_running_and_counts_no_crash(file: File, path: Path) -> None:
    write(file, *RUNNING_1)
    file.close()
    file, found, _ = next_life(path)
    assert found == [(1, "READY", 1, 1, 0)]
    file.close()


def test_a_clean_end_leaves_one_file(file: File, path: Path) -> None:
    write(file, *RUNNING_1)
    file.close()
    assert sorted(each.name for each in path.parent.iterdir()) == ["tasks.db", "tasks.db.lock"]
    assert rows(path) == [("mail", "READY", 1)]


def test_what_was_running_when_the_process_died_is_a_crash_and_the_third_is_the_last(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = File(str(path), "power")
    file.open(NOW)
    write(file, group(entered=enter(1, 2), moved=move(1, 2)))
    seen = []
    for _ in range(CRASHES):
        write(file, group(claims=[1]))
        file.release()  # What a kill does, as far as the file is concerned.
        file, found, _ = next_life(path, NOW + 5)
        seen.append(found)
    other = (2, "READY", 0, 0, 0)
    assert seen == [[(1, "READY", 1, 1, 1), other], [(1, "READY", 2, 2, 2), other], [other]]
    ((status, finished, errors),) = rows(path, "status, finished_at, errors", "seq = 1")
    assert (status, finished) == ("FAILED", NOW + 5)
    (died,) = json.loads(errors)
    message = "worker died: its process ended 3 times in the middle of it"
    assert died == {"attempt": 3, "type": "WorkerDied", "message": message, "traceback": "", "at": NOW + 5}
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert said == [f"mail id1 failed: {message}"]
    file.close()


def test_one_line_of_the_log_says_what_an_earlier_life_has_left(
    file: File, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write(file, group(entered=enter(1, 2, 3), moved=move(1, 2, 3)), group(claims=[1]))
    assert caplog.records == []  # A new file has nothing to say.
    file.release()
    file, _, _ = next_life(path)
    (record,) = caplog.records
    assert (record.levelno, str(path) in record.getMessage()) == (logging.INFO, True)
    assert re.findall(r"\b(\d+) ", record.getMessage().replace(str(path), "")) == ["3", "1"]
    file.close()


def test_a_log_of_which_the_end_is_missing_has_all_up_to_there(file: File, path: Path) -> None:
    write(file, group(entered=enter(1)), group(entered=enter(2)))
    whole = Path(f"{path}-wal").stat().st_size
    write(file, group(entered=enter(3)))
    copy = as_a_kill_leaves_it(path)
    os.truncate(f"{copy}-wal", whole + 1000)
    other, found, last = next_life(copy)
    assert ([seq for seq, *_ in found], last) == ([1, 2], 2)
    other.close()


def test_a_row_that_was_tampered_with_does_not_keep_the_lock(file: File, path: Path) -> None:
    write(file, *RUNNING_1)
    change(path, "UPDATE runs SET id = CAST(x'FF' AS TEXT)")  # No UTF-8: SQLite cannot give it back.
    file.release()
    with pytest.raises(JournalUnusable, match=re.escape(str(path))):
        File(str(path), "power").open(NOW)
    change(path, "UPDATE runs SET id = 'id1'")
    file, found, _ = next_life(path)
    assert [seq for seq, *_ in found] == [1]
    file.close()


# --- what is asked for from outside ---


def asked(file: File, path: Path) -> list[tuple[str, int, str]]:
    tick = write(file, group(tick=True), now=NOW + 1)
    return [(what, row.seq, row.status) for what, row in tick.asked]


@pytest.mark.parametrize("by_the_next_owner", [False, True])
@pytest.mark.parametrize(
    ("status", "what", "becomes"),
    [
        ("HELD", "cancel", "CANCELLED"),
        ("READY", "cancel", "CANCELLED"),
        ("WAITING", "cancel", "CANCELLED"),
        ("SUCCESSFUL", "cancel", "SUCCESSFUL"),
        ("FAILED", "cancel", "FAILED"),
        ("FAILED", "retry", "READY"),
        ("SUCCESSFUL", "retry", "SUCCESSFUL"),
        ("CANCELLED", "retry", "CANCELLED"),
        ("DROPPED", "retry", "DROPPED"),
        ("READY", "retry", "READY"),
        ("WAITING", "retry", "WAITING"),
    ],
)
def test_what_is_asked_for_is_done_where_it_makes_sense(
    file: File, path: Path, status: str, what: str, becomes: str, by_the_next_owner: bool
) -> None:
    finished, due = (NOW if status in FINAL else None), (NOW + 9 if status == "WAITING" else None)
    inserted(path, seq=1, id="id1", status=status, finished_at=finished, due_at=due, attempts=4, crashes=2, excused=1)
    change(path, sqlite.ASK, what, "id1")
    if by_the_next_owner:
        file.release()
        file, found, _ = next_life(path, NOW + 1)
        assert len(found) == (becomes not in FINAL)
    else:
        assert asked(file, path) == [(what, 1, becomes)]
    changed = becomes != status
    renewed = becomes == "READY" and changed
    ((now, attempts, excused, crashes, finished_at, left),) = rows(
        path, "status, attempts, excused, crashes, finished_at, asked"
    )
    assert (now, attempts, excused, crashes) == (becomes, *((0, 0, 0) if renewed else (4, 1, 2)))
    assert finished_at == (None if becomes not in FINAL else NOW + 1 if changed else NOW)
    assert left is None
    assert asked(file, path) == []
    file.close()


def test_a_running_run_is_cancelled_by_its_owner_not_in_the_file(file: File, path: Path) -> None:
    write(file, *RUNNING_1)
    change(path, sqlite.ASK, "cancel", "id1")
    assert asked(file, path) == [("cancel", 1, "RUNNING")]
    assert rows(path, "status, asked") == [("RUNNING", None)]


def test_a_failed_run_is_not_renewed_whose_key_another_has(file: File, path: Path) -> None:
    write(file, group(entered=enter(1, key="k"), moved=move(1)), group(claims=[1]))
    write(file, group(ended=end(1, status="FAILED"), entered=enter(2, key="k")))
    change(path, sqlite.ASK, "retry", "id1")
    assert asked(file, path) == [("retry", 1, "FAILED")]
    write(file, group(ended=end(2, status="CANCELLED")))
    change(path, sqlite.ASK, "retry", "id1")
    assert asked(file, path) == [("retry", 1, "READY")]


# --- what is old goes ---


def ended_at(path: Path, *ages: tuple[str, float]) -> None:
    for status, age in ages:
        inserted(path, status=status, finished_at=NOW - age, added_at=NOW - age)


def sweep(file: File, now: float = NOW) -> int:
    """Tick until there is no more; in how many transactions that was."""
    count = 1
    while write(file, group(tick=True), now=now).more:
        count += 1
    return count


def test_what_ended_long_ago_goes_each_kind_at_its_time(file: File, path: Path) -> None:
    day, moment = 86400, 1
    for status, kept in (("SUCCESSFUL", day), ("CANCELLED", day), ("DROPPED", day), ("FAILED", 7 * day)):
        ended_at(path, (status, kept - moment), (status, kept + moment))
    for status, columns in (
        ("HELD", {}),
        ("READY", {}),
        ("RUNNING", {"owner": "process 1"}),
        ("WAITING", {"due_at": NOW}),
    ):
        inserted(path, status=status, added_at=NOW - 1000 * day, **columns)
    assert sweep(file) == 1
    left = rows(path, f"status, {NOW} - finished_at")
    assert left == [
        ("SUCCESSFUL", day - moment),
        ("CANCELLED", day - moment),
        ("DROPPED", day - moment),
        ("FAILED", 7 * day - moment),
        *((status, None) for status in ("HELD", "READY", "RUNNING", "WAITING")),
    ]


def test_only_a_tick_sweeps(file: File, path: Path) -> None:
    ended_at(path, ("SUCCESSFUL", 90000))
    write(file, group(entered=enter(5)))
    assert rows(path, "status") == ["SUCCESSFUL", "HELD"]


def test_much_that_is_old_goes_in_small_portions(file: File, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "SWEEP", 10)
    ended_at(path, *[("SUCCESSFUL", 90000)] * 35, *[("FAILED", 90000)] * 3)
    left = []
    while True:
        more = write(file, group(tick=True)).more
        left.append(rows(path, "count(*)")[0])
        if not more:
            break
    assert left == [28, 18, 8, 3]


def test_the_oldest_go_when_there_are_too_many_but_nothing_that_is_owed(
    file: File, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "NEWER_KEPT", 5)
    monkeypatch.setattr(sqlite, "SWEEP", 3)
    inserted(path, status="READY")
    ended_at(path, *[("SUCCESSFUL", 1)] * 8, *[("FAILED", 1)] * 2)
    assert sweep(file) == 2
    assert rows(path, "seq") == [1, 6, 7, 8, 9, 10, 11]


def test_the_file_does_not_grow_while_runs_come_and_go(file: File, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sqlite.RETENTION, "SUCCESSFUL", 5.0)
    sizes, logs = [], []
    for moment in range(300):
        seqs = range(moment * 20 + 1, moment * 20 + 21)
        write(
            file,
            group(entered=enter(*seqs), moved=move(*seqs)),
            group(claims=[*seqs]),
            group(ended=end(*seqs, status="SUCCESSFUL", value='"' + "x" * 1000 + '"'), tick=True),
            now=NOW,
        )
        change(path, "UPDATE runs SET finished_at = ? WHERE finished_at = ?", NOW + moment, NOW)
        sweep(file, NOW + moment)
        assert file._database is not None
        sizes.append(file._database.execute("PRAGMA page_count").fetchone()[0])
        logs.append(Path(f"{path}-wal").stat().st_size)
    assert rows(path, "count(*)") == [6 * 20]
    assert max(sizes[100:]) <= max(sizes[:100])
    assert max(logs) < 2 * 1000 * 4096 * 2  # SQLite writes the log back every thousand pages.
    file.close()
    assert not Path(f"{path}-wal").exists()


# --- the plans of the queries ---


def statements() -> dict[str, str]:
    """Every statement of the file that names the table, also one that is added tomorrow."""
    named = {name: text for name, text in vars(sqlite).items() if isinstance(text, str) and name.isupper()}
    found = {name: text for name, text in named.items() if re.match(r"\s*(SELECT|UPDATE|INSERT|DELETE)\b", text)}
    return {name: text for name, text in found.items() if "NEW." not in text}  # Steps of a trigger, all there by name.


def plan(database: sqlite3.Connection, statement: str) -> list[str]:
    names = set(re.findall(r"[:](\w+)", statement))
    numbers = [int(number) for number in re.findall(r"\?(\d+)", statement)]
    values: Any = dict.fromkeys(names) if names else (None,) * (max(numbers) if numbers else statement.count("?"))
    return [detail for *_, detail in database.execute(f"EXPLAIN QUERY PLAN {statement}", values)]


#: A scan of these is a scan of what is unfinished, or asked for: as many rows as are wanted.
SMALL = ("unfinished", "asked")


def walks_through_everything(detail: str) -> bool:
    if not re.match(r"SCAN runs\b", detail):
        return False
    index = re.search(r"USING (?:COVERING )?INDEX (\w+)", detail)
    return index is None or index[1] not in SMALL


@pytest.mark.parametrize("analysed", [False, True])
@pytest.mark.parametrize(("finished", "unfinished"), [(20_000, 100), (100, 5_000), (0, 0)])
def test_no_statement_walks_through_all_runs(path: Path, finished: int, unfinished: int, analysed: bool) -> None:
    texts: set[str] = set()
    file = File(str(path), "power")
    file.open(NOW)
    many = """WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
        INSERT INTO runs (id, response, name, payload, options, key, origin, added_at, status, finished_at)
        SELECT hex(randomblob(16)), i, 'mail', '[]', '{}', iif(i % 2, hex(randomblob(4)), NULL), '', i, ?, ?
        FROM n WHERE ? > 0"""
    change(path, many, finished, "SUCCESSFUL", NOW, finished)
    change(path, many, unfinished, "READY", None, unfinished)
    if analysed:
        change(path, "ANALYZE")
    file.release()
    file = File(str(path), "power")
    file.open(NOW)
    database = file._database
    assert database is not None
    database.set_trace_callback(texts.add)
    write(
        file,
        group(entered=enter(90_001, 90_002, key=None), moved=move(90_001, 90_002), claims=[90_001], tick=True),
        group(ended=end(90_001, status="FAILED"), tick=True),
    )
    change(path, sqlite.ASK, "retry", "id90001")
    write(file, group(tick=True))
    assert file._last_seq() == 90_002
    database.set_trace_callback(None)
    done = {text: text for text in texts if re.match(r"\s*(SELECT|UPDATE|DELETE)\b", text) and "runs" in text}
    assert len(done) > 5
    assert len(statements()) > 15
    plans = {text: plan(database, text) for text in (statements() | done).values()}
    bad = {text: details for text, details in plans.items() if any(map(walks_through_everything, details))}
    assert bad == {}
    assert any("SEARCH runs" in detail for details in plans.values() for detail in details)
    file.close()


def test_a_plan_that_walks_through_everything_would_be_seen(file: File) -> None:
    assert file._database is not None
    walks = [
        "SELECT * FROM runs WHERE origin = 'x'",
        "UPDATE runs SET owner = NULL WHERE status = 'READY'",
        "DELETE FROM runs WHERE finished_at < 7 OR finished_at IS NULL",
        "SELECT count(*) FROM runs",
    ]
    assert [any(map(walks_through_everything, plan(file._database, each))) for each in walks] == [True] * 4


def test_a_row_has_the_columns_that_are_read() -> None:
    assert [name.strip() for name in sqlite.COLUMNS.split(",")] == list(Row.__dataclass_fields__)
    assert APPLICATION_ID == int.from_bytes(b"mbg1", "big")
