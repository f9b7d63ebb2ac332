"""The command `minibg tasks`, on a file at rest and on one that a pool has open."""

import asyncio
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from minibg import BackgroundTasks, Pool, Retry, TaskStatus, task
from minibg import tasks as command
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


def by_hand(*arguments: object) -> subprocess.CompletedProcess[str]:
    """As a stranger would call it: another process."""
    call = [sys.executable, "-m", "minibg", "tasks", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, check=False)


async def life(file: Path) -> list[str]:
    """One life of a pool: a success, a failure, one that is due tomorrow. Gives their ids."""
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


async def test_it_lists_the_newest_first_and_counts_them(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    success, failure, later = await life(file)
    command.main([str(file)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(line[0], line[1], *line[4:]) for line in lines[:3]] == [
        (later, "WAITING", "greet", "POST", "/register"),
        (failure, "FAILED", "fail", "POST", "/register", "ConnectionError:", "no", "line", "to", "b"),
        (success, "SUCCESSFUL", "greet", "POST", "/register"),
    ]
    assert " ".join(lines[3]) == "1 waiting, 1 successful, 1 failed"


async def test_a_list_can_be_of_one_status_short_and_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    success, failure, _ = await life(file)
    command.main([str(file), "--status", "failed", "--json"])
    (failed,) = json.loads(capsys.readouterr().out)
    assert (failed["id"], failed["args"], failed["kwargs"], failed["attempts"]) == (failure, ["b"], {}, 1)
    assert [(error["type"], error["message"]) for error in failed["errors"]] == [("ConnectionError", "no line to b")]
    command.main([str(file), "--limit", "1", "--status", "SUCCESSFUL", "--json"])
    (successful,) = json.loads(capsys.readouterr().out)
    assert (successful["id"], successful["value"]) == (success, "hello a")


async def test_it_shows_one_by_the_beginning_of_its_id(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, failure, _ = await life(file)
    command.main([str(file), "show", failure[:20]])
    assert json.loads(capsys.readouterr().out)["id"] == failure


async def test_at_rest_a_failed_one_is_retried_and_a_waiting_one_cancelled(file: Path) -> None:
    success, failure, later = await life(file)
    assert json.loads(by_hand(file, "retry", failure).stdout)["status"] == "READY"
    assert json.loads(by_hand(file, "cancel", later).stdout)["status"] == "CANCELLED"
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


async def test_while_a_pool_has_the_file_it_does_what_is_asked(file: Path) -> None:
    _, failure, later = await life(file)
    globals()["fails"] = False
    async with Pool(journal=file, drain_timeout=0) as pool:
        running = pool.enqueue(TASKS["block"])
        follower = pool.follow()
        answers = await asyncio.gather(
            asyncio.to_thread(by_hand, file, "retry", failure), asyncio.to_thread(by_hand, file, "cancel", later)
        )
        assert [answer.returncode for answer in answers] == [0, 0], answers
        assert json.loads(answers[1].stdout)["status"] == "CANCELLED"
        seen = set()
        async for transition in follower:
            seen.add((transition.id, transition.after))
            if {(failure, TaskStatus.SUCCESSFUL), (later, TaskStatus.CANCELLED)} <= seen:
                break
        assert (await asyncio.to_thread(by_hand, file, "cancel", running.id)).returncode == 0
        await running.wait()
        assert running.status is TaskStatus.CANCELLED


async def test_a_retried_one_has_all_its_attempts_again(file: Path) -> None:
    tried = task(name="tried", retry=Retry(attempts=2, base=0))(fail)
    async with Pool(journal=file) as pool:
        first = await pool.enqueue(tried, "d").wait()
        assert first.attempts == 2
    by_hand(file, "retry", first.id)
    async with Pool(journal=file) as pool:
        again = pool.get(first.id)
        assert again is not None
        await again.wait()
        assert (again.status, again.attempts, len(again.errors)) == (TaskStatus.FAILED, 2, 4)


async def test_a_retry_whose_key_is_taken_is_not_made(file: Path) -> None:
    async with Pool(journal=file, drain_timeout=0) as pool:
        failed = await pool.enqueue(TASKS["fail"].using(key="b"), "b").wait()
        pool.enqueue(TASKS["fail"].using(key="b", delay=86400), "b")
    answer = by_hand(file, "retry", failed.id)
    assert (answer.returncode, answer.stderr) == (
        1,
        f"minibg tasks: {failed.id} was not retried: an unfinished run has its key 'b'\n",
    )


def test_what_cannot_be_done_is_said_in_one_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    success, failure, _ = asyncio.run(life(file))
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
        (newer,): f"{newer} has schema 99, of a newer minibg: this one reads up to 1",
        (file, "show", "x"): "there is no run x",
        (file, "show", ""): "more than one run begins with ",
        (file, "retry", success): f"{success} is SUCCESSFUL, which one cannot retry",
        (file, "cancel", failure): f"{failure} is FAILED, which one cannot cancel",
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
    _, failure, _ = asyncio.run(life(file))
    with monkeypatch.context() as deaf:
        deaf.setattr(command, "_be_the_owner", lambda path: None)
        with pytest.raises(SystemExit):
            command.main([str(file), "retry", failure])
    assert capsys.readouterr().err == (
        f"minibg tasks: the owner of {file} does not answer; {failure} waits for its retry\n"
    )
    # The wish stays, and the next owner fulfils it.
    globals()["fails"] = False

    async def next_life() -> TaskStatus:
        async with Pool(journal=file) as pool:
            result = pool.get(failure)
            assert result is not None
            return (await result.wait()).status

    assert asyncio.run(next_life()) is TaskStatus.SUCCESSFUL


async def test_an_empty_journal_has_no_tasks(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with Pool(journal=file):
        pass
    command.main([str(file)])
    assert capsys.readouterr().out == "no tasks\n"


def test_minibg_tasks_is_the_same_command(file: Path) -> None:
    asyncio.run(life(file))
    answer = subprocess.run(
        [Path(sys.executable).with_name("minibg"), "tasks", file], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0
    assert answer.stdout.splitlines()[-1] == "1 waiting, 1 successful, 1 failed"


async def test_every_list_is_read_by_an_index(file: Path) -> None:
    async with Pool(journal=file):
        pass
    database = sqlite3.connect(file)
    statements = {
        name: text for name, text in vars(command).items() if isinstance(text, str) and text.startswith("SELECT")
    }
    explain = "EXPLAIN QUERY PLAN "
    plans = {
        name: [step for *_, step in database.execute(explain + text.replace("?1", "1").replace("?", "1"))]
        for name, text in statements.items()
    }
    database.close()
    assert sorted(plans) == ["BEGINS_WITH", "COUNTS", "ENDED", "GOING_ON", "NEWEST"]
    walks = {name: plan for name, plan in plans.items() if any(step == "SCAN runs" for step in plan)}
    assert set(walks) == {"NEWEST"}  # By its number, backwards, as far as the limit.


async def test_what_somebody_has_written_into_a_row_is_shown_as_it_is(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    success, failure, _ = await life(file)
    with sqlite3.connect(file) as database:
        database.execute("UPDATE runs SET payload = 'no JSON', errors = '[7]' WHERE id = ?", (failure,))
        database.execute("UPDATE runs SET payload = '7', errors = 'no JSON' WHERE id = ?", (success,))
    database.close()
    command.main([str(file)])
    assert "Traceback" not in capsys.readouterr().out
    command.main([str(file), "--json"])
    shown = {run["id"]: run for run in json.loads(capsys.readouterr().out)}
    assert (shown[failure]["payload"], shown[failure]["errors"]) == ("no JSON", [7])
    assert (shown[success]["payload"], shown[success]["errors"]) == (7, "no JSON")
    with pytest.raises(SystemExit):
        command.main([str(file), "show", "\udcff"])
    assert "surrogates not allowed" in capsys.readouterr().err
