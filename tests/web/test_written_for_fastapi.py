"""An application written for FastAPI runs unchanged but for its import line, and its tasks run in the same order."""

from pathlib import Path

import pytest

from minibg.after_response import AfterResponse
from minibg.background import BackgroundTasks, Pool
from minibg.web.app import App as FastAPI
from minibg.web.depends import Depends
from tests.web.driver import call

app = FastAPI()
did: list[str] = []


def send_welcome_email(email: str):  # type: ignore[no-untyped-def]
    did.append(f"mail to {email}")


async def refresh_cache(email: str):  # type: ignore[no-untyped-def]
    did.append(f"cache of {email}")


# From here on it is FastAPI's documentation.


def write_log(message: str):  # type: ignore[no-untyped-def]
    with open("log.txt", "a") as f:
        f.write(f"{message}\n")


@app.post("/log")
async def log_operation(background_tasks: BackgroundTasks):  # type: ignore[no-untyped-def]
    background_tasks.add_task(write_log, "someone called /log")
    return {"message": "recorded"}


@app.post("/register")
async def register(email: str, background_tasks: BackgroundTasks):  # type: ignore[no-untyped-def]
    background_tasks.add_task(send_welcome_email, email)
    background_tasks.add_task(write_log, "registered")
    background_tasks.add_task(refresh_cache, email)
    return {"msg": "welcome, the mail follows"}


def audit(background_tasks: BackgroundTasks):  # type: ignore[no-untyped-def]
    background_tasks.add_task(write_log, "audit")


@app.get("/data")
async def get_data(dep=Depends(audit)):  # type: ignore[no-untyped-def]
    return {"msg": "data"}


async def test_it_answers_and_its_tasks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    did.clear()
    async with Pool(workers=1) as pool:
        joint = AfterResponse(app, pool)
        requests = [
            ("POST", "/log"),
            ("POST", "/register?email=a@example.org"),
            ("GET", "/data"),
            ("POST", "/register"),
        ]
        answers = [await call(joint, method, target) for method, target in requests]
        await pool.idle()
    assert [(answer.status, answer.json) for answer in answers[:3]] == [
        (200, {"message": "recorded"}),
        (200, {"msg": "welcome, the mail follows"}),
        (200, {"msg": "data"}),
    ]
    assert (answers[3].status, answers[3].json["detail"][0]["loc"]) == (422, ["query", "email"])
    assert did == ["mail to a@example.org", "cache of a@example.org"]
    assert Path("log.txt").read_text() == "someone called /log\nregistered\naudit\n"
