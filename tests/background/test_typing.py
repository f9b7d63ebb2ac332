"""The types of the queue, as mypy sees a program that uses it: wrong arguments are errors, and
results have their types.
"""

import re
from pathlib import Path

from mypy import api

PROGRAM = """
from functools import partial

from minibg.background import BackgroundTasks, Pool, Retry, task


def plain(address: str, copies: int = 1) -> int: ...
async def coroutine(address: str) -> bytes: ...
@task
def decorated(address: str) -> int: ...
@task(retry=Retry(attempts=3), timeout=10)
async def decorated_async(address: str) -> bytes: ...


async def right(pool: Pool, tasks: BackgroundTasks) -> None:
    reveal_type(tasks.add_task(plain, "a", copies=2))
    reveal_type(tasks.add_task(coroutine, "a"))
    reveal_type(tasks.add_task(decorated, "a"))
    reveal_type(pool.enqueue(decorated_async, address="a"))
    reveal_type(pool.enqueue(decorated_async.using(delay=60, always=True), "a"))
    reveal_type(pool.enqueue(task(plain).using(priority="high"), "a"))
    reveal_type(pool.enqueue(partial(coroutine, "a")))
    reveal_type((await pool.enqueue(plain, "a").wait()).return_value)
    reveal_type((await pool.enqueue(coroutine, "a")).return_value)
    reveal_type(await pool.aenqueue(coroutine, "a"))
    reveal_type(await pool.aenqueue(decorated, "a"))
    reveal_type(decorated("a"))
    reveal_type(await decorated_async("a"))


def wrong(pool: Pool, tasks: BackgroundTasks) -> None:
    tasks.add_task(plain, 1)
    tasks.add_task(coroutine)
    tasks.add_task(decorated, "a", timeout=3)
    pool.enqueue(decorated_async, "a", "b")
    pool.enqueue(coroutine("a"))
    pool.enqueue(3)
    pool.aenqueue(plain, 1)
    decorated.using(retries=3)
    decorated.using(priority="urgent")
    task(delay=3)
"""

RIGHT = [
    "TaskResult[int]",
    "TaskResult[bytes]",
    "TaskResult[int]",
    "TaskResult[bytes]",
    "TaskResult[bytes]",
    "TaskResult[int]",
    "TaskResult[bytes]",
    "int | None",
    "bytes | None",
    "TaskResult[bytes]",
    "TaskResult[int]",
    "int",
    "bytes",
]


def test_mypy_refuses_a_wrong_argument_and_knows_the_results(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    output, _, _ = api.run(["--strict", "--no-error-summary", "--disable-error-code=empty-body", str(program)])
    revealed = re.findall(r'Revealed type is "(.*)"', output)
    assert [each.replace("minibg.background.result.", "").replace("builtins.", "") for each in revealed] == RIGHT
    first_wrong = PROGRAM[: PROGRAM.index("def wrong")].count("\n") + 2
    wrong_lines = {int(line) for line in re.findall(r"program.py:(\d+): error:", output)}
    assert wrong_lines == set(range(first_wrong, first_wrong + 10)), output
