"""What the tests of the durable journal have in common: tasks that can be found again by their name, and looks into the file.

A durable journal keeps only calls of decorated functions with JSON arguments, so a test cannot pass in a closure. It
says what a task does under a name instead: ``plays["a"] = fails`` is what ``play("a")`` does.
"""

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from minibg.background import BackgroundTasks, JournalFailed, Pool, Retry, TaskResult, task
from minibg.background.sqlite import File, Group, connect
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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


class Disk:
    """The disk under a journal: it can be slow (a group waits for it), and it can refuse."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        #: What it says to everything, and what it says to new runs only.
        self.refuses: Exception | None = None
        self.is_full: Exception | None = None
        self.groups: list[Group] = []
        self._free = threading.Event()
        self._free.set()
        self._busy = threading.Event()
        write, write_once, disk = File.write, File._write, self

        def slow(file: File, group: Group, now: float) -> None:
            disk._busy.set()
            assert disk._free.wait(60)
            write(file, group, now)
            disk.groups.append(group)

        def refusing(file: File, group: Group, now: float, *, entered: bool) -> None:
            if disk.refuses or (disk.is_full and entered and group.entered):
                raise disk.refuses or disk.is_full or AssertionError
            write_once(file, group, now, entered=entered)

        monkeypatch.setattr(File, "write", slow)
        monkeypatch.setattr(File, "_write", refusing)

    @property
    def entered(self) -> list[int]:
        """How many runs each group has entered."""
        return [len(group.entered) for group in self.groups if group.entered and group.refused is None]

    @asynccontextmanager
    async def busy(self, pool: Pool) -> AsyncIterator[None]:
        """While this lasts a group is on its way to the disk, and whatever happens gathers in the next."""
        await written(pool)
        self._free.clear()
        self._busy.clear()
        hold = BackgroundTasks(pool)
        hold.add_task(mark)
        commit = asyncio.create_task(hold.commit())
        while not self._busy.is_set():
            await asyncio.sleep(0)
        yield
        self._free.set()
        await asyncio.gather(commit, return_exceptions=True)
        hold.drop()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


FULL = sqlite3.OperationalError("database or disk is full")


async def promised(pool: Pool, *added: Any, origin: str = "") -> list[TaskResult[Any]]:
    """What a response does: ``(task, argument, ...)`` each."""
    hold = BackgroundTasks(pool, origin)
    results = [hold.add_task(function, *arguments) for function, *arguments in added]
    try:
        await hold.commit()
    except JournalFailed:
        hold.drop()
        raise
    hold.release()
    return results
