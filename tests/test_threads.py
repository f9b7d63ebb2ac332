"""The threads for calls that block, and the way from another thread to the loop's."""

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minibg.threads import Threads, on_loop


async def test_a_call_is_made_in_a_daemon_thread_of_its_own_name() -> None:
    threads = Threads("name", 1)
    thread = await threads.call(threading.current_thread)
    assert (thread.daemon, thread.name, thread is threading.main_thread()) == (True, "name-1", False)
    threads.close()


async def test_a_call_returns_and_raises() -> None:
    threads = Threads("t", 1)
    assert await threads.call(divmod, 7, 2) == (3, 1)
    assert await threads.run(int, "11", base=2) == 3
    with pytest.raises(ZeroDivisionError):
        await threads.call(divmod, 7, 0)
    with pytest.raises(SystemExit):
        await threads.call(exit_now)
    threads.close()


def exit_now() -> None:
    raise SystemExit


async def test_a_stop_iteration_does_not_hang_its_caller() -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        await Threads("t", 1).run(next, iter(()))


word: contextvars.ContextVar[str] = contextvars.ContextVar("word", default="none")


def look() -> str:
    seen = word.get()
    word.set("inside")
    return seen


async def test_a_call_runs_in_a_copy_of_the_callers_context() -> None:
    word.set("outside")
    assert (await Threads("t", 1).run(look), word.get()) == ("outside", "outside")


async def test_a_call_runs_in_the_context_it_is_given_even_an_empty_one() -> None:
    word.set("outside")
    context = contextvars.Context()
    threads = Threads("t", 1)
    assert [await threads.call(look, context=context) for _ in range(2)] == ["none", "inside"]
    assert word.get() == "outside"


async def test_there_are_never_more_threads_than_the_limit_nor_more_than_needed() -> None:
    threads, gate, inside = Threads("t", 3), threading.Event(), threading.Semaphore(0)
    seen: set[int] = set()

    def block() -> None:
        seen.add(threading.get_ident())
        inside.release()
        gate.wait()

    calls = [threads.call(block) for _ in range(6)]
    for _ in range(3):
        inside.acquire()
    gate.set()
    await asyncio.gather(*calls)
    for _ in range(5):
        await threads.run(block)
    assert len(seen) == 3


async def test_one_call_after_another_needs_one_thread() -> None:
    threads = Threads("t", 40)
    assert len({await threads.run(threading.get_ident) for _ in range(5)}) == 1


async def test_there_are_as_many_threads_as_calls_at_once() -> None:
    threads = Threads("t", 3)
    together = threading.Barrier(3)
    assert sorted(await asyncio.gather(*(threads.call(together.wait) for _ in range(3)))) == [0, 1, 2]
    threads.close()


async def test_results_that_arrive_together_are_collected_together() -> None:
    threads = Threads("t", 5)
    ends = [threading.Event() for _ in range(5)]
    calls = [threads.call(end.wait) for end in ends]
    for end in ends:
        end.set()
    assert await asyncio.gather(*calls) == [True] * 5
    threads.close()


async def test_a_call_that_is_cancelled_while_it_is_queued_is_never_made() -> None:
    threads, gate, ran = Threads("t", 1), threading.Event(), list[str]()
    first, second = threads.call(gate.wait), threads.call(ran.append, "second")
    second.cancel()
    gate.set()
    await first
    await threads.run(ran.append, "third")
    assert ran == ["third"]


async def test_a_stuck_thread_delays_neither_its_cancelled_caller_nor_the_next_call() -> None:
    threads, gate = Threads("t", 2), threading.Event()
    stuck = asyncio.ensure_future(threads.run(gate.wait))
    await asyncio.sleep(0)
    stuck.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stuck
    assert await threads.run(int, "1") == 1
    gate.set()


async def test_threads_end_when_closed_and_new_ones_start_when_needed() -> None:
    threads = Threads("t", 1)
    thread = await threads.run(threading.current_thread)
    threads.close()
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()
    assert await threads.run(int, "1") == 1
    threads.close()


async def test_a_thread_that_is_stuck_when_the_threads_are_closed_delays_no_later_call() -> None:
    threads, gate, begun = Threads("t", 1), threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        gate.wait()

    stuck = threads.call(block)
    begun.wait()
    threads.close()
    assert await asyncio.wait_for(threads.run(int, "1"), 5) == 1
    gate.set()
    await stuck
    threads.close()


def test_a_call_that_is_stuck_in_a_loop_that_ended_delays_no_later_loop() -> None:
    threads, gate = Threads("t", 1), threading.Event()

    async def leave() -> None:
        threads.call(gate.wait)

    asyncio.run(leave())
    assert asyncio.run(asyncio.wait_for(threads.run(int, "1"), 5)) == 1
    gate.set()
    threads.close()


def test_two_loops_in_two_threads_have_threads_of_their_own() -> None:
    threads, turns = Threads("t", 1), threading.Barrier(2)
    seen: dict[int, set[int]] = {0: set(), 1: set()}

    async def ask(number: int) -> None:
        for _ in range(100):
            turns.wait(5)
            seen[number].add(await threads.call(threading.get_ident))
        threads.close()

    asking = [threading.Thread(target=asyncio.run, args=[ask(number)]) for number in seen]
    for one in asking:
        one.start()
    for one in asking:
        one.join(20)
        assert not one.is_alive()
    assert (len(seen[0]), len(seen[1]), len(seen[0] | seen[1])) == (1, 1, 2)


async def test_an_idle_thread_keeps_nothing_of_its_last_call() -> None:
    class Upload:
        pass

    threads, upload = Threads("t", 1), Upload()
    gone = weakref.ref(upload)
    await threads.run(id, upload)
    del upload
    await threads.run(int)
    assert gone() is None


def test_a_call_that_outlives_its_loop_ends_every_thread_quietly() -> None:
    threads, gate = Threads("t", 3), threading.Event()
    begun: list[threading.Thread] = []
    ready = threading.Semaphore(0)

    def block() -> None:
        begun.append(threading.current_thread())
        ready.release()
        gate.wait()

    async def leave() -> None:
        for _ in range(3):
            threads.call(block)
        for _ in range(3):
            ready.acquire()

    asyncio.run(leave())
    gate.set()
    for thread in begun:
        thread.join(5)
        assert not thread.is_alive()


async def test_when_the_system_has_no_thread_left_those_that_exist_make_the_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads, gate = Threads("t", 2), threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threads.call(int)
    first = threads.call(gate.wait)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        second = threads.call(int)
    gate.set()
    assert [await first, await second] == [True, 0]
    threads.close()


async def test_a_generator_is_iterated_and_closed_in_threads() -> None:
    here, seen = threading.get_ident(), list[tuple[str, bool]]()

    def count() -> Iterator[int]:
        try:
            for number in range(10):
                seen.append(("step", threading.get_ident() == here))
                yield number
        finally:
            seen.append(("close", threading.get_ident() == here))

    items = Threads("t", 1).iterate(count())
    assert [await anext(items), await anext(items)] == [0, 1]
    await items.aclose()
    assert seen == [("step", False), ("step", False), ("close", False)]


async def test_a_generator_whose_reader_is_cancelled_is_closed_when_its_thread_lets_go_of_it() -> None:
    gate, begun, closed = threading.Event(), threading.Event(), threading.Event()

    def stuck() -> Iterator[bool]:
        try:
            begun.set()
            yield gate.wait()
        finally:
            closed.set()

    async def read() -> None:
        async for _ in Threads("t", 1).iterate(stuck()):
            raise AssertionError("nothing is read")

    reader = asyncio.create_task(read())
    await asyncio.to_thread(begun.wait)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    del reader
    gate.set()
    assert await asyncio.to_thread(closed.wait, 5)


async def test_an_iterator_that_is_no_generator_is_just_left() -> None:
    items = Threads("t", 1).iterate([1, 2])
    assert await anext(items) == 1
    await items.aclose()


# From another thread to the loop's.


async def test_from_another_thread_a_call_is_made_on_the_loops() -> None:
    loop, here = asyncio.get_running_loop(), threading.get_ident()
    assert await asyncio.to_thread(on_loop, loop, threading.get_ident) == here


@pytest.mark.parametrize("function", [lambda: int("three"), lambda: exit_now()])
async def test_an_error_of_the_call_is_raised_in_the_thread_that_asked(function: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, SystemExit)):
        await asyncio.to_thread(on_loop, asyncio.get_running_loop(), function)


def test_a_thread_that_waits_for_a_loop_that_is_closed_gets_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minibg.threads.LOOP_CHECK_SECONDS", 0.01)
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
    assert errors == ["the event loop was closed before the call was made: the pool has stopped"]
