"""Tasks that a journal can store, and a disk that a test can make slow or full.

A journal stores calls of decorated functions with JSON arguments, so a test cannot pass in a closure. It registers under a
name what a task does instead: ``plays["a"] = fails`` is what ``play("a")`` does.
"""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from minibg.background import BackgroundTasks, JournalFailed, Pool, Retry, TaskResult, task
from minibg.background.journal.file import File
from minibg.background.journal.schema import Group
from tests.background.fake_clock import FakeClock

#: The calls, in order.
calls: list[Any] = []
#: What `play`, `insist` and `play_in_thread` do under a name; without an entry, nothing.
plays: dict[str, Callable[[], Any]] = {}


@task(name="note")
async def note(*what: Any, **more: Any) -> Any:
    """Return its arguments."""
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
    """Never run: see `written`."""


TASKS_HERE = {each.name: each for each in (note, play, insist, play_in_thread, forget, mark)}


async def fails() -> None:
    raise ValueError("no")


async def forever() -> None:
    await asyncio.Event().wait()


async def turn() -> None:
    """Let everything happen that needs no disk and no clock."""
    for _ in range(10):
        await asyncio.sleep(0)


async def committed(pool: Pool, *added: Any, origin: str = "") -> tuple[BackgroundTasks, list[TaskResult[Any]]]:
    """Add and commit tasks as a response does, ``(task, argument, ...)`` each."""
    hold = BackgroundTasks(pool, origin)
    results = [hold.add_task(function, *arguments) for function, *arguments in added]
    try:
        await hold.commit()
    except JournalFailed:
        hold.drop()
        raise
    return hold, results


async def responded(pool: Pool, *added: Any, origin: str = "") -> list[TaskResult[Any]]:
    """Add, commit and release tasks as a response does."""
    hold, results = await committed(pool, *added, origin=origin)
    hold.release()
    return results


async def written(pool: Pool) -> None:
    """Wait until everything that has happened so far is in the file: groups are written one after another."""
    hold, _ = await committed(pool, (mark,))
    hold.drop()


async def stopped(pool: Pool, clock: FakeClock | None = None) -> Any:
    """Stop a pool that waits for nothing, and whose clock does not move by itself."""
    pool.drain_timeout = 0
    stop = asyncio.create_task(pool.stop())
    while not stop.done():
        if clock is not None:
            clock.advance(0)
        await asyncio.sleep(0)
    return stop.result()


FULL = sqlite3.OperationalError("database or disk is full")


class Disk:
    """The disk under a journal: it can be slow (a group waits for it), and it can refuse."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        #: Its answer to everything, and its answer to inserts only.
        self.refuses: Exception | None = None
        self.is_full: Exception | None = None
        self.groups: list[Group] = []
        self.free = threading.Event()
        self.free.set()
        self._busy = threading.Event()
        write, write_once, disk = File.write, File._write, self

        def slow(file: File, group: Group, now: float) -> None:
            disk._busy.set()
            assert disk.free.wait(60)
            write(file, group, now)
            disk.groups.append(group)

        def refusing(file: File, group: Group, now: float, *, with_inserts: bool) -> None:
            if disk.refuses or (disk.is_full and with_inserts and group.inserts):
                raise disk.refuses or disk.is_full or AssertionError
            write_once(file, group, now, with_inserts=with_inserts)

        monkeypatch.setattr(File, "write", slow)
        monkeypatch.setattr(File, "_write", refusing)

    @property
    def inserted(self) -> list[int]:
        """The number of runs that each group has inserted."""
        return [len(group.inserts) for group in self.groups if group.inserts and group.insert_error is None]

    @asynccontextmanager
    async def busy(self, pool: Pool) -> AsyncIterator[None]:
        """While this lasts a group is on its way to the disk, and everything that happens gathers in the next."""
        await written(pool)
        self.free.clear()
        self._busy.clear()
        hold = BackgroundTasks(pool)
        hold.add_task(mark)
        commit = asyncio.create_task(hold.commit())
        while not self._busy.is_set():
            await asyncio.sleep(0)
        yield
        self.free.set()
        await asyncio.gather(commit, return_exceptions=True)
        hold.drop()
