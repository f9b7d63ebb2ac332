"""Handlers whose annotations are strings."""

from __future__ import annotations

from typing import Annotated

from minibg.background import BackgroundTasks
from minibg.web.depends import Depends
from minibg.web.request import Request


def dependency(tasks: BackgroundTasks | None) -> BackgroundTasks | None:
    return tasks


async def add_by_string(
    request: Request, word: str, tasks: BackgroundTasks, same: Annotated[BackgroundTasks, Depends(dependency)]
) -> str:
    tasks.add_task(print, word)
    same.add_task(print, "from a dependency")
    return request.method
