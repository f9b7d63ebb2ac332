"""A journal's file without a pool: groups written by hand, and the rows as another process reads them."""

import os
import shutil
from pathlib import Path
from typing import Any

from minibg.background.journal.file import File, connect
from minibg.background.journal.schema import Group

NOW = 1_000_000.0
FINAL = ("SUCCESSFUL", "FAILED", "CANCELLED", "DROPPED")


def insert(*rows: int, batch: int | None = None, key: str | None = None) -> dict[int, dict[str, Any]]:
    common = {"batch": batch, "name": "mail", "arguments": "[[], {}]", "overrides": "{}", "key": key}
    return {row: {"row": row, "id": f"id{row}", **common, "origin": "GET /", "added_at": NOW} for row in rows}


def update(*rows: int, status: str = "READY", due_at: float | None = None) -> dict[int, dict[str, Any]]:
    common = {"batch": None, "status": status, "due_at": due_at, "wait_seconds": None, "released_at": NOW}
    return {row: {"row": row, **common} for row in rows}


def end(*rows: int, status: str, attempts: int = 1, value: str | None = None) -> dict[int, dict[str, Any]]:
    waits = status == "WAITING"
    due_at, wait_seconds, finished_at = (NOW + 10, 10.0, None) if waits else (None, None, NOW)
    common = {"status": status, "attempts": attempts, "due_at": due_at, "wait_seconds": wait_seconds}
    common |= {"finished_at": finished_at, "errors": "[]", "return_value": value}
    return {row: {"row": row, **common} for row in rows}


#: The groups that make row 1 RUNNING.
RUNNING_1: list[dict[str, Any]] = [{"inserts": insert(1)}, {"updates": update(1)}, {"claims": [1]}]


def write(file: File, *groups: dict[str, Any], now: float = NOW) -> Group:
    """Write groups, each given by its fields; return the last."""
    written = Group()
    for fields in groups:
        written = Group(**fields)
        file.write(written, now)
        assert (written.insert_error, written.update_error) == (None, None)
    return written


def insert_by_hand(path: Path, **columns: Any) -> None:
    given: dict[str, Any] = {"id": os.urandom(4).hex(), "name": "mail", "arguments": "", "overrides": "", "origin": ""}
    given |= {"added_at": NOW, **columns}
    change(path, f"INSERT INTO runs ({', '.join(given)}) VALUES ({', '.join('?' * len(given))})", *given.values())


def rows(path: Path | str, columns: str = "name, status, attempts", where: str = "true") -> list[Any]:
    """Return the runs of a file, in order, as another process reads them. A single column comes without its tuple."""
    database = connect(str(path), "ro")
    try:
        query = f"SELECT {columns} FROM runs WHERE name != 'mark' AND {where} ORDER BY row"
        found = database.execute(query).fetchall()
    finally:
        database.close()
    return [row[0] if len(row) == 1 else row for row in found]


def change(path: Path | str, statement: str, *values: Any) -> None:
    """Change a file behind its owner's back."""
    database = connect(str(path), "rw")
    try:
        database.execute(statement, values)
    finally:
        database.close()


def as_a_kill_leaves_it(path: Path) -> Path:
    """Copy a file that is in use. A log whose end is missing is also what SQLite finds after a kill."""
    copy = path.with_name(f"killed-{path.name}")
    shutil.copyfile(path, copy)
    wal = Path(f"{path}-wal")
    if wal.exists():
        shutil.copyfile(wal, f"{copy}-wal")
    return copy
