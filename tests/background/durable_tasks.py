"""What the tests of the durable journal have in common: tasks that can be found again by their name, and looks into the file.

A durable journal keeps only calls of decorated functions with JSON arguments, so a test cannot pass in a closure. It
says what a task does under a name instead: ``plays["a"] = fails`` is what ``play("a")`` does.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minibg.background import BackgroundTasks, Pool, Retry, task
from minibg.background.sqlite import connect
from minibg.background.task import TASKS

#: What has run, in order.
calls: list[Any] = []
#: What `play`, `insist` and `play_in_thread` do under a name; nothing, when it is not here.
plays: dict[str, Callable[[], Any]] = {}


@task(name="note")
async def note(*what: Any, **more: Any) -> Any:
    """Give back what it got."""
    calls.append((what, more))
    return [*what]


@task(name="play")
async def play(name: str) -> Any:
    calls.append(name)
    return await plays[name]() if name in plays else None


@task(name="insist", retry=Retry(attempts=3, base=10.0, cap=10.0))
async def insist(name: str) -> Any:
    calls.append(name)
    return await plays[name]() if name in plays else None


@task(name="play_in_thread")
def play_in_thread(name: str) -> Any:
    calls.append(name)
    return plays[name]() if name in plays else None


@task(name="forget", durable=False)
async def forget(what: object) -> None:
    calls.append(what)


@task(name="mark")
async def mark() -> None:
    """Never runs: see `written`."""


MINE = {each.name: each for each in (note, play, insist, play_in_thread, forget, mark)}


@pytest.fixture(autouse=True)
def durable_tasks(no_task_name_outlives_its_test: None) -> Iterator[None]:
    """Enter the tasks of this file, whose names conftest has cleared."""
    TASKS.update(MINE)
    calls.clear()
    plays.clear()
    yield
    calls.clear()
    plays.clear()


async def fails() -> None:
    raise ValueError("no")


async def written(pool: Pool) -> None:
    """Wait until all that has happened so far is in the file: groups are written one after another."""
    hold = BackgroundTasks(pool)
    hold.add_task(mark)
    await hold.commit()
    hold.drop()


def rows(path: Path | str, columns: str = "name, status, attempts", where: str = "true") -> list[Any]:
    """The runs in a file, in order, as somebody else reads them. One column comes without its tuple."""
    database = connect(str(path), "ro")
    try:
        query = f"SELECT {columns} FROM runs WHERE name != 'mark' AND {where} ORDER BY seq"
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
    """Copy a file that is in use. A log of which the end is missing is what SQLite finds after a kill, too."""
    copy = path.with_name(f"killed-{path.name}")
    shutil.copyfile(path, copy)
    wal = Path(f"{path}-wal")
    if wal.exists():
        shutil.copyfile(wal, f"{copy}-wal")
    return copy
