"""The threads of sync tasks, and the way from any thread to the loop's."""

import asyncio
import threading
from typing import Any

import pytest

from minibg.background import Pool
from minibg.background.threads import Threads, on_loop


async def test_a_call_is_made_in_a_daemon_thread_of_its_own_name() -> None:
    threads = Threads(asyncio.get_running_loop())
    thread = await threads.call(threading.current_thread)
    assert (thread.daemon, thread.name, thread is threading.main_thread()) == (True, "minibg-task-1", False)
    threads.close()


async def test_an_idle_thread_is_used_again() -> None:
    threads = Threads(asyncio.get_running_loop())
    names = {(await threads.call(threading.current_thread)).name for _ in range(20)}
    assert names == {"minibg-task-1"}
    assert threads.busy == 0
    threads.close()


async def test_as_many_threads_as_there_are_calls_at_once() -> None:
    threads = Threads(asyncio.get_running_loop())
    together = threading.Barrier(3)
    assert sorted(await asyncio.gather(*(threads.call(together.wait) for _ in range(3)))) == [0, 1, 2]
    threads.close()


async def test_at_most_as_many_as_there_are_workers() -> None:
    async with Pool(workers=2) as pool:
        results = [pool.enqueue(threading.current_thread) for _ in range(20)]
    names = {result.return_value.name for result in results if result.return_value is not None}
    assert names <= {"minibg-task-1", "minibg-task-2"}


async def test_what_is_done_together_comes_back_together() -> None:
    threads = Threads(asyncio.get_running_loop())
    ends = [threading.Event() for _ in range(5)]
    futures = [threads.call(end.wait) for end in ends]
    for end in ends:
        end.set()
    assert await asyncio.gather(*futures) == [True] * 5
    threads.close()


async def test_a_call_nobody_waits_for_any_more_gives_its_thread_back() -> None:
    threads = Threads(asyncio.get_running_loop())
    end = threading.Event()
    abandoned = threads.call(end.wait)
    abandoned.cancel()
    end.set()
    while threads.busy:
        await threads.call(bool)
    assert abandoned.cancelled()
    threads.close()


async def test_closing_ends_the_threads() -> None:
    threads = Threads(asyncio.get_running_loop())
    thread = await threads.call(threading.current_thread)
    threads.close()
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()


def test_a_call_that_outlives_the_loop_ends_its_thread_quietly() -> None:
    end, found = threading.Event(), []

    async def leave_it_behind() -> None:
        threads = Threads(asyncio.get_running_loop())
        started = threading.Event()

        def stuck() -> None:
            found.append(threading.current_thread())
            started.set()
            end.wait()

        threads.call(stuck)
        started.wait()

    asyncio.run(leave_it_behind())
    end.set()
    found[0].join(5)
    assert not found[0].is_alive()


async def test_from_another_thread_a_call_is_made_on_the_loops() -> None:
    loop, here = asyncio.get_running_loop(), threading.get_ident()
    assert await asyncio.to_thread(on_loop, loop, threading.get_ident) == here


async def test_what_the_call_raises_is_raised_in_the_thread_that_asked() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        await asyncio.to_thread(on_loop, asyncio.get_running_loop(), int, "three")


def test_a_thread_that_waits_for_a_loop_that_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minibg.background.threads.LOOP_CHECK", 0.01)
    called, errors = threading.Event(), []

    class Loop(asyncio.SelectorEventLoop):
        def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> asyncio.Handle:  # type: ignore[override]
            handle = super().call_soon_threadsafe(*args, **kwargs)
            called.set()
            return handle

    loop = Loop()

    def ask() -> None:
        try:
            on_loop(loop, print)
        except RuntimeError as error:
            errors.append(str(error))

    asked = threading.Thread(target=ask, daemon=True)
    asked.start()
    assert called.wait(5)
    loop.close()
    asked.join(5)
    assert errors == ["the loop ended before the call was made: the pool has stopped"]
