"""The file of a journal: opened by one owner, written by one thread, group by group.

This file is synchronous and knows no event loop. `group_commit.py` calls it from the thread of the
journal: `open`, then `write` for each group, then `close`. The command ``minibg tasks`` calls
`open` and `close` from a process of its own.

What SQLite is asked for, and why:

- **WAL and one writer.** A commit appends to the log, readers go on meanwhile.
- **synchronous=FULL for a group with inserts.** The flush is what makes an answer a promise that
  survives a loss of power. A group of claims and ends is not flushed: the death of the process
  loses none of it, and if a loss of power does, a run is run once more. With
  ``durability="process"`` nothing is flushed.
- **No VACUUM.** It copies the whole file. Deleted pages are used again, so the file stops growing.

**A start** is a numbered procedure, see `open`. It checks the file for a moment only: a million
runs would take seconds, and SQLite notices a damaged page also when it reads it later. A run that
was RUNNING when its process died counts a *crash*. At the third one the run is FAILED: it may be
what kills the process. (`recovery.py` sees to it that no other suspect of the same crash runs
beside it.)

**A full disk** refuses inserts, and may still have room for changes in old rows. So a group that
fails is written once more without its inserts. A locked database refuses both: then the second try
is omitted, because each costs `BUSY_SECONDS`.

**A file that was removed or replaced** keeps working for its owner, on pages that no start will
ever find. So each group looks first whether the path still leads to the file and to its log. If
not, inserts are refused; the rest is written all the same, so accepted runs still run.

Finished runs are deleted a few at a time, by age, and when a million newer ones have come.

Needs SQLite 3.37 (STRICT tables). Network file systems keep neither WAL nor locks: a warning says
so.
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

#: Seconds that finished runs are kept. River's numbers: a success is looked at the next day, a
#: failure after the holidays.
RETENTION = {"SUCCESSFUL": 86400.0, "CANCELLED": 86400.0, "DROPPED": 86400.0, "FAILED": 7 * 86400.0}
#: A finished run is deleted when so many newer ones were accepted, whatever its age: some hundred
#: megabytes.
NEWER_KEPT = 1_000_000
#: Rows of one kind that one sweep deletes: some milliseconds, by which the next commit is delayed.
SWEEP_ROWS = 500
#: A run that was in progress at so many deaths of its process is FAILED.
CRASHES = 3
#: Seconds that a group waits for a lock on the database (of a backup, of an SQLite shell) before it
#: is refused. A commit may have to wait for the group before its own, so its client gets the 503
#: after two of these.
BUSY_SECONDS = 1.0
#: The same at a start, where no client waits.
OPEN_SECONDS = 5.0
#: Seconds that a start spends on SQLite's check of the file, at most: a large file is checked as
#: far as that goes.
CHECK_SECONDS = 0.3
#: Instructions of SQLite's virtual machine between two looks at the clock during that check: about
#: a millisecond.
CHECK_STEPS = 50_000
NETWORK_TYPES = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse.sshfs", "fuse.s3fs"}


class File:
    """A journal's file. Call `open`, then `write` for each group, then `close`, from one thread at
    a time.
    """

    def __init__(self, path: str, durability: Durability) -> None:
        self.path = path
        #: Set when all that is left of a group is SQLite's work, for which it gives up the
        #: interpreter's lock.
        self.in_sqlite = threading.Event()
        self._durability = durability
        self._lock = Lock(path)
        self._owner = ""
        self._database: sqlite3.Connection | None = None
        self._synchronous = ""
        #: The inodes of the file and of its log, as they were at the start.
        self._identity: list[tuple[int, int] | None] = []

    def open(self, now: float) -> tuple[list[Row], int]:
        """Become the owner. Return the unfinished runs in order, and the last row. Raises
        JournalUnusable.
        """
        try:
            # 1. Get the lock: from here on no other process writes.
            self._acquire()
            self._owner = f"process {os.getpid()}"
            # 2. Look at the file without changing it; refuse one that is no journal, or damaged.
            version = self._inspect()
            # 3. Bring it to the newest schema.
            self._connect(version)
            # 4. Count what was running as a crash, then answer the requests that came since.
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
        """Write a group. Never raises: the group's errors say what could not be written, and why."""
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
        """Requeue what was running, merge the log into the file, and let the next owner in. Never
        raises.

        ``keep_lock``: an attempt is still in progress, which nothing can stop. The lock stays with
        this process then.
        """
        try:
            if self._database is not None:
                self._execute(schema.REQUEUE_RUNNING)
                self._execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error:
            logger.exception("%s was not closed in order; the next start counts what ran as a crash", self.path)
        self.release(keep_lock=keep_lock)

    def release(self, *, keep_lock: bool = False) -> None:
        """Close the database as a kill would, and let the next owner in."""
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
        """Return the schema of the file, 0 for a new one. Raises JournalUnusable for one that is no
        journal.
        """
        if sqlite3.sqlite_version_info < (3, 37):
            raise JournalUnusable(f"a journal needs SQLite 3.37 or newer, this is {sqlite3.sqlite_version}")
        # Arguments of tasks are private: the file is readable for this user alone.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        # Read-only if a log exists: closing the last connection would merge the log, and a refused
        # file must not change.
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
        """Answer the requests that came while the file had no owner: no pool has to be asked."""
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
            if self._changes() - before == count:  # Every change found its row, so every claim was granted.
                group.granted = set(group.claims)
            else:
                group.granted = {row for (row,) in self._execute(schema.GRANTED, (arrays[-1],)).fetchall()}

    def _write_the_rest(self, group: Group, now: float) -> None:
        """Write a group that was refused once more without its inserts, unless the database is
        locked.
        """
        if getattr(group.insert_error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            group.update_error = group.insert_error
            return
        try:
            self._write(group, now, with_inserts=False)
        except Exception as error:  # noqa: BLE001 - claims wait for this group, and get the error.
            group.update_error = error

    def _answer(self, group: Group, now: float) -> None:
        """Write what requests of `minibg tasks` lead to. They are rare, and so not in the trigger."""
        with self._transaction():
            for row in group.resets:
                self._execute(schema.RESET_FAILED, (row,))
            for row, (action, refusal) in group.answers.items():
                if action == "cancel" and refusal is None:
                    self._execute(schema.CANCEL_PENDING, (now, row))
                self._execute(schema.ANSWER, (refusal, row))

    def _sweep(self, now: float) -> bool:
        """Delete some of the runs that are too old; return whether there may be more."""
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
        """Begin as a writer: a transaction that begins by reading can be refused in its middle."""
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            # A full disk may have rolled back already.
            if self._database is not None and self._database.in_transaction:
                self._execute("ROLLBACK")
            raise


def connect(path: str, mode: Literal["rw", "ro"], timeout: float = BUSY_SECONDS) -> sqlite3.Connection:
    """Open a database that exists; ``timeout`` is for locks, in seconds. Raises sqlite3.Error."""
    return sqlite3.connect(
        f"{Path(path).absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,  # Transactions begin where the code says so.
        timeout=timeout,
        check_same_thread=False,
    )


def schema_version(database: sqlite3.Connection, path: str) -> int:
    """Return the schema of a journal, 0 for an empty file. Raises JournalUnusable for what is no
    journal, or too new.
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
    """Return the first damage that SQLite finds within `CHECK_SECONDS`; None if there is none.
    Raises sqlite3.Error.
    """
    deadline = time.monotonic() + CHECK_SECONDS
    database.set_progress_handler(lambda: time.monotonic() > deadline, CHECK_STEPS)
    try:
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return None  # The time is over, and no damage was found until then.
    return None if found == "ok" else " ".join(found.split())


def identity(path: str) -> tuple[int, int] | None:
    """Return the device and the inode that a path leads to; None if it leads nowhere."""
    try:
        found = os.stat(path)  # noqa: PTH116 - for each group of commits: a third of the time.
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def network_file_system(path: str) -> str | None:
    """Return the name of the network file system that a file is on; None for a local one, or if it
    cannot be known.
    """
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return None
    location = Path(path).resolve()
    _, kind = max(
        ((mount, kind) for mount, kind in mounts if location.is_relative_to(mount)), key=lambda found: len(found[0])
    )
    return kind if kind in NETWORK_TYPES else None
