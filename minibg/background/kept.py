"""What a journal does for the queue: the seam between the path in memory and the file on disk.

The path is the same with and without a journal. It asks at three moments and tells at all others:

- ``check_storable`` in ``add_task``: can this call be written down?
- ``commit`` before the response head leaves: are the runs on disk?
- ``claim`` before an attempt: is the attempt counted on disk?
- ``record`` after every transition: written some time later, and nothing waits for it.

`InMemory` answers for a pool without a journal: every call can be kept as long as the process
lives. `journal/` answers with an SQLite file. Both have the same methods, so no line of the path
asks which of them is there.
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
        """Prepare a run to be kept: sets ``run.stored``. Raises TypeError for a call that cannot
        be. From any thread.
        """

    async def commit(self, runs: Sequence[Run]) -> None:
        """Write runs to disk, all or none. Raises JournalFailed."""

    async def claim(self, run: Run) -> bool:
        """Count an attempt before it begins; return whether it may begin. Raises JournalFailed: not
        now.
        """

    def record(self, run: Run, event: Event) -> None:
        """Write a transition of a stored run, some time later."""

    def get(self, id: str) -> TaskResult[Any] | None:
        """Return a record that is not in memory any more. Raises JournalFailed when the file cannot
        be read.
        """

    async def next_request(self) -> Request:
        """Wait for a request of ``minibg tasks``."""

    def answer(self, request: Request, refusal: str | None = None) -> None:
        """Answer a request: None means that it is done, a sentence why it is not."""

    async def revive(self, id: str) -> Run:
        """Wait until what has happened is written, and return a FAILED run as a new run, HELD and
        without attempts. Raises LookupError with a sentence.
        """

    async def close(self, timeout: float, *, keep_lock: bool = False) -> None:
        """Write what is left, for at most ``timeout`` seconds, and let another process own the
        file.

        ``keep_lock``: an attempt at a stored run is still in progress, so no other process may own
        the file before this one ends.
        """


class InMemory:
    """The journal of a pool without one: accepting needs no disk, and the tasks end with the
    process.
    """

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
