"""The file of a journal without a pool: which files are refused, what is one transaction, and what a start finds."""

import itertools
import json
import logging
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from minibg.background.errors import JournalUnusable
from minibg.background.journal import file as module
from minibg.background.journal.file import CRASHES, File, connect, network_file_system
from minibg.background.journal.lock import Lock
from minibg.background.journal.schema import REQUEST, Answer, Group
from tests.background.journal.files import (
    FINAL,
    NOW,
    RUNNING_1,
    as_a_kill_leaves_it,
    change,
    end,
    insert,
    insert_by_hand,
    rows,
    update,
    write,
)

# --- a file, and files that are none ---


def test_the_file_and_all_that_lies_beside_it_is_for_its_user_alone(file: File, path: Path) -> None:
    before = os.umask(0)
    try:
        write(file, {"inserts": insert(1)})
    finally:
        os.umask(before)
    modes = {each.name: oct(each.stat().st_mode & 0o777) for each in path.parent.iterdir()}
    assert modes == dict.fromkeys(["tasks.db", "tasks.db-wal", "tasks.db-shm", "tasks.db.lock"], "0o600")


def test_the_header_says_which_application_and_schema_it_is_and_that_it_writes_ahead(file: File, path: Path) -> None:
    with closing(connect(str(path), "ro")) as database:
        marks = [database.execute(f"PRAGMA {mark}").fetchone()[0] for mark in ("application_id", "user_version")]
        assert [*marks, database.execute("PRAGMA journal_mode").fetchone()[0]] == [0x6D626731, 2, "wal"]
    file.close()
    assert path.read_bytes()[68:72] == b"mbg1"
    assert sorted(each.name for each in path.parent.iterdir()) == ["tasks.db", "tasks.db.lock"]


def test_an_empty_file_becomes_a_journal(path: Path) -> None:
    path.touch()
    file = File(str(path), "power")
    assert file.open(NOW) == ([], 0)
    file.close()


def left_behind(path: Path) -> None:
    file = File(str(path), "power")
    file.open(NOW)
    write(file, {"inserts": insert(1, 2)})
    file.close()


def other_application(*statements: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            for statement in statements:
                database.execute(statement)

    return make


def damage(cut: slice, instead: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        left_behind(path)
        content = bytearray(path.read_bytes())
        content[cut] = instead * (len(content[cut]) // len(instead)) if instead else b""
        path.write_bytes(content)

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_application("CREATE TABLE mine (a)"), "is a database of another application"),
        (other_application("PRAGMA application_id = 7"), "is a database of another application"),
        (other_application("PRAGMA user_version = 1"), "is a database of another application"),
        (lambda path: path.write_text("dear diary, this is a text\n" * 100), "file is not a database"),
        (damage(slice(-4096, None), b""), "is malformed|is damaged"),
        (damage(slice(4096, None), b"x"), "is malformed|is damaged"),
        (damage(slice(100, None), b""), "cannot be used as a journal"),
        (damage(slice(8192, 12288), b"x"), "is malformed|is damaged"),
        (Path.mkdir, "cannot be used as a journal: .*[Dd]irectory"),
    ],
)
def test_a_file_that_is_no_whole_journal_is_refused_by_name_left_as_it_is_and_unlocked(
    path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(JournalUnusable, match=f"{re.escape(str(path))}.*({message})"):
        File(str(path), "power").open(NOW)
    assert before == (path.read_bytes() if path.is_file() else b"")
    other = Lock(str(path))
    assert other.acquire(patience=0)
    other.release()


def test_a_folder_that_does_not_exist_is_refused_until_it_does(tmp_path: Path) -> None:
    path = tmp_path / "none" / "tasks.db"
    file = File(str(path), "power")
    with pytest.raises(JournalUnusable, match=f"{re.escape(str(path))} cannot be used as a journal: .*No such file"):
        file.open(NOW)
    path.parent.mkdir()
    assert file.open(NOW) == ([], 0)
    file.release()


def test_a_large_file_is_checked_for_a_moment_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the old code a million finished runs took three seconds."""
    file = File(str(path), "power")
    file.open(NOW)
    write(file, {"inserts": insert(*range(1, 20_000))})
    file.release()
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(module, "CHECK_STEPS", 1)
    looks = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: 1e9 + next(looks))
    with closing(connect(str(path), "ro")) as database:
        assert module.quick_check(database) is None
    assert next(looks) < 10
    monkeypatch.undo()
    unfinished, last = file.open(NOW)
    assert (len(unfinished), last) == (19_999, 19_999)
    file.close()


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
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert messages == [f"{path} is on a network file system ({kind}): its lock does not hold there"] * warned


def test_a_system_that_does_not_list_its_mounts_is_taken_for_local(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_file(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", no_file)
    assert network_file_system("tasks.db") is None


# --- a group is one transaction ---


def transactions(path: Path) -> int:
    """Count the transactions in the write-ahead log: each ends with a frame that contains the size of the file.

    https://sqlite.org/fileformat.html#the_write_ahead_log
    """
    log = Path(f"{path}-wal").read_bytes()
    page = int.from_bytes(log[8:12], "big")
    salt, count, at = log[16:24], 0, 32
    while at + 24 + page <= len(log) and log[at + 8 : at + 16] == salt:
        count += int.from_bytes(log[at + 4 : at + 8], "big") > 0
        at += 24 + page
    return count


def test_all_changes_of_a_group_are_one_transaction(file: File, path: Path) -> None:
    write(file, {"inserts": insert(1, 2, 3, 4)}, {"claims": [1, 4]}, {"ends": end(4, status="FAILED")})
    before = transactions(path)
    group: dict[str, Any] = {"inserts": insert(*range(10, 60)), "claims": [3, *range(10, 20)]}
    group |= {"ends": end(1, status="SUCCESSFUL") | end(2, status="DROPPED"), "updates": update(*range(10, 30), 3)}
    write(file, group)
    assert transactions(path) - before == 1
    statuses = rows(path, "status")
    assert [statuses.count(each) for each in ("RUNNING", "READY", "HELD", "SUCCESSFUL")] == [11, 10, 30, 1]


def test_a_reader_sees_all_of_a_group_or_nothing(file: File, path: Path) -> None:
    """Groups of one hundred runs are written while another connection counts."""
    counts: list[int] = []
    done, begun = threading.Event(), threading.Event()

    def count() -> None:
        with closing(connect(str(path), "ro")) as reader:
            while not done.is_set():
                counts.append(reader.execute("SELECT count(*) FROM runs").fetchone()[0])
                begun.set()

    thread = threading.Thread(target=count)
    thread.start()
    begun.wait(60)
    for first in range(1, 3000, 100):
        write(file, {"inserts": insert(*range(first, first + 100))})
    done.set()
    thread.join(60)
    assert {number % 100 for number in counts} == {0}


NORMAL, FULL = 1, 2


@pytest.mark.parametrize(("durability", "accepting"), [("power", FULL), ("process", NORMAL)])
def test_only_groups_with_inserts_are_flushed(path: Path, durability: Any, accepting: int) -> None:
    file = File(str(path), durability)
    file.open(NOW)
    levels = []
    groups: list[dict[str, Any]] = [
        {"inserts": insert(1, 2)},
        {"updates": update(1)},
        {"claims": [1]},
        {"inserts": insert(3), "ends": end(1, status="SUCCESSFUL")},
        {"ends": end(2, status="DROPPED")},
        {"claims": [3], "housekeeping": True},
    ]
    for group in groups:
        write(file, group)
        assert file._database is not None
        levels.append(file._database.execute("PRAGMA synchronous").fetchone()[0])
    assert levels == [accepting, NORMAL, NORMAL, accepting, NORMAL, NORMAL]
    file.release()


# --- a disk that refuses ---


def test_a_full_disk_refuses_inserts_leaves_nothing_of_them_and_writes_the_rest(file: File, path: Path) -> None:
    write(file, {"inserts": insert(1, 2)}, {"claims": [1]})
    assert file._database is not None
    file._database.execute("PRAGMA max_page_count = 1")  # SQLite takes the number of pages in use instead.
    refused = Group(inserts=insert(*range(3, 500)), ends=end(1, status="SUCCESSFUL"), claims=[2, 3])
    file.write(refused, NOW)
    assert str(refused.insert_error) == "database or disk is full"
    assert (refused.update_error, refused.granted) == (None, {2})
    assert rows(path, "row, status") == [(1, "SUCCESSFUL"), (2, "RUNNING")]
    file._database.execute("PRAGMA max_page_count = 10000")
    write(file, {"inserts": insert(*range(3, 500))})
    assert rows(path, "count(*)") == [499]


def test_a_locked_database_is_waited_for_once_and_then_refuses_everything(
    file: File, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the old code a group waited five seconds, and five more for the second try."""
    tries = []
    write_once = File._write

    def watched(file: File, group: Group, now: float, *, with_inserts: bool) -> None:
        tries.append(with_inserts)
        write_once(file, group, now, with_inserts=with_inserts)

    monkeypatch.setattr(File, "_write", watched)
    with closing(connect(str(path), "rw")) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        locked = Group(inserts=insert(1), claims=[1], housekeeping=True)
        file.write(locked, NOW)
        assert time.monotonic() - began < 1.9
        assert [str(locked.insert_error), str(locked.update_error)] == ["database is locked"] * 2
        assert len(tries) == 1
        threading.Timer(0.1, other.execute, ("ROLLBACK",)).start()
        write(file, {"inserts": insert(1)})
    assert rows(path, "row") == [1]


@pytest.mark.parametrize("lost", ["removed", "replaced", "its log removed"])
def test_a_file_that_is_removed_or_replaced_refuses_inserts_and_finishes_what_it_has(
    file: File, path: Path, lost: str
) -> None:
    """On the old code such inserts were acknowledged, on pages that no start would find."""
    write(file, *RUNNING_1, {"inserts": insert(2)})
    moved = path.with_name("moved.db")
    wal = Path(f"{path}-wal")
    (wal if lost == "its log removed" else path).rename(moved)
    if lost == "replaced":
        path.touch()
    group = Group(inserts=insert(3), ends=end(1, status="SUCCESSFUL"), claims=[2, 3])
    file.write(group, NOW)
    assert str(group.insert_error) == "the file was removed or replaced while it was in use"
    assert (group.update_error, group.granted) == (None, {2})
    moved.rename(wal if lost == "its log removed" else path)  # The operator's mistake is undone.
    write(file, {"inserts": insert(3)})
    assert rows(path, "row, status") == [(1, "SUCCESSFUL"), (2, "RUNNING"), (3, "HELD")]


# --- the end of a process, and the next start ---


def next_start(path: Path, now: float = NOW) -> tuple[File, list[tuple[Any, ...]], int]:
    file = File(str(path), "power")
    unfinished, last = file.open(now)
    return file, [(row.row, row.status, row.attempts, row.uncounted_attempts, row.crashes) for row in unfinished], last


def test_a_start_finds_the_unfinished_runs_in_order_and_the_last_row(file: File, path: Path) -> None:
    write(file, {"inserts": insert(1, 2, 3, 4, 5, 6), "updates": update(2, 3, 4, 5)}, {"claims": [2, 3]})
    ends = end(2, status="SUCCESSFUL") | end(3, status="WAITING") | end(6, status="CANCELLED")
    write(file, {"ends": ends})
    file.close()
    file, found, last = next_start(path)
    assert found == [(1, "HELD", 0, 0, 0), (3, "WAITING", 1, 0, 0), (4, "READY", 0, 0, 0), (5, "READY", 0, 0, 0)]
    assert last == 6
    file.close()


def test_a_clean_end_requeues_what_was_running_and_counts_no_crash(file: File, path: Path) -> None:
    write(file, *RUNNING_1)
    file.close()
    file, found, _ = next_start(path)
    assert found == [(1, "READY", 1, 1, 0)]
    file.close()


def test_a_close_that_keeps_the_lock_keeps_the_next_owner_out_and_leaves_a_whole_file(file: File, path: Path) -> None:
    write(file, *RUNNING_1)
    file.close(keep_lock=True)
    with pytest.raises(JournalUnusable, match="in use by this process"):
        File(str(path), "power").open(NOW)
    assert rows(path) == [("mail", "READY", 1)]


def test_a_run_that_was_in_progress_at_three_deaths_of_its_process_is_failed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = File(str(path), "power")
    file.open(NOW)
    write(file, {"inserts": insert(1, 2), "updates": update(1, 2)})
    seen = []
    for crash in range(CRASHES):
        write(file, {"claims": [1]})
        if crash == 2:
            change(path, "UPDATE runs SET errors = '{'")  # Edited by hand: no reason to start without the file.
        file.release()  # A kill, as far as the file is concerned.
        file, found, _ = next_start(path, NOW + 5)
        seen.append(found)
    other = (2, "READY", 0, 0, 0)
    assert seen == [[(1, "READY", 1, 1, 1), other], [(1, "READY", 2, 2, 2), other], [other]]
    ((status, finished, errors),) = rows(path, "status, finished_at, errors", "row = 1")
    assert (status, finished) == ("FAILED", NOW + 5)
    (died,) = json.loads(errors)
    message = "worker died: its process ended 3 times in the middle of it"
    assert died == {"attempt": 3, "type": "WorkerDied", "message": message, "traceback": "", "at": NOW + 5}
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert messages == [f"mail id1 failed: {message}"]
    file.close()


def test_one_line_of_the_log_names_the_file_and_counts_what_it_has(
    file: File, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write(file, {"inserts": insert(1, 2, 3), "updates": update(1, 2, 3)}, {"claims": [1]})
    assert caplog.records == []  # A new file is not worth a line.
    file.release()
    file, _, _ = next_start(path)
    assert [record.getMessage() for record in caplog.records] == [f"{path}: 3 unfinished runs, 1 of them interrupted"]
    file.close()


def test_a_log_whose_end_is_missing_has_everything_before_it(file: File, path: Path) -> None:
    write(file, {"inserts": insert(1)}, {"inserts": insert(2)})
    whole = Path(f"{path}-wal").stat().st_size
    write(file, {"inserts": insert(3)})
    copy = as_a_kill_leaves_it(path)
    os.truncate(f"{copy}-wal", whole + 1000)
    other, found, last = next_start(copy)
    assert ([row for row, *_ in found], last) == ([1, 2], 2)
    other.close()


def test_a_row_that_sqlite_cannot_read_refuses_the_file_and_does_not_keep_the_lock(file: File, path: Path) -> None:
    write(file, *RUNNING_1)
    change(path, "UPDATE runs SET id = CAST(x'FF' AS TEXT)")  # No UTF-8.
    file.release()
    with pytest.raises(JournalUnusable, match=re.escape(str(path))):
        File(str(path), "power").open(NOW)
    change(path, "UPDATE runs SET id = 'id1'")
    file, found, _ = next_start(path)
    assert [row for row, *_ in found] == [1]
    file.close()


# --- requests ---


@pytest.mark.parametrize(
    ("status", "action", "becomes", "refusal"),
    [
        ("HELD", "cancel", "CANCELLED", None),
        ("READY", "cancel", "CANCELLED", None),
        ("WAITING", "cancel", "CANCELLED", None),
        ("RUNNING", "cancel", "CANCELLED", None),  # The process died while the task cleaned up: it does not run again.
        ("SUCCESSFUL", "cancel", "SUCCESSFUL", "it is SUCCESSFUL"),
        ("FAILED", "cancel", "FAILED", "it is FAILED"),
        ("FAILED", "retry", "READY", None),
        ("SUCCESSFUL", "retry", "SUCCESSFUL", "it is SUCCESSFUL"),
        ("CANCELLED", "retry", "CANCELLED", "it is CANCELLED"),
        ("DROPPED", "retry", "DROPPED", "it is DROPPED"),
        ("READY", "retry", "READY", "it is READY"),
        ("WAITING", "retry", "WAITING", "it is WAITING"),
    ],
)
def test_a_start_answers_the_requests_that_came_while_the_file_had_no_owner(
    file: File, path: Path, status: str, action: str, becomes: str, refusal: str | None
) -> None:
    columns = {"finished_at": NOW} if status in FINAL else {"due_at": NOW + 9} if status == "WAITING" else {}
    owner = "process 1" if status == "RUNNING" else None
    counts = {"attempts": 4, "crashes": 1, "uncounted_attempts": 1}
    insert_by_hand(path, row=1, id="id1", status=status, owner=owner, **columns, **counts)
    change(path, REQUEST, action, "id1")
    file.release()
    file, found, _ = next_start(path, NOW + 1)
    assert len(found) == (becomes not in FINAL)
    ((now, finished_at, request, why),) = rows(path, "status, finished_at, request, refusal")
    done = "cancelled" if action == "cancel" else "retried"
    assert (now, request, why) == (becomes, None, refusal and f"id1 cannot be {done}: {refusal}")
    assert finished_at == (None if becomes not in FINAL else NOW if status in FINAL else NOW + 1)
    if becomes == "READY" and status == "FAILED":
        assert rows(path, "attempts, uncounted_attempts, crashes") == [(0, 0, 0)]
    file.close()


def test_a_failed_run_is_not_retried_while_an_unfinished_run_has_its_key(file: File, path: Path) -> None:
    write(file, {"inserts": insert(1, key="k")}, {"claims": [1]})
    write(file, {"ends": end(1, status="FAILED"), "inserts": insert(2, key="k")})
    for refusal in ("id1 cannot be retried: an unfinished run has its key 'k'", None):
        change(path, REQUEST, "retry", "id1")
        file.release()
        file, _, _ = next_start(path)
        assert rows(path, "request, refusal", "row = 1") == [(None, refusal)]
        write(file, {"ends": end(2, status="CANCELLED")})
    assert rows(path, "status") == ["READY", "CANCELLED"]
    file.close()


def test_an_owner_reads_requests_with_its_housekeeping_and_answers_with_a_later_group(file: File, path: Path) -> None:
    write(file, {"inserts": insert(1, 2)})
    for id in ("id1", "id2"):
        change(path, REQUEST, "cancel", id)
    found = write(file, {"housekeeping": True}).requests
    assert [(row.request, row.id, row.status) for row in found] == [
        ("cancel", "id1", "HELD"),
        ("cancel", "id2", "HELD"),
    ]
    answers = {1: Answer("cancel", None), 2: Answer("cancel", "it runs in a thread")}
    assert write(file, {"answers": answers, "housekeeping": True}).requests == []
    assert rows(path, "status, request, refusal") == [("CANCELLED", None, None), ("HELD", None, "it runs in a thread")]


# --- old runs ---


def finished(path: Path, *ages: tuple[str, float]) -> None:
    for status, age in ages:
        insert_by_hand(path, status=status, finished_at=NOW - age, added_at=NOW - age)


def sweep(file: File, now: float = NOW) -> int:
    """Keep house until there is nothing left to delete; return the number of transactions."""
    count = 1
    while write(file, {"housekeeping": True}, now=now).sweep_again:
        count += 1
    return count


def test_a_finished_run_is_deleted_when_it_is_old_and_an_unfinished_one_never(file: File, path: Path) -> None:
    day, moment = 86400, 1
    kept = {"SUCCESSFUL": day, "CANCELLED": day, "DROPPED": day, "FAILED": 7 * day}
    for status, age in kept.items():
        finished(path, (status, age - moment), (status, age + moment))
    unfinished: dict[str, dict[str, Any]] = {
        "HELD": {},
        "READY": {},
        "RUNNING": {"owner": "process 1"},
        "WAITING": {"due_at": NOW},
    }
    for status, columns in unfinished.items():
        insert_by_hand(path, status=status, added_at=NOW - 1000 * day, **columns)
    write(file, {"inserts": insert(500)})
    assert len(rows(path)) == 13  # Only housekeeping deletes.
    assert sweep(file) == 1
    left = rows(path, f"status, {NOW} - finished_at", "row < 500")
    assert left == [*((status, age - moment) for status, age in kept.items()), *((s, None) for s in unfinished)]


def test_many_old_runs_are_deleted_in_small_portions(file: File, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP_ROWS", 10)
    finished(path, *[("SUCCESSFUL", 90000)] * 35, *[("FAILED", 90000)] * 3)
    left = []
    again = True
    while again:
        again = write(file, {"housekeeping": True}).sweep_again
        left += rows(path, "count(*)")
    assert left == [28, 18, 8, 3]


def test_the_oldest_finished_runs_are_deleted_when_there_are_too_many(
    file: File, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NEWER_KEPT", 5)
    monkeypatch.setattr(module, "SWEEP_ROWS", 3)
    insert_by_hand(path, status="READY")
    finished(path, *[("SUCCESSFUL", 1)] * 8, *[("FAILED", 1)] * 2)
    assert sweep(file) == 2
    assert rows(path, "row") == [1, 6, 7, 8, 9, 10, 11]


def test_the_file_does_not_grow_while_runs_come_and_go(file: File, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.RETENTION, "SUCCESSFUL", 5.0)
    sizes, logs = [], []
    value = '"' + "x" * 1000 + '"'
    for moment in range(120):
        new = range(moment * 20 + 1, moment * 20 + 21)
        ends = {
            row: {**fields, "finished_at": NOW + moment}
            for row, fields in end(*new, status="SUCCESSFUL", value=value).items()
        }
        write(file, {"inserts": insert(*new)}, {"claims": [*new]}, {"ends": ends}, now=NOW + moment)
        sweep(file, NOW + moment)
        assert file._database is not None
        sizes.append(file._database.execute("PRAGMA page_count").fetchone()[0])
        logs.append(Path(f"{path}-wal").stat().st_size)
    assert rows(path, "count(*)") == [6 * 20]
    assert max(sizes[60:]) <= max(sizes[:60])
    assert max(logs) < 2 * 1000 * 4096 * 2  # SQLite merges the log every thousand pages.
