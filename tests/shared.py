"""What tests of several folders share: an empty task, turns of the loop, resets, the log.

A function belongs here when two folders use it. What one folder uses is in its own file:
`background/recording.py` (named tasks and the transitions of a pool), `background/fake_clock.py`,
`server/wire.py` (a client that speaks bytes).

Nothing here waits for time to pass. A test waits for an event, for a line, or for ``pool.idle()``;
where there is nothing to wait for, because the test shows that something does *not* happen, it lets
the loop turn.
"""

import sys
import time
import asyncio
import logging
import socket
import struct
import sys
import time

import pytest

#: Turns of the loop after which everything that is ready has run. The longest chain has six: a batch
#: is released, a worker wakes, an attempt begins, its function ends, the worker notes that, and the
#: waiter of the result wakes.
TURNS = 10


async def nothing() -> None:
    """Be a task that succeeds at once."""


async def turn() -> None:
    """Let everything run that is ready, and what that makes ready."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by a reset, as the kernel does for a process that dies with unread bytes."""
    reset_at_close(writer.get_extra_info("socket"))
    writer.transport.abort()


def reset_at_close(sock: socket.socket) -> None:
    """Make the close of a socket a reset (socket(7): SO_LINGER with a time of zero)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def logged(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """Return the messages of the log from a level on, in order."""
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


# --- the processor's time ---

#: Seconds that `_reference` takes on the machine on which the limits were chosen.
NOMINAL_SECONDS = 0.0005


def _reference() -> float:
    """Return the seconds of a loop in pure Python, the best of a few."""
    best = float("inf")
    for _ in range(5):
        start = time.thread_time()
        for _ in range(40_000):
            pass
        best = min(best, time.thread_time() - start)
    return best


class Stopwatch:
    """The processor time of this thread between `__enter__` and `__exit__`, in seconds of the nominal machine.

    Coverage's tracing is off meanwhile, and a machine that is slower than the nominal one, because it is shared for
    example, is allowed as much more: what is compared is the work and not the clock.
    """

    seconds = 0.0

    def __enter__(self) -> "Stopwatch":
        self._trace = sys.gettrace()
        sys.settrace(None)
        self._slower = max(1.0, _reference() / NOMINAL_SECONDS)
        self._start = time.thread_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = (time.thread_time() - self._start) / self._slower
        sys.settrace(self._trace)
