"""The program that `test_faults.py` starts and kills: one owner of a journal, in a process of its own.

    python -m tests.background.journal.process '{"pool": {"journal": "tasks.db"}, "log": "log.txt", "fd": 3}'

With ``fd``, a listening socket, it serves `app` until a signal stops it. With ``command`` it is the command with these arguments.
Without either it runs what the journal holds and ``enqueue`` until nothing is left, and ends.

The tasks write a line to ``log`` at each start and each end, in one write to a file that all processes append to: the order
of its lines is the order of what happened, over all processes.
"""

import asyncio
import encodings.idna  # noqa: F401 - another user may not be able to import it later.
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from minibg.__main__ import main as command
from minibg.after_response import AfterResponse
from minibg.asgi import ASGIApp, Message, Receive, Scope, Send
from minibg.background import BackgroundTasks, JournalUnusable, Pool, Retry, task
from minibg.background.clock import SystemClock
from minibg.background.journal import file as journal_file
from minibg.background.task import TASKS
from minibg.server import Server
from minibg.serving import loop_factory

OPTIONS: dict[str, Any] = {}
LOG = -1


def say(what: str, id: str) -> None:
    os.write(LOG, f"{what} {id} {os.getpid()}\n".encode())


# The tasks.


@task(name="work")
async def work(id: str, seconds: float = 0.0) -> None:
    say("start", id)
    await asyncio.sleep(seconds)
    say("end", id)


@task(name="work in a thread")
def work_in_a_thread(id: str, seconds: float = 0.0) -> None:
    say("start", id)
    time.sleep(seconds)
    say("end", id)


@task(name="fail")
async def fail(id: str, seconds: float = 0.0) -> None:
    await work(id, seconds)
    raise RuntimeError(id)


@task(name="fail three times", retry=Retry(attempts=3, base=0))
def fail_three_times(id: str, seconds: float = 0.0) -> None:
    work_in_a_thread(id, seconds)
    raise RuntimeError(id)


@task(name="wait", retry=Retry(attempts=3, base=0))
async def wait(id: str, gate: str) -> None:
    """Wait until a gate is opened, and fail then."""
    say("start", id)
    while not Path(gate).exists():
        await asyncio.sleep(0.005)
    say("end", id)
    raise RuntimeError(id)


@task(name="wait in a thread", retry=Retry(attempts=3, base=0))
def wait_in_a_thread(id: str, gate: str) -> None:
    say("start", id)
    while not Path(gate).exists():
        time.sleep(0.005)
    say("end", id)
    raise RuntimeError(id)


@task(name="kill its process")
def kill_its_process(id: str) -> None:
    say("start", id)
    os.kill(os.getpid(), signal.SIGKILL)


def later(id: str) -> None:
    """A task in those processes only that register it."""
    say("start", id)
    say("end", id)


# The application.


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Add the tasks that the body asks for: ``tasks`` before the response, ``late`` while it streams. ``raise`` fails then."""
    if scope["type"] != "http":
        raise NotImplementedError
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    wish, hold = json.loads(body), scope["minibg.background"]
    ids = _add(hold, wish["tasks"])
    if wish.get("raise"):
        raise RuntimeError("the handler failed")
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if wish.get("late"):
        await send({"type": "http.response.body", "body": b" ", "more_body": True})
        await asyncio.sleep(0)
        ids += _add(hold, wish["late"])
    await send({"type": "http.response.body", "body": json.dumps(ids).encode(), "more_body": False})


def _add(hold: BackgroundTasks, tasks: list[Any]) -> list[str]:
    return [hold.add_task(TASKS[name].using(**options), *args).id for name, args, options in tasks]


def dying_between_commit_and_answer(inner: ASGIApp) -> ASGIApp:
    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        async def die(message: Message) -> None:
            if message["type"] == "http.response.start":
                os.kill(os.getpid(), signal.SIGKILL)
            await send(message)

        await inner(scope, receive, die)

    return outer


# The process.


class ShiftedClock(SystemClock):
    """A clock that is wrong by so many seconds."""

    def time(self) -> float:
        return super().time() + float(OPTIONS.get("shift", 0))


async def work_until_idle() -> None:
    async with Pool(**OPTIONS["pool"], clock=ShiftedClock()) as pool:
        for name, args, options in OPTIONS.get("enqueue", []):
            pool.enqueue(TASKS[name].using(**options), *args)
        await pool.idle()


async def serve_until_signalled() -> None:
    signalled = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, signalled.set)
    served: ASGIApp = AfterResponse(app, Pool(**OPTIONS["pool"], clock=ShiftedClock()))
    if OPTIONS.get("die"):
        served = dying_between_commit_and_answer(served)
    async with Server(served, fd=OPTIONS["fd"], access_log=False):
        say("serving", "-")
        await signalled.wait()
    say("stopped", "-")
    while "linger" in OPTIONS and not Path(OPTIONS["linger"]).exists():
        await asyncio.sleep(0.005)


def start() -> None:
    global LOG
    OPTIONS.update(json.loads(sys.argv[1]))
    LOG = os.open(OPTIONS["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for name in OPTIONS.get("register", []):
        task(name=name)(later)
    if "busy_timeout" in OPTIONS:
        journal_file.BUSY_SECONDS = journal_file.OPEN_SECONDS = OPTIONS["busy_timeout"]
    if "user" in OPTIONS:
        os.setgroups([])
        os.setgid(OPTIONS["user"])
        os.setuid(OPTIONS["user"])
    if "command" in OPTIONS:
        command(OPTIONS["command"])
        return
    logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
    main = serve_until_signalled if "fd" in OPTIONS else work_until_idle
    with asyncio.Runner(loop_factory=loop_factory(OPTIONS.get("loop", "asyncio"))) as runner:
        try:
            runner.run(main())
        except JournalUnusable as error:
            sys.exit(f"JournalUnusable: {error}")


if __name__ == "__main__":
    start()
