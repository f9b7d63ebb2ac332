"""The framework: a handler of `App`, against Starlette and FastAPI on uvicorn with httptools.

Starlette on uvicorn with h11 stands beside them: it shows how much of a difference is the parser's.
"""

from collections.abc import Sequence

from tests.bench.harness import Request, Row, environment, get, measure, minibg, options, present, ratios, uvicorn

STARLETTE_H11 = uvicorn("starlette_app", "h11", "starlette")
STARLETTE = uvicorn("starlette_app", "httptools", "starlette")
FASTAPI = uvicorn("fastapi_app", "httptools", "fastapi")
#: The requests, each with the ratios that issue 13 asks for.
CASES = {
    Request("plain handler", get("/plain")): {STARLETTE.name: 1.0, FASTAPI.name: 2.0},
    Request("JSON handler, a path and a query parameter", get("/items/42?q=hello")): {
        STARLETTE.name: 1.0,
        FASTAPI.name: 2.5,
    },
}


def main(arguments: Sequence[str]) -> None:
    chosen = options("app", __doc__, arguments)
    peers = present([STARLETTE_H11, STARLETTE, FASTAPI, minibg("minibg_app")])
    figures = measure(peers, tuple(CASES), chosen)
    print(environment("starlette", "fastapi", "pydantic", "uvicorn", "h11", "httptools", "uvloop"))
    rows = []
    for request, targets in CASES.items():
        ours = figures["minibg", request.name]
        for peer in peers[:-1]:
            rows.append(Row(request.name, peer.name, figures[peer.name, request.name], ours, targets.get(peer.name)))
    ratios("us a request", rows)
