"""Import, and start to the first answer, against uvicorn with h11: seconds of wall-clock time, in turn.

The time of an import is that of a process that imports, less that of one that does nothing. The first answer
is asked for every millisecond from the start of the command on.
"""

import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from tests.bench.harness import ROOT, Peer, Row, environment, get, minibg, options, present, ratios, uvicorn

#: Starts in a round; their median is the round's figure.
STARTS = 3
IMPORT, ANSWER = "import", "start to the first answer"


def importing(statement: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], cwd=ROOT, check=True)
    return (time.perf_counter() - began) * 1e3


def first_answer(peer: Peer) -> float:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *peer.arguments, "--port", str(port)], cwd=ROOT)
    try:
        while time.perf_counter() - began < 30:
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 10) as sock:
                sock.sendall(get("/"))
                assert sock.recv(65536).startswith(b"HTTP/1.1 200")
                return (time.perf_counter() - began) * 1e3
            time.sleep(0.001)
        raise TimeoutError(f"{peer.name} does not answer")
    finally:
        process.terminate()
        process.wait(10)


def main(arguments: Sequence[str]) -> None:
    chosen = options("start", __doc__, arguments)
    # No application of the bench: minibg would be imported in uvicorn's process too, for its types.
    peers = present([uvicorn("bare", "h11"), minibg("bare")])
    figures: dict[tuple[str, str], list[float]] = {(work, peer.name): [] for work in (IMPORT, ANSWER) for peer in peers}
    for _ in range(chosen.rounds):
        nothing = statistics.median(importing("pass") for _ in range(STARTS))
        for peer in peers:
            module = peer.arguments[1]
            imports = statistics.median(importing(f"import {module}") for _ in range(STARTS))
            figures[IMPORT, peer.name].append(imports - nothing)
            figures[ANSWER, peer.name].append(statistics.median(first_answer(peer) for _ in range(STARTS)))
    print(environment("uvicorn", "h11", "uvloop"))
    rows = []
    for work in (IMPORT, ANSWER):
        for peer in peers[:-1]:
            rows.append(Row(work, peer.name, figures[work, peer.name], figures[work, "minibg"], 1.0))
    ratios("ms", rows)
