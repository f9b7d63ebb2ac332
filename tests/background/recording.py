"""The shared parts of the background tests: named tasks, runs without a pool, and the story that a
follower reads.

A story is the whole list of ``(task name, status it reached)`` of a pool, in order. Tests compare
it as a whole.
"""

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, Unpack

from minibg.background import Clock, Follower, Pool, Task, TaskResult, TaskStatus
from minibg.background.run import Ids, Run
from minibg.background.task import CallOptions, Options

P = ParamSpec("P")
R = TypeVar("R")

Story = list[tuple[str, str]]


async def nothing() -> None: ...


def named(name: str, function: Callable[P, R], **options: Unpack[CallOptions]) -> Task[P, R]:
    """Return a task with a short name that is not entered in `TASKS`: each test has its own "a"."""
    return Task(function, name, Options(**options))


def a_run(clock: Clock, **options: Unpack[CallOptions]) -> Run:
    """Return a run of a task that does nothing, named "a"."""
    return Run.of(named("a", nothing, **options), (), {}, "", clock, Ids())


async def story(follower: Follower) -> Story:
    """Return all that a follower reads, up to the end of its pool."""
    return [(transition.name, str(transition.after)) async for transition in follower]


async def turn() -> None:
    """Let the event loop run all that is ready, and what that makes ready."""
    for _ in range(10):
        await asyncio.sleep(0)


async def reached(pool: Pool, result: TaskResult[Any], status: TaskStatus, attempt: int | None = None) -> None:
    """Wait until a run is in a status, at the attempt of this number."""
    follower = pool.follow()
    if result.status is status and attempt in (None, result.attempts):
        return
    async for transition in follower:
        if transition.id == result.id and transition.after is status and attempt in (None, transition.attempt):
            return
    raise AssertionError(f"the pool stopped, and {result.name} never was {status}")
