"""The routes of the benches, in Starlette."""

import asyncio
from functools import cache

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

ran = 0
gate = cache(asyncio.Event)


async def noop() -> None:
    global ran
    ran += 1


async def wait() -> None:
    await gate().wait()


async def plain(request: Request) -> PlainTextResponse:
    return PlainTextResponse("Hello, world!")


async def item(request: Request) -> JSONResponse:
    return JSONResponse({"id": request.path_params["id"], "q": request.query_params["q"]})


async def nothing(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok", 202)


async def add_noop(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok", 202, background=BackgroundTask(noop))


async def add_wait(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok", 202, background=BackgroundTask(wait))


async def count(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(ran))


app = Starlette(
    routes=[
        Route("/plain", plain),
        Route("/items/{id:int}", item),
        Route("/nothing", nothing, methods=["POST"]),
        Route("/noop", add_noop, methods=["POST"]),
        Route("/wait", add_wait, methods=["POST"]),
        Route("/ran", count),
    ]
)
