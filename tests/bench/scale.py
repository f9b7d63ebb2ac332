"""Whether the cost of a task and of a request stays the same when there is much of everything.

Each table has the same work beside little and beside much: waiting tasks, idle connections, rows in the
journal. "times" is the cost beside the most divided by the cost beside the least; issue 13 allows ten percent
more. There is no peer.
"""

import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.harness import ROOT, Options, Peer, Server, environment, get, load, minibg, options, post
from tests.bench.harness import running, spread, table, verdict
from tests.bench.rows import fill

FLAT = 1.10
WAITING, IDLE, ROWS = (10, 1000, 100_000), (10, 1000, 10_000), (10, 100_000, 1_000_000)
#: Rows that a process finds unfinished, and the seconds until its first answer that issue 13 asks for.
UNFINISHED, START_SECONDS = 100_000, 1.0
COUNT = 3000
LARGE = ["--max-connections", "20000", "--keep-alive", "600", "--header-timeout", "600"]
LARGE += ["--queue-limit", "1000000", "--drain-timeout", "0"]

#: What the deadlines of all connections cost: a comparison for each, once a second. It grows by its nature.
TICK = "a second without a request"
#: Microseconds of work, by its name.
Costs = dict[str, float]


def compare(title: str, sizes: Sequence[int], of: Callable[[int], Costs], chosen: Options) -> None:
    """Print a table: the works of ``of`` beside each size, in alternating rounds."""
    figures: dict[str, dict[int, list[float]]] = {}
    for _ in range(chosen.rounds):
        for size in sizes:
            for work, cost in of(size).items():
                figures.setdefault(work, {}).setdefault(size, []).append(cost)
    lines = []
    for work, costs in figures.items():
        times = [much / little for little, much in zip(costs[sizes[0]], costs[sizes[-1]], strict=True)]
        medians = [f"{statistics.median(costs[size]):.1f}" for size in sizes]
        bounded = work != TICK
        reached = verdict(statistics.median(times) <= FLAT if bounded else None)
        lines.append((work, *medians, spread(times), FLAT if bounded else "", reached))
    table([f"us, beside ... {title}", *(f"{size:,}" for size in sizes), "times", "at most", ""], lines)


# --- waiting tasks ---


def beside_waiting_tasks(waiting: int, count: int) -> Costs:
    with running(minibg("minibg_app", *LARGE), patient=False) as server:
        for _ in range(0, waiting, 1000):
            server.ask(post(f"/later/{min(waiting, 1000)}"))
        load(server, post("/noop"), count // 4)  # It warms.
        costs = {"POST that adds a no-op task; the others have a delay": load(server, post("/noop"), count)}
        costs["GET /plain; the tasks have a delay"] = load(server, get("/plain"), count)
    call = [sys.executable, "-m", "tests.bench.chains", str(waiting), str(5 * count)]
    output = subprocess.run(call, cwd=ROOT, check=True, capture_output=True).stdout
    costs["a task of the pool alone; the others are queued"] = float(output)
    return costs


# --- idle connections ---


@contextmanager
def idle(server: Server, connections: int) -> Iterator[None]:
    """Open connections that have had one answer and send nothing more."""
    with ExitStack() as stack:
        for _ in range(connections):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
            sock.sendall(get("/plain"))
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        yield


def beside_idle_connections(connections: int, count: int) -> Costs:
    with running(minibg("minibg_app", *LARGE), patient=False) as server, idle(server, connections):
        load(server, get("/plain"), count // 4)
        costs = {"GET /plain": load(server, get("/plain"), count)}
        before, began = server.cpu(), time.perf_counter()
        time.sleep(1.1)
        costs[TICK] = (server.cpu() - before) / (time.perf_counter() - began) * 1e6
        return costs


# --- rows in the journal ---


def serving(journal: Path) -> Peer:
    return minibg("minibg_app", *LARGE, "--journal", str(journal))


def beside_rows(journal: Path, count: int) -> Costs:
    with running(serving(journal), patient=False) as server:
        load(server, post("/noop"), count // 4)
        return {"POST that adds a durable no-op task": load(server, post("/noop"), count)}


def first_answer(journal: Path) -> float:
    """Return the seconds from the start of the command to the first answer."""
    began = time.perf_counter()
    with running(serving(journal), patient=False) as server:
        server.ask(get("/plain"))
        return time.perf_counter() - began


def main(arguments: Sequence[str]) -> None:
    chosen = options("scale", __doc__, arguments)
    count = max(chosen.scaled(COUNT), 1000)
    files = max(IDLE) + 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(files, hard)), hard))
    print(environment("uvloop"))
    few = {size: chosen.scaled(size) if size > 1000 else size for size in (*WAITING, *IDLE, *ROWS, UNFINISHED)}
    waiting, rows = (list(dict.fromkeys(few[size] for size in sizes)) for sizes in (WAITING, ROWS))
    connections = [size for size in dict.fromkeys(few[size] for size in IDLE) if size < hard - 1000]
    compare("waiting tasks", waiting, lambda size: beside_waiting_tasks(size, count), chosen)
    compare("idle connections", connections, lambda size: beside_idle_connections(size, count), chosen)
    with tempfile.TemporaryDirectory() as folder:
        journals = {number: Path(folder) / f"{number}.db" for number in rows}
        for number, journal in journals.items():
            fill(journal, number, finished=True)
        compare("finished rows", rows, lambda size: beside_rows(journals[size], count), chosen)
        fill(unfinished := Path(folder) / "unfinished.db", few[UNFINISHED], finished=False)
        seconds = [first_answer(unfinished) for _ in range(chosen.rounds)]
    work = f"start to first answer, {few[UNFINISHED]:,} unfinished rows"
    reached = verdict(statistics.median(seconds) < START_SECONDS)
    table(["work", "seconds", "under", ""], [(work, spread(seconds), START_SECONDS, reached)])
