"""The watchdog: a coroutine task that blocks the event loop is named, with the line that does it.

Run it::

    python -m examples.watchdog

You will see::

    send_mail blocks the event loop for over 0.1 s:
        the line: ask_the_mail_server(seconds=10)
    no other task could run meanwhile: True
    the same in a thread, warnings: 0

A blocking call in a coroutine stops everything: every connection, every other task. Nothing fails,
everything is slow, and there is no traceback. The watchdog samples the event loop from a thread of
its own. A task that has blocked it for 100 ms is named in a warning of the logger
``minibg.background``, once, with its stack at that moment. It is always on and has no options.

The remedy is to leave out a word: a plain ``def`` runs in a thread, where blocking delays no other
task.
"""

import asyncio
import logging
import threading
from itertools import pairwise

from minibg import Pool, task


class Printer(logging.Handler):
    """Print the first line of a warning, and the line of its stack that belongs to the task."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warned = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        first, *stack = record.getMessage().splitlines()
        name, _id, words = first.split(" ", 2)
        print(name, words)
        for where, line in pairwise(stack):
            if where.endswith("in send_mail"):
                print("    the line:", line.strip())
        self.warned.set()


printer = Printer()


def ask_the_mail_server(seconds: float) -> None:
    """Block, as a call of some library does.

    To keep the lesson short, it returns at the warning.
    """
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
        print("no other task could run meanwhile:", mail.is_finished)
        printer.warned.clear()
        await pool.enqueue(send_mail_in_a_thread).wait()
        print("the same in a thread, warnings:", int(printer.warned.is_set()))


if __name__ == "__main__":
    asyncio.run(main())
