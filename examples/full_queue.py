"""A queue without a free slot: refuse the request, catch the error, or wait.

Run it::

    python -m examples.full_queue

You will see::

    QueueFull, not caught: 503, Retry-After: True
        {"detail":"no slot is free for another task: the queue's limit is 1"}
    QueueFull, caught: 200 {"msg":"registered, but we cannot send mail now"}
    reserve, no slot within its timeout: 503
    reserve, in an async handler: 202 after another mail was sent
    reserve, in front of a sync handler: 202 after another mail was sent
    aenqueue, without a response: waited, then READY

There is one worker here, and the queue has one slot. The worker is busy with the first mail, the
second mail has the slot, and every further one finds the queue full. The mail server delivers when
it is told to.

- ``add_task`` raises `QueueFull` in the handler, at once. If the handler does not catch it, the
  client gets a 503 with Retry-After [bounded.4], an estimate from the rate at which slots become free.
- A handler may catch it, because it still has a response to choose.
- ``await background_tasks.reserve(n, timeout=seconds)`` waits until ``n`` slots are free for this
  response, all of them together, first come first served. The next ``n`` calls of ``add_task`` use
  them. After the timeout it raises `QueueFull`. A reservation larger than the limit is refused at
  once [bounded.7].
- A sync handler cannot await. A dependency in front of it can, and shares its tasks.
- ``await pool.aenqueue(f, x)`` waits for a slot outside a response: in a script, in another task,
  in a consumer.

A slot that a task has is never taken away again: a client that was told that its mail follows gets
it. ``minibg --queue-limit 50`` sets the limit for the command.
"""

import asyncio
from http.client import HTTPConnection, HTTPResponse

from minibg import App, BackgroundTasks, Depends, QueueFull, serve


class MailServer:
    """A mail server that delivers when it is told to."""

    def __init__(self) -> None:
        self.connected = asyncio.Event()
        self.deliveries = asyncio.Semaphore(0)

    async def send(self, address: str) -> str:
        self.connected.set()
        await self.deliveries.acquire()
        return address


def application(mail_server: MailServer, asked: asyncio.Event) -> App:
    """Return the application. It sets ``asked`` before it waits for a slot."""
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
            return {"msg": "registered, but we cannot send mail now"}
        return {"msg": "welcome, the mail follows"}

    @app.post("/reserve", status_code=202)
    async def reserve(background_tasks: BackgroundTasks, seconds: float) -> dict[str, str]:
        asked.set()
        await background_tasks.reserve(1, timeout=seconds)
        background_tasks.add_task(mail_server.send, "a@example.org")
        return {"msg": "welcome, the mail follows"}

    async def a_slot(background_tasks: BackgroundTasks) -> None:
        asked.set()
        await background_tasks.reserve(1, timeout=10.0)

    @app.post("/reserve-in-front", status_code=202, dependencies=[Depends(a_slot)])
    def reserve_in_front(background_tasks: BackgroundTasks) -> dict[str, str]:
        background_tasks.add_task(mail_server.send, "a@example.org")
        return {"msg": "welcome, the mail follows"}

    return app


async def post(port: int, path: str) -> tuple[HTTPResponse, str]:
    """POST with the standard library alone. It blocks, so it runs in a thread."""

    def blocking() -> tuple[HTTPResponse, str]:
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request("POST", path)
            response = connection.getresponse()
            return response, response.read().decode()
        finally:
            connection.close()

    return await asyncio.to_thread(blocking)


async def main() -> None:
    mail_server, asked = MailServer(), asyncio.Event()
    async with serve(application(mail_server, asked), port=0, task_workers=1, queue_limit=1) as server:
        await post(server.port, "/register")
        await mail_server.connected.wait()  # The worker is busy.
        await post(server.port, "/register")  # The slot is taken.

        response, body = await post(server.port, "/register")
        print(f"QueueFull, not caught: {response.status}, Retry-After: {'Retry-After' in response.headers}")
        print(f"    {body}")
        response, body = await post(server.port, "/register-anyway")
        print(f"QueueFull, caught: {response.status} {body}")
        response, _ = await post(server.port, "/reserve?seconds=0.05")
        print(f"reserve, no slot within its timeout: {response.status}")

        for path, where in (
            ("/reserve?seconds=10", "in an async handler"),
            ("/reserve-in-front", "in front of a sync handler"),
        ):
            asked.clear()
            request = asyncio.create_task(post(server.port, path))
            await asked.wait()
            mail_server.deliveries.release()  # The worker takes the next mail, which frees its slot.
            response, _ = await request
            print(f"reserve, {where}: {response.status} after another mail was sent")

        adding = asyncio.create_task(server.pool.aenqueue(mail_server.send, "a newsletter"))
        await asyncio.sleep(0)
        waited = "waited" if not adding.done() else "did not wait"
        mail_server.deliveries.release()
        print(f"aenqueue, without a response: {waited}, then {(await adding).status}")
        for _ in range(5):
            mail_server.deliveries.release()


if __name__ == "__main__":
    asyncio.run(main())
