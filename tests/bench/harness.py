"""What the benches share: the load, rounds and tables, and the servers of `servers.py`.

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
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.servers import ROOT as ROOT, Peer as Peer, Server as Server, installed as installed
from tests.bench.servers import minibg as minibg, present as present, running as running, uvicorn as uvicorn

CLIENT = str(Path(__file__).with_name("client.py"))


class Request(NamedTuple):
    """A request as bytes, and how often it is sent in a slice."""

    name: str
    data: bytes
    number: int = 4000


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
                        cost = load(server, request.data, options.scaled(request.number))
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
