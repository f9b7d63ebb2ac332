"""`python -m tests.bench profile ROW`: the ten lines of cProfile for minibg's side of a row.

The server, or the pool's process, runs under cProfile; the load is that of the row. cProfile makes small
functions look dearer than they are, so read the calls, and take the time from a sampler:
``py-spy record --pid``, ``perf record -g -p``.
"""

import argparse
import pstats
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench import pool
from tests.bench.harness import ROOT, Peer, get, load, minibg, post, running
from tests.bench.http import BROWSER

COUNT, LINES = 20_000, 10
ROWS = {
    "one-header": (minibg("raw"), get("/")),
    "browser": (minibg("raw"), get("/", BROWSER)),
    "post": (minibg("raw"), post("/", b"x" * 1024)),
    "large": (minibg("raw"), get("/large")),
    "plain": (minibg("minibg_app"), get("/plain")),
    "json": (minibg("minibg_app"), get("/items/42?q=hello")),
    "nothing": (minibg("minibg_app"), post("/nothing")),
    "noop": (minibg("minibg_app", "--queue-limit", "100000"), post("/noop")),
}
POOL = {"pool": "minibg, coroutines", "pool-sync": "minibg, sync"}


def under_profile(arguments: list[str], output: Path) -> list[str]:
    return ["-m", "cProfile", "-o", str(output), *arguments]


def report(output: Path, calls: int) -> None:
    """Print the ten functions that have the most time of their own, per request or task."""
    stats = pstats.Stats(str(output)).stats  # type: ignore[attr-defined]
    print(f"{'calls':>6} {'us':>6}  function, per request or task")
    # The event loop's own wait is not work.
    most = sorted(stats.items(), key=lambda item: item[1][2], reverse=True)
    shown = [item for item in most if item[0][2] not in {"<method 'run_until_complete' of 'uvloop.loop.Loop' objects>"}]
    for (file, line, name), (_, count, own, _, _) in shown[:LINES]:
        where = f"{'/'.join(Path(file).parts[-2:])}:{line} " if line else ""
        print(f"{count / calls:6.2f} {own / calls * 1e6:6.2f}  {where}{name}")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m tests.bench profile", description=__doc__)
    parser.add_argument("row", choices=[*ROWS, *POOL])
    row = parser.parse_args(arguments).row
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "profile"
        if row in POOL:
            case = ["-m", "tests.bench", "pool", "--case", POOL[row]]
            subprocess.run([sys.executable, *under_profile(case, output)], cwd=ROOT, check=True, capture_output=True)
            report(output, pool.TASKS + pool.AT_ONCE)
            return
        peer, data = ROWS[row]
        with running(Peer(peer.name, under_profile(peer.arguments, output), peer.needs), patient=False) as server:
            load(server, data, COUNT)
            server.process.send_signal(signal.SIGINT)
            deadline = time.monotonic() + 30
            while server.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
        report(output, COUNT)
