"""The lessons: each prints the lines that its essay shows under "You will see".

The expected lines are those of the essay; they are not repeated here. So an essay that has become
untrue fails a test.
"""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import examples
from examples import around_fastapi, hello
from minibg import AfterResponse, serve

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
#: Lessons that are served: they have tests of their own.
SERVED = {"hello", "around_fastapi"}
LESSONS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "__init__")


def section(lesson: str, opening: str) -> list[str]:
    """Return the indented lines that follow the line of the essay with this opening."""
    essay = importlib.import_module(f"examples.{lesson}").__doc__ or ""
    found = re.search(rf"^{opening}.*::\n\n((?:    .*\n|\n)+)", essay, re.MULTILINE)
    assert found is not None, f"the essay of {lesson} has no line that begins with {opening!r}"
    return [line.removeprefix("    ") for line in found[1].strip("\n").splitlines()]


def test_the_folder_names_every_lesson_once() -> None:
    listed = re.findall(r"^- (.*):", examples.__doc__ or "", re.MULTILINE)
    assert sorted(name.strip("`") for line in listed for name in line.split(", ")) == LESSONS


@pytest.mark.parametrize("lesson", LESSONS)
def test_it_opens_with_how_to_run_it(lesson: str) -> None:
    assert f"examples.{lesson}" in section(lesson, "Run it")[0]


@pytest.mark.parametrize("lesson", [lesson for lesson in LESSONS if lesson not in SERVED])
def test_a_script_prints_what_its_essay_says(lesson: str) -> None:
    assert section(lesson, "Run it") == [f"python -m examples.{lesson}"]
    command = [sys.executable, "-W", "error", "-m", f"examples.{lesson}"]
    run = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout.splitlines()) == (0, section(lesson, "You will see")), run.stderr


async def test_hello_writes_what_its_essay_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with serve(hello.app, port=0) as server:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
            registered = await client.post("/register", params={"email": "a@example.org"})
            await server.pool.idle()
            data = await client.get("/data")
            await server.pool.idle()
            written = Path("log.txt").read_text().splitlines()
            log = await client.post("/log")
    assert written == section("hello", "You will see")
    assert Path("log.txt").read_text().splitlines() == [*written, "someone called /log"]
    assert [each.json() for each in (registered, data, log)] == [
        {"msg": "welcome, the mail follows"},
        {"msg": "data"},
        {"message": "recorded"},
    ]


async def test_the_tasks_of_a_fastapi_application_run_after_its_response(capsys: pytest.CaptureFixture[str]) -> None:
    async with serve(AfterResponse(around_fastapi.api), port=0) as server:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
            answer = await client.post("/register", params={"email": "a@example.org"})
        await server.pool.idle()
        mail = server.pool.get(answer.json()["mail"])
    assert answer.status_code == 202
    assert mail is not None
    assert mail.origin == "POST /register"
    assert capsys.readouterr().out.splitlines() == section("around_fastapi", "You will see")


@pytest.mark.parametrize("command", section("around_fastapi", "Run it"))
def test_either_command_serves_the_fastapi_application(command: str) -> None:
    """The pool is drained at Ctrl-C, so the lines of the tasks are printed before the exit."""
    program, name = command.split()
    with subprocess.Popen(
        [sys.executable, "-m", program, name, "--port", "0"],
        cwd=EXAMPLES.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        port = None
        while port is None:
            line = process.stderr.readline()
            assert line, "the server has ended"
            port = re.search(r"listening on .* port (\d+)|running on http://.*:(\d+)", line, re.IGNORECASE)
        answer = httpx.post(f"http://127.0.0.1:{port[1] or port[2]}/register", params={"email": "a@example.org"})
        process.terminate()
        out, log = process.communicate(timeout=30)
    assert answer.status_code == 202
    seen = [line for line in out.splitlines() if line in section("around_fastapi", "You will see")]
    assert seen == section("around_fastapi", "You will see"), log
