"""What the tests of the background path have in common: named tasks, and the story a follower tells.

A story is the whole list of ``(task name, status it reached)`` of a pool, in order. Tests compare it as a whole.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, Unpack

from minibg.background import Follower, Pool, Task, TaskResult, TaskStatus
from minibg.background.task import Options, TaskOptions

P = ParamSpec("P")
R = TypeVar("R")

Story = list[tuple[str, str]]


def named(name: str, function: Callable[P, R], **options: Unpack[TaskOptions]) -> Task[P, R]:
    """A task under a short name, which is not entered in `TASKS`: each test has its own "a"."""
    return Task(function, name, Options(**options))


async def story(follower: Follower) -> Story:
    """All that a follower heard, up to the end of its pool."""
    return [(transition.name, str(transition.after)) async for transition in follower]


async def reached(pool: Pool, result: TaskResult[Any], status: TaskStatus, attempt: int | None = None) -> None:
    """Wait until a run is in a status (at its so-maniest attempt)."""
    follower = pool.follow()
    if result.status is status and attempt in (None, result.attempts):
        return
    async for transition in follower:
        if transition.id == result.id and transition.after is status and attempt in (None, transition.attempt):
            return
    raise AssertionError(f"the pool stopped, and {result.name} never was {status}")
