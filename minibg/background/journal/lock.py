"""The lock of a journal: one process owns the file, and within the process one `Lock`.

A journal has one writer, because two writers on one SQLite file stall each other for seconds
(measured). The owner is the process that has a POSIX record lock on ``FILE.lock``. The kernel frees
a record lock when its process ends, however it ends. So a start needs no lease and no heartbeat to
know that the owner before it is dead, and never runs a task a second time only because the first
owner is slow.

Two properties of record locks shape this file:

- They belong to the process. A lock of ``flock`` belongs to the open file, and a child that was
  forked by a dead owner would keep it. In exchange the kernel lets the same process lock the file
  twice; the class keeps a set of the paths that this process owns.
- Closing *any* descriptor of the file drops the lock. So the lock has a file of its own, which
  nothing else in the process opens.

A restart overlaps with the last moments of the process before, so `acquire` waits a moment.

The file is not removed after use: a process that waits for the lock of a removed file would get it
beside the owner of a new one.
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
    """The right to write the journal at ``path``. May be acquired, released and acquired again, by
    any thread.
    """

    _owned: ClassVar[set[str]] = set()
    _deciding: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path) + ".lock"
        self._descriptor: int | None = None

    def acquire(self, patience: float = PATIENCE_SECONDS) -> bool:
        """Become the owner; return False if another owner does not end within ``patience`` seconds.
        Raises OSError.
        """
        deadline = time.monotonic() + patience
        while not self._try():
            if time.monotonic() >= deadline:
                return False
            time.sleep(RETRY_SECONDS)
        return True

    def release(self) -> None:
        """Let another owner in. Without effect unless this lock was acquired."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._owned.discard(self._path)

    def owner(self) -> str:
        """Return the name of the owner: "process 123", "this process", or "another process" when it
        is not known.
        """
        if self._path in self._owned:
            return "this process"
        with suppress(OSError):
            return Path(self._path).read_text().strip() or "another process"
        return "another process"

    def _try(self) -> bool:
        with self._deciding:
            if self._path in self._owned:  # Before anything is opened: closing it again would drop the lock.
                return False
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()}\n".encode(), 0)
            except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes (POSIX fcntl).
                os.close(descriptor)
                return False
            except OSError:
                os.close(descriptor)
                raise
            self._descriptor = descriptor
            self._owned.add(self._path)
            return True
