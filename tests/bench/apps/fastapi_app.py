"""The routes of the benches, in FastAPI. ``response_model=None``: FastAPI does not validate its own answer."""

from typing import Any

from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import PlainTextResponse

app = FastAPI()
ran = 0


async def noop() -> None:
    global ran
    ran += 1


@app.get("/plain")
async def plain() -> PlainTextResponse:
    return PlainTextResponse("Hello, world!")


@app.get("/items/{id}", response_model=None)
async def item(id: int, q: str) -> dict[str, Any]:
    return {"id": id, "q": q}


@app.post("/nothing")
async def nothing() -> PlainTextResponse:
    return PlainTextResponse("ok", 202)


@app.post("/noop")
async def add_noop(background_tasks: BackgroundTasks) -> PlainTextResponse:
    background_tasks.add_task(noop)
    return PlainTextResponse("ok", 202)


@app.get("/ran")
async def count() -> PlainTextResponse:
    return PlainTextResponse(str(ran))
