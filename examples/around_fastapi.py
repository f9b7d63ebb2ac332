"""minibg's queue around a FastAPI application, under any ASGI server.

Run it, with FastAPI installed, under one of these::

    minibg examples.around_fastapi:app
    uvicorn examples.around_fastapi:app

and register::

    curl -X POST 'http://127.0.0.1:8000/register?email=a@example.org'

You will see, on the server's side::

    mail to a@example.org
    cache refreshed

`AfterResponse` is plain ASGI. It puts the hold of a request into its scope, and runs the queue and
its workers inside the application's lifespan, under every server. FastAPI's own ``BackgroundTasks``
still exists and still runs inside the request. The tasks of the hold have a bounded queue, retries,
a status, and a drain at the end.

One line makes a dependency of the hold: `tasks`. Only minibg's own server gives the strict meaning
of "after the response": the kernel has taken the last byte, whatever middleware is in between
[start.2].
"""

from typing import Annotated

from fastapi import Depends, FastAPI, Request

from minibg import AfterResponse, BackgroundTasks, Retry, task

api = FastAPI()


def tasks(request: Request) -> BackgroundTasks:
    hold: BackgroundTasks = request.scope["minibg.background"]
    return hold


@task(retry=Retry(attempts=3), timeout=10)
async def send_welcome_email(address: str) -> None:
    print(f"mail to {address}", flush=True)


def refresh_cache() -> None:
    print("cache refreshed", flush=True)


@api.post("/register", status_code=202)
async def register(email: str, background_tasks: Annotated[BackgroundTasks, Depends(tasks)]) -> dict[str, str]:
    mail = background_tasks.add_task(send_welcome_email, email)
    background_tasks.add_task(refresh_cache)
    return {"msg": "welcome, the mail follows", "mail": mail.id}


app = AfterResponse(api, workers=4)
