"""What the benches share: servers as processes, their processor time, the load, rounds and tables.

**The figure is processor time of the server process**, user and system and all of its threads, read
from outside with the process's own CPU clock (clock_getcpuclockid(3), in nanoseconds) and divided by the
requests that were answered. Requests per second would depend on the other load of the machine.

**Rounds alternate.** In a round every server is up, and they are loaded in turn, a slice each, several
times; so a busy moment of the machine meets all of them. Each round starts the processes anew, because
the layout of memory differs from start to start. A ratio is that of one round: "times" is the peer's
cost divided by minibg's. Printed are the median, the least and the greatest of the rounds.

A peer that is not installed is named in a line and left out.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

CLIENT = str(Path(__file__).with_name("client.py"))
ROOT = Path(__file__).parent.parent.parent


class Peer(NamedTuple):
    """A server with an application, as a command of this Python."""

    name: str
    arguments: list[str]
    #: The distributions it needs.
    needs: tuple[str, ...]


class Request(NamedTuple):
    """A request as bytes, and how often it is sent in a slice."""

    name: str
    data: bytes
    count: int = 4000


class Row(NamedTuple):
    """A line of a table: one work, one peer; the figures of each round."""

    work: str
    against: str
    theirs: Sequence[float]
    ours: Sequence[float]
    #: The ratio theirs / ours that issue 13 asks for; None where it asks for none.
    target: float | None


class Options(NamedTuple):
    """How long a bench takes."""

    rounds: int
    #: Whether a tenth of the load is enough, to see that the bench itself works.
    quick: bool

    def scaled(self, count: int) -> int:
        return max(count // 10, 64) if self.quick else count


def options(name: str, description: str | None, arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(f"python -m tests.bench {name}", description=description)
    parser.add_argument("--rounds", type=int, help="how many alternating rounds; 5 by default")
    parser.add_argument("--quick", action="store_true", help="a tenth of the load, two rounds")
    parsed = parser.parse_args(arguments)
    return Options(parsed.rounds or (2 if parsed.quick else 5), parsed.quick)


# --- servers ---

QUIET = ["--no-access-log", "--log-level", "error"]


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


# --- load ---

HOST = b"Host: 127.0.0.1\r\n"


def get(path: str, headers: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\n%b%b\r\n" % (path.encode(), HOST, headers)


def post(path: str, body: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (path.encode(), HOST, len(body), body)


def send(server: Server, data: bytes, count: int, *, connections: int = 64, refusals: bool = False) -> int:
    """Send a request ``count`` times from a process of its own, within a minute; return how many were refused (503)."""
    order = {"port": server.port, "data": data.decode("latin-1"), "count": count, "connections": connections}
    order |= {"seconds": 60.0, "refusals": refusals}
    call = [sys.executable, "-S", "-E", CLIENT]
    return int(subprocess.run(call, input=json.dumps(order).encode(), check=True, stdout=subprocess.PIPE).stdout)


def load(server: Server, data: bytes, count: int) -> float:
    """Send a request ``count`` times; return microseconds of the server's CPU for each."""
    before = server.settle()
    send(server, data, count)
    return (server.settle() - before) / count * 1e6


Figures = dict[tuple[str, str], list[float]]


def measure(peers: Sequence[Peer], requests: Sequence[Request], options: Options, slices: int = 3) -> Figures:
    """Return microseconds of each round, by the names of peer and request."""
    figures: Figures = {(peer.name, request.name): [] for peer in peers for request in requests}
    for _ in range(options.rounds):
        used: Figures = {key: [] for key in figures}
        with ExitStack() as stack:
            servers = [(peer.name, stack.enter_context(running(peer))) for peer in peers]
            for number in range(slices + 1):
                for request in requests:
                    for name, server in servers:
                        cost = load(server, request.data, options.scaled(request.count))
                        if number:  # The first slice warms.
                            used[name, request.name].append(cost)
        for key, costs in used.items():
            figures[key].append(statistics.fmean(costs))
    return figures


# --- tables ---


def environment(*distributions: str) -> str:
    versions = [f"{name} {installed(name)}" for name in distributions if installed(name)]
    system = f"Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} processors"
    return ", ".join([f"minibg {installed('minibg')}", *versions, system])


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def verdict(reached: bool | None) -> str:
    return {True: "reached", False: "**not reached**", None: ""}[reached]


def table(columns: Sequence[str], lines: Sequence[Sequence[Any]]) -> None:
    """Print a table in Markdown."""
    for line in (columns, ["---"] * len(columns), *lines):
        print(f"| {' | '.join(map(str, line))} |", flush=True)
    print(flush=True)


def ratios(unit: str, rows: Sequence[Row], form: str = ".1f") -> None:
    """Print a table of rows: less is better, and "times" is theirs / ours."""
    lines = []
    for row in rows:
        times = [theirs / ours if ours > 0 else float("inf") for theirs, ours in zip(row.theirs, row.ours, strict=True)]
        reached = None if row.target is None else statistics.median(times) >= row.target
        theirs, ours = (f"{statistics.median(values):{form}}" for values in (row.theirs, row.ours))
        lines.append((row.work, row.against, theirs, ours, spread(times), row.target or "", verdict(reached)))
    table(["work", "against", f"theirs, {unit}", f"minibg, {unit}", "times", "at least", ""], lines)
