"""A registration whose mail is sent after the answer.

Run it::

    minibg examples.signup:app

and register, from a second terminal or on http://127.0.0.1:8000/::

    curl -X POST 'http://127.0.0.1:8000/register?email=a@example.org'

You will see the answer at once, with the ids of three tasks. The mail takes two seconds. The audit
line and the cache refresh follow it in this order, although they take no time: the tasks of one
response run one after another. ``curl http://127.0.0.1:8000/tasks/ID`` shows the record of one.
Press Ctrl-C during the mail: the server waits for it.

Without ``SMTP_URL`` the mail is a file in ``./outbox``, so no mail server is needed. With it, and a
mail server that refuses, the page shows the error, and the two other tasks run all the same.

This file is the HTTP side, `tasks` is what happens afterwards and knows no HTTP, `page` is what a
person sees. One line joins them: ``background_tasks.add_task``. It takes a slot of the queue (a
full queue is a 503 here and now) and returns the `TaskResult` whose id is in the answer. ``Pool``
and ``BackgroundTasks`` are arguments that are filled by their annotation.

``/events?id=...`` streams the records of some tasks as server-sent events (HTML Living Standard,
§9.2), until all of them have ended. It follows the pool before it reads the records: a change in
between would be lost otherwise.

The status is 202 Accepted: the registration is accepted and its work not done yet (RFC 9110
§15.3.3).
"""

import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

from examples.signup.page import page, progress
from examples.signup.tasks import cache, refresh_cache, send_welcome_email, write_audit_line
from minibg import (
    App,
    BackgroundTasks,
    HTMLResponse,
    HTTPException,
    Pool,
    RedirectResponse,
    Request,
    Response,
    StreamingResponse,
    TaskResult,
)

#: The addresses of ``<input type=email>`` (HTML Living Standard, §4.10.5.1.5), but with a dot in
#: the domain. They have no space, control character, comma or bracket, so none can end a header or
#: add a second recipient. The pattern catches mistakes; only a mail that arrives proves an address.
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
ADDRESS = re.compile(rf"[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{LABEL}(?:\.{LABEL})+")
#: RFC 5321 §4.5.3.1.3: 256 octets with the angle brackets around it.
LONGEST_ADDRESS = 254


@asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[None]:
    for line in invitation(app.state.addresses):
        print(line, flush=True)
    yield


def invitation(addresses: Sequence[tuple[str, int] | str]) -> list[str]:
    """Return the lines that say where to sign up.

    None under another server than minibg's, which passes no addresses.
    """
    if not addresses:
        return []
    if isinstance(addresses[0], str):
        return [f"    curl -X POST --unix-socket {addresses[0]} 'http://localhost/register?email=a@example.org'"]
    host, port = addresses[0]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    return [f"sign up at {url}/ or try", f"    curl -X POST '{url}/register?email=a@example.org'"]


app = App(lifespan=lifespan)


@app.post("/register", status_code=202)
async def register(email: str, background_tasks: BackgroundTasks) -> dict[str, Any]:
    if (refusal := what_is_wrong(email)) is not None:
        raise HTTPException(422, refusal)
    tasks = add_tasks(email, background_tasks)
    return {"msg": "welcome, the mail follows", "tasks": [{"id": task.id, "name": task.name} for task in tasks]}


def what_is_wrong(email: str) -> str | None:
    is_address = len(email) <= LONGEST_ADDRESS and ADDRESS.fullmatch(email)
    return None if is_address else f"{email!r} is not an email address"


def add_tasks(email: str, background_tasks: BackgroundTasks) -> list[TaskResult[Any]]:
    return [
        background_tasks.add_task(send_welcome_email, email),
        background_tasks.add_task(write_audit_line, email),
        background_tasks.add_task(refresh_cache),
    ]


@app.get("/tasks/{id}")
async def show(id: str, pool: Pool) -> TaskResult[Any]:
    result = pool.get(id)
    if result is None:
        raise HTTPException(404, f"no task has the id {id!r}, or it finished too long ago")
    return result


@app.get("/events")
async def events(id: list[str], pool: Pool) -> StreamingResponse:
    changes = pool.follow()
    results = [await show(each, pool) for each in id]

    async def stream() -> AsyncIterator[str]:
        yield event(results)
        if not all(result.is_finished for result in results):
            async for change in changes:
                if change.id in id or change.missed:
                    yield event(results)
                    if all(result.is_finished for result in results):
                        return

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"cache-control": "no-store"})


def event(results: Sequence[TaskResult[Any]]) -> str:
    return f"data: {json.dumps(progress(results))}\n\n"


@app.get("/registrations")
async def registrations() -> dict[str, int]:
    return cache


# --- the page ---


@app.get("/")
async def home(request: Request, pool: Pool) -> HTMLResponse:
    results = [pool.get(id) for id in request.query_params.getlist("id")]
    return HTMLResponse(page([result for result in results if result is not None]))


@app.post("/")
async def sign_up(request: Request, background_tasks: BackgroundTasks) -> Response:
    """Register from the form, for a browser without JavaScript."""
    email = str((await request.form()).get("email", ""))
    if (refusal := what_is_wrong(email)) is not None:
        return HTMLResponse(page(email=email, error=refusal), 422)
    tasks = add_tasks(email, background_tasks)
    return RedirectResponse("/?" + urlencode([("id", task.id) for task in tasks]), 303)  # A reload sends no form.
