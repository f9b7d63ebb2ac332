"""A full queue: refuse, catch, or wait.

Run it::

    python -m examples.overflow

You will see::

    reject: 202, 202, then 503, come back later: True
        {"detail":"no place for another task: the queue's limit is 1"}
    caught: 200 {"msg":"registered, but we cannot send mail just now"}
    wait: 202, 202, then 202 when a place was free: True

There is one worker here, and the queue has one place. The first mail is with the worker, the second has the place, and
the third finds the queue full.

- ``overflow="reject"``, the default: ``add_task`` raises `QueueFull` in the handler, at once. A full queue that nobody
  catches is a 503 with Retry-After, an estimate from the rate at which places become free.
- A handler may catch it, because there still is a response to change.
- ``overflow="wait"``: the response waits for a place, at most ``overflow_timeout`` seconds; after that it is a 503 too.
  A batch that can never fit is refused at once.

Who was told that the mail follows gets it: a place, once reserved, is never taken back. ``minibg --queue-limit 50
--overflow wait`` sets the same for the command.
"""

import asyncio
from http.client import HTTPConnection, HTTPResponse

from minibg import App, BackgroundTasks, QueueFull, serve


class MailServer:
    """It answers when somebody opens it."""

    def __init__(self) -> None:
        self.connected = asyncio.Event()
        self.opened = asyncio.Event()

    async def send(self, address: str) -> str:
        self.connected.set()
        await self.opened.wait()
        return address


def application(mail_server: MailServer) -> App:
    app = App()

    @app.post("/register", status_code=202)
    async def register(background_tasks: BackgroundTasks) -> dict[str, str]:
        background_tasks.add_task(mail_server.send, "a@example.org")
        return {"msg": "welcome, the mail follows"}

    @app.post("/register-anyway")
    async def register_anyway(background_tasks: BackgroundTasks) -> dict[str, str]:
        try:
            background_tasks.add_task(mail_server.send, "a@example.org")
        except QueueFull:
            return {"msg": "registered, but we cannot send mail just now"}
        return {"msg": "welcome, the mail follows"}

    return app


async def post(port: int, path: str) -> tuple[HTTPResponse, str]:
    """POST with nothing but the standard library, which blocks: in a thread."""

    def blocking() -> tuple[HTTPResponse, str]:
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("POST", path)
            response = connection.getresponse()
            return response, response.read().decode()
        finally:
            connection.close()

    return await asyncio.to_thread(blocking)


async def fill(port: int, mail_server: MailServer) -> str:
    """Two registrations: one for the worker, one for the only place."""
    first, _ = await post(port, "/register")
    await mail_server.connected.wait()
    second, _ = await post(port, "/register")
    return f"{first.status}, {second.status}"


async def main() -> None:
    mail_server = MailServer()
    async with serve(application(mail_server), port=0, workers=1, queue_limit=1) as server:
        before = await fill(server.port, mail_server)
        response, body = await post(server.port, "/register")
        print(f"reject: {before}, then {response.status}, come back later: {'Retry-After' in response.headers}")
        print(f"    {body.strip()}")
        response, body = await post(server.port, "/register-anyway")
        print(f"caught: {response.status} {body.strip()}")
        mail_server.opened.set()

    mail_server = MailServer()
    async with serve(application(mail_server), port=0, workers=1, queue_limit=1, overflow="wait") as server:
        before = await fill(server.port, mail_server)
        asyncio.get_running_loop().call_later(0.2, mail_server.opened.set)
        response, _ = await post(server.port, "/register")
        print(f"wait: {before}, then {response.status} when a place was free: {mail_server.opened.is_set()}")


if __name__ == "__main__":
    asyncio.run(main())
