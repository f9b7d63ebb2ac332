"""The routes of the benches, as a minibg `App`."""

import asyncio
from functools import cache
from typing import Any

from minibg import App, BackgroundTasks, PlainTextResponse, task

app = App()
ran = 0
gate = cache(asyncio.Event)


@task
async def noop() -> None:
    global ran
    ran += 1


@task
async def wait() -> None:
    await gate().wait()


@app.get("/plain")
async def plain() -> PlainTextResponse:
    return PlainTextResponse("Hello, world!")


@app.get("/items/{id}")
async def item(id: int, q: str) -> dict[str, Any]:
    return {"id": id, "q": q}


@app.post("/nothing")
async def nothing() -> PlainTextResponse:
    return PlainTextResponse("ok", 202)


@app.post("/noop")
async def add_noop(background_tasks: BackgroundTasks) -> PlainTextResponse:
    background_tasks.add_task(noop)
    return PlainTextResponse("ok", 202)


@app.post("/wait")
async def add_wait(background_tasks: BackgroundTasks) -> PlainTextResponse:
    background_tasks.add_task(wait)
    return PlainTextResponse("ok", 202)


@app.post("/later/{n}")
async def add_later(n: int, background_tasks: BackgroundTasks) -> PlainTextResponse:
    """Add ``n`` tasks that wait for an hour."""
    for _ in range(n):
        background_tasks.add_task(noop.using(delay=3600.0))
    return PlainTextResponse("ok", 202)


@app.get("/ran")
async def count() -> PlainTextResponse:
    return PlainTextResponse(str(ran))
