"""Where functions that block run."""

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Iterator

import pytest

from minibg.web.threads import Threads


async def test_a_call_returns_raises_and_runs_elsewhere() -> None:
    threads = Threads()
    assert await threads.run(threading.current_thread) is not threading.current_thread()
    assert await threads.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await threads.run(divmod, 7, 0)
    threads.close()


async def test_a_stop_iteration_does_not_hang_its_caller() -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        await Threads().run(next, iter(()))


async def test_a_call_runs_in_a_copy_of_the_callers_context() -> None:
    word: contextvars.ContextVar[str] = contextvars.ContextVar("word")
    word.set("outside")

    def look() -> str:
        seen = word.get()
        word.set("inside")
        return seen

    assert (await Threads().run(look), word.get()) == ("outside", "outside")


async def test_there_are_never_more_threads_than_the_limit_nor_more_than_needed() -> None:
    threads, gate, inside = Threads(3), threading.Event(), threading.Semaphore(0)
    seen: set[int] = set()

    def block() -> None:
        seen.add(threading.get_ident())
        inside.release()
        gate.wait()

    calls = [asyncio.ensure_future(threads.run(block)) for _ in range(6)]
    await asyncio.sleep(0)
    for _ in range(3):
        inside.acquire()
    gate.set()
    await asyncio.gather(*calls)
    for _ in range(5):
        await threads.run(block)
    assert len(seen) == 3


async def test_one_call_after_another_needs_one_thread() -> None:
    threads = Threads()
    assert len({await threads.run(threading.get_ident) for _ in range(5)}) == 1


async def test_a_call_that_is_cancelled_while_it_waits_is_never_started() -> None:
    threads, gate, ran = Threads(1), threading.Event(), list[str]()
    first = asyncio.ensure_future(threads.run(gate.wait))
    second = asyncio.ensure_future(threads.run(ran.append, "second"))
    await asyncio.sleep(0)
    second.cancel()
    gate.set()
    await first
    await threads.run(ran.append, "third")
    assert ran == ["third"]


async def test_a_stuck_thread_does_not_hold_its_cancelled_caller_nor_the_next_call() -> None:
    threads, gate = Threads(2), threading.Event()
    stuck = asyncio.ensure_future(threads.run(gate.wait))
    await asyncio.sleep(0)
    stuck.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stuck
    assert await threads.run(int, "1") == 1
    gate.set()


async def test_threads_go_when_closed_and_come_back_when_needed() -> None:
    threads = Threads()
    one: threading.Thread = await threads.run(threading.current_thread)
    threads.close()
    one.join(5)
    assert not one.is_alive()
    assert await threads.run(int, "1") == 1
    threads.close()


async def test_a_waiting_thread_keeps_nothing_of_its_last_call() -> None:
    class Upload:
        pass

    threads, upload = Threads(), Upload()
    gone = weakref.ref(upload)
    await threads.run(id, upload)
    del upload
    await threads.run(int)
    assert gone() is None


def test_a_call_may_end_after_its_loop() -> None:
    threads, gate = Threads(), threading.Event()
    thread: list[threading.Thread] = []

    def wait() -> None:
        thread.append(threading.current_thread())
        gate.wait()

    async def leave() -> None:
        call = asyncio.ensure_future(threads.run(wait))
        await asyncio.sleep(0)
        call.cancel()

    asyncio.run(leave())
    gate.set()
    threads.close()
    for one in thread:
        one.join(5)
        assert not one.is_alive()


async def test_a_generator_is_iterated_and_closed_in_threads() -> None:
    here, places = threading.get_ident(), list[tuple[str, bool]]()

    def count() -> Iterator[int]:
        try:
            for number in range(10):
                places.append(("step", threading.get_ident() == here))
                yield number
        finally:
            places.append(("close", threading.get_ident() == here))

    items = Threads().iterate(count())
    assert [await anext(items), await anext(items)] == [0, 1]
    await items.aclose()
    assert places == [("step", False), ("step", False), ("close", False)]


async def test_an_iterator_that_is_no_generator_is_just_left() -> None:
    items = Threads().iterate([1, 2])
    assert await anext(items) == 1
    await items.aclose()
