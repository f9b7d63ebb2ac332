"""The watchdog: names the coroutine task that holds the loop.

A blocking call in a coroutine stops everything: every connection, every other task. It is the commonest fault of all
with background tasks, and the hardest to see, because everything else gets slow. So somebody looks from outside.

While tasks run, the loop *beats*: a timer counts up an attribute every 25 ms. A daemon thread looks as often at the
count, and asks asyncio which task the loop is stepping. If four looks after the first all see the same beat and the
same task, it has held the loop for 100 ms; if it is a task of this pool, the thread logs a warning with its name and
the stack it stands on at this moment. Once per hold, not once per look.

Looks are counted, not the time since the last beat: on a machine that stands still the thread stands still too, and
nobody is blamed for it. Nor is the last of many tasks that are each short, in a turn of the loop that is long.

It costs forty timer calls a second while tasks run, and nothing while none does. Wrapping every step of every task, as
asyncio's debug mode does, sees the hold only when it is over, without the line it stands on.

What it does not see: a hold that is over before the fifth look (100 to 125 ms), and one in a handler, which is not this
pool's. A thread that holds the interpreter itself, in a C extension, keeps the watchdog from looking too.
"""

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any

from minibg.background.run import Run

logger = logging.getLogger("minibg.background")

#: Seconds. asyncio's own debug mode calls a callback slow from here on.
HELD_TOO_LONG = 0.1
#: How many looks at the same step make a hold, after the first.
LOOKS = 4
#: Seconds between two beats, and between two looks.
BEAT = HELD_TOO_LONG / LOOKS
#: How many frames of the stack are logged: the innermost.
FRAMES = 12


class Watchdog:
    """A daemon thread that watches one loop while ``running`` is not empty."""

    def __init__(self, loop: asyncio.AbstractEventLoop, running: Mapping[str, Run]) -> None:
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._running = running
        self._beats: asyncio.TimerHandle | None = None
        self._beat_number = 0
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
        self._beat_number += 1
        if self._running or self._beats is None:
            self._beats = self._loop.call_later(BEAT, self._beat)
        else:
            self._beats = None
            self._awake.clear()

    def _watch(self) -> None:
        seen, looks = None, 0
        while not self._closed:
            if not self._awake.is_set():
                seen = None  # Nothing is kept of the task that ran last.
                self._awake.wait()
            step = self._beat_number, asyncio.current_task(self._loop)
            seen, looks = step, looks + 1 if step == seen else 0
            if looks == LOOKS:
                self._name(step[1])
            time.sleep(BEAT)

    def _name(self, task: asyncio.Task[Any] | None) -> None:
        held_by = [run for run in list(self._running.values()) if run.attempt is task]
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - documented, in spite of its name.
        if task is not None and held_by and frame is not None:
            stack = "".join(traceback.format_stack(frame)[-FRAMES:])
            logger.warning("%s holds the loop for over %g s:\n%s", held_by[0].describe(), HELD_TOO_LONG, stack)
