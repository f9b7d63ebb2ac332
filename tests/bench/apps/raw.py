"""Bare ASGI, so that only the server is measured. ``/large`` is answered with 10 KiB; a POST's body is read."""

from minibg.asgi import Message, Receive, Scope, Send

START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/plain; charset=utf-8")],
}
SMALL: Message = {"type": "http.response.body", "body": b"Hello, world!"}
LARGE: Message = {"type": "http.response.body", "body": b"x" * 10240}


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
    await send(LARGE if scope["path"] == "/large" else SMALL)
