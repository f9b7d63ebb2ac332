"""Unix sockets that several processes want: one of them gets the path, and keeps it."""

import errno
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from minibg.server.listen import bind_unix

#: Serves "A" on the path, as soon as a line comes on its standard input.
SERVER = """
import asyncio, sys
from minibg.server import Server

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        print("starting", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"A"})

async def main():
    async with Server(app, uds=sys.argv[1]):
        print("serving", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

try:
    asyncio.run(main())
except OSError as error:
    print(error, flush=True)
"""
#: Binds one path after another, each at its moment, and prints which it got.
BINDER = """
import sys, time
from minibg.server.listen import bind_unix
folder, start, rounds, mine = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), []
for number in range(rounds):
    while time.monotonic() < start + number * 0.002:
        pass
    try:
        mine.append((number, bind_unix(f"{folder}/{number}", None)))
    except OSError:
        pass
print(*(number for number, _ in mine), flush=True)
sys.stdin.readline()
"""


@contextmanager
def process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def said(by: subprocess.Popen[str]) -> str:
    assert by.stdout is not None
    return by.stdout.readline().strip()


def go_on(with_: subprocess.Popen[str]) -> None:
    assert with_.stdin is not None
    with_.stdin.write("\n")
    with_.stdin.flush()


def test_a_server_whose_application_starts_keeps_its_unix_socket(tmp_path: Path) -> None:
    path = f"{tmp_path}/s"
    in_use = f"[Errno {errno.EADDRINUSE}] Address already in use: '{path}'"
    with process(SERVER, path) as first:
        assert said(first) == "starting"
        with process(SERVER, path) as second:
            assert said(second) == in_use
        go_on(first)
        assert said(first) == "serving"
        with process(SERVER, path) as third:
            assert said(third) == in_use
        go_on(first)
        first.wait(10)
    assert list(tmp_path.iterdir()) == []


def test_a_dead_unix_socket_is_replaced_by_one_of_two_processes(tmp_path: Path) -> None:
    rounds = 300
    for number in range(rounds):
        bind_unix(f"{tmp_path}/{number}", None).close()
    arguments = (str(tmp_path), str(time.monotonic() + 1), str(rounds))
    with process(BINDER, *arguments) as first, process(BINDER, *arguments) as second:
        got = [int(number) for by in (first, second) for number in said(by).split()]
        assert sorted(got) == list(range(rounds))


@pytest.mark.parametrize("permissions", [None, 0o600])
def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path, permissions: int | None) -> None:
    path = tmp_path / "s"
    path.write_text("a file")
    with pytest.raises(OSError, match="Address already in use"):
        bind_unix(str(path), permissions)
    assert path.read_text() == "a file"


def test_a_probe_leaves_no_connection_behind(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with bind_unix(path, None) as sock:
        sock.listen()
        sock.setblocking(False)
        with pytest.raises(OSError, match="Address already in use"):
            bind_unix(path, None)
        with pytest.raises(BlockingIOError):
            sock.accept()
