"""What every test of minibg gets: both event loops, and a loop that cannot complain unheard."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis  # it asks, while it is imported, who refers to an object; of frozen ones nobody can tell
import pytest
import uvloop

from minibg.background.task import TASKS

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

_complaints: list[dict[str, Any]] = []


def _recording(new_event_loop: LoopFactory) -> LoopFactory:
    """A loop whose exception handler is remembered by the test: "Task exception was never retrieved" is no warning."""

    def create() -> asyncio.AbstractEventLoop:
        loop = new_event_loop()
        loop.set_exception_handler(lambda _, context: _complaints.append(context))
        return loop

    return create


def pytest_asyncio_loop_factories() -> dict[str, LoopFactory]:
    return {"asyncio": _recording(asyncio.new_event_loop), "uvloop": _recording(uvloop.new_event_loop)}


@pytest.fixture(autouse=True, scope="module")
def nothing_old_is_visited_by_the_collector() -> None:
    """Some 100,000 objects of frameworks and other servers live as long as the run, and more come with each module.

    `gc.collect` is called after each test, below. Were they not frozen, it would be most of the time that the tests take.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_complaint_of_the_loop() -> Iterator[None]:
    """Fail the test in which a loop's exception handler was called."""
    _complaints.clear()
    yield
    gc.collect()
    assert _complaints == []


@pytest.fixture(autouse=True)
def no_task_name_outlives_its_test() -> Iterator[None]:
    """Names are global to a process; two tests may use the same."""
    before = dict(TASKS)
    TASKS.clear()
    yield
    TASKS.clear()
    TASKS.update(before)
