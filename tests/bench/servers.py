"""Servers as processes: their commands, their start and end, their processor time and memory from outside."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
QUIET = ["--no-access-log", "--log-level", "error"]


class Peer(NamedTuple):
    """A server with an application, as a command of this Python."""

    name: str
    arguments: list[str]
    #: The distributions it needs.
    needs: tuple[str, ...]


def minibg(application: str, *more: str) -> Peer:
    arguments = ["-m", "minibg", f"tests.bench.apps.{application}:app", "--loop", "uvloop", *QUIET, *more]
    return Peer("minibg", arguments, ("uvloop",))


def uvicorn(application: str, http: str, *needs: str) -> Peer:
    arguments = ["-m", "uvicorn", f"tests.bench.apps.{application}:app", "--http", http, "--loop", "uvloop", *QUIET]
    name = " ".join([*(need.capitalize().replace("api", "API") for need in needs), "uvicorn", http])
    return Peer(name, arguments, (*needs, "uvicorn", http, "uvloop"))


def installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def present(peers: Sequence[Peer]) -> list[Peer]:
    """Return the peers that can be started; name those that cannot."""
    found = []
    for peer in peers:
        missing = [need for need in peer.needs if installed(need) is None]
        if missing:
            print(f"skipped: {peer.name}, {', '.join(missing)} is not installed")
        else:
            found.append(peer)
    return found


class Server(NamedTuple):
    """A server that accepts."""

    process: subprocess.Popen[bytes]
    port: int

    def cpu(self) -> float:
        """Return the seconds of processor time that it has used."""
        return cpu_seconds(self.process.pid)

    def settle(self) -> float:
        """Wait until it has nothing left to do, and return the seconds of processor time."""
        used = self.cpu()
        while True:
            time.sleep(0.02)
            before, used = used, self.cpu()
            if used - before < 0.001:
                return used

    def memory(self) -> int:
        """Return the bytes of memory that are its own (proc(5): smaps_rollup)."""
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean")))

    def ask(self, request: bytes, timeout: float = 60.0) -> str:
        """Send one request on a connection of its own, and return the body of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as sock:
            sock.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 2"), answer
        return answer.partition(b"\r\n\r\n")[2].decode()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process: its CPU clock has this number (Linux, posix-timers.h: MAKE_PROCESS_CPUCLOCK)."""
    return time.clock_gettime((~pid << 3) | 2)


@contextmanager
def running(peer: Peer, *, patient: bool = True) -> Iterator[Server]:
    """Start a server, and stop it: ``patient`` leaves it five seconds, which is none for tasks that never end."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    process = subprocess.Popen([sys.executable, *peer.arguments, "--port", str(port)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 30
        while True:  # until it accepts
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, f"{peer.name} has ended"
            assert time.monotonic() < deadline, f"{peer.name} does not accept"
            time.sleep(0.001)
        yield Server(process, port)
    finally:
        if patient:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
        process.kill()  # Without effect on a process that has ended.
        process.wait()
