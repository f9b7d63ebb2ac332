"""The durable journal as a stranger meets it: processes that die, and the command that refuses."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, os, signal, sys
from minibg import BackgroundTasks, Pool, task

@task(name="poison")
def poison():
    print("poison", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

@task(name="sibling")
def sibling():
    print("sibling", flush=True)

async def main(add):
    async with Pool(journal="tasks.db") as pool:
        if add:
            hold = BackgroundTasks(pool)
            hold.add_task(poison)
            hold.add_task(sibling)
            await hold.commit()
            hold.release()
        await pool.idle()

asyncio.run(main(sys.argv[1:] == ["add"]))
"""

APP = """
from minibg import App, BackgroundTasks, task

app = App()

@task(name="greet")
def greet(name: str) -> None: ...

@app.post("/greet")
async def register(name: str, background_tasks: BackgroundTasks):
    return {"id": background_tasks.add_task(greet, name).id}
"""


def minibg(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "minibg", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A server that listens; killed afterwards, if it still runs."""
    command = [sys.executable, "-m", "minibg", *arguments]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert any("listening on" in line for line in process.stderr)
            yield process
        finally:
            process.kill()


def test_a_task_that_kills_its_process_is_run_three_times_and_its_siblings_after_that(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    lives = [
        subprocess.run(
            [sys.executable, program, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        for arguments in (["add"], [], [], [])
    ]
    killed = -signal.SIGKILL
    assert [(life.returncode, life.stdout) for life in lives] == [
        (killed, "poison\n"),
        (killed, "poison\n"),
        (killed, "poison\n"),
        (0, "sibling\n"),
    ]
    runs = json.loads(minibg(tmp_path, "tasks", "tasks.db", "--json").stdout)
    assert [(run["name"], run["status"], run["attempts"], run["crashes"]) for run in runs] == [
        ("sibling", "SUCCESSFUL", 1, 0),
        ("poison", "FAILED", 3, 3),
    ]
    (error,) = runs[1]["errors"]
    assert error["message"] == "worker died: its process ended 3 times in the middle of it"


def test_a_journal_that_cannot_be_used_ends_the_command_with_3_and_its_reason(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(APP)
    text = tmp_path / "text.db"
    text.write_text("this is no database, and long enough to be taken for one" * 100)
    before = text.read_bytes()
    refused = minibg(tmp_path, "served:app", "--port", "0", "--journal", "text.db")
    assert refused.returncode == 3
    assert "text.db cannot be used as a journal: file is not a database" in refused.stderr
    assert text.read_bytes() == before


@pytest.mark.parametrize("durability", ["power", "process"])
def test_two_servers_cannot_have_one_journal_and_a_killed_one_lets_go(tmp_path: Path, durability: str) -> None:
    (tmp_path / "served.py").write_text(APP)
    options = ["served:app", "--port", "0", "--journal", "tasks.db", "--durability", durability]
    with started(tmp_path, *options) as first:
        second = minibg(tmp_path, *options)
        assert second.returncode == 3
        assert f"tasks.db is in use by process {first.pid}: a journal has one owner" in second.stderr
        first.kill()
        first.wait()
        with started(tmp_path, *options) as third:
            third.send_signal(signal.SIGTERM)
            assert third.wait(60) == 0
