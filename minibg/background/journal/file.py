"""The file of a journal. One owner opens it, and one thread writes it, group by group.

This file is synchronous and has no event loop. `group_commit.py` calls it from the thread of the
journal: `open`, then `write` for each group, then `close`. The command ``minibg tasks`` calls
`open` and `close` from a process of its own.

The settings of SQLite, and their reasons:

- **WAL and one writer.** A commit appends to the log, and readers can read meanwhile.
- **synchronous=FULL for a group with inserts.** Because of the flush, an accepted run survives a
  loss of power. A group of claims and ends is not flushed. It survives the death of the process;
  after a loss of power its runs may run once more. With ``durability="process"`` nothing is
  flushed.
- **No VACUUM**, because it copies the whole file. Deleted pages are used again, so the file stops
  growing.

**A start** is a numbered procedure, see `open`. It checks the file for at most `CHECK_SECONDS`: to
check a million runs would take seconds, and SQLite also notices a damaged page when it reads it
later. A run that was RUNNING when its process died gets one more *crash*. At the third crash the
run is FAILED, because it may be the one that kills the process. (`recovery.py` ensures that no
other suspect of the same crash runs beside it.)

**A full disk** refuses inserts, but may still have room for changes in old rows. So a group that
fails is written once more without its inserts. A locked database would refuse both tries, and each
costs `BUSY_SECONDS`, so the second try is omitted.

**A file that was removed or replaced** can still be written by its owner, but no later start will
find it. So before a group is written, the owner checks that the paths still lead to the file and
its log. If they do not, inserts are refused; the other changes are still written, so accepted runs
still run.

Finished runs are deleted a few at a time: by age, and when a million newer runs were accepted.

Needs SQLite 3.37 (STRICT tables). WAL and locks do not work on network file systems; a start on one
logs a warning.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

from minibg.background.errors import JournalUnusable
from minibg.background.journal import schema
from minibg.background.journal.lock import Lock
from minibg.background.journal.schema import Group, Row
from minibg.log import SafeLogger

logger = SafeLogger("minibg.background")

Durability = Literal["power", "process"]

#: Seconds that finished runs are kept, as in River: one day for a success, seven for a failure.
RETENTION = {"SUCCESSFUL": 86400.0, "CANCELLED": 86400.0, "DROPPED": 86400.0, "FAILED": 7 * 86400.0}
#: A finished run of any age is deleted when this many newer runs were accepted (some hundred
#: megabytes).
NEWER_KEPT = 1_000_000
#: Rows of one kind that one sweep deletes. It takes some milliseconds, and delays the next commit
#: by them.
SWEEP_ROWS = 500
#: A run that was RUNNING at this many deaths of its process is FAILED.
CRASHES = 3
#: Seconds that a group waits for a lock on the database (of a backup, of an SQLite shell) before it
#: is refused. A commit may also have to wait for the group before its own, so its client gets a 503
#: after at most twice this time.
BUSY_SECONDS = 1.0
#: The same at a start, when no client waits.
OPEN_SECONDS = 5.0
#: Maximum seconds of SQLite's check of the file at a start. A large file is checked only in part.
CHECK_SECONDS = 0.3
#: Instructions of SQLite's virtual machine after which that check compares the time: about a
#: millisecond.
CHECK_STEPS = 50_000
NETWORK_TYPES = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse.sshfs", "fuse.s3fs"}


class File:
    """A journal's file. Call `open`, `write` for each group, and `close`, from one thread at a time."""

    def __init__(self, path: str, durability: Durability) -> None:
        self.path = path
        #: Set when the rest of a write is SQLite's work, during which the interpreter's lock is
        #: free.
        self.in_sqlite = threading.Event()
        self._durability = durability
        self._lock = Lock(path)
        self._owner = ""
        self._database: sqlite3.Connection | None = None
        self._synchronous = ""
        #: The inodes of the file and of its log at the start.
        self._identity: list[tuple[int, int] | None] = []

    def open(self, now: float) -> tuple[list[Row], int]:
        """Become the owner. Return the unfinished rows in order, and the last row number. Raises
        JournalUnusable.
        """
        try:
            # 1. Get the lock. From now on no other process writes.
            self._acquire()
            self._owner = f"process {os.getpid()}"
            # 2. Inspect the file without changing it. Refuse a damaged file, or one that is not a
            # journal.
            version = self._inspect()
            # 3. Upgrade the file to the newest schema.
            self._connect(version)
            # 4. Count a crash for each RUNNING run, then answer the requests that came since.
            with self._transaction():
                interrupted = self._count_crashes(now)
                self._answer_requests(now)
                rows = self._select(schema.UNFINISHED)
            self._identity = self._identify()
            if rows or interrupted:
                logger.info("%s: %d unfinished runs, %d of them interrupted", self.path, len(rows), interrupted)
            return rows, self._last_row()
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            self.release()
            raise JournalUnusable(f"{self.path} cannot be used as a journal: {error}") from error
        except JournalUnusable:
            self.release()
            raise

    def write(self, group: Group, now: float) -> None:
        """Write a group. Never raises: a failure is stored in the errors of the group."""
        try:
            if group.inserts or group.housekeeping:
                self._check_identity()
            self._write(group, now, with_inserts=True)
        except Exception as error:  # noqa: BLE001 - commits wait for this group, and get the error.
            group.insert_error = error
            self._write_the_rest(group, now)
        if group.housekeeping and group.update_error is None:
            try:
                group.requests = self._select(schema.REQUESTED)
                group.sweep_again = self._sweep(now)
            except Exception as error:  # noqa: BLE001 - the next tick tries again.
                logger.warning("%s: no housekeeping this time: %s", self.path, error)

    def close(self, *, keep_lock: bool = False) -> None:
        """Requeue the RUNNING runs, merge the log into the file, and free the lock. Never raises.

        ``keep_lock``: keep the lock, for an attempt in progress that cannot be stopped.
        """
        try:
            if self._database is not None:
                self._execute(schema.REQUEUE_RUNNING)
                self._execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error:
            logger.exception("%s was not closed in order; the next start counts what ran as a crash", self.path)
        self.release(keep_lock=keep_lock)

    def release(self, *, keep_lock: bool = False) -> None:
        """Close the database without any write, as a kill would, and free the lock."""
        if self._database is not None:
            self._database.close()
            self._database = None
        if not keep_lock:
            self._lock.release()

    # --- opening ---

    def _acquire(self) -> None:
        if not self._lock.acquire():
            raise JournalUnusable(f"{self.path} is in use by {self._lock.owner()}: a journal has one owner")

    def _inspect(self) -> int:
        """Return the schema version of the file, 0 for a new file. Raises JournalUnusable if the
        file is not a journal or is damaged.
        """
        if sqlite3.sqlite_version_info < (3, 37):
            raise JournalUnusable(f"a journal needs SQLite 3.37 or newer, this is {sqlite3.sqlite_version}")
        # Only this user may read the file, because the arguments of tasks are private.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        # If a log exists, the file is opened read-only. Otherwise closing the last connection would
        # merge the log, and a refused file must not change.
        mode: Literal["ro", "rw"] = "ro" if Path(f"{self.path}-wal").exists() else "rw"
        with closing(connect(self.path, mode, OPEN_SECONDS)) as database:
            version = schema_version(database, self.path)
            problem = quick_check(database)
        if problem is not None:
            raise JournalUnusable(f"{self.path} is damaged: {problem}")
        return version

    def _connect(self, version: int) -> None:
        self._database = database = connect(self.path, "rw", OPEN_SECONDS)
        self._execute("PRAGMA journal_mode = WAL")
        scripts = [schema.UPGRADES[number] for number in range(version, schema.SCHEMA_VERSION)] if version else []
        for script in scripts if version else [schema.SCHEMA]:
            marks = f"PRAGMA application_id = {schema.APPLICATION_ID}; PRAGMA user_version = {schema.SCHEMA_VERSION};"
            database.executescript(f"BEGIN IMMEDIATE; {script} {marks} COMMIT;")
        database.executescript(schema.TRIGGER)
        self._execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")
        if (kind := network_file_system(self.path)) is not None:
            logger.warning("%s is on a network file system (%s): its lock does not hold there", self.path, kind)

    def _count_crashes(self, now: float) -> int:
        interrupted = self._select(schema.INTERRUPTED)
        for row in interrupted:
            crashes, errors = row.crashes + 1, row.errors
            poisonous = crashes >= CRASHES
            if poisonous:
                message = f"worker died: its process ended {crashes} times in the middle of it"
                died = {"attempt": row.attempts, "type": "WorkerDied", "message": message, "traceback": "", "at": now}
                try:
                    errors = json.dumps([*json.loads(errors), died])
                except (ValueError, TypeError, RecursionError):  # The file was edited by hand.
                    errors = json.dumps([died])
                logger.error("%s failed: %s", row.describe(), message)
            status, finished_at = ("FAILED", now) if poisonous else ("READY", None)
            self._execute(schema.COUNT_CRASH, (crashes, status, finished_at, errors, row.row))
        return len(interrupted)

    def _answer_requests(self, now: float) -> None:
        """Answer the requests that came while the file had no owner, and so no pool had to be asked."""
        for row in self._select(schema.REQUESTED):
            refusal = None
            if row.request == "cancel":
                refusal = f"{row.id} cannot be cancelled: it is {row.status}" if row.finished_at is not None else None
                self._execute(schema.CANCEL_PENDING, (now, row.row))
            elif row.status != "FAILED":
                refusal = f"{row.id} cannot be retried: it is {row.status}"
            elif self._execute(schema.KEY_IS_TAKEN, (row.name, row.key)).fetchone() is not None:
                refusal = f"{row.id} cannot be retried: an unfinished run has its key {row.key!r}"
            else:
                self._execute(schema.RESET_FAILED, (row.row,))
            self._execute(schema.ANSWER, (refusal, row.row))

    # --- writing ---

    def _write(self, group: Group, now: float, *, with_inserts: bool) -> None:
        inserts = group.inserts if with_inserts else {}
        kinds = [group.ends.values(), inserts.values(), group.updates.values(), group.claims]
        synchronous = "FULL" if inserts and self._durability == "power" else "NORMAL"
        if self._synchronous != synchronous:
            self._execute(f"PRAGMA synchronous = {synchronous}")
            self._synchronous = synchronous
        arrays = [json.dumps([*changes]) for changes in kinds]
        if group.answers or group.resets:
            self._answer(group, now)
        self.in_sqlite.set()
        if count := sum(map(len, kinds)):
            before = self._changes()
            self._execute(schema.WRITE_GROUP, (*arrays, self._owner, now))
            if self._changes() - before == count:  # Every change found its row, so every claim is granted.
                group.granted = set(group.claims)
            else:
                group.granted = {row for (row,) in self._execute(schema.GRANTED, (arrays[-1],)).fetchall()}

    def _write_the_rest(self, group: Group, now: float) -> None:
        """Write a refused group again without its inserts, unless the database is locked."""
        if getattr(group.insert_error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            group.update_error = group.insert_error
            return
        try:
            self._write(group, now, with_inserts=False)
        except Exception as error:  # noqa: BLE001 - claims wait for this group, and get the error.
            group.update_error = error

    def _answer(self, group: Group, now: float) -> None:
        """Write the answers to `minibg tasks`. They are rare, and so not part of the trigger."""
        with self._transaction():
            for row in group.resets:
                self._execute(schema.RESET_FAILED, (row,))
            for row, (action, refusal) in group.answers.items():
                if action == "cancel" and refusal is None:
                    self._execute(schema.CANCEL_PENDING, (now, row))
                self._execute(schema.ANSWER, (refusal, row))

    def _sweep(self, now: float) -> bool:
        """Delete some of the runs that are too old. Return whether there may be more of them."""
        with self._transaction():
            swept = [
                self._execute(schema.SWEEP_OLD, (status, now - seconds, SWEEP_ROWS)).rowcount
                for status, seconds in RETENTION.items()
            ]
            swept.append(self._execute(schema.SWEEP_MANY, (self._last_row() - NEWER_KEPT, SWEEP_ROWS)).rowcount)
        return max(swept) == SWEEP_ROWS

    def _check_identity(self) -> None:
        if self._identify() != self._identity:
            raise FileNotFoundError("the file was removed or replaced while it was in use")

    def _identify(self) -> list[tuple[int, int] | None]:
        return [identity(self.path), identity(f"{self.path}-wal")]

    # --- the connection ---

    def _last_row(self) -> int:
        (last,) = self._execute(schema.LAST_ROW).fetchone()
        return last or 0

    def _changes(self) -> int:
        assert self._database is not None
        return self._database.total_changes

    def _select(self, statement: str) -> list[Row]:
        return [Row(*row) for row in self._execute(statement)]

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        assert self._database is not None
        return self._database.execute(statement, values)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Run a transaction that begins as a writer: one that begins as a reader can be refused
        later.
        """
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            # SQLite may have rolled back already, on a full disk for example.
            if self._database is not None and self._database.in_transaction:
                self._execute("ROLLBACK")
            raise


def connect(path: str, mode: Literal["rw", "ro"], timeout: float = BUSY_SECONDS) -> sqlite3.Connection:
    """Open an existing database. ``timeout``: seconds to wait for a lock. Raises sqlite3.Error."""
    return sqlite3.connect(
        f"{Path(path).absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,  # Transactions begin only with an explicit BEGIN.
        timeout=timeout,
        check_same_thread=False,
    )


def schema_version(database: sqlite3.Connection, path: str) -> int:
    """Return the schema version of a journal, 0 for an empty file. Raises JournalUnusable for a
    file that is not a journal, or that a newer minibg has written.
    """
    (mark,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if mark != schema.APPLICATION_ID and (mark or version or tables):
        raise JournalUnusable(f"{path} is a database of another application")
    if version > schema.SCHEMA_VERSION:
        newest = schema.SCHEMA_VERSION
        raise JournalUnusable(f"{path} has schema {version}, of a newer minibg: this one reads up to {newest}")
    return int(version)


def quick_check(database: sqlite3.Connection) -> str | None:
    """Return the first damage that SQLite finds within `CHECK_SECONDS`, or None. Raises
    sqlite3.Error.
    """
    deadline = time.monotonic() + CHECK_SECONDS
    database.set_progress_handler(lambda: time.monotonic() > deadline, CHECK_STEPS)
    try:
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return None  # The time is over, and no damage was found.
    return None if found == "ok" else " ".join(found.split())


def identity(path: str) -> tuple[int, int] | None:
    """Return the device and the inode of a path; None if there is no such file."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a third of the time of Path.stat, for each group.
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def network_file_system(path: str) -> str | None:
    """Return the type of a file's network file system; None for a local or an unknown one."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return None
    location = Path(path).resolve()
    _, kind = max(
        ((mount, kind) for mount, kind in mounts if location.is_relative_to(mount)), key=lambda found: len(found[0])
    )
    return kind if kind in NETWORK_TYPES else None
