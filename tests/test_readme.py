"""The README: its code runs, its diagram is drawn from the code, its links lead somewhere.

A link to a file of this repository may name a function, a method or a test after the ``#``; the name
has to exist in the file. A link without a file leads to a heading of the README. So renaming a
function fails a test. The references of the explained sections are those of `test_explain`.

The cells of the comparison that are about FastAPI are shown here too, by the smallest application
that shows them. It is called as an ASGI callable: the comparison does not depend on the server.
"""

import ast
import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastapi
import pytest

from minibg.background import TRANSITIONS, Event, TaskStatus

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DIAGRAM = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
LINKS = sorted({*re.findall(r"\]\(([^):]+)\)", README.read_text())})


# --- its code, its diagram, its links ---


def diagram() -> str:
    """Return the state diagram of `TRANSITIONS`, in mermaid's language."""
    lines = ["stateDiagram-v2", f"    [*] --> {TaskStatus.HELD}: {Event.ADD.value}"]
    for status, row in TRANSITIONS.items():
        lines += [f"    {status} --> {after}: {event.value}" for event, after in row.items()]
    lines += [f"    {status} --> [*]" for status in TaskStatus if status.is_final]
    return "\n".join(lines) + "\n"


def test_the_diagram_is_drawn_from_the_table() -> None:
    found = DIAGRAM.search(README.read_text())
    assert found is not None
    assert found[1] == diagram(), "run python -m tests.test_readme"


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_its_code_runs(number: int, tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(SNIPPETS[number])
    run = subprocess.run(
        [sys.executable, "-W", "error", "snippet.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, "")
    for line in re.findall(r"print\(.*\)  # (.*)", SNIPPETS[number]):
        assert line in run.stdout.splitlines()


def test_it_has_snippets() -> None:
    assert SNIPPETS


def headings() -> set[str]:
    """Return the anchors that GitHub makes of the headings: lower case, no punctuation, hyphens for blanks."""
    found = re.findall(r"^#+ (.*)$", README.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


def names_in(node: ast.AST, prefix: str = "") -> set[str]:
    """Return the names of all classes and functions of a file, those of a class as ``Class.method``."""
    found = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found |= {prefix + child.name, *names_in(child, f"{prefix}{child.name}.")}
    return found


@pytest.mark.parametrize("link", LINKS)
def test_its_links_lead_to_files_and_to_names_in_them(link: str) -> None:
    path, _, name = link.partition("#")
    assert (ROOT / path).exists()
    if name:
        assert name in (names_in(ast.parse((ROOT / path).read_text())) if path else headings())


# --- the comparison ---


def test_every_cell_of_the_comparison_is_backed_by_a_link_or_a_test() -> None:
    _, _, section = README.read_text().partition("## The same task in three places\n")
    rows = [line.split(" | ") for line in section.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == [
        "| to deploy",
        "| async functions",
        "| retries",
        "| queue",
        "| one task fails",
        "| status",
        "| use it for",
    ]
    assert [cell for row in rows[1:] for cell in row[1:] if "](" not in cell] == []
    assert {len(row) for row in rows[1:]} == {4}


def application(*tasks: Callable[[], object], given: list[Any] | None = None) -> fastapi.FastAPI:
    """Return an application whose ``GET /`` adds these tasks, in FastAPI's way."""
    app = fastapi.FastAPI()

    @app.get("/")
    async def handler(background_tasks: fastapi.BackgroundTasks) -> None:
        add: Callable[..., object] = background_tasks.add_task  # Whatever it returns.
        results = [add(each) for each in tasks]
        if given is not None:
            given.extend(results)

    return app


async def get(app: fastapi.FastAPI, statuses: list[int]) -> None:
    """Request ``/``, and wait until the application has returned. Raises what the application raises."""

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [], "http_version": "1.1"}
    await app(scope, receive, send)


async def test_fastapi_runs_coroutine_functions_and_plain_ones() -> None:
    ran, statuses = list[str](), list[int]()
    loop = threading.current_thread()

    async def coroutine_function() -> None:
        ran.append(f"coroutine function on the loop: {threading.current_thread() is loop}")

    def plain() -> None:
        ran.append(f"plain function on the loop: {threading.current_thread() is loop}")

    await get(application(coroutine_function, plain), statuses)
    assert ran == ["coroutine function on the loop: True", "plain function on the loop: False"]


async def test_fastapi_tries_a_task_once() -> None:
    ran, statuses = list[str](), list[int]()

    async def fails() -> None:
        ran.append("fails")
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await get(application(fails), statuses)
    assert (ran, statuses) == (["fails"], [200])


async def test_fastapi_does_not_run_the_siblings_of_a_task_that_failed() -> None:
    ran, statuses = list[str](), list[int]()

    async def before() -> None:
        ran.append("before")

    async def fails() -> None:
        raise ValueError

    async def after() -> None:
        ran.append("after")

    with pytest.raises(ValueError):
        await get(application(before, fails, after), statuses)
    assert (ran, statuses) == (["before"], [200])


async def test_fastapi_has_no_queue_a_thousand_requests_are_a_thousand_tasks_at_once() -> None:
    together, statuses = asyncio.Barrier(1000), list[int]()

    async def meets_all_others() -> None:
        async with together:
            pass

    app = application(meets_all_others)
    await asyncio.gather(*(get(app, statuses) for _ in range(1000)))
    assert statuses == [200] * 1000


async def test_fastapi_gives_nothing_back_to_ask_for_a_status() -> None:
    given, statuses = list[Any](), list[int]()
    await get(application(print, given=given), statuses)
    assert given == [None]


if __name__ == "__main__":
    README.write_text(DIAGRAM.sub(f"```mermaid\n{diagram()}```", README.read_text()))
