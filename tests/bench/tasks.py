"""A request that adds one no-op coroutine task, against the background tasks of Starlette and FastAPI.

The cost of the task alone is that of the POST with a task, less that of the same POST without one, in the same
round. Whether every task has run is asked at the end of each round. The queue has room for all of them; the last
table says how many POSTs are refused where it has not: with the default limit, while 64 clients send without a pause.
"""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack

from tests.bench.app import FASTAPI, STARLETTE, STARLETTE_H11
from tests.bench.harness import Row, environment, get, load, minibg, options, post, present, ratios
from tests.bench.harness import running, send, spread, table, verdict

COUNT = 4000
SLICES = 3
WITH, WITHOUT = "POST that adds a no-op task, whole cost", "the same POST without a task"
PATHS = {WITHOUT: "/nothing", WITH: "/noop"}
TARGETS = {STARLETTE_H11.name: 2.3, STARLETTE.name: 1.0, FASTAPI.name: 1.8}


def main(arguments: Sequence[str]) -> None:
    chosen = options("tasks", __doc__, arguments)
    count = chosen.scaled(COUNT)
    peers = present([STARLETTE_H11, STARLETTE, FASTAPI, minibg("minibg_app", "--queue-limit", "100000")])
    figures: dict[tuple[str, str], list[float]] = {(peer.name, work): [] for peer in peers for work in PATHS}
    for _ in range(chosen.rounds):
        used: dict[tuple[str, str], list[float]] = {key: [] for key in figures}
        with ExitStack() as stack:
            servers = [(peer.name, stack.enter_context(running(peer))) for peer in peers]
            for _ in range(SLICES + 1):
                for work, path in PATHS.items():
                    for name, server in servers:
                        used[name, work].append(load(server, post(path), count))
            for name, server in servers:
                ran = int(server.ask(get("/ran")))
                assert ran == (SLICES + 1) * count, f"{name} has run {ran} tasks"
        for key, costs in used.items():
            figures[key].append(statistics.fmean(costs[1:]))  # The first slice warms.

    def alone(name: str) -> list[float]:
        return [loaded - bare for loaded, bare in zip(figures[name, WITH], figures[name, WITHOUT], strict=True)]

    print(environment("starlette", "fastapi", "uvicorn", "h11", "httptools", "uvloop"))
    rows = []
    for work in PATHS:
        for peer in peers[:-1]:
            target = TARGETS[peer.name] if work == WITH else None
            rows.append(Row(work, peer.name, figures[peer.name, work], figures["minibg", work], target))
    for peer in peers[:-1]:
        target = 1.0 if "Starlette" in peer.name else None
        rows.append(Row("the task alone", peer.name, alone(peer.name), alone("minibg"), target))
    ratios("us a request", rows)
    refused = []
    for _ in range(chosen.rounds):
        with running(minibg("minibg_app")) as server:
            refused.append(100 * send(server, post("/noop"), 5 * count, refusals=True) / (5 * count))
    line = ("POSTs that add a no-op task, 64 clients", spread(refused, ".0f"), 0, verdict(max(refused) == 0))
    table(["refused with the default queue limit", "percent", "at most", ""], [line])
