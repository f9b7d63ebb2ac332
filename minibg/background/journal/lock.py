"""The lock of a journal: one process owns the file, through one `Lock`.

A journal has one writer, because two writers on one SQLite file stall each other for seconds
(measured). The owner is the process that has a POSIX record lock on ``FILE.lock``. The kernel frees
a record lock when its process ends in any way. So a start needs no lease and no heartbeat to know
that the last owner is dead, and a slow owner never makes a second process run its tasks again.

Two properties of record locks shape this file:

- They belong to the process. A ``flock`` lock belongs to the open file, so a forked child would
  keep the lock of a dead owner. But the kernel lets one process take a record lock twice, so the
  class keeps a set of the paths that this process owns.
- Closing *any* descriptor of the file drops the lock. So the lock has a file of its own, which
  nothing else in the process opens.

A restart overlaps with the last moments of the old process, so `acquire` waits a moment.

The lock file is not removed after use. Otherwise a process that waits for the lock of the removed
file could get it while another process owns a new lock file.
"""

import fcntl
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

#: Seconds that `Lock.acquire` waits for the owner to end.
PATIENCE_SECONDS = 1.0
#: Seconds between two tries.
RETRY_SECONDS = 0.02


class Lock:
    """The right to write the journal at ``path``. Any thread may acquire and release it, repeatedly."""

    _owned: ClassVar[set[str]] = set()
    _deciding: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path) + ".lock"
        self._descriptor: int | None = None

    def acquire(self, patience: float = PATIENCE_SECONDS) -> bool:
        """Become the owner. Return False if another owner keeps it for ``patience`` seconds. Raises
        OSError.
        """
        deadline = time.monotonic() + patience
        while not self._try():
            if time.monotonic() >= deadline:
                return False
            time.sleep(RETRY_SECONDS)
        return True

    def release(self) -> None:
        """Free the lock. Without effect unless this lock was acquired."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._owned.discard(self._path)

    def owner(self) -> str:
        """Return the owner: "process 123", "this process", or "another process" if it is not known."""
        if self._path in self._owned:
            return "this process"
        with suppress(OSError):
            return Path(self._path).read_text().strip() or "another process"
        return "another process"

    def _try(self) -> bool:
        with self._deciding:
            if self._path in self._owned:  # Checked before the open, because a close would drop the lock.
                return False
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()}\n".encode(), 0)
            except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, depending on the system (POSIX fcntl).
                os.close(descriptor)
                return False
            except OSError:
                os.close(descriptor)
                raise
            self._descriptor = descriptor
            self._owned.add(self._path)
            return True
