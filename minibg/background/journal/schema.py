"""The table of a journal, its statements, and the data they take. Nothing here opens a file.

A run is one row, inserted when the run is accepted and updated in place until it ends. The columns
have the names of the fields of `Row`. A group of changes is passed as JSON objects, whose fields
have the names of the columns.

**A group is one call into SQLite.** Every call releases the interpreter's lock, and waits up to 5
ms to get it back if the event loop is busy. With a call per row the journal wrote 60 rows a second
(measured). So the changes of a whole group are four JSON arrays, which are bound to *one* INSERT
into a view. The trigger of the view applies them; a missing field is NULL. The trigger is
temporary: it belongs to the connection of the owner and is not in the file. The INSERT is one
statement, so it is one transaction and needs no BEGIN.

The order inside the trigger matters: ends (they may free a key), inserts (they may take the key),
updates, claims (they need the row).

Guards protect the file, each in the WHERE of its statement:

- **An end belongs to an attempt.** It is written only if that attempt is RUNNING, and never over
  another end. CANCELLED and DROPPED also end a run without an attempt.
- **A claim needs a free run.** It counts the attempt, and finds no row when the run was ended in
  the file.
- **A key is never the reason to refuse a group.** The file may hold an unfinished run with the same
  key that the ledger does not know, because its task is not registered or the run was told to end.
  The new run is inserted, and a retried one reset, without its key then: the unique index would
  refuse the group, with every innocent run in it.

The file contains no code and no pickle. ``name`` is looked up among the decorated functions.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Action = Literal["retry", "cancel"]

#: "mbg1" in the header of the file (PRAGMA application_id) marks a journal of minibg.
APPLICATION_ID = 0x6D626731
#: The version of the schema below, stored as PRAGMA user_version.
SCHEMA_VERSION = 2

SCHEMA = """
    CREATE TABLE runs (
        row INTEGER PRIMARY KEY,     -- the order of acceptance
        id TEXT NOT NULL UNIQUE,
        batch INTEGER,               -- the row of the first run of its batch; NULL: the run is alone
        name TEXT NOT NULL,
        arguments TEXT NOT NULL,     -- JSON: [args, kwargs]
        overrides TEXT NOT NULL,     -- JSON: the options that differ from the task's own
        key TEXT,
        origin TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('HELD', 'READY', 'RUNNING', 'WAITING',
            'SUCCESSFUL', 'FAILED', 'CANCELLED', 'DROPPED')),
        owner TEXT,                  -- the process that runs it
        attempts INTEGER NOT NULL DEFAULT 0,
        uncounted_attempts INTEGER NOT NULL DEFAULT 0,   -- ended by a crash or a stop, not by the task
        crashes INTEGER NOT NULL DEFAULT 0,
        added_at REAL NOT NULL,      -- all times are seconds since 1970, UTC
        released_at REAL,
        started_at REAL,
        due_at REAL,
        wait_seconds REAL,           -- the wait that ends at due_at; NULL: due_at is a time of day
        finished_at REAL,
        errors TEXT NOT NULL DEFAULT '[]',
        return_value TEXT,           -- JSON, if it is JSON and short
        request TEXT CHECK (request IN ('retry', 'cancel')),   -- of `minibg tasks`, for the owner to answer
        refusal TEXT,                -- the owner's reason not to grant the last request
        CHECK ((finished_at IS NOT NULL) = (status IN ('SUCCESSFUL', 'FAILED', 'CANCELLED', 'DROPPED'))),
        CHECK ((owner IS NOT NULL) = (status = 'RUNNING')),
        CHECK ((due_at IS NOT NULL) = (status = 'WAITING'))
    ) STRICT;
    CREATE INDEX unfinished ON runs (row) WHERE finished_at IS NULL;
    CREATE INDEX finished ON runs (status, finished_at) WHERE finished_at IS NOT NULL;
    CREATE INDEX requested ON runs (row) WHERE request IS NOT NULL;
    CREATE UNIQUE INDEX one_per_key ON runs (name, key) WHERE key IS NOT NULL AND finished_at IS NULL;
"""

#: The upgrade of each older schema version to the next.
UPGRADES = {
    1: f"""
    DROP INDEX unfinished; DROP INDEX finished; DROP INDEX asked; DROP INDEX one_per_key;
    ALTER TABLE runs RENAME TO runs_of_schema_1;
    {SCHEMA}
    INSERT INTO runs SELECT seq, id, iif(response > 0, response, NULL), name, payload, options, key, origin, status,
        owner, attempts, excused, crashes, added_at, released_at, started_at, due_at, wait, finished_at, errors, value,
        asked, NULL FROM runs_of_schema_1;
    DROP TABLE runs_of_schema_1;
    """
}

# --- one group ---

TRIGGER = """
    CREATE TEMP VIEW groups (ends, inserts, updates, claims, owner, now)
        AS SELECT NULL, NULL, NULL, NULL, NULL, NULL;
    CREATE TEMP TRIGGER write_group INSTEAD OF INSERT ON groups BEGIN
        UPDATE runs SET
            status = json_extract(e.value, '$.status'),
            due_at = json_extract(e.value, '$.due_at'),
            wait_seconds = json_extract(e.value, '$.wait_seconds'),
            finished_at = json_extract(e.value, '$.finished_at'),
            errors = coalesce(json_extract(e.value, '$.errors'), errors),
            return_value = json_extract(e.value, '$.return_value'),
            owner = NULL
            FROM json_each(NEW.ends) AS e
            WHERE row = json_extract(e.value, '$.row') AND finished_at IS NULL
            AND ((status = 'RUNNING' AND attempts = json_extract(e.value, '$.attempts'))
                OR json_extract(e.value, '$.status') IN ('CANCELLED', 'DROPPED'));
        INSERT INTO runs (row, id, batch, name, arguments, overrides, origin, added_at, status, key)
            SELECT
            json_extract(e.value, '$.row'),
            json_extract(e.value, '$.id'),
            json_extract(e.value, '$.batch'),
            json_extract(e.value, '$.name'),
            json_extract(e.value, '$.arguments'),
            json_extract(e.value, '$.overrides'),
            json_extract(e.value, '$.origin'),
            json_extract(e.value, '$.added_at'),
            'HELD',
            iif(json_extract(e.value, '$.key') IS NULL OR EXISTS (SELECT 1 FROM runs
                WHERE name = json_extract(e.value, '$.name') AND key = json_extract(e.value, '$.key')
                AND key IS NOT NULL AND finished_at IS NULL), NULL, json_extract(e.value, '$.key'))
            FROM json_each(NEW.inserts) AS e;
        UPDATE runs SET
            batch = json_extract(e.value, '$.batch'),
            status = json_extract(e.value, '$.status'),
            due_at = json_extract(e.value, '$.due_at'),
            wait_seconds = json_extract(e.value, '$.wait_seconds'),
            released_at = json_extract(e.value, '$.released_at')
            FROM json_each(NEW.updates) AS e
            WHERE row = json_extract(e.value, '$.row') AND finished_at IS NULL AND owner IS NULL;
        UPDATE runs SET status = 'RUNNING', attempts = attempts + 1, owner = NEW.owner, due_at = NULL,
            released_at = coalesce(released_at, NEW.now), started_at = coalesce(started_at, NEW.now)
            FROM json_each(NEW.claims) AS e
            WHERE row = e.value AND owner IS NULL AND finished_at IS NULL;
    END;
"""
WRITE_GROUP = "INSERT INTO groups VALUES (?, ?, ?, ?, ?, ?)"
GRANTED = "SELECT row FROM runs WHERE row IN (SELECT value FROM json_each(?)) AND status = 'RUNNING'"

# --- reading ---

COLUMNS = (
    "row, id, batch, name, arguments, overrides, key, origin, status, attempts, uncounted_attempts, crashes, added_at,"
    " released_at, started_at, due_at, wait_seconds, finished_at, errors, return_value, request, refusal"
)
# INDEXED BY and NOT INDEXED prevent a scan of all runs, which SQLite could choose after an ANALYZE
# has left statistics in the file.
UNFINISHED = f"SELECT {COLUMNS} FROM runs INDEXED BY unfinished WHERE finished_at IS NULL ORDER BY row"
INTERRUPTED = f"SELECT {COLUMNS} FROM runs INDEXED BY unfinished WHERE finished_at IS NULL AND status = 'RUNNING'"
BY_ID = f"SELECT {COLUMNS} FROM runs WHERE id = ?"
LAST_ROW = "SELECT max(row) FROM runs"

# --- the owner's start, upkeep and end ---

COUNT_CRASH = """UPDATE runs SET owner = NULL, uncounted_attempts = uncounted_attempts + 1, crashes = ?, status = ?,
    finished_at = ?, errors = ? WHERE row = ?"""
REQUEUE_RUNNING = """UPDATE runs INDEXED BY unfinished SET status = 'READY', owner = NULL,
    uncounted_attempts = uncounted_attempts + 1 WHERE finished_at IS NULL AND status = 'RUNNING'"""
SWEEP_OLD = "DELETE FROM runs WHERE row IN (SELECT row FROM runs WHERE status = ? AND finished_at < ? LIMIT ?)"
SWEEP_MANY = """DELETE FROM runs WHERE row IN
    (SELECT row FROM runs NOT INDEXED WHERE row < ? AND finished_at IS NOT NULL ORDER BY row LIMIT ?)"""

# --- the requests of `minibg tasks` ---

REQUEST = "UPDATE runs SET request = ?, refusal = NULL WHERE id = ?"
REQUESTED = f"SELECT {COLUMNS} FROM runs INDEXED BY requested WHERE request IS NOT NULL ORDER BY row"
ANSWER = "UPDATE runs SET request = NULL, refusal = ? WHERE row = ?"
CANCEL_PENDING = """UPDATE runs SET status = 'CANCELLED', finished_at = ?, due_at = NULL
    WHERE row = ? AND status IN ('HELD', 'READY', 'WAITING')"""
RESET_FAILED = """UPDATE runs SET status = 'READY', finished_at = NULL, return_value = NULL, batch = NULL,
    attempts = 0, uncounted_attempts = 0, crashes = 0, key = iif(EXISTS (SELECT 1 FROM runs AS other
        WHERE other.name = runs.name AND other.key = runs.key AND other.finished_at IS NULL), NULL, key)
    WHERE row = ? AND status = 'FAILED'"""
KEY_IS_TAKEN = "SELECT 1 FROM runs WHERE name = ? AND key = ? AND key IS NOT NULL AND finished_at IS NULL"


@dataclass(frozen=True, slots=True)
class Row:
    """The row of a run in the file. The schema explains the columns."""

    row: int
    id: str
    batch: int | None
    name: str
    arguments: str
    overrides: str
    key: str | None
    origin: str
    status: str
    attempts: int
    uncounted_attempts: int
    crashes: int
    added_at: float
    released_at: float | None
    started_at: float | None
    due_at: float | None
    wait_seconds: float | None
    finished_at: float | None
    errors: str
    return_value: str | None
    request: Action | None
    refusal: str | None

    def describe(self) -> str:
        """Return a name of the run for the log: escaped, because the file may contain any text."""
        return ascii(f"{self.name} {self.id}")[1:-1]


class Answer(NamedTuple):
    """The owner's answer to a request of `minibg tasks`."""

    action: Action
    #: The reason to refuse the request; None if it is granted.
    refusal: str | None


@dataclass(slots=True, eq=False)
class Group:
    """The changes of one transaction, and their results. The dicts have rows as keys: a later
    change wins.
    """

    #: Runs that end, or wait for a retry from now on: row, attempts, status, due_at, wait_seconds,
    #: finished_at, errors, return_value.
    ends: dict[int, dict[str, Any]] = field(default_factory=dict)
    #: Runs that are accepted: row, id, batch, name, arguments, overrides, key, origin, added_at.
    inserts: dict[int, dict[str, Any]] = field(default_factory=dict)
    #: The rows of FAILED runs that are retried on request.
    resets: list[int] = field(default_factory=list)
    #: Runs that become READY or WAITING: row, batch, status, due_at, wait_seconds, released_at.
    updates: dict[int, dict[str, Any]] = field(default_factory=dict)
    #: The rows of runs whose next attempt is about to begin.
    claims: list[int] = field(default_factory=list)
    #: Answers to requests, by row.
    answers: dict[int, Answer] = field(default_factory=dict)
    #: Read the requests and sweep after this group.
    housekeeping: bool = False

    #: The claims that were granted.
    granted: set[int] = field(default_factory=set)
    #: The requests in the file, read after this group.
    requests: list[Row] = field(default_factory=list)
    #: There may be more rows to sweep.
    sweep_again: bool = False
    #: The reason why the inserts were not written; the other changes may be written.
    insert_error: Exception | None = None
    #: The reason why the other changes were not written either.
    update_error: Exception | None = None
