"""Bytes of a waiting task that a request has added, and of a finished run that is remembered.

The figure is the growth of the server's own memory, from the kernel, divided by the tasks: what they cost to
the machine, with the allocator's share. Every task of this bench waits until the process ends. In
Starlette a waiting task is a request that is suspended; in minibg it is queued behind tasks that wait.

A finished run is remembered by minibg alone, so that row has no peer.
"""

import statistics
from collections.abc import Sequence

from tests.bench.app import STARLETTE
from tests.bench.harness import Peer, Request, Server, environment, load, minibg, options, post, present
from tests.bench.harness import running, spread, table, verdict

TASKS = 20_000
#: The allocator keeps room for some; these come first and are not counted.
FIRST = 2000
MINIBG = minibg("minibg_app", "--queue-limit", "1000000", "--keep-finished", "1000000")
WAITING, FINISHED = Request("waiting", post("/wait")), Request("finished", post("/noop"))
#: work -> (the request, the bytes that issue 13 asks for)
CASES = {"a waiting task, added by a request": (WAITING, 1000), "a finished run that is remembered": (FINISHED, 600)}


def grown(server: Server, request: Request, tasks: int) -> float:
    """Return the bytes that each of ``tasks`` requests has left behind."""
    load(server, request.data, FIRST)
    before = server.memory()
    load(server, request.data, tasks)
    return (server.memory() - before) / tasks


def main(arguments: Sequence[str]) -> None:
    chosen = options("memory", __doc__, arguments)
    tasks = chosen.scaled(TASKS)
    cases: list[tuple[str, Peer]] = [(work, MINIBG) for work in CASES]
    cases[:0] = [(next(iter(CASES)), peer) for peer in present([STARLETTE])]
    figures: dict[tuple[str, str], list[float]] = {(work, peer.name): [] for work, peer in cases}
    for _ in range(chosen.rounds):
        for work, peer in cases:
            with running(peer, patient=False) as server:
                figures[work, peer.name].append(grown(server, CASES[work][0], tasks))
    print(environment("starlette", "uvicorn", "uvloop"))
    lines = []
    for work, (_, target) in CASES.items():
        theirs, ours = figures.get((work, STARLETTE.name)), figures[work, MINIBG.name]
        reached = statistics.median(ours) < target
        lines.append((work, spread(theirs, ".0f") if theirs else "", spread(ours, ".0f"), target, verdict(reached)))
    table(["bytes of", STARLETTE.name, "minibg", "under", ""], lines)
