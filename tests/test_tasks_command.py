"""The command ``minibg tasks``, on a file at rest and on one that a pool has open; and ``minibg --journal``."""

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from minibg import BackgroundTasks, Pool, Retry, TaskStatus, task
from minibg import tasks_command as command
from minibg.background.task import TASKS

fails = True


def greet(name: str) -> str:
    return f"hello {name}"


def fail(name: str) -> str:
    if fails:
        raise ConnectionError(f"no line to {name}")
    return name


async def block() -> None:
    await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "fails", True)
    for function in (greet, fail, block):
        task(name=function.__name__)(function)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


def in_a_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "minibg", "tasks", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, check=False)


async def left_behind(file: Path) -> list[str]:
    """Leave a success, a failure, and a run that is due tomorrow in a file. Return their ids."""
    async with Pool(journal=file, drain_timeout=0) as pool:
        hold = BackgroundTasks(pool, "POST /register")
        results = [
            hold.add_task(TASKS["greet"], "a"),
            hold.add_task(TASKS["fail"], "b"),
            hold.add_task(TASKS["greet"].using(delay=86400), "c"),
        ]
        await hold.commit()
        hold.release()
        await results[1].wait()
        return [result.id for result in results]


async def test_a_list_has_the_newest_first_and_counts_them(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    success, failure, later = await left_behind(file)
    command.main([str(file)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(line[0], line[1], *line[4:]) for line in lines[:3]] == [
        (later, "WAITING", "greet", "POST", "/register"),
        (failure, "FAILED", "fail", "POST", "/register", "ConnectionError:", "no", "line", "to", "b"),
        (success, "SUCCESSFUL", "greet", "POST", "/register"),
    ]
    assert " ".join(lines[3]) == "1 waiting, 1 successful, 1 failed"


async def test_a_list_can_be_of_one_status_short_and_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    success, failure, _ = await left_behind(file)
    command.main([str(file), "--status", "failed", "--json"])
    (failed,) = json.loads(capsys.readouterr().out)
    assert (failed["id"], failed["args"], failed["kwargs"], failed["attempts"]) == (failure, ["b"], {}, 1)
    assert [(error["type"], error["message"]) for error in failed["errors"]] == [("ConnectionError", "no line to b")]
    command.main([str(file), "--limit", "1", "--status", "SUCCESSFUL", "--json"])
    (successful,) = json.loads(capsys.readouterr().out)
    assert (successful["id"], successful["return_value"]) == (success, "hello a")


async def test_a_run_is_shown_by_the_beginning_of_its_id(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, failure, _ = await left_behind(file)
    command.main([str(file), "show", failure[:20]])
    assert json.loads(capsys.readouterr().out)["id"] == failure


async def test_without_an_owner_the_command_retries_and_cancels_itself(file: Path) -> None:
    success, failure, later = await left_behind(file)
    assert json.loads(in_a_process(file, "retry", failure).stdout)["status"] == "READY"
    assert json.loads(in_a_process(file, "cancel", later).stdout)["status"] == "CANCELLED"
    globals()["fails"] = False
    async with Pool(journal=file) as pool:
        result = pool.get(failure)
        assert result is not None
        await result.wait()
        assert (result.status, result.return_value, result.attempts) == (TaskStatus.SUCCESSFUL, "b", 1)
        assert [error.message for error in result.errors] == ["no line to b"]
        assert (gone := pool.get(later)) is not None
        assert gone.status is TaskStatus.CANCELLED
        assert (done := pool.get(success)) is not None
        assert done.return_value == "hello a"


async def test_a_pool_that_owns_the_file_retries_and_cancels(file: Path) -> None:
    _, failure, later = await left_behind(file)
    globals()["fails"] = False
    async with Pool(journal=file, drain_timeout=0) as pool:
        running = pool.enqueue(TASKS["block"])
        follower = pool.follow()
        answers = await asyncio.gather(
            asyncio.to_thread(in_a_process, file, "retry", failure),
            asyncio.to_thread(in_a_process, file, "cancel", later),
        )
        assert [answer.returncode for answer in answers] == [0, 0], answers
        assert json.loads(answers[1].stdout)["status"] == "CANCELLED"
        seen = set()
        async for transition in follower:
            seen.add((transition.id, transition.after))
            if {(failure, TaskStatus.SUCCESSFUL), (later, TaskStatus.CANCELLED)} <= seen:
                break
        assert (await asyncio.to_thread(in_a_process, file, "cancel", running.id)).returncode == 0
        await running.wait()
        assert running.status is TaskStatus.CANCELLED


async def test_a_retried_run_has_all_its_attempts_again(file: Path) -> None:
    tried = task(name="tried", retry=Retry(attempts=2, base=0))(fail)
    async with Pool(journal=file) as pool:
        first = await pool.enqueue(tried, "d").wait()
        assert first.attempts == 2
    in_a_process(file, "retry", first.id)
    async with Pool(journal=file) as pool:
        again = pool.get(first.id)
        assert again is not None
        await again.wait()
        assert (again.status, again.attempts, len(again.errors)) == (TaskStatus.FAILED, 2, 4)


async def test_a_retry_that_is_refused_is_one_line_with_the_reason(file: Path) -> None:
    async with Pool(journal=file, drain_timeout=0) as pool:
        failed = await pool.enqueue(TASKS["fail"].using(key="b"), "b").wait()
        pool.enqueue(TASKS["fail"].using(key="b", delay=86400), "b")
    answer = in_a_process(file, "retry", failed.id)
    assert (answer.returncode, answer.stderr) == (
        1,
        f"minibg tasks: {failed.id} cannot be retried: an unfinished run has its key 'b'\n",
    )


def test_an_error_is_one_line_and_1(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    success, failure, _ = asyncio.run(left_behind(file))
    other = file.with_name("other.db")
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE things (name)")
    database.close()
    text = file.with_name("text")
    text.write_text("no database, but long enough to be taken for one" * 100)
    empty = file.with_name("empty.db")
    empty.touch()
    newer = file.with_name("newer.db")
    newer.write_bytes(file.read_bytes())
    with sqlite3.connect(newer) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    said = {
        (file.with_name("nothing.db"),): f"there is no file {file.with_name('nothing.db')}",
        (other,): f"{other} is a database of another application",
        (text,): f"{text}: file is not a database",
        (empty,): f"{empty} is empty, or of an older minibg: start the server with it once",
        (newer,): f"{newer} has schema 99, of a newer minibg: this one reads up to 2",
        (file, "show", "x"): "there is no run x",
        (file, "show", ""): "more than one run begins with ",
        (file, "retry", success): f"{success} cannot be retried: it is SUCCESSFUL",
        (file, "cancel", failure): f"{failure} cannot be cancelled: it is FAILED",
    }
    for arguments, message in said.items():
        with pytest.raises(SystemExit) as ended:
            command.main([str(argument) for argument in arguments])
        assert (ended.value.code, capsys.readouterr().err) == (1, f"minibg tasks: {message}\n")


@pytest.mark.parametrize("arguments", [("show",), ("retry",), ("list", "abc"), ("burn", "abc")])
def test_a_wrong_command_line_is_2(file: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([str(file), *arguments])
    assert ended.value.code == 2
    assert "usage: minibg tasks" in capsys.readouterr().err


def test_an_owner_that_does_not_answer_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, failure, _ = asyncio.run(left_behind(file))
    with monkeypatch.context() as deaf:
        deaf.setattr(command, "_answer_as_owner", lambda path: None)
        with pytest.raises(SystemExit):
            command.main([str(file), "retry", failure])
    assert capsys.readouterr().err == (
        f"minibg tasks: the owner of {file} does not answer; its next owner will retry {failure}\n"
    )
    globals()["fails"] = False

    async def next_process() -> TaskStatus:
        async with Pool(journal=file) as pool:
            result = pool.get(failure)
            assert result is not None
            return (await result.wait()).status

    assert asyncio.run(next_process()) is TaskStatus.SUCCESSFUL


async def test_an_empty_journal_has_no_tasks(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with Pool(journal=file):
        pass
    command.main([str(file)])
    assert capsys.readouterr().out == "no tasks\n"


def test_minibg_tasks_is_the_same_command(file: Path) -> None:
    asyncio.run(left_behind(file))
    answer = subprocess.run(
        [Path(sys.executable).with_name("minibg"), "tasks", file], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0
    assert answer.stdout.splitlines()[-1] == "1 waiting, 1 successful, 1 failed"


async def test_a_row_that_was_edited_by_hand_is_shown_as_it_is(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    success, failure, _ = await left_behind(file)
    with sqlite3.connect(file) as database:
        database.execute("UPDATE runs SET arguments = 'no JSON', errors = '[7]' WHERE id = ?", (failure,))
        database.execute("UPDATE runs SET arguments = '7', errors = 'no JSON' WHERE id = ?", (success,))
    database.close()
    command.main([str(file)])
    assert "Traceback" not in capsys.readouterr().out
    command.main([str(file), "--json"])
    shown = {run["id"]: run for run in json.loads(capsys.readouterr().out)}
    assert (shown[failure]["arguments"], shown[failure]["errors"]) == ("no JSON", [7])
    assert (shown[success]["arguments"], shown[success]["errors"]) == (7, "no JSON")
    with pytest.raises(SystemExit):
        command.main([str(file), "show", "\udcff"])
    assert "surrogates not allowed" in capsys.readouterr().err


# --- a server with a journal ---

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
def serving(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a server, and kill it afterwards if it still runs."""
    command = [sys.executable, "-m", "minibg", *arguments]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert any("listening on" in line for line in process.stderr)
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_second_server_ends_with_3_and_the_name_of_the_first_and_a_killed_one_lets_go(
    tmp_path: Path, durability: str
) -> None:
    (tmp_path / "served.py").write_text(APP)
    options = ["served:app", "--port", "0", "--journal", "tasks.db", "--durability", durability]
    with serving(tmp_path, *options) as first:
        second = minibg(tmp_path, *options)
        assert second.returncode == 3
        assert f"tasks.db is in use by process {first.pid}: a journal has one owner" in second.stderr
        first.kill()
        first.wait()
        with serving(tmp_path, *options) as third:
            third.send_signal(signal.SIGTERM)
            assert third.wait(60) == 0
