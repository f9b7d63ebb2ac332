"""CPU per request of minibg and of uvicorn with h11, over the same raw ASGI application.

Throughput depends on the other load of the machine. So the figure is the processor time that the
*server process* used (user and system, from the kernel) divided by the requests that wrk counted,
and the result is the ratio of the two servers. In a round both servers run and are loaded in turn,
a second each, so the load of the machine is the same for both. The median, the least and the
greatest ratio of the rounds are printed. Both run on uvloop, without an access log, one process each.
"""

import argparse
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What Firefox sends, in its order. With Host, which wrk adds, they are eight.
BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Upgrade-Insecure-Requests": "1",
    "Cookie": "session=eyJ1c2VyIjogMTIzNDU2Nzg5MCwgImNzcmYiOiAiYWJjZGVmIn0; theme=dark",
    "Cache-Control": "max-age=0",
}
POST = 'wrk.method = "POST"\nwrk.body = string.rep("x", 1024)\n'
#: name -> (headers, wrk script, what the design asks for)
CASES: dict[str, tuple[dict[str, str], str, float]] = {
    "GET, one header": ({}, "", 2.5),
    "GET, a browser's eight headers": (BROWSER, "", 2.0),
    "POST, 1 KiB": ({}, POST, 1.8),
}


def uvicorn(port: int) -> list[str]:
    options = "--http h11 --loop uvloop --no-access-log --log-level error"
    return f"-m uvicorn tests.bench.raw:app --port {port} {options}".split()


def minibg(port: int) -> list[str]:
    return f"-m minibg tests.bench.raw:app --port {port} --loop uvloop --no-access-log --log-level error".split()


@contextmanager
def running(arguments: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, *arguments])
    try:
        while True:  # until it accepts
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, f"{arguments} has ended"
        yield process
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process (proc(5): fields 14 and 15 of stat, the name of the process is in brackets)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(port: int, headers: dict[str, str], script: str, seconds: float, connections: int) -> int:
    """Run wrk; the number of requests answered. Any error ends the bench."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        options = [option for name, value in headers.items() for option in ("-H", f"{name}: {value}")]
        if script:
            options += ["-s", file.name]
        wrk = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", *options, f"http://127.0.0.1:{port}/"]
        output = subprocess.run(wrk, check=True, capture_output=True, text=True).stdout
    assert "Socket errors" not in output, output
    assert "Non-2xx" not in output, output
    found = re.search(r"(\d+) requests in", output)
    assert found is not None, output
    return int(found[1])


def one_round(case: str, slices: int, connections: int) -> list[float]:
    """Microseconds of processor time a request, for each server, from slices of a second in turn."""
    headers, script, _ = CASES[case]
    ports = [free_port(), free_port()]
    used, answered = [0.0, 0.0], [0, 0]
    with running(uvicorn(ports[0]), ports[0]) as first, running(minibg(ports[1]), ports[1]) as second:
        for number in range(slices + 1):
            for which, process in enumerate((first, second)):
                before = cpu_seconds(process.pid)
                requests = load(ports[which], headers, script, 1, connections)
                if number:  # the first slice warms
                    used[which] += cpu_seconds(process.pid) - before
                    answered[which] += requests
    return [seconds / requests * 1e6 for seconds, requests in zip(used, answered, strict=True)]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench http", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    options = parser.parse_args(arguments)
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: apt-get install wrk")
    print(f"{'':32}{'uvicorn':>10}{'minibg':>10}   ratio: median (least to greatest), wanted")
    for case, (_, _, wanted) in CASES.items():
        rounds = [one_round(case, options.seconds, options.connections) for _ in range(options.rounds)]
        theirs, ours = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratios = [first / second for first, second in rounds]
        median, least, greatest = statistics.median(ratios), min(ratios), max(ratios)
        print(
            f"{case:32}{theirs:7.1f} us{ours:7.1f} us   {median:.2f} ({least:.2f} to {greatest:.2f}), {wanted}",
            flush=True,
        )
