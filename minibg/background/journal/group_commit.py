"""The journal: the ledger kept on disk, so that an accepted run outlives its process.

The ledger in memory remains the only source. It calls `record` after every transition of a stored
run, and the journal writes the run's row some moments later. Two writes cannot be late, so the
caller awaits them:

- `commit`: the runs of a response are on disk before its head leaves. If the disk refuses them,
  JournalFailed makes the response a 503, and none of them is accepted.
- `claim`: an attempt is counted on disk before the first line of the task runs. So an attempt that
  kills its process has been counted, and the third one makes the run FAILED.

If the process dies, the file is a few moments behind: a run that has just ended is still RUNNING in
the file, and runs once more. The guarantee is **at least once**, so tasks have to be written so
that they may run twice.

**Group commit.** A flush to disk takes about as long as a thousand inserts. So commits share a
flush. The journal has one thread for the file and two groups of changes: the thread writes the
first group, and the second gathers the changes that happen meanwhile. When the thread is done, the
second group becomes the first::

    event loop     commit A ......................... A, B and C are on disk
                     commit B, commit C, 40 ends, 8 claims       |  commit D ...
    group 1        |-- A: one transaction, one flush --|         |
    group 2        gathers B, C, ends, claims          |-- one transaction, one flush --|
    group 3                                             gathers D ...

No timer delays a group: a single commit is written at once, and sixty-four simultaneous commits
share one flush. The longer a flush takes, the larger is the next group. Databases have used group
commit since the 1980s.

The loop's thread fills a group, and then the other thread writes it. No group is used by both
threads at once, so no lock is needed. One detail is about the interpreter's own lock (GIL). After a
group is handed over, the event loop blocks for up to `HEAD_START_SECONDS`, until the thread has
released the GIL inside SQLite. Otherwise the loop, busy with the results of the last group, keeps
the GIL, and loop and disk work in turns (measured: 1.3 times slower).

**The writes of a run** are in one table, `WRITES` in `pending.py`, which maps events to writes.
Most runs take three writes: an insert, a claim, an end. READY has no write of its own, since the
claim implies it. Only if no worker claims a run within `TICK_SECONDS`, READY is written at the next
tick.

**Guarantees of the writer.** Only `close` ends it. If a part of a group fails, for any reason, the
commits or claims that wait for this part get JournalFailed; unwritten ends and updates go into the
next group. If the writer is cancelled, because the event loop ends, all waiting and all later
commits get JournalFailed. A commit waits for at most two groups. A group waits for a lock of
another process for at most `file.BUSY_SECONDS`.

**The end.** `close` is bounded. If the disk hangs, the thread is left running with the unwritten
changes. Waiting commits get JournalFailed, and their outcome is not known. The lock of the file is
kept until the disk answers or the process ends.
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

#: Seconds between two ticks. At a tick the journal reads the requests of `minibg tasks`, writes the
#: runs that are READY, and sweeps.
TICK_SECONDS = 1.0
#: Maximum seconds that the event loop waits for the thread to begin. A tenth of it is usual.
HEAD_START_SECONDS = 0.001
#: Seconds after which a client may try again if the disk refused its tasks; an operator may have to
#: make room first.
RETRY_AFTER_SECONDS = 10


class DiskJournal:
    """The journal of one pool in the file ``path``. All methods but `check_storable` are called on
    the loop's thread.

    ``durability``: "power" flushes accepted runs; "process" does not, so a loss of power may lose
    those of the last seconds. Raises ValueError for any other value. Nothing is opened before
    `open`.
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
        #: The group that is being filled, and the signal that it is not empty.
        self._group = PendingGroup()
        self._wake = asyncio.Event()
        self._last_row = 0
        #: The runs whose insert is not written yet, each with the group of its insert.
        self._inserting: dict[Run, PendingGroup] = {}
        #: Runs whose current status is not in the file: READY without a claim, or not inserted
        #: because the disk refused. Oldest first.
        self._unwritten: dict[Run, None] = {}
        #: Requests that the pool has not taken yet, and the rows of all unanswered requests, by id.
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._unanswered: dict[str, int] = {}
        self._failing = False
        self._closing = False

    async def open(self) -> list[list[Run]]:
        """Become the owner of the file. Return its unfinished runs, HELD, in order and in batches.

        Raises JournalUnusable. If it fails or is cancelled, thread and lock are released.
        """
        try:
            # In the thread, because 100,000 rows take seconds.
            rows, self._last_row = await self._threads.call(self._file.open, self._clock.time())
            batches, unknown = await self._threads.call(recovery.recover, rows, self._clock.time())
            self._reader = connect(self._path, "ro", timeout=0.0)
        except BaseException:
            # The single thread makes its calls in order, so it releases the file after any `open`.
            released = self._threads.call(self._file.release)
            self._threads.close()
            await asyncio.wait({released}, timeout=OPEN_SECONDS)
            raise
        if unknown:
            logger.warning("%s keeps runs that cannot be run: %s", self._path, ", ".join(unknown))
        self._writer = asyncio.create_task(self._write_groups(), name="minibg-journal", context=contextvars.Context())
        self._timer = self._clock.call_later(TICK_SECONDS, self._tick)
        return batches

    def check_storable(self, run: Run) -> None:
        """Prepare a run for storage, unless it is ``durable=False``. Raises TypeError if it cannot
        be stored.
        """
        if run.options.durable:
            codec.encode_call(run)

    async def commit(self, runs: Sequence[Run]) -> None:
        """Write these runs to disk in one transaction. Raises JournalFailed; then no run is
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
            else:  # Another response has released it already, so it is not in this batch.
                self._insert(run)
            if run in self._inserting:  # Perhaps by an earlier group, for another response.
                inserting[self._inserting[run]] = None
        self._wake.set()
        for group in (*inserting, *resetting):
            await group.written.wait()
            error = group.insert_error if group in inserting else group.update_error
            if error is not None:
                raise _failed("the tasks could not be written to disk", error)

    async def claim(self, run: Run) -> bool:
        """Count an attempt on disk before it begins. Return False if the run has ended in the file.

        Raises JournalFailed if the attempt cannot be counted; it must not begin then.
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
        """Note a transition of a run, which is written some moments later."""
        stored, write = run.stored, WRITES[event]
        if stored is None or write is Write.NOTHING:
            return
        self._unwritten.pop(run, None)
        if write is Write.END:
            self._group.end(run, stored, self._clock.time())
        elif stored.row is None:  # The run was enqueued without a commit.
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
        """Return the record of a run from the file; None for an unknown id. Raises JournalFailed."""
        row = self._find(id)
        return None if row is None else codec.decode_result(row)

    async def revive(self, id: str) -> Run:
        """Return a FAILED run of the file as a new run, HELD, with all its attempts. Its commit
        resets the row.

        Waits until all changes so far are in the file. Raises LookupError, with a sentence for the
        operator, if the run is not FAILED or cannot be run in this process. Raises JournalFailed.
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
        """Grant a request, or refuse it with a sentence that ``minibg tasks`` shows the operator.

        A granted cancel also ends a run that is only in the file, because its task is not
        registered in this process.
        """
        if (row := self._unanswered.get(request.id)) is not None:
            self._group.answers[row] = Answer(request.action, refusal)
            self._wake.set()

    # --- filling a group ---

    def _check_open(self) -> None:
        if self._writer is None or self._writer.done() or self._closing:
            raise _failed("the tasks could not be written to disk", RuntimeError(f"{self._path} is closed"))

    def _insert(self, run: Run, first: StoredRun | None = None) -> None:
        """Add the insert of a run that is not in the file. ``first``: the first run of its batch,
        or None.
        """
        stored = run.stored
        if stored is None or stored.row is not None:
            return
        self._last_row += 1
        self._group.insert(run, stored, self._last_row, first)
        self._inserting[run] = self._group
        self._wake.set()
        # A row is inserted as HELD. If the first insert was refused, the run may be released by
        # now, and its status has to be written too.
        if run.result.status is TaskStatus.WAITING:
            self._group.update(run, stored, self._clock.time())
        elif run.result.status is TaskStatus.READY:
            self._unwritten[run] = None

    def _write_ready_runs(self, limit: int | None = None) -> None:
        """Add the status of runs that are READY and not claimed by a worker yet."""
        for run in list(self._unwritten)[:limit]:
            del self._unwritten[run]
            if run.stored is None:
                continue
            if run.stored.row is None:  # The disk refused it, and may have room by now.
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
        """Write group after group, until the journal is closed and no group is left."""
        group = self._group
        try:
            while not self._closing or self._wake.is_set():
                await self._wake.wait()
                self._wake.clear()
                group, self._group = self._group, PendingGroup()
                await self._write(group)
                try:
                    self._after_write(group)
                except Exception:  # A fault of this file must not end the writer.
                    logger.exception("%s: a group was not settled", self._path)
                group.written.set()
        finally:  # The journal is closed, or the writer is cancelled.
            self._give_up(group)
            self._give_up(self._group)

    def _give_up(self, group: PendingGroup) -> None:
        """Raise JournalFailed in the waiters of a group, whose outcome is not known."""
        if not group.written.is_set():
            group.fail(RuntimeError(f"{self._path} is closed"))
            group.written.set()

    async def _write(self, group: PendingGroup) -> None:
        self._file.in_sqlite.clear()
        try:
            writing = self._threads.call(self._file.write, group, self._clock.time())
            self._file.in_sqlite.wait(HEAD_START_SECONDS)
            await writing
        except Exception as error:  # noqa: BLE001 - no thread could be started, for example.
            group.fail(error)

    def _after_write(self, group: PendingGroup) -> None:
        """Note the result of a written group."""
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
        if self._reader is None or not id.isascii():  # An id may be any text from the path of a request.
            return None
        try:
            found = self._reader.execute(BY_ID, (id,)).fetchone()
        except sqlite3.Error as error:
            raise _failed(f"{self._path} could not be read", error) from error
        return None if found is None else Row(*found)

    # --- the end ---

    async def close(self, timeout: float, *, keep_lock: bool = False) -> None:
        """Write the remaining changes within ``timeout`` seconds, and close the file.

        ``keep_lock``: keep the lock, because an attempt at a stored run is still in progress that
        cannot be stopped. So no other process runs the same run.
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
            # In every case (in time, too late, cancelled), the thread writes the changes that the
            # writer has left, and then closes the file.
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
