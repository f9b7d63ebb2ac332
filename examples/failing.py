"""A handler that fails, and what becomes of its tasks.

Run it::

    python -m examples.failing

You will see::

    /returns-404: 404, mail SUCCESSFUL, log SUCCESSFUL
    /raises-404: 404, mail DROPPED, log SUCCESSFUL
    /crashes: 500, mail DROPPED, log SUCCESSFUL

A response that the handler returns keeps the tasks, whatever its status [promise.2]. An exception means that
the handler did not finish: its tasks are dropped, also when the exception is an `HTTPException` and
is answered [promise.3]. A registration that was never written gets no welcome mail. ``using(always=True)``
marks a task that runs all the same: an audit line, a metric.

The traceback of the crash is in the log, on stderr.
"""

import asyncio
from http.client import HTTPConnection
from typing import Any

from minibg import App, BackgroundTasks, HTTPException, JSONResponse, TaskResult, serve, task

app = App()
added: list[TaskResult[Any]] = []


@task
async def mail() -> None: ...


@task
async def log() -> None: ...


def add_both(background_tasks: BackgroundTasks) -> None:
    added[:] = [background_tasks.add_task(mail), background_tasks.add_task(log.using(always=True))]


@app.get("/returns-404")
async def returns(background_tasks: BackgroundTasks) -> JSONResponse:
    add_both(background_tasks)
    return JSONResponse({"detail": "no such person"}, 404)


@app.get("/raises-404")
async def raises(background_tasks: BackgroundTasks) -> None:
    add_both(background_tasks)
    raise HTTPException(404, "no such person")


@app.get("/crashes")
async def crashes(background_tasks: BackgroundTasks) -> None:
    add_both(background_tasks)
    raise RuntimeError("the database is away")


def get(port: int, path: str) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


async def main() -> None:
    async with serve(app, port=0) as server:
        for path in ("/returns-404", "/raises-404", "/crashes"):
            status = await asyncio.to_thread(get, server.port, path)
            ends = [f"{result.name.split('.')[-1]} {(await result.wait()).status}" for result in added]
            print(f"{path}: {status}, {', '.join(ends)}")


if __name__ == "__main__":
    asyncio.run(main())
