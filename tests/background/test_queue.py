"""The queue: two lanes, batches that are due later, and runs that are taken out."""

import asyncio
from typing import Unpack

from minibg.background import Event, TaskStatus
from minibg.background.kept import InMemory
from minibg.background.ledger import Ledger
from minibg.background.queue import Queue
from minibg.background.run import Batch
from minibg.background.task import CallOptions
from tests.background.fake_clock import FakeClock
from tests.background.recording import a_run, turn


class Rig:
    """A queue with its ledger and its clock."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.ledger = Ledger(self.clock, 10, 10, InMemory())
        self.queue = Queue(self.ledger, self.clock)

    def batch(self, event: Event = Event.RELEASE, runs: int = 1, **options: Unpack[CallOptions]) -> Batch:
        """Return a batch whose first run has had this event; the others are READY."""
        made = Batch(*(a_run(self.clock, **options) for _ in range(runs)))
        for run in made.runs:
            self.ledger.add(run)
            self.ledger.note(run, event if run is made.runs[0] else Event.RELEASE)
        return made


async def test_batches_leave_first_in_first_out_and_high_before_normal() -> None:
    rig = Rig()
    normal, high = [rig.batch() for _ in range(2)], [rig.batch(priority="high") for _ in range(2)]
    for batch in (normal[0], high[0], normal[1], high[1]):
        rig.queue.put(batch)
    assert [await rig.queue.get() for _ in range(4)] == [*high, *normal]


def test_oldest_is_the_batch_that_was_queued_first_in_either_lane() -> None:
    rig = Rig()
    assert rig.queue.oldest() is None
    rig.queue.put(rig.batch())
    began = rig.clock.monotonic()
    rig.clock.advance(3)
    rig.queue.put(rig.batch(priority="high"))
    assert rig.queue.oldest() == began


async def test_a_cancelled_worker_is_not_woken_in_place_of_another() -> None:
    rig = Rig()
    gone, idle = (asyncio.create_task(rig.queue.get()) for _ in range(2))
    await turn()
    gone.cancel()
    batch = rig.batch()
    rig.queue.put(batch)  # The first worker does not know yet that it is cancelled.
    assert await idle is batch


async def test_a_worker_that_is_woken_and_cancelled_in_the_same_moment_wakes_another() -> None:
    rig = Rig()
    gone, idle = (asyncio.create_task(rig.queue.get()) for _ in range(2))
    await turn()
    batch = rig.batch()
    rig.queue.put(batch)
    gone.cancel()
    assert await idle is batch
    assert gone.cancelled()


async def test_dismissed_workers_end() -> None:
    queue = Rig().queue
    workers = [asyncio.create_task(queue.get()) for _ in range(2)]
    await turn()
    queue.dismiss_workers()
    await asyncio.wait(workers)
    assert [worker.cancelled() for worker in workers] == [True, True]


async def test_a_deferred_batch_is_queued_when_it_is_due() -> None:
    rig = Rig()
    batch = rig.batch(Event.DEFER)
    rig.queue.defer(batch, 5)
    rig.clock.advance(4.9)
    assert (rig.queue.deferred, rig.queue.oldest()) == ({batch}, None)
    rig.clock.advance(0.1)
    assert (rig.queue.deferred, await rig.queue.get()) == (set(), batch)
    assert batch.runs[0].result.status is TaskStatus.READY


def test_a_batch_that_is_due_beyond_the_horizon_is_set_aside() -> None:
    rig = Rig()
    before, after, later = (rig.batch(Event.DEFER, runs=2) for _ in range(3))
    rig.queue.defer(before, 5)
    rig.queue.defer(after, 6)
    rig.queue.set_horizon(rig.clock.monotonic() + 5)
    rig.queue.defer(later, 6)
    assert rig.queue.deferred == {before}
    assert rig.queue.set_aside == {*after.runs, *later.runs}
    assert rig.clock.pending() == [5.0]


def test_a_run_is_taken_out_of_its_batch_and_an_empty_batch_out_of_the_queue() -> None:
    rig = Rig()
    batches = [rig.batch(runs=2), rig.batch(priority="high")]
    for batch in batches:
        rig.queue.put(batch)
        for run in list(batch.runs):
            rig.queue.remove(run)
    assert (rig.queue.oldest(), [batch.runs for batch in batches]) == (None, [[], []])


async def test_when_the_first_run_of_a_deferred_batch_is_taken_out_its_siblings_are_queued() -> None:
    for horizon in (9, 0):  # Deferred, and set aside.
        rig = Rig()
        batch = rig.batch(Event.DEFER, runs=3)
        rig.queue.defer(batch, 5)
        rig.queue.set_horizon(rig.clock.monotonic() + horizon)
        first, second, third = batch.runs
        rig.queue.remove(second)
        assert rig.queue.oldest() is None
        rig.queue.remove(first)
        assert (await rig.queue.get()).runs == [third]
        assert (rig.queue.deferred, rig.queue.set_aside, rig.clock.pending()) == (set(), set(), [])


def test_a_deferred_batch_whose_only_run_is_taken_out_is_gone() -> None:
    rig = Rig()
    batch = rig.batch(Event.DEFER)
    rig.queue.defer(batch, 5)
    rig.queue.remove(batch.runs[0])
    assert (rig.queue.deferred, rig.queue.oldest(), rig.clock.pending()) == (set(), None, [])
