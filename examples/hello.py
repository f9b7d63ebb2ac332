"""FastAPI's documentation of background tasks, with another import line.

Run it::

    minibg examples.hello:app
    curl -X POST 'http://127.0.0.1:8000/register?email=a@example.org'
    curl http://127.0.0.1:8000/data

You will see, in ``log.txt``::

    mail to a@example.org
    registered
    cache refreshed for a@example.org
    audit

The first three lines are the tasks of one response, in the order they were added. The last one is
of a dependency, which adds to the tasks of its request as a handler does. Everything below the
import is written as for FastAPI, and therefore less typed than the rest of this folder.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# ruff: noqa: ANN001, ANN201, ARG001, B008, PTH123 - written as FastAPI's documentation writes it

from minibg import App as FastAPI, BackgroundTasks, Depends

app = FastAPI()


def write_log(message: str):
    with open("log.txt", "a") as f:
        f.write(f"{message}\n")


def send_welcome_email(email: str):
    write_log(f"mail to {email}")


def refresh_cache(email: str):
    write_log(f"cache refreshed for {email}")


@app.post("/log")
async def log_operation(background_tasks: BackgroundTasks):
    background_tasks.add_task(write_log, "someone called /log")
    return {"message": "recorded"}


@app.post("/register")
async def register(email: str, background_tasks: BackgroundTasks):
    background_tasks.add_task(send_welcome_email, email)
    background_tasks.add_task(write_log, "registered")
    background_tasks.add_task(refresh_cache, email)
    return {"msg": "welcome, the mail follows"}


def audit(background_tasks: BackgroundTasks):
    background_tasks.add_task(write_log, "audit")


@app.get("/data")
async def get_data(dep=Depends(audit)):
    return {"msg": "data"}
