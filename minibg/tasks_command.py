"""The command ``minibg tasks FILE``: read a journal, or request a retry or a cancel of its owner.

    minibg tasks tasks.db                       the newest runs, and the number of runs in each status
    minibg tasks tasks.db --status FAILED --json
    minibg tasks tasks.db show ID               one run, with arguments and errors
    minibg tasks tasks.db retry ID              a FAILED run is READY again, with all its attempts
    minibg tasks tasks.db cancel ID             a run is CANCELLED, if it is not finished

The command works while a server runs on the file, and while none does.

**Reading** needs no owner. A reader of SQLite sees one consistent state, and delays no writer.

**Changing** goes through the owner, because a journal has one writer. The command writes the
request into the row of the run. A server reads it at its next tick, asks its pool, and writes the
answer. If the pool refuses, the command prints its reason. If no server runs, the command takes the
lock and opens the file as a start would; this answers every request.

An id may be shortened as long as it is unique. A row that was edited by hand is shown as it is.
Exit codes: 0 for success; 1 for a failure, with one line of explanation; 2 for a wrong command
line.
"""

import argparse
import json
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from minibg.background.errors import JournalUnusable
from minibg.background.journal.file import OPEN_SECONDS, File, connect, schema_version
from minibg.background.journal.schema import COLUMNS, REQUEST, SCHEMA_VERSION, Action, Row
from minibg.background.result import TaskStatus

#: The number of times that an answer is looked for. Each takes a second while the file has an owner
#: (`lock.py`).
TRIES = 10
# The queries, each with an index. "g" sorts after every hexadecimal digit.
NEWEST = f"SELECT {COLUMNS} FROM runs ORDER BY row DESC LIMIT ?"
FINISHED = f"SELECT {COLUMNS} FROM runs WHERE finished_at IS NOT NULL AND status = ? ORDER BY finished_at DESC LIMIT ?"
UNFINISHED = f"""SELECT {COLUMNS} FROM runs INDEXED BY unfinished WHERE finished_at IS NULL AND status = ?
    ORDER BY row DESC LIMIT ?"""
BEGINS_WITH = f"SELECT {COLUMNS} FROM runs WHERE id >= ?1 AND id < ?1 || 'g' LIMIT 2"
COUNTS = """SELECT status, count(*) FROM runs WHERE finished_at IS NOT NULL GROUP BY status
    UNION ALL SELECT status, count(*) FROM runs WHERE finished_at IS NULL GROUP BY status"""
#: The statuses in which an action is possible.
POSSIBLE = {"retry": ("FAILED",), "cancel": ("HELD", "READY", "WAITING", "RUNNING")}
PAST = {"retry": "retried", "cancel": "cancelled"}
#: The times of a run, newest first. The list shows the first that is set.
TIMES = ("finished_at", "started_at", "released_at", "added_at")
#: Columns that are not shown, because only the owner needs them.
INTERNAL = ("row", "batch", "wait_seconds", "request")


def main(arguments: Sequence[str]) -> None:
    """Run the command. Raises SystemExit after an error."""
    options = parser().parse_args(arguments)
    if (options.action == "list") != (options.id is None):
        parser().error(f"{options.action} takes an id" if options.id is None else f"{options.id!r} is no action")
    try:
        with closing(_open(options.file)) as database:
            if options.action == "list":
                _list(database, options.status, options.limit, as_json=options.json)
            else:
                row = _find(database, options.id)
                if options.action != "show":
                    row = _request(database, options.file, row, options.action)
                print(json.dumps(_described(row), indent=2))
    except sqlite3.Error as error:
        _fail(f"{options.file}: {error}")
    except (JournalUnusable, UnicodeError) as error:
        _fail(str(error))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser("minibg tasks", description="Read a journal, or retry or cancel one of its runs.")
    parser.add_argument("file", help="the journal")
    parser.add_argument("action", nargs="?", choices=("list", "show", "retry", "cancel"), default="list", help="(list)")
    parser.add_argument("id", nargs="?", help="id of a run, or its beginning")
    parser.add_argument("--status", type=str.upper, choices=[*TaskStatus], help="list the runs in this status only")
    parser.add_argument("--limit", type=int, default=50, help="list at most this many runs, the newest (50)")
    parser.add_argument("--json", action="store_true", help="list the runs as JSON, with all their fields")
    return parser


def _open(path: str) -> sqlite3.Connection:
    if not Path(path).is_file():
        _fail(f"there is no file {path}")
    # Not read-only, because SQLite may have to create its log beside a journal without an owner.
    database = connect(path, "rw", OPEN_SECONDS)
    if schema_version(database, path) != SCHEMA_VERSION:
        raise JournalUnusable(f"{path} is empty, or of an older minibg: start the server with it once")
    return database


def _list(database: sqlite3.Connection, status: str | None, limit: int, *, as_json: bool) -> None:
    if status is None:
        found = database.execute(NEWEST, (limit,))
    else:
        found = database.execute(FINISHED if TaskStatus(status).is_final else UNFINISHED, (status, limit))
    rows = [Row(*row) for row in found]
    if as_json:
        print(json.dumps([_described(row) for row in rows], indent=2))
        return
    for row in rows:
        columns = (row.id, f"{row.status:10}", _newest_time(row), row.name, ascii(row.origin)[1:-1], _last_error(row))
        print("  ".join(columns).rstrip())
    counts = dict(database.execute(COUNTS))
    print(", ".join(f"{counts[status]} {status.lower()}" for status in TaskStatus if status in counts) or "no tasks")


def _find(database: sqlite3.Connection, id: str) -> Row:
    rows = database.execute(BEGINS_WITH, (id,)).fetchall()
    if len(rows) != 1:
        _fail(f"more than one run begins with {id}" if rows else f"there is no run {id}")
    return Row(*rows[0])


# --- requests ---


def _request(database: sqlite3.Connection, path: str, row: Row, action: Action) -> Row:
    """Request an action of the owner, and wait for its answer. Return the row after the answer."""
    if row.status not in POSSIBLE[action]:
        _fail(f"{row.id} cannot be {PAST[action]}: it is {row.status}")
    database.execute(REQUEST, (action, row.id))
    for _ in range(TRIES):
        _answer_as_owner(path)
        answered = _find(database, row.id)
        if answered.request is None:
            break
    else:
        _fail(f"the owner of {path} does not answer; its next owner will {action} {row.id}")
    if answered.refusal is not None:
        _fail(answered.refusal)
    return answered


def _answer_as_owner(path: str) -> None:
    """Answer all requests by opening the file as a start would. Wait a second if it has an owner."""
    file = File(path, "power")
    try:
        file.open(time.time())
    except JournalUnusable:
        return  # In use, or unusable; then the next query reports why.
    file.close()


# --- output ---


def _fail(message: str) -> NoReturn:
    print(f"minibg tasks: {message}", file=sys.stderr)
    sys.exit(1)


def _described(row: Row) -> dict[str, Any]:
    """Return a row for the output, with times as text and the JSON columns decoded."""
    described = asdict(row)
    for name in ("arguments", "overrides", "errors", "return_value"):
        described[name] = _decoded(described[name])
    for name in (*TIMES, "due_at"):
        described[name] = _time(described[name])
    for error in described["errors"]:
        if isinstance(error, dict) and isinstance(error.get("at"), float):
            error["at"] = _time(error["at"])
    match described["arguments"]:
        case [list() as args, dict() as kwargs]:
            described |= {"args": args, "kwargs": kwargs}
            del described["arguments"]
    return {name: value for name, value in described.items() if name not in INTERNAL}


def _decoded(text: str | None) -> Any:
    """Return the value of a JSON text, or the text itself if it is not JSON."""
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _newest_time(row: Row) -> str:
    newest = next(seconds for name in TIMES if (seconds := getattr(row, name)) is not None)
    return datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _last_error(row: Row) -> str:
    match _decoded(row.errors):
        case [*_, {"type": kind, "message": message}]:
            return ascii(f"{kind}: {message}")[1:-1]
    return ""
