"""The server alone: a bare ASGI application, against uvicorn with h11.

Both as their command starts them: minibg with its joint and its pool. Both on uvloop, without an access log.
"""

from collections.abc import Sequence

from tests.bench.harness import Request, Row, environment, get, measure, minibg, options, post, present, ratios, uvicorn

#: What Firefox sends, in its order, after Host: eight fields in all. The cookie is another one each time.
BROWSER = (
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n"
    b"Accept-Language: en-US,en;q=0.5\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\n"
    b"Upgrade-Insecure-Requests: 1\r\n"
    b"Cookie: session=eyJ1c2VyIjogMTIzNDU2Nzg5MCwgImNzcmYiOiAi@@@@@@@@; theme=dark\r\n"
    b"Cache-Control: max-age=0\r\n"
)
#: The requests, each with the ratio that issue 13 asks for.
CASES = {
    Request("GET, one header", get("/")): 3.5,
    Request("GET, a browser's eight headers, every head different", get("/", BROWSER)): 2.6,
    Request("POST, 1 KiB", post("/", b"x" * 1024)): 2.6,
    Request("GET, one header, 10 KiB response", get("/large")): 3.0,
}


def main(arguments: Sequence[str]) -> None:
    chosen = options("http", __doc__, arguments)
    peers = present([uvicorn("raw", "h11"), uvicorn("raw", "httptools"), minibg("raw")])
    figures = measure(peers, tuple(CASES), chosen)
    print(environment("uvicorn", "h11", "httptools", "uvloop"))
    rows = []
    for request, target in CASES.items():
        for peer in peers[:-1]:
            wanted = target if peer.name == "uvicorn h11" else None
            ours = figures["minibg", request.name]
            rows.append(Row(request.name, peer.name, figures[peer.name, request.name], ours, wanted))
    ratios("us a request", rows)
