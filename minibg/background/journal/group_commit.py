"""The journal: the ledger kept on disk, so that an accepted run outlives its process.

The ledger in memory stays the one source. It calls `record` after every transition of a run that is
stored, and the journal writes the run's row some moments later. Two things cannot be written later,
and are awaited:

- `commit`: the runs of a response are on disk before its head leaves. If the disk refuses them,
  JournalFailed makes the response a 503, and none of them is accepted.
- `claim`: an attempt is counted on disk before the first line of the task runs. So a task that
  kills its process has been counted, and is FAILED at the third time.

If the process dies, the file is a few moments behind: a run that had just ended is still RUNNING
there, and runs once more. That is **at least once**: write tasks that may run twice.

**Group commit.** A flush to disk takes about as long as a thousand inserts. So commits do not flush
one by one, they share a flush. The journal has one thread for the file, and at any moment two
groups: one that the thread is writing, and one that gathers whatever happens meanwhile. When the
thread is done, the second group becomes the first::

    event loop     commit A ......................... A, B and C are on disk
                     commit B, commit C, 40 ends, 8 claims       |  commit D ...
    group 1        |-- A: one transaction, one flush --|         |
    group 2        gathers B, C, ends, claims          |-- one transaction, one flush --|
    group 3                                             gathers D ...

There is no timer that waits for company: a lone commit is written at once, and sixty-four that come
together share one flush. The longer a flush takes, the larger is the next group. Databases have
done it like this since the 1980s.

The loop's thread fills a group and the other thread writes it, and no group is touched by both at
once: so there is no lock. One detail is about the interpreter's own lock. When a group has been
handed over, the event loop blocks for up to `HEAD_START_SECONDS`, until the thread has given that
lock up inside SQLite. Otherwise the loop, which the last group has just given plenty to do, keeps
the lock, and loop and disk take turns (measured: 1.3 times slower).

**What is written when** is one table, `WRITES` in `pending.py`, from the event to the write. Most
runs take three writes: an insert, a claim, an end. That they were READY in between is written
together with the claim. If no worker claims a run within `TICK_SECONDS` it is written on its own,
at the next tick.

**Guarantees of the writer.** Only `close` ends it. A group that fails, whatever the reason, has its
waiters told; ends and updates of a failed group are written with the next one. If the writer is
cancelled, because the event loop ends, every waiter gets JournalFailed, and so does every later
commit. A commit waits for at most two groups, and a group for at most `file.BUSY_SECONDS` behind a
lock of another process.

**The end.** `close` is bounded. If the disk hangs, the thread is left behind with everything that
is still to be written; commits that wait get JournalFailed, and their outcome is not known. The
lock of the file stays with the thread until the disk answers, at the latest until the process ends.
"""

import asyncio
import contextvars
import os
import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import Any

from minibg.background.clock import Clock, Timer
from minibg.background.errors import JournalFailed
from minibg.background.journal import codec, recovery
from minibg.background.journal.file import OPEN_SECONDS, SWEEP_ROWS, Durability, File, connect
from minibg.background.journal.pending import WRITES, PendingGroup, Write
from minibg.background.journal.schema import BY_ID, Answer, Row
from minibg.background.result import Event, TaskResult, TaskStatus
from minibg.background.run import Request, Run, StoredRun
from minibg.log import SafeLogger
from minibg.threads import Threads

logger = SafeLogger("minibg.background")

#: Seconds between two ticks. At each the journal reads the requests of `minibg tasks`, writes which
#: runs are READY, and sweeps.
TICK_SECONDS = 1.0
#: Seconds that the event loop waits, at most, for the thread to begin. It takes a tenth of that.
HEAD_START_SECONDS = 0.001
#: Seconds after which a client may try again if the disk refused its tasks: an operator has to make
#: room first.
RETRY_AFTER_SECONDS = 10


class DiskJournal:
    """The journal of one pool in the file ``path``. All methods but `check_storable` are for the
    loop's thread.

    ``durability``: "power" flushes what is accepted; "process" does not, and a loss of power may
    take the last seconds. Raises ValueError for any other value. Nothing is opened before `open`.
    """

    def __init__(self, path: str | os.PathLike[str], durability: Durability, clock: Clock) -> None:
        if not os.fspath(path) or durability not in ("power", "process"):
            raise ValueError(
                f"journal= is the path of a file, durability= 'power' or 'process': {path!r}, {durability!r}"
            )
        self._path = os.fspath(path)
        self._clock = clock
        self._file = File(self._path, durability)
        self._threads = Threads("minibg-journal", 1)
        #: Reads finished runs on the loop's thread, beside the writer.
        self._reader: sqlite3.Connection | None = None
        self._writer: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        #: The group that gathers, and the signal that there is something in it.
        self._group = PendingGroup()
        self._wake = asyncio.Event()
        self._last_row = 0
        #: The group of each run whose insert is not written yet.
        self._inserting: dict[Run, PendingGroup] = {}
        #: Runs whose status in memory is not in the file: READY without a claim, or not inserted
        #: because the disk refused. Oldest first.
        self._unwritten: dict[Run, None] = {}
        #: Requests that the pool has not taken yet, and the rows of all that are not answered, by
        #: id.
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._unanswered: dict[str, int] = {}
        self._failing = False
        self._closing = False

    async def open(self) -> list[list[Run]]:
        """Become the owner of the file. Return its unfinished runs, HELD, in their order, those of
        one batch together.

        Raises JournalUnusable. When it fails or is cancelled, neither the thread nor the lock is
        left.
        """
        try:
            # In the thread: 100,000 rows take seconds.
            rows, self._last_row = await self._threads.call(self._file.open, self._clock.time())
            batches, unknown = await self._threads.call(recovery.recover, rows, self._clock.time())
            self._reader = connect(self._path, "ro", timeout=0.0)
        except BaseException:
            # The one thread makes its calls in order: the file is open by then, or never will be.
            released = self._threads.call(self._file.release)
            self._threads.close()
            await asyncio.wait({released}, timeout=OPEN_SECONDS)
            raise
        if unknown:
            logger.warning("%s keeps what cannot be run: %s", self._path, ", ".join(unknown))
        self._writer = asyncio.create_task(self._write_groups(), name="minibg-journal", context=contextvars.Context())
        self._timer = self._clock.call_later(TICK_SECONDS, self._tick)
        return batches

    def check_storable(self, run: Run) -> None:
        """Make a run ready to be stored, unless it is ``durable=False``. Raises TypeError for a
        call that cannot be.
        """
        if run.options.durable:
            codec.encode_call(run)

    async def commit(self, runs: Sequence[Run]) -> None:
        """Write these runs to disk, in one transaction. Raises JournalFailed; then none of them is
        accepted.
        """
        self._check_open()
        first: StoredRun | None = None
        inserting: dict[PendingGroup, None] = {}
        resetting: list[PendingGroup] = []
        for run in runs:
            stored = run.stored
            if stored is None or run.result.is_finished:
                continue
            if stored.must_reset and stored.row is not None:
                stored.must_reset = False
                self._group.resets.append(stored.row)
                resetting.append(self._group)
            elif run.result.status is TaskStatus.HELD:
                self._insert(run, first := first or stored)
            else:  # Another response has it too, and has released it: the runs of this one are not behind it.
                self._insert(run)
            if run in self._inserting:  # Perhaps for another response, by a group that is being written now.
                inserting[self._inserting[run]] = None
        self._wake.set()
        for group in (*inserting, *resetting):
            await group.written.wait()
            error = group.insert_error if group in inserting else group.update_error
            if error is not None:
                raise _failed("the tasks could not be written to disk", error)

    async def claim(self, run: Run) -> bool:
        """Count an attempt on disk before it begins. Return False if the file says that the run has
        ended.

        Raises JournalFailed: the attempt cannot be counted now, and must not begin.
        """
        if run.stored is None:
            return True
        self._check_open()
        self._insert(run)
        self._unwritten.pop(run, None)
        group, row = self._group, run.stored.row
        group.claims.append(row or 0)
        self._wake.set()
        await group.written.wait()
        if group.update_error is not None or (run.stored.row != row and not run.result.is_finished):
            raise _failed("an attempt could not be written to disk", group.update_error or group.insert_error)
        return row in group.granted

    def record(self, run: Run, event: Event) -> None:
        """Note a transition of a run, to be written behind."""
        stored, write = run.stored, WRITES[event]
        if stored is None or write is Write.NOTHING:
            return
        self._unwritten.pop(run, None)
        if write is Write.END:
            self._group.end(run, stored, self._clock.time())
        elif stored.row is None:  # It was enqueued without a commit.
            self._insert(run)
        elif write is Write.WITH_CLAIM:
            self._unwritten[run] = None
            return
        else:
            if event is Event.DEFER and not run.result.attempts:
                stored.batch = None  # A run with a delay leaves its batch.
            self._group.update(run, stored, self._clock.time())
        self._wake.set()

    def get(self, id: str) -> TaskResult[Any] | None:
        """Return the record of a run that is in the file; None for an unknown id. Raises
        JournalFailed.
        """
        row = self._find(id)
        return None if row is None else codec.decode_result(row)

    async def revive(self, id: str) -> Run:
        """Return a FAILED run of the file as a new run, HELD, with all its attempts. Its commit
        resets the row.

        Waits until everything that has happened so far is in the file. Raises LookupError, with a
        sentence for the operator, for a run that is not FAILED or cannot be run in this process,
        and JournalFailed.
        """
        self._check_open()
        group = self._group
        self._wake.set()
        await group.written.wait()
        if (row := self._find(id)) is None:
            raise LookupError(f"there is no run {id}")
        if row.status != TaskStatus.FAILED:
            raise LookupError(f"{id} cannot be retried: it is {row.status}")
        try:
            run = codec.decode_run(row, self._clock.time())
        except Exception as error:
            raise LookupError(f"{id} cannot be retried in this process: {error}") from error
        assert run.stored is not None
        run.stored.batch, run.stored.uncounted_attempts, run.stored.must_reset = None, 0, True
        run.result.attempts, run.result.finished = 0, None
        return run

    # --- requests of `minibg tasks` ---

    async def next_request(self) -> Request:
        """Wait for the next request of ``minibg tasks``, and return it."""
        return await self._requests.get()

    def answer(self, request: Request, refusal: str | None = None) -> None:
        """Answer a request: grant it, or refuse it with a sentence that ``minibg tasks`` shows the
        operator.

        A granted cancel also ends a run that only the file knows, because its task is not
        registered in this process.
        """
        if (row := self._unanswered.get(request.id)) is not None:
            self._group.answers[row] = Answer(request.action, refusal)
            self._wake.set()

    # --- gathering ---

    def _check_open(self) -> None:
        if self._writer is None or self._writer.done() or self._closing:
            raise _failed("the tasks could not be written to disk", RuntimeError(f"{self._path} is closed"))

    def _insert(self, run: Run, first: StoredRun | None = None) -> None:
        """Gather the insert of a run that is not in the file. ``first`` is the first run of its
        batch; None: it is alone.
        """
        stored = run.stored
        if stored is None or stored.row is not None:
            return
        self._last_row += 1
        self._group.insert(run, stored, self._last_row, first)
        self._inserting[run] = self._group
        self._wake.set()
        # A row is inserted as HELD. A run that was released before, because its first insert was
        # refused, is more:
        if run.result.status is TaskStatus.WAITING:
            self._group.update(run, stored, self._clock.time())
        elif run.result.status is TaskStatus.READY:
            self._unwritten[run] = None

    def _write_ready_runs(self, limit: int | None = None) -> None:
        """Gather the status of runs that no worker has claimed: it may be long until one does."""
        for run in list(self._unwritten)[:limit]:
            del self._unwritten[run]
            if run.stored is None:
                continue
            if run.stored.row is None:  # The disk may have room by now.
                self._insert(run)
            else:
                self._group.update(run, run.stored, self._clock.time())

    def _tick(self) -> None:
        self._write_ready_runs(SWEEP_ROWS)
        self._group.housekeeping = True
        self._wake.set()
        self._timer = self._clock.call_later(TICK_SECONDS, self._tick)

    # --- writing ---

    async def _write_groups(self) -> None:
        """Write group after group, until the journal closes and nothing is left."""
        group = self._group
        try:
            while not self._closing or self._wake.is_set():
                await self._wake.wait()
                self._wake.clear()
                group, self._group = self._group, PendingGroup()
                await self._write(group)
                try:
                    self._after_write(group)
                except Exception:  # A fault of this file; whatever it is, the writer goes on.
                    logger.exception("%s: a group was not settled", self._path)
                group.written.set()
        finally:  # Closed, or cancelled: nothing is written here any more.
            self._give_up(group)
            self._give_up(self._group)

    def _give_up(self, group: PendingGroup) -> None:
        """Tell the waiters of a group that its outcome is not known."""
        if not group.written.is_set():
            group.fail(RuntimeError(f"{self._path} is closed"))
            group.written.set()

    async def _write(self, group: PendingGroup) -> None:
        self._file.in_sqlite.clear()
        try:
            writing = self._threads.call(self._file.write, group, self._clock.time())
            self._file.in_sqlite.wait(HEAD_START_SECONDS)
            await writing
        except Exception as error:  # noqa: BLE001 - no thread could be started, for example: the group has failed.
            group.fail(error)

    def _after_write(self, group: PendingGroup) -> None:
        """Note what became of a group."""
        for run in group.runs:
            del self._inserting[run]
            if group.insert_error is not None and run.stored is not None:
                run.stored.row = run.stored.batch = None
                if run.result.status in (TaskStatus.READY, TaskStatus.WAITING):
                    self._unwritten[run] = None
        if group.update_error is not None:
            self._group.take_over(group)
        self._unanswered = {id: row for id, row in self._unanswered.items() if row not in group.answers}
        self._log_disk_state(group.update_error or group.insert_error)
        for row in group.requests:
            if row.id not in self._unanswered and row.request is not None:
                self._unanswered[row.id] = row.row
                self._requests.put_nowait(Request(row.request, row.id))
        if group.sweep_again and not self._closing:
            self._group.housekeeping = True
            self._wake.set()

    def _log_disk_state(self, error: Exception | None) -> None:
        if error is not None and not self._failing:
            logger.error("%s cannot be written: %s; its tasks are refused, or wait", self._path, error)
        elif error is None and self._failing:
            logger.info("%s is written again", self._path)
        self._failing = error is not None

    # --- reading and recovering ---

    def _find(self, id: str) -> Row | None:
        if self._reader is None or not id.isascii():  # An id may be any text: it may come from the path of a request.
            return None
        try:
            found = self._reader.execute(BY_ID, (id,)).fetchone()
        except sqlite3.Error as error:
            raise _failed(f"{self._path} could not be read", error) from error
        return None if found is None else Row(*found)

    # --- the end ---

    async def close(self, timeout: float, *, keep_lock: bool = False) -> None:
        """Write what is left, within ``timeout`` seconds, and let go of the file.

        ``keep_lock``: an attempt at a stored run is still in progress, which nothing can stop. The
        lock stays with the process then, so that no other process runs the same task.
        """
        if self._writer is None or self._closing:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._write_ready_runs()
        self._closing = True
        self._wake.set()
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            await asyncio.wait({self._writer}, timeout=timeout)
        finally:
            # In time, or too late, or cancelled together with the writer: the thread writes what
            # the writer has left, and closes the file after that.
            self._writer.cancel()
            last, self._group = self._group, PendingGroup()
            self._give_up(last)
            self._threads.call(self._file.write, last, self._clock.time())
            closed = self._threads.call(partial(self._file.close, keep_lock=keep_lock))
            self._threads.close()
            if self._reader is not None:
                self._reader.close()
                self._reader = None
        await asyncio.wait({closed}, timeout=max(0.0, deadline - asyncio.get_running_loop().time()))
        if not closed.done():
            logger.error(
                "%s: the disk did not answer within %g s; its thread and its lock are left behind", self._path, timeout
            )


def _failed(sentence: str, error: Exception | None) -> JournalFailed:
    return JournalFailed(f"{sentence}: {error}", retry_after=RETRY_AFTER_SECONDS)
