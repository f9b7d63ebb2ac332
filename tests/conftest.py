"""What every test gets: both event loops, a check of their complaints, a share of the processor.

**Both loops.** Each async test runs on asyncio and on uvloop. The exception handler of either
records what it is called with, and a test in which it was called fails: "Task exception was never
retrieved" is not a warning, and would otherwise go unheard.

**In parallel.** `pytest` distributes the tests over processes (pytest-xdist, ``-n auto`` in
pyproject.toml). Half of the time that the tests take is waiting: for deadlines, for other
processes, for the disk. So there are two workers for each core. Each worker gets a part of the list
as it stands, and takes from the others when it has none left (``--dist worksteal``): the tests of a
module are mostly in one worker, and share what the module has started. The rules that this asks of
a test:

1. Files are in ``tmp_path``, and ports are chosen by the kernel (port 0).
2. Nothing is shared between tests but by a fixture of their module.
3. A deadline that is tested has room for a busy machine: the test shows that it is kept, not how
   exactly.

A test file that is named on the command line runs in this process, which starts in a fraction of
the time.

**Markers.** A test of a file that imports `subprocess` or Selenium has the marker ``processes``: it
starts processes, wrk or a browser. ``pytest -m 'not processes'`` is the quick run.
"""

import asyncio
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

# Imported before the first freeze: its import asks the collector for the referrers of an object.
import hypothesis
import pytest
import uvloop

from minibg.background.task import TASKS

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

#: What the loops of the current test were asked to complain about.
_complaints: list[dict[str, Any]] = []


# --- how they run ---


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of processes: two for each core, none for files that are named."""
    if any(".py" in argument for argument in config.args):
        return 0
    return 2 * (os.cpu_count() or 1)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that start processes, by what their file imports."""
    module = item.getparent(pytest.Module)
    if module is not None and {"subprocess", "webdriver"} & vars(module.obj).keys():
        item.add_marker("processes")


# --- both loops ---


def _recording(new_event_loop: LoopFactory) -> LoopFactory:
    """Return a factory of loops whose complaints are recorded."""

    def create() -> asyncio.AbstractEventLoop:
        loop = new_event_loop()
        loop.set_exception_handler(lambda _, context: _complaints.append(context))
        return loop

    return create


def pytest_asyncio_loop_factories() -> dict[str, LoopFactory]:
    return {"asyncio": _recording(asyncio.new_event_loop), "uvloop": _recording(uvloop.new_event_loop)}


# --- around each test ---


@pytest.fixture(autouse=True, scope="module")
def the_collector_visits_nothing_old() -> None:
    """Freeze the objects of frameworks and other servers, some 100,000 that live as long as the run.

    `gc.collect` is called after each test, below. It would take most of the time if it visited them.
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
