"""Admission: what the queue accepts, and when that becomes final.

A run passes four steps here. A hold takes them one by one, as its response goes on; ``enqueue``
takes them at once.

1. `add`: the run gets a slot, and the ledger knows it: HELD. Without a free slot `QueueFull` is
   raised in the handler, where it can be caught and answered.
2. `commit`: just before the response head leaves. With a journal, the runs are written to disk
   here, all or none.
3. `release`: after the response has left. The runs become READY and enter the queue as one batch. A
   run with a delay leaves the batch and becomes WAITING.
4. `drop`, instead of 3, when no response was produced: DROPPED, and the slot is free again. It may
   come after a commit, when the server answers the response with a 500.

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

The options of the first run stand, whatever the second add says (retry, timeout, priority, delay),
with two exceptions. ``always=True`` counts for the hold that said it: that hold does not drop the
run. And a run that the journal keeps and one that it does not keep (``durable=False``) never share:
one of the two would not get what its caller asked for.

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
        """Enter a run and return it; or return the unfinished run with its key.

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
        """Accept runs for good. Raises JournalFailed, or PoolStopped when one of them was lost;
        then none is accepted.
        """
        await self._journal.commit(runs)
        if any(run.result.status is TaskStatus.LOST for run in runs):
            raise PoolStopped("the pool has stopped before the tasks were accepted")

    async def accept(self, run: Run) -> None:
        """Commit a run without a response, and release it. Raises as `commit` does, and then the
        run is dropped.
        """
        try:
            await self.commit([run])
        except BaseException:
            self.drop(run)
            raise
        self.release([run])

    def release(self, runs: Sequence[Run]) -> None:
        """Hand runs to the workers: as one batch, but for those that have a delay."""
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
        """Give up one holder of a run; drop the run when that was the last, and it has not been
        released. Return whether it was dropped.
        """
        run.holders -= 1
        if run.holders or run.result.status is not TaskStatus.HELD:
            return False
        self._ledger.note(run, Event.DROP)
        self.slots.free(run)
        return True

    # --- runs that a journal gives back ---

    def restore(self, batch: Sequence[Run]) -> None:
        """Enter the runs of a batch that an earlier process has accepted: HELD, beyond the limit if
        need be.
        """
        for run in batch:
            self.slots.restore(run)
            self._ledger.add(run)

    def resume(self, batch: Sequence[Run]) -> None:
        """Release a restored batch in its old order: when the first run has to wait, the others
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
