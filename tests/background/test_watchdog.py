"""The watchdog names the coroutine task that blocks the event loop, with its stack."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator

import pytest

from minibg.background import Pool
from tests.background.recording import named


class Heard(logging.Handler):
    """Sets an event at each warning: the watchdog logs from its thread while the event loop is
    blocked.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self.event = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self.event.set()


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    logger = logging.getLogger("minibg.background")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


async def test_a_task_that_blocks_the_event_loop_is_named_with_its_stack_once(heard: Heard) -> None:
    async def blocks() -> bool:
        warned = heard.event.wait(5)  # The innermost line of the stack.
        time.sleep(0.06)  # Two more samples of the same block.
        return warned

    async with Pool() as pool:
        result = await pool.enqueue(named("blocks", blocks)).wait()
    assert result.return_value is True
    assert len(heard.messages) == 1
    assert heard.messages[0].startswith(f"blocks {result.id} blocks the event loop for over 0.1 s:\n")
    assert "warned = heard.event.wait(5)  # The innermost line of the stack." in heard.messages[0]


async def test_each_block_is_named(heard: Heard) -> None:
    async def blocks_twice() -> None:
        for _ in range(2):
            heard.event.wait(5)
            heard.event.clear()
            beats = asyncio.Event()
            asyncio.get_running_loop().call_later(0.03, beats.set)
            await beats.wait()

    async with Pool() as pool:
        await pool.enqueue(blocks_twice).wait()
    assert len(heard.messages) == 2


async def test_a_blocking_thread_and_a_handler_are_not_named(heard: Heard) -> None:
    go = threading.Event()
    async with Pool() as pool:
        result = pool.enqueue(go.wait)
        await asyncio.sleep(0)
        time.sleep(0.2)  # As a handler does: it blocks the event loop, and is no task of the pool.
        go.set()
        await result.wait()
    assert heard.messages == []


async def test_there_is_no_timer_while_no_task_runs() -> None:
    async with Pool() as pool:
        await pool.enqueue(print, end="").wait()
        [watchdog] = [thread for thread in threading.enumerate() if thread.name == "minibg-watchdog"]
        assert watchdog.daemon
        while pool._workers._watchdog._beats is not None:
            beat = asyncio.Event()
            asyncio.get_running_loop().call_later(0.01, beat.set)
            await beat.wait()
        assert not pool._workers._watchdog._awake.is_set()
        await pool.enqueue(print, end="").wait()
        assert pool._workers._watchdog._awake.is_set()
    assert not watchdog.is_alive()


async def test_a_pool_that_runs_nothing_has_no_watchdog() -> None:
    async with Pool():
        assert "minibg-watchdog" not in [thread.name for thread in threading.enumerate()]


async def test_many_short_tasks_in_one_iteration_of_the_event_loop_are_not_named(heard: Heard) -> None:
    """Together they block it for 0.3 s, and none of them for long."""
    together = asyncio.Event()

    async def short() -> None:
        await together.wait()
        time.sleep(0.02)

    async with Pool(workers=15) as pool:
        results = [pool.enqueue(named(f"short {number}", short)) for number in range(15)]
        while pool.statistics().running < 15:
            await asyncio.sleep(0)
        together.set()
        for result in results:
            await result.wait()
    assert heard.messages == []
