"""The watchdog: names the coroutine task that holds the loop.

A blocking call in a coroutine stops everything: every connection, every other task. It is the commonest fault of all
with background tasks, and the hardest to see, because everything else gets slow. So somebody looks from outside.

While tasks run, the loop *beats*: a timer writes the time into an attribute every 25 ms. A daemon thread looks at it
as often. If the last beat is over 100 ms old, the loop has been held that long; the thread asks asyncio which task the
loop is stepping, and if that is a task of this pool, logs a warning with its name and the stack it stands on at this
moment. Once per hold, not once per look.

It costs forty timer calls a second while tasks run, and nothing while none does. Wrapping every step of every task, as
asyncio's debug mode does, sees the hold only when it is over, without the line it stands on.

What it does not see: a hold that is over before the thread has looked (100 to 125 ms), and one in a handler, which is
not this pool's. A thread that holds the interpreter itself, in a C extension, keeps the watchdog from looking too.
"""

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Mapping

from minibg.background.run import Run

logger = logging.getLogger("minibg.background")

#: Seconds. asyncio's own debug mode calls a callback slow from here on.
HELD_TOO_LONG = 0.1
#: Seconds between two beats, and between two looks: a quarter, so that a hold is seen soon after it is one.
BEAT = HELD_TOO_LONG / 4
#: How many frames of the stack are logged: the innermost.
FRAMES = 12


class Watchdog:
    """A daemon thread that watches one loop while ``running`` is not empty."""

    def __init__(self, loop: asyncio.AbstractEventLoop, running: Mapping[str, Run]) -> None:
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._running = running
        self._beats: asyncio.TimerHandle | None = None
        self._last_beat = 0.0
        self._awake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Watch from now on, until nothing runs."""
        if self._beats is not None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="minibg-watchdog", daemon=True)
            self._thread.start()
        self._beat()
        self._awake.set()

    def close(self) -> None:
        """End the thread, and wait for it: it is never long in its sleep."""
        self._closed = True
        if self._beats is not None:
            self._beats.cancel()
        self._awake.set()
        if self._thread is not None:
            self._thread.join()

    def _beat(self) -> None:
        self._last_beat = time.monotonic()
        if self._running or self._beats is None:
            self._beats = self._loop.call_later(BEAT, self._beat)
        else:
            self._beats = None
            self._awake.clear()

    def _watch(self) -> None:
        named = 0.0
        while not self._closed:
            self._awake.wait()
            beat = self._last_beat
            if time.monotonic() - beat > HELD_TOO_LONG and beat != named and self._awake.is_set():
                named = beat
                self._name_who_holds_it()
            time.sleep(BEAT)

    def _name_who_holds_it(self) -> None:
        task = asyncio.current_task(self._loop)
        held_by = [run for run in list(self._running.values()) if run.attempt is task]
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - documented, in spite of its name.
        if task is not None and held_by and frame is not None:
            stack = "".join(traceback.format_stack(frame)[-FRAMES:])
            logger.warning("%s holds the loop for over %g s:\n%s", held_by[0].describe(), HELD_TOO_LONG, stack)
