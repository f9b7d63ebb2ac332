"""The command ``minibg tasks FILE``: look into a durable journal, and ask its owner for something.

    minibg tasks tasks.db                       the newest runs, and how many are in each status
    minibg tasks tasks.db --status FAILED --json
    minibg tasks tasks.db show ID               one of them, with arguments and errors
    minibg tasks tasks.db retry ID              a FAILED one is READY again, with all its attempts
    minibg tasks tasks.db cancel ID             one that does not run yet is CANCELLED

It works while a server runs on the file and when none does. Reading is reading: SQLite gives a consistent moment, and a reader
holds up nobody. Changing goes one way, because a journal has one owner: the wish is written beside the run, and
whoever owns the file fulfils it. That is the server, within a second or so; if there is none, this command takes the
lock and becomes the owner for a moment, which is all that a start would do.

An id may be shortened, as long as it says which. What somebody else has written into the file is shown as it is. Exit
codes: 0, 1 when it cannot be done, with one line that says why.
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

from minibg.background.journal import JournalUnusable
from minibg.background.result import TaskStatus
from minibg.background.sqlite import ASK, COLUMNS, MIGRATIONS, File, Row, connect, schema_version

#: How often the lock is asked for, each time for a second, before the owner is called deaf.
TRIES = 10
# What is read, each by its index. "g" comes after every hexadecimal digit.
NEWEST = f"SELECT {COLUMNS} FROM runs ORDER BY seq DESC LIMIT ?"
ENDED = f"SELECT {COLUMNS} FROM runs WHERE finished_at IS NOT NULL AND status = ? ORDER BY finished_at DESC LIMIT ?"
GOING_ON = f"SELECT {COLUMNS} FROM runs WHERE finished_at IS NULL AND status = ? ORDER BY seq DESC LIMIT ?"
BEGINS_WITH = f"SELECT {COLUMNS} FROM runs WHERE id >= ?1 AND id < ?1 || 'g' LIMIT 2"
COUNTS = """SELECT status, count(*) FROM runs WHERE finished_at IS NOT NULL GROUP BY status
    UNION ALL SELECT status, count(*) FROM runs WHERE finished_at IS NULL GROUP BY status"""
#: The time of a status on the list: the newest of these that a run has.
TIMES = ("finished_at", "started_at", "released_at", "added_at")


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and do what it says."""
    options = parser().parse_args(arguments)
    if (options.action == "list") != (options.id is None):
        parser().error(f"{options.action} takes an id" if options.id is None else f"{options.id!r} is no action")
    try:
        with closing(_connect(options.file)) as database:
            if options.action == "list":
                _list(database, options.status, options.limit, as_json=options.json)
            else:
                row = _find(database, options.id)
                if options.action != "show":
                    row = _ask(database, options.file, row, options.action)
                print(json.dumps(_described(row), indent=2))
    except sqlite3.Error as error:
        _give_up(f"{options.file}: {error}")
    except (JournalUnusable, UnicodeError) as error:
        _give_up(str(error))


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser("minibg tasks", description="Look into a durable journal.")
    parser.add_argument("file", help="the journal")
    parser.add_argument("action", nargs="?", choices=("list", "show", "retry", "cancel"), default="list", help="(list)")
    parser.add_argument("id", nargs="?", help="id of a run, or how it begins")
    parser.add_argument("--status", type=str.upper, choices=[*TaskStatus], help="list only these")
    parser.add_argument("--limit", type=int, default=50, help="list so many, the newest (50)")
    parser.add_argument("--json", action="store_true", help="list them as JSON, with everything")
    return parser


def _give_up(message: str) -> NoReturn:
    print(f"minibg tasks: {message}", file=sys.stderr)
    sys.exit(1)


def _connect(path: str) -> sqlite3.Connection:
    if not Path(path).is_file():
        _give_up(f"there is no file {path}")
    database = connect(path, "rw")  # Read-only, it could not make the files it needs beside a journal at rest.
    if schema_version(database, path) != len(MIGRATIONS):
        raise JournalUnusable(f"{path} is empty, or of an older minibg: start the server with it once")
    return database


def _list(database: sqlite3.Connection, status: str | None, limit: int, *, as_json: bool) -> None:
    if status is None:
        found = database.execute(NEWEST, (limit,))
    else:
        found = database.execute(ENDED if TaskStatus(status).is_final else GOING_ON, (status, limit))
    rows = [Row(*row) for row in found]
    if as_json:
        print(json.dumps([_described(row) for row in rows], indent=2))
        return
    for row in rows:
        print(
            f"{row.id}  {row.status:10}  {_when(row)}  {row.name}  {ascii(row.origin)[1:-1]}  {_last_error(row)}".rstrip()
        )
    counts = dict(database.execute(COUNTS))
    print(", ".join(f"{counts[status]} {status.lower()}" for status in TaskStatus if status in counts) or "no tasks")


def _find(database: sqlite3.Connection, id: str) -> Row:
    rows = database.execute(BEGINS_WITH, (id,)).fetchall()
    if len(rows) != 1:
        _give_up(f"more than one run begins with {id}" if rows else f"there is no run {id}")
    return Row(*rows[0])


def _ask(database: sqlite3.Connection, path: str, row: Row, what: str) -> Row:
    """Have the owner of the file retry or cancel a run. Gives the row as it is then."""
    possible = ("FAILED",) if what == "retry" else ("HELD", "READY", "WAITING", "RUNNING")
    if row.status not in possible:
        _give_up(f"{row.id} is {row.status}, which one cannot {what}")
    database.execute("BEGIN IMMEDIATE")
    database.execute(ASK, (what, row.id))
    database.execute("COMMIT")
    for _ in range(TRIES):
        _be_the_owner(path)
        after = _find(database, row.id)
        if after.asked is None:
            break
    else:
        _give_up(f"the owner of {path} does not answer; {row.id} waits for its {what}")
    if what == "retry" and after.finished_at == row.finished_at:
        _give_up(f"{row.id} was not retried: an unfinished run has its key {row.key!r}")
    return after


def _be_the_owner(path: str) -> None:
    """Do what a start does with the file, unless it has an owner."""
    file = File(path, "power")
    try:
        file.open(time.time())
    except JournalUnusable:
        return  # It is in use; or unusable in a way that the next reader of it will say.
    file.close()


def _described(row: Row) -> dict[str, Any]:
    """A row for people and programs: times as text, JSON as what it says."""
    described = asdict(row)
    for name in ("payload", "options", "errors", "value"):
        described[name] = _loaded(described[name])
    for name in (*TIMES, "due_at"):
        described[name] = _time(described[name])
    for error in described["errors"]:
        if isinstance(error, dict) and isinstance(error.get("at"), float):
            error["at"] = _time(error["at"])
    match described["payload"]:
        case [list() as args, dict() as kwargs]:
            described |= {"args": args, "kwargs": kwargs}
            del described["payload"]
    return {name: described[name] for name in described if name not in ("seq", "response", "wait", "asked")}


def _loaded(text: str | None) -> Any:
    """Give what JSON says; what is none, as it is."""
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _when(row: Row) -> str:
    newest = next(seconds for name in TIMES if (seconds := getattr(row, name)) is not None)
    return datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _last_error(row: Row) -> str:
    match _loaded(row.errors):
        case [*_, {"type": kind, "message": message}]:
            return ascii(f"{kind}: {message}")[1:-1]
    return ""
