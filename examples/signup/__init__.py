"""A registration whose mail is sent after the answer.

Run it::

    minibg examples.signup:app

and register, from a second terminal or on http://127.0.0.1:8000/::

    curl -X POST 'http://127.0.0.1:8000/register?email=a@example.org'

You will see the answer at once, with the ids of three tasks. The mail takes two seconds; the audit line and the cache
refresh follow it in this order, although they would be done in no time: the tasks of one response run one after another.
``curl http://127.0.0.1:8000/tasks/ID`` shows where one is. Press Ctrl-C during the mail: the server waits for it.

Without ``SMTP_URL`` the mail is a file in ``./outbox``, so nothing else needs to be installed.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from examples.signup.page import PAGE
from examples.signup.tasks import cache, refresh_cache, send_welcome_email, write_audit_line
from minibg import App, BackgroundTasks, HTMLResponse, HTTPException, Pool, TaskResult

#: Enough to catch what was mistyped; only a mail that arrives proves an address.
ADDRESS = re.compile(r"[^@\s<>\",;:\\]+@[^@\s<>\",;:\\]+\.[^@\s<>\",;:\\]+")


@asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[None]:
    host, port = next((each for each in app.state.addresses if len(each) == 2), ("127.0.0.1", 8000))
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"sign up at {url}/ or try\n\n    curl -X POST '{url}/register?email=a@example.org'\n", flush=True)
    yield


app = App(lifespan=lifespan)


@app.post("/register", status_code=202)
async def register(email: str, background_tasks: BackgroundTasks) -> dict[str, Any]:
    if not ADDRESS.fullmatch(email):
        raise HTTPException(422, f"{email!r} is not an email address")
    tasks: list[TaskResult[Any]] = [
        background_tasks.add_task(send_welcome_email, email),
        background_tasks.add_task(write_audit_line, email),
        background_tasks.add_task(refresh_cache),
    ]
    return {"msg": "welcome, the mail follows", "tasks": [{"id": task.id, "name": task.name} for task in tasks]}


@app.get("/tasks/{id}")
async def show(id: str, pool: Pool) -> TaskResult[Any]:
    result = pool.get(id)
    if result is None:
        raise HTTPException(404, f"no task has the id {id!r}, or it ended too long ago")
    return result


@app.get("/registrations")
async def registrations() -> dict[str, int]:
    return cache


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE
