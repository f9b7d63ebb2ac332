"""The file of the durable journal: one SQLite table, and the only statements that touch it.

Everything here is synchronous and knows no loop: `durable.py` calls it from one thread, the command ``minibg tasks`` from
its own process. What a run goes through in memory is written here afterwards, but for two things that are written first:
that it was accepted, and that an attempt begins.

The rules of this file:

- **One writer.** A file has one live owner: who holds the record lock on ``FILE.lock`` (`Lock`). The kernel frees it when the
  process ends, however it ends, so recovery needs no lease and no heartbeat, and never runs a task a second time
  because it is merely slow. Two writers on one file stall each other for seconds (measured), so there are none.
- **A group is one transaction, and one call**: whatever has gathered while the one before was written (`Group`), in the order
  end (it may free a key), enter, move, claim. The four statements are the steps of a trigger, and each takes its rows as
  one JSON array. Every call into SQLite lets go of the interpreter's lock, and beside a busy loop waits up to 5 ms for it
  afterwards: with a call per row that made 60 rows a second (measured).
- **synchronous=FULL around what is accepted**: the flush is what makes an answer a promise, also through a loss of power. Claims and
  ends are not flushed: a killed process loses none of them, and losing one to a loss of power costs one more run.
- **The claim counts the attempt**, before the task's first line. A task that kills its process has been counted then.
- **The end is guarded**: it is written only over the very attempt it belongs to.
- BEGIN IMMEDIATE only, or a single statement that writes, which is the same: a transaction that starts by reading and then
  wants to write can be refused in the middle.
- Nothing in the file names code. ``name`` is looked up among the decorated functions; there is no pickle.

A row goes when it is old (`RETENTION`), or when a million newer ones have come. VACUUM is never run: it copies the whole file, and
deleted pages are used again.

Needs SQLite 3.37 (STRICT tables) and POSIX record locks. Network file systems keep neither WAL nor locks: a warning says so.
"""

import fcntl
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from minibg.background.journal import JournalUnusable

logger = logging.getLogger("minibg.background")

Durability = Literal["power", "process"]

#: "mbg1": says in the file's head whose it is (PRAGMA application_id).
APPLICATION_ID = 0x6D626731
#: What brings an empty file to schema 1, a file of schema 1 to schema 2, and so on.
MIGRATIONS = (
    """
    CREATE TABLE runs (
        seq INTEGER PRIMARY KEY,     -- the order of acceptance
        id TEXT NOT NULL UNIQUE,
        response INTEGER NOT NULL,   -- those with the same number run one after another, by seq; alone: -seq
        name TEXT NOT NULL,
        payload TEXT NOT NULL,       -- JSON: [args, kwargs]
        options TEXT NOT NULL,       -- JSON: what differs from the task's own
        key TEXT,
        origin TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('HELD', 'READY', 'RUNNING', 'WAITING',
            'SUCCESSFUL', 'FAILED', 'CANCELLED', 'DROPPED')),
        owner TEXT,                  -- who runs it
        attempts INTEGER NOT NULL DEFAULT 0,
        excused INTEGER NOT NULL DEFAULT 0,   -- attempts that a crash or a stop ended, not the task
        crashes INTEGER NOT NULL DEFAULT 0,
        added_at REAL NOT NULL,      -- all times: seconds since 1970, UTC
        released_at REAL,
        started_at REAL,
        due_at REAL,
        wait REAL,                   -- seconds from the beginning of its waiting to due_at
        finished_at REAL,
        errors TEXT NOT NULL DEFAULT '[]',
        value TEXT,                  -- JSON: what it returned, if that is JSON and short
        asked TEXT CHECK (asked IN ('retry', 'cancel')),   -- by `minibg tasks`, for the owner to do
        CHECK ((finished_at IS NOT NULL) = (status IN ('SUCCESSFUL', 'FAILED', 'CANCELLED', 'DROPPED'))),
        CHECK ((owner IS NOT NULL) = (status = 'RUNNING')),
        CHECK ((due_at IS NOT NULL) = (status = 'WAITING'))
    ) STRICT;
    CREATE INDEX unfinished ON runs (seq) WHERE finished_at IS NULL;
    CREATE INDEX finished ON runs (status, finished_at) WHERE finished_at IS NOT NULL;
    CREATE INDEX asked ON runs (seq) WHERE asked IS NOT NULL;
    CREATE UNIQUE INDEX one_per_key ON runs (name, key) WHERE key IS NOT NULL AND finished_at IS NULL;
    """,
)

#: Seconds that finished runs are kept. River's numbers: a success is looked at the next day, a failure after the holidays.
RETENTION = {"SUCCESSFUL": 86400.0, "CANCELLED": 86400.0, "DROPPED": 86400.0, "FAILED": 7 * 86400.0}
#: A finished run goes when so many newer ones were accepted, whatever its age: some hundred megabytes.
NEWER_KEPT = 1_000_000
#: Rows deleted in one transaction, or written as being in line: some milliseconds, which an accept behind it waits.
SWEEP = 500
#: A run whose process died this often in the middle of it is not run again.
CRASHES = 3
#: Seconds to wait for somebody else's lock on the database (a backup, an SQLite shell).
BUSY_TIMEOUT = 5.0
#: Seconds to wait for the owner's lock: a restart overlaps with the last moments of the process before.
LOCK_PATIENCE = 1.0
NETWORK_FILE_SYSTEMS = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "glusterfs",
    "fuse.sshfs",
    "fuse.s3fs",
}


def _extract(*positions: int) -> str:
    return ", ".join(f"json_extract(e.value, '$[{position}]')" for position in positions)


COLUMNS = (
    "seq, id, response, name, payload, options, key, origin, status, attempts, excused, crashes, added_at, released_at,"
    " started_at, due_at, wait, finished_at, errors, value, asked"
)
# The four statements of a group. Each takes its rows as one JSON array.
END = f"""UPDATE runs SET (status, due_at, wait, finished_at, errors, value) = ({_extract(2, 3, 4, 5, 6, 7)}), owner = NULL
    FROM json_each(:ended) AS e WHERE seq = {_extract(0)} AND finished_at IS NULL
    AND ((status = 'RUNNING' AND attempts = {_extract(1)}) OR {_extract(2)} IN ('CANCELLED', 'DROPPED'))"""
# A key that a row has whose task the journal does not know (yet) is left out: for its sake a whole group would be refused.
ENTER = f"""INSERT INTO runs (seq, id, response, name, payload, options, origin, added_at, key, status)
    SELECT {_extract(0, 1, 2, 3, 4, 5, 7, 8)}, CASE WHEN {_extract(6)} IS NOT NULL AND NOT EXISTS
    (SELECT 1 FROM runs WHERE key IS NOT NULL AND finished_at IS NULL AND name = {_extract(3)} AND key = {_extract(6)})
    THEN {_extract(6)} END, 'HELD'
    FROM json_each(:entered) AS e"""
MOVE = f"""UPDATE runs SET (response, status, due_at, wait, released_at) = ({_extract(1, 2, 3, 4, 5)})
    FROM json_each(:moved) AS e WHERE seq = {_extract(0)} AND finished_at IS NULL"""
CLAIM = """UPDATE runs SET status = 'RUNNING', attempts = attempts + 1, owner = :owner, due_at = NULL,
    released_at = coalesce(released_at, :now), started_at = coalesce(started_at, :now)
    FROM json_each(:claims) AS e WHERE seq = e.value AND owner IS NULL AND finished_at IS NULL"""
# They are the steps of a trigger, so that one call into SQLite does the whole of a group, its transaction included.
STEPS = "; ".join(statement.replace(":", "NEW.") for statement in (END, ENTER, MOVE, CLAIM))
TRIGGER = f"""
    CREATE TEMP VIEW groups (ended, entered, moved, claims, owner, now) AS SELECT NULL, NULL, NULL, NULL, NULL, NULL;
    CREATE TEMP TRIGGER write_group INSTEAD OF INSERT ON groups BEGIN {STEPS}; END;
"""
WRITE_GROUP = "INSERT INTO groups VALUES (?, ?, ?, ?, ?, ?)"
CLAIMED = "SELECT seq FROM runs WHERE seq IN (SELECT value FROM json_each(?)) AND status = 'RUNNING'"
# Reading.
# INDEXED BY: whatever statistics somebody may have left in the file (ANALYZE), these never walk through all runs. NOT INDEXED: by seq alone.
UNFINISHED = f"SELECT {COLUMNS} FROM runs INDEXED BY unfinished WHERE finished_at IS NULL ORDER BY seq"
INTERRUPTED = f"SELECT {COLUMNS} FROM runs INDEXED BY unfinished WHERE finished_at IS NULL AND status = 'RUNNING'"
BY_ID = f"SELECT {COLUMNS} FROM runs WHERE id = ?"
# An owner's own life.
CRASHED = """UPDATE runs SET owner = NULL, excused = excused + 1, crashes = ?, status = ?, finished_at = ?, errors = ?
    WHERE seq = ?"""
PUT_BACK = """UPDATE runs INDEXED BY unfinished SET status = 'READY', owner = NULL, excused = excused + 1
    WHERE finished_at IS NULL AND status = 'RUNNING'"""
SWEEP_OLD = "DELETE FROM runs WHERE seq IN (SELECT seq FROM runs WHERE status = ? AND finished_at < ? LIMIT ?)"
SWEEP_MANY = """DELETE FROM runs WHERE seq IN
    (SELECT seq FROM runs NOT INDEXED WHERE seq < ? AND finished_at IS NOT NULL ORDER BY seq LIMIT ?)"""
# What `minibg tasks` asks for, and what the owner makes of it.
ASK = "UPDATE runs SET asked = ? WHERE id = ?"
ASKED = f"SELECT {COLUMNS} FROM runs INDEXED BY asked WHERE asked IS NOT NULL ORDER BY seq"
FORGET = "UPDATE runs SET asked = NULL WHERE seq = ?"
KEY_IS_TAKEN = "SELECT 1 FROM runs WHERE name = ? AND key = ? AND key IS NOT NULL AND finished_at IS NULL"
RENEW = """UPDATE runs SET status = 'READY', finished_at = NULL, attempts = 0, excused = 0, crashes = 0, response = -seq
    WHERE seq = ? AND status = 'FAILED'"""
CALL_OFF = """UPDATE runs SET status = 'CANCELLED', finished_at = ?, due_at = NULL
    WHERE seq = ? AND status IN ('HELD', 'READY', 'WAITING')"""


@dataclass(frozen=True, slots=True)
class Row:
    """A run as the file has it. The columns are explained in the schema."""

    seq: int
    id: str
    response: int
    name: str
    payload: str
    options: str
    key: str | None
    origin: str
    status: str
    attempts: int
    excused: int
    crashes: int
    added_at: float
    released_at: float | None
    started_at: float | None
    due_at: float | None
    wait: float | None
    finished_at: float | None
    errors: str
    value: str | None
    asked: str | None

    def describe(self) -> str:
        """Name it in the log, on one line whatever somebody has written into the file."""
        return ascii(f"{self.name} {self.id}")[1:-1]


@dataclass(slots=True, eq=False)
class Group:
    """What is written in one transaction. The rows are by their seq; a later one of the same kind stands for both."""

    #: seq, id, response, name, payload, options, key, origin, added_at.
    entered: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    #: seq, attempts, status, due_at, wait, finished_at, errors, value.
    ended: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    #: seq, response, status, due_at, wait, released_at.
    moved: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    #: The runs of which an attempt shall begin, and those of which it may.
    claims: list[int] = field(default_factory=list)
    claimed: set[int] = field(default_factory=set)
    #: Whether to look for what `minibg tasks` asks for, and to sweep; what was asked; and whether there is more to sweep.
    tick: bool = False
    asked: list[tuple[str, Row]] = field(default_factory=list)
    more: bool = False
    #: Why what was entered is not on disk, or the rest is not.
    refused: Exception | None = None
    failed: Exception | None = None


class Lock:
    """The right to write a journal: a POSIX record lock on a file beside it, opened once, held for life.

    ``flock`` would stay held while a forked child of a dead owner lives; a record lock does not. Its trap is that closing
    *any* descriptor of the file drops it, so nothing else opens that file in the process that holds it, and a
    second journal on the same file in one process, which the kernel would let through, is refused here.
    """

    _held: ClassVar[set[str]] = set()
    _deciding: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path) + ".lock"
        self._descriptor: int | None = None

    def acquire(self, patience: float = LOCK_PATIENCE) -> bool:
        """Take the lock; wait for it at most ``patience`` seconds. False: somebody has it."""
        with self._deciding:
            if self._path in self._held:
                return False
            self._held.add(self._path)
        try:
            self._descriptor = descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            self._held.discard(self._path)
            raise
        deadline = time.monotonic() + patience
        while not self._try(descriptor):
            if time.monotonic() >= deadline:
                self.release()
                return False
            time.sleep(0.02)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}\n".encode(), 0)
        return True

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._held.discard(self._path)

    def holder(self) -> str:
        """Who has it, in words."""
        if self._path in self._held:
            return "this process"
        with suppress(OSError):
            return Path(self._path).read_text().strip() or "another process"
        return "another process"

    def _try(self, descriptor: int) -> bool:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes (POSIX fcntl).
            return False
        return True


class File:
    """A journal's file. Its owner calls `open`, then `write` for each group, then `close`, from one thread at a time."""

    def __init__(self, path: str, durability: Durability) -> None:
        self.path = path
        self._lock = Lock(path)
        self._durability = durability
        self._owner = f"process {os.getpid()}"
        self._database: sqlite3.Connection | None = None
        self._synchronous = ""
        #: Whether this process goes on with what it has put back (a thread cannot be stopped): then the lock ends with it.
        self.outlasted = False
        #: Set when all that is left of writing a group is SQLite's, which needs no lock of the interpreter.
        self.begun = threading.Event()

    def open(self, now: float) -> tuple[list[Row], int]:
        """Become the owner, and count what was running as a crash. Gives the unfinished rows in order, and the last seq.

        Raises JournalUnusable.
        """
        try:
            self._acquire()
            self._prepare()
            self._heed(now)
            with self._transaction():
                interrupted = self._count_crashes(now)
                rows = self._select(UNFINISHED)
            if rows or interrupted:
                logger.info(
                    "%s: %d unfinished tasks of an earlier life, %d were interrupted", self.path, len(rows), interrupted
                )
            return rows, self._last_seq()
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            self.release()
            raise JournalUnusable(f"{self.path} cannot be used as a journal: {error}") from error
        except JournalUnusable:
            self.release()
            raise

    def write(self, group: Group, now: float) -> None:
        """Write a group. Does not raise: what could not be written, and why, stands in it afterwards."""
        try:
            self._write(group, now, entered=True)
        except Exception as error:  # noqa: BLE001 - responses wait for this group, and are told.
            group.refused = error
            try:  # The disk may refuse new rows and still have room for changes in old ones.
                self._write(group, now, entered=False)
            except Exception as error:  # noqa: BLE001
                group.failed = error
        if group.tick and group.failed is None:
            try:
                group.asked = self._heed(now)
                group.more = self._sweep(now)
            except Exception as error:  # noqa: BLE001 - as above: what is gathered next shall be written all the same.
                logger.warning("%s: not swept this time: %s", self.path, error)

    def close(self) -> None:
        """Put back what was running, leave one tidy file, and let go of it. Raises sqlite3.Error."""
        try:
            with self._transaction():
                self._execute(PUT_BACK)
            self._execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self.release()

    def release(self) -> None:
        """Close what is open, and let the next owner in."""
        if self._database is not None:
            self._database.close()
            self._database = None
        if not self.outlasted:
            self._lock.release()

    # Opening.

    def _acquire(self) -> None:
        if not self._lock.acquire():
            raise JournalUnusable(f"{self.path} is in use by {self._lock.holder()}: a journal has one owner")

    def _prepare(self) -> None:
        """Open the database, see that it is ours and whole, and bring it to the newest schema."""
        if sqlite3.sqlite_version_info < (3, 37):
            raise JournalUnusable(f"a journal needs SQLite 3.37 or newer, this is {sqlite3.sqlite_version}")
        # What the arguments of tasks tell is nobody else's business: readable for this user alone.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        # Read-only beside a log: the last who closes writes that into the file, which shall stay as it is when it is refused.
        with closing(connect(self.path, "ro" if Path(f"{self.path}-wal").exists() else "rw")) as looked_at:
            version = schema_version(looked_at, self.path)
            (problem,) = looked_at.execute("PRAGMA quick_check(1)").fetchone()
        if problem != "ok":
            raise JournalUnusable(f"{self.path} is damaged: {' '.join(problem.split())}")
        self._database = database = connect(self.path, "rw")
        database.execute("PRAGMA journal_mode = WAL")
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
            database.executescript(f"BEGIN IMMEDIATE; {script} {marks} COMMIT;")
        database.executescript(TRIGGER)
        if (kind := network_file_system(self.path)) is not None:
            logger.warning(
                "%s is on a network file system (%s): locks do not hold there, tasks may be lost", self.path, kind
            )

    def _count_crashes(self, now: float) -> int:
        interrupted = self._select(INTERRUPTED)
        for row in interrupted:
            crashes, errors = row.crashes + 1, row.errors
            poison = crashes >= CRASHES
            if poison:
                message = f"worker died: its process ended {crashes} times in the middle of it"
                died = {"attempt": row.attempts, "type": "WorkerDied", "message": message, "traceback": "", "at": now}
                try:
                    errors = json.dumps([*json.loads(errors), died])
                except (ValueError, TypeError, RecursionError):  # Somebody has written something else there.
                    errors = json.dumps([died])
                logger.error("%s failed: %s", row.describe(), message)
            status = "FAILED" if poison else "READY"
            self._execute(CRASHED, (crashes, status, now if poison else None, errors, row.seq))
        return len(interrupted)

    # Writing.

    def _write(self, group: Group, now: float, *, entered: bool) -> None:
        kinds = (group.ended, group.entered if entered else {}, group.moved)
        rows = [json.dumps([*kind.values()]) for kind in kinds]
        claims = json.dumps(group.claims)
        power = entered and group.entered and self._durability == "power"
        if self._synchronous != (synchronous := "FULL" if power else "NORMAL"):
            self._execute(f"PRAGMA synchronous = {synchronous}")
            self._synchronous = synchronous
        self.begun.set()
        if count := len(group.claims) + sum(map(len, kinds)):
            before = self._changes()
            self._execute(WRITE_GROUP, (*rows, claims, self._owner, now))
            if self._changes() - before == count:  # Every row was changed, so every claim was granted.
                group.claimed = set(group.claims)
            else:
                group.claimed = {seq for (seq,) in self._execute(CLAIMED, (claims,)).fetchall()}

    def _heed(self, now: float) -> list[tuple[str, Row]]:
        """Do what `minibg tasks` asks for, as far as the file can tell. Gives what was asked, and the rows as they are then."""
        asked = self._select(ASKED)
        if asked:
            with self._transaction():
                for row in asked:
                    if row.asked == "cancel":
                        self._execute(CALL_OFF, (now, row.seq))
                    elif self._execute(KEY_IS_TAKEN, (row.name, row.key)).fetchone() is None:
                        self._execute(RENEW, (row.seq,))
                    self._execute(FORGET, (row.seq,))
        return [(row.asked or "", after) for row in asked for after in self._select(BY_ID, (row.id,))]

    def _sweep(self, now: float) -> bool:
        """Delete some of what is too old. True when there may be more."""
        with self._transaction():
            swept = [
                self._execute(SWEEP_OLD, (status, now - seconds, SWEEP)).rowcount
                for status, seconds in RETENTION.items()
            ]
            swept.append(self._execute(SWEEP_MANY, (self._last_seq() - NEWER_KEPT, SWEEP)).rowcount)
        return max(swept) == SWEEP

    def _last_seq(self) -> int:
        (last,) = self._execute("SELECT max(seq) FROM runs").fetchone()
        return last or 0

    def _changes(self) -> int:
        assert self._database is not None
        return self._database.total_changes

    def _select(self, statement: str, values: tuple[Any, ...] = ()) -> list[Row]:
        return [Row(*row) for row in self._execute(statement, values)]

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        assert self._database is not None
        return self._database.execute(statement, values)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            # A full disk may have rolled back already.
            if self._database is not None and self._database.in_transaction:
                self._execute("ROLLBACK")
            raise


def connect(path: str, mode: Literal["rw", "ro"]) -> sqlite3.Connection:
    """Open a database that exists. Raises sqlite3.Error."""
    return sqlite3.connect(
        f"{Path(path).absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,  # Transactions begin where this file says so.
        timeout=BUSY_TIMEOUT,
        check_same_thread=False,
    )


def schema_version(database: sqlite3.Connection, path: str) -> int:
    """Give the schema of a journal, 0 for an empty file. Raises JournalUnusable for one that is not ours, or newer."""
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (things,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and (things or application or version):
        raise JournalUnusable(f"{path} is a database of another application")
    if version > len(MIGRATIONS):
        newest = len(MIGRATIONS)
        raise JournalUnusable(f"{path} has schema {version}, of a newer minibg: this one reads up to {newest}")
    return int(version)


def network_file_system(path: str) -> str | None:
    """Name the network file system a file is on; None when it is on none, or the system does not tell."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return None
    place = Path(path).resolve()
    _, kind = max(
        ((where, kind) for where, kind in mounts if place.is_relative_to(where)), key=lambda mount: len(mount[0])
    )
    return kind if kind in NETWORK_FILE_SYSTEMS else None
