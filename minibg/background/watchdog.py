"""The watchdog: names the coroutine task that blocks the event loop.

A blocking call in a coroutine stops every connection and every other task. It is the most common
fault of background tasks, and hard to find, because the slowness shows everywhere else. So a
separate thread watches the event loop.

While tasks run, the event loop *beats*: a timer increments a counter every 25 ms. A daemon thread
reads the counter at the same interval, and asks asyncio which task the event loop is stepping. When
four samples after the first show the same beat and the same task, that task has blocked the event
loop for 100 ms. If it is a task of this pool, it is named in a warning with its stack, once per
block and not once per sample. [watchdog.1]

The watchdog counts samples and not elapsed time, so a suspended machine raises no false alarm: the
thread is suspended too. An iteration of the event loop with many short steps raises none either,
because no step is sampled five times.

The watchdog costs forty timer calls a second while tasks run, and none otherwise. [watchdog.2]
Rejected: asyncio's debug mode, which wraps every step of every task and reports a block only after
its end, without the line that caused it.

The watchdog does not see a block that is over before the fifth sample (100 to 125 ms), nor one in a
handler. A thread that keeps the interpreter's lock, in a C extension, stops the watchdog too.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any

from minibg.background.run import Run
from minibg.log import SafeLogger

logger = SafeLogger("minibg.background")

#: Seconds. asyncio's debug mode calls a callback slow from this duration on.
BLOCKED_SECONDS = 0.1
#: The number of samples of the same step, after the first, that make a block.
SAMPLES = 4
#: Seconds between two beats, and between two samples.
BEAT_SECONDS = BLOCKED_SECONDS / SAMPLES
#: The number of stack frames that are logged, from the innermost.
FRAMES = 12


class Watchdog:
    """A daemon thread that watches the event loop while ``running`` is not empty."""

    def __init__(self, running: Mapping[str, Run]) -> None:
        self._running = running
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._beats: asyncio.TimerHandle | None = None
        self._beat_number = 0
        self._awake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Watch the event loop until no task runs. Logs a warning if no thread can be started."""
        if self._beats is not None or self._closed:
            return
        if self._thread is None:
            self._loop, self._loop_thread = asyncio.get_running_loop(), threading.get_ident()
            self._thread = threading.Thread(target=self._watch, args=(self._loop,), name="minibg-watchdog", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:  # "can't start new thread"
                self._closed, self._thread = True, None
                logger.warning("blocks of the event loop are not reported: %s", error)
                return
        self._beat()
        self._awake.set()

    def close(self) -> None:
        """End the thread, and wait for it at most `BLOCKED_SECONDS`: it may be asleep or logging."""
        self._closed = True
        if self._beats is not None:
            self._beats.cancel()
        self._awake.set()
        if self._thread is not None:
            self._thread.join(BLOCKED_SECONDS)

    def _beat(self) -> None:
        assert self._loop is not None
        self._beat_number += 1
        if self._running or self._beats is None:
            self._beats = self._loop.call_later(BEAT_SECONDS, self._beat)
        else:
            self._beats = None
            self._awake.clear()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        seen, samples = None, 0
        while not (self._closed or loop.is_closed()):
            if not self._awake.is_set():
                seen = None  # Drop the reference to the last task.
                self._awake.wait()
            step = self._beat_number, asyncio.current_task(loop)
            seen, samples = step, samples + 1 if step == seen else 0
            if samples == SAMPLES:
                self._warn(step[1])
            time.sleep(BEAT_SECONDS)

    def _warn(self, task: asyncio.Task[Any] | None) -> None:
        running = [(run, run.attempt) for run in list(self._running.values())]
        blocking = [run for run, attempt in running if attempt is not None and attempt.task is task]
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - documented, in spite of its name.
        if task is not None and blocking and frame is not None:
            stack = "".join(traceback.format_stack(frame)[-FRAMES:])
            logger.warning(
                "%s blocks the event loop for over %g s:\n%s", blocking[0].describe(), BLOCKED_SECONDS, stack
            )
