"""The application of the HTTP bench: bare ASGI, so that only the server is measured."""

import asyncio
import sys
from typing import Any

import uvloop

from minibg.asgi import Message, Receive, Scope, Send
from minibg.server import Server

HEADERS = [(b"content-type", b"text/plain; charset=utf-8")]
START: Message = {"type": "http.response.start", "status": 200, "headers": HEADERS}
BODY: Message = {"type": "http.response.body", "body": b"Hello, world!"}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["method"] == "POST":
        size = 0
        more = True
        while more:
            message = await receive()
            size += len(message["body"])
            more = message["more_body"]
        assert size == 1024
    await send(START)
    await send(BODY)


async def serve(port: int) -> None:
    async with Server(app, port=port, access_log=False):
        await asyncio.Event().wait()


if __name__ == "__main__":  # python -m tests.bench.raw PORT: minibg's server, and nothing else of minibg
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
