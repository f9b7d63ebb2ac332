"""The watchdog: a coroutine task that holds the loop is named, with the line it stands on.

Run it::

    python -m examples.watchdog

You will see::

    send_mail holds the loop for over 0.1 s:
        it stands on: ask_the_mail_server(seconds=10)
    nobody else could run meanwhile: True
    the same in a thread, warnings: 0

A call that blocks in a coroutine stops everything: every connection, every other task. Nothing fails, all gets slow, and
no traceback says why. The watchdog looks from a thread of its own: a task that has held the loop for 100 ms is named in
a warning of the logger ``minibg.background``, once, with its stack of that moment. It is always on, and there is nothing
to configure.

The remedy is one word. A plain ``def`` runs in a thread, where blocking harms nobody.
"""

import asyncio
import logging
import threading
from itertools import pairwise

from minibg import Pool, task


class Printer(logging.Handler):
    """Prints the first line of a warning, and the line of its stack that is the task's own."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warned = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        first, *stack = record.getMessage().splitlines()
        name, _id, what = first.split(" ", 2)
        print(name, what)
        for place, line in pairwise(stack):
            if place.endswith("in send_mail"):
                print("    it stands on:", line.strip())
        self.warned.set()


printer = Printer()


def ask_the_mail_server(seconds: float) -> None:
    """Some library's call that blocks. So that the lesson is short, it gives up when somebody complains."""
    printer.warned.wait(seconds)


@task(name="send_mail")
async def send_mail() -> None:
    ask_the_mail_server(seconds=10)


@task(name="send_mail_in_a_thread")
def send_mail_in_a_thread() -> None:
    ask_the_mail_server(seconds=0.2)


async def main() -> None:
    logging.getLogger("minibg.background").addHandler(printer)
    async with Pool() as pool:
        mail, other = pool.enqueue(send_mail), pool.enqueue(asyncio.sleep, 0)
        await other.wait()
        print("nobody else could run meanwhile:", mail.is_finished)
        printer.warned.clear()
        await pool.enqueue(send_mail_in_a_thread).wait()
        print("the same in a thread, warnings:", int(printer.warned.is_set()))


if __name__ == "__main__":
    asyncio.run(main())
