"""The interface of a journal: the seam between the queue in memory and the file on disk.

The code of the queue is the same with and without a journal. It calls the journal at these moments
of a run:

- ``check_storable`` in ``add_task``: can this call be stored?
- ``commit`` before the response head leaves: are the runs on disk?
- ``claim`` before an attempt: is the attempt counted on disk?
- ``record`` after every transition: it is written later, and no code of the queue waits for it.

`InMemory` is the journal of a pool without a file: every call can be kept until the process ends.
`journal/` keeps the runs in an SQLite file. Both have the same methods, so the queue never asks
which one it has.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

from minibg.background.result import Event, TaskResult
from minibg.background.run import Request, Run


class Journal(Protocol):
    """The ledger kept on disk, or not kept."""

    async def open(self) -> Sequence[list[Run]]:
        """Return the batches that an earlier process left unfinished, as HELD runs. Raises
        JournalUnusable.
        """

    def check_storable(self, run: Run) -> None:
        """Set ``run.stored`` for a run to be kept. Raises TypeError for a call that cannot be
        stored. From any thread.
        """

    async def commit(self, runs: Sequence[Run]) -> None:
        """Write runs to disk, all or none. Raises JournalFailed."""

    async def claim(self, run: Run) -> bool:
        """Count an attempt before it begins; return whether it may begin. Raises JournalFailed when
        the attempt cannot be counted now.
        """

    def record(self, run: Run, event: Event) -> None:
        """Queue a transition of a stored run to be written later."""

    def get(self, id: str) -> TaskResult[Any] | None:
        """Return a record that is not in memory any more. Raises JournalFailed when the file cannot
        be read.
        """

    async def next_request(self) -> Request:
        """Wait for a request of ``minibg tasks``."""

    def answer(self, request: Request, refusal: str | None = None) -> None:
        """Answer a request: ``refusal`` is the reason why it was refused; None means that it is
        done.
        """

    async def revive(self, id: str) -> Run:
        """Wait until earlier transitions are written, and return a FAILED run as a new run, HELD
        and without attempts. Raises LookupError with the reason in a sentence.
        """

    async def close(self, timeout: float, *, keep_lock: bool = False) -> None:
        """Write the remaining transitions for at most ``timeout`` seconds, and unlock the file.

        ``keep_lock``: an attempt at a stored run is still in progress, so no other process may own
        the file before this one ends.
        """


class InMemory:
    """The journal of a pool without a file: the tasks are in memory and end with the process."""

    async def open(self) -> Sequence[list[Run]]:
        return ()

    def check_storable(self, run: Run) -> None:
        """Accept every call."""

    async def commit(self, runs: Sequence[Run]) -> None:
        """Accept at once."""

    async def claim(self, run: Run) -> bool:  # noqa: ARG002
        return True

    def record(self, run: Run, event: Event) -> None:
        """Write nothing: no run is stored."""

    def get(self, id: str) -> TaskResult[Any] | None:  # noqa: ARG002
        return None

    async def next_request(self) -> Request:
        never: asyncio.Future[Request] = asyncio.get_running_loop().create_future()
        return await never

    def answer(self, request: Request, refusal: str | None = None) -> None:
        """Answer nothing: there are no requests."""

    async def revive(self, id: str) -> NoReturn:
        raise LookupError(f"{id} cannot be retried: without a journal, the arguments of a finished run are not kept")

    async def close(self, timeout: float, *, keep_lock: bool = False) -> None:
        """Close nothing."""
