"""The application of the HTTP bench: bare ASGI, so that only the server is measured."""

from minibg.asgi import Message, Receive, Scope, Send

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
