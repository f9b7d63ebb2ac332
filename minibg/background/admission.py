"""Admission: which runs the queue accepts, and when that becomes final.

A run passes these steps. A hold makes them one by one, as its response proceeds; ``enqueue`` makes
them all at once.

1. `add`: the run gets a slot and is entered in the ledger as HELD. Without a free slot `QueueFull`
   is raised in the handler, where it can be caught and answered.
2. `commit`: just before the response head leaves. With a journal, the runs are written to disk
   here, all or none.
3. `release`: after the response has left. The runs become READY and enter the queue as one batch. A
   run with a delay leaves the batch and becomes WAITING.
4. `drop`, instead of 3, when no response was produced. The runs become DROPPED, and their slots are
   freed. A drop may follow a commit, when the server replaces the response with a 500.

**Keys.** With ``using(key=...)`` at most one unfinished run of a task has that key. A second add
with the same key means:

========================  ==========================================================================
The first run is          The second add
========================  ==========================================================================
HELD                      returns the first run, which now has two holders. It is dropped when both
                          drop it, and released when the first of them is released.
READY, WAITING, RUNNING   returns the first run. It is accepted already, and the end of the second
                          response changes nothing.
RUNNING, told to end      makes a new run: the first one gives up its key when its cancellation is
                          requested.
finished                  makes a new run.
========================  ==========================================================================

The options of the first run apply (retry, timeout, priority, delay), and those of the second add
are ignored, with two exceptions. ``always=True`` applies to the hold whose task has that option:
this hold does not drop the run. And a durable and a non-durable task (``durable=False``) never
share a run, because one of the two callers would not get the durability that it asked for.

All methods are for the event loop's thread.
"""

from collections.abc import Sequence

from minibg.background.clock import Clock
from minibg.background.errors import PoolStopped
from minibg.background.kept import Journal
from minibg.background.ledger import Ledger
from minibg.background.queue import Queue
from minibg.background.result import Event, TaskStatus
from minibg.background.run import Batch, Run
from minibg.background.slots import Slots


class Admission:
    """The way into the queue."""

    def __init__(self, slots: Slots, ledger: Ledger, queue: Queue, journal: Journal, clock: Clock) -> None:
        self.slots = slots
        self._ledger = ledger
        self._queue = queue
        self._journal = journal
        self._clock = clock

    def add(self, run: Run, *, reserved: bool = False) -> Run:
        """Enter a run and return it, or return the unfinished run with the same key.

        ``reserved``: the caller has reserved a slot, which the run takes. Raises QueueFull,
        PoolStopped.
        """
        self.slots.check_open()
        first = self._ledger.unfinished_with_key(run)
        if first is not None:
            first.holders += 1
            return first
        if not reserved:
            self.slots.reserve_nowait()
        run.has_slot = True
        self._ledger.add(run)
        return run

    async def commit(self, runs: Sequence[Run]) -> None:
        """Accept runs, all or none. Raises JournalFailed, or PoolStopped when a run was lost
        meanwhile.
        """
        await self._journal.commit(runs)
        if any(run.result.status is TaskStatus.LOST for run in runs):
            raise PoolStopped("the pool has stopped before the tasks were accepted")

    async def accept(self, run: Run) -> None:
        """Commit and release a run that belongs to no response. Drops it if `commit` raises, and
        raises the same error.
        """
        try:
            await self.commit([run])
        except BaseException:
            self.drop(run)
            raise
        self.release([run])

    def release(self, runs: Sequence[Run]) -> None:
        """Hand runs to the workers as one batch; a run with a delay becomes a batch of its own."""
        ready = []
        for run in runs:
            if run.result.status is not TaskStatus.HELD:
                continue  # It was cancelled, or another hold that shares it was released first.
            delay = run.seconds_until_due(self._clock)
            if delay is None:
                self._ledger.note(run, Event.RELEASE)
                ready.append(run)
            else:
                self._defer(Batch(run), delay)
        if ready:
            self._queue.put(Batch(*ready))

    def drop(self, run: Run) -> bool:
        """Remove one holder of a run, and drop a run that is HELD and has no other holder. Return
        whether it was dropped.
        """
        run.holders -= 1
        if run.holders or run.result.status is not TaskStatus.HELD:
            return False
        self._ledger.note(run, Event.DROP)
        self.slots.free(run)
        return True

    # --- runs restored from a journal ---

    def restore(self, batch: Sequence[Run]) -> None:
        """Enter the runs of a batch that an earlier process accepted, as HELD. They may exceed the
        limit.
        """
        for run in batch:
            self.slots.restore(run)
            self._ledger.add(run)

    def resume(self, batch: Sequence[Run]) -> None:
        """Release a restored batch in its old order. When the first run has a delay, the others
        wait for it.
        """
        held = [run for run in batch if run.result.status is TaskStatus.HELD]
        if not held:  # All of them were cancelled since.
            return
        for run in held[1:]:
            self._ledger.note(run, Event.RELEASE)
        delay = held[0].seconds_until_due(self._clock)
        if delay is None:
            self._ledger.note(held[0], Event.RELEASE)
            self._queue.put(Batch(*held))
        else:
            self._defer(Batch(*held), delay)

    def _defer(self, batch: Batch, delay: float) -> None:
        batch.runs[0].wait_seconds = delay
        self._ledger.note(batch.runs[0], Event.DEFER)
        self._queue.defer(batch, delay)
