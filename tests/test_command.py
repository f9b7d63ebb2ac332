"""The command: its options and where they come from, its exit codes, its log, its signals; and clients that are not ours.

Most of it runs ``python -m minibg`` as a process and reads what it prints, line by line: a test goes on when the line is
there. What the process prints is compared without the times, ids and ports in it.
"""

import json
import logging
import os
import re
import runpy
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

import minibg
from minibg.__main__ import HELP, environment, kinds, main, parser
from minibg.serving import LIMITS, POOL, SERVER

from tests.needs import need

ROOT = Path(__file__).parent.parent
APPLICATION = """
import asyncio
import json
import sys
import threading
from contextlib import asynccontextmanager

from minibg import App, BackgroundTasks

app = App()

@app.get("/")
async def hello(background_tasks: BackgroundTasks):
    background_tasks.add_task(work)
    return {"loop": type(asyncio.get_running_loop()).__module__, "limit": background_tasks.pool.statistics().queue_limit}

async def work():
    pass

@app.get("/slow")
async def slow(background_tasks: BackgroundTasks):
    background_tasks.add_task(wait)

def wait():
    print("task started", flush=True)
    sys.stdin.readline()
    print("task ended", flush=True)

@app.get("/stuck")
async def stuck(background_tasks: BackgroundTasks):
    background_tasks.add_task(hang)

def hang():
    print("task started", flush=True)
    threading.Event().wait()

@app.get("/endless")
async def endless(background_tasks: BackgroundTasks):
    background_tasks.add_task(forever)

async def forever():
    print("task started", flush=True)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print("no", flush=True)

@app.get("/blocked")
async def blocked():
    print("task started", flush=True)
    await asyncio.to_thread(threading.Event().wait)

@asynccontextmanager
async def endless_start(_):
    print("task started", flush=True)
    await asyncio.Event().wait()
    yield

app_that_never_starts = App(lifespan=endless_start)

def factory():
    return app

async def fails(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

@asynccontextmanager
async def broken(_):
    raise RuntimeError("no database")
    yield

app_that_raises = App(lifespan=broken)

@asynccontextmanager
async def broken_end(_):
    yield
    raise RuntimeError("cannot flush")

app_that_ends_badly = App(lifespan=broken_end)

async def says_so(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        threading.Thread(target=threading.Event().wait, name="stuck").start()
        await send({"type": "lifespan.shutdown.failed", "message": "cannot flush"})

class Settings:
    pass

text = "text"

async def plain(scope, receive, send):
    # It reads the body and answers with what it was told of itself; /large is 50 MB, and /never is never answered.
    if scope["type"] == "lifespan":
        return
    if scope["path"].endswith("/never"):
        print("request started", flush=True)
        await asyncio.Event().wait()
    while (await receive()).get("more_body"):
        pass
    body = json.dumps([scope["scheme"], scope["client"] and scope["client"][0], scope["root_path"], scope["path"]])
    body = bytes(50_000_000) if scope["path"] == "/large" else body.encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""


class Command:
    """``python -m minibg``, and what it has printed."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []

    def until(self, text: str) -> str:
        """The first line from here on that has this in it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if text in line:
                return line
        raise AssertionError(f"{text!r} was not printed: {self.lines}")

    def port(self) -> int:
        return int(self.until("listening on 127.0.0.1 port").rsplit(maxsplit=1)[-1])

    def url(self) -> str:
        return f"http://127.0.0.1:{self.port()}"

    def get(self, url: str) -> Any:
        with httpx.Client(trust_env=False) as client:
            response = client.get(url)
        assert response.status_code == 200
        return response.json()

    def signal(self, number: signal.Signals = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def let_go(self) -> None:
        """Give the slow task the line that it waits for."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def ended(self) -> int:
        assert self.process.stdout is not None
        self.lines += self.process.stdout.read().splitlines()
        return self.process.wait(30)


@contextmanager
def command(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None, pass_fds: Sequence[int] = ()
) -> Iterator[Command]:
    process = subprocess.Popen(
        [sys.executable, "-m", "minibg", *arguments, "--app-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=pass_fds,
    )
    with process:
        try:
            yield Command(process)
        finally:
            process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "served.py").write_text(APPLICATION)
    return tmp_path


def messages(lines: list[str]) -> list[str]:
    """The log without its times, ids, ports and seconds."""
    without_time = [re.sub(r"^\S+ \S+ (\w+) +", r"\1 ", line) for line in lines]
    return [re.sub(r"\d+\.\d+(?= s)|[0-9a-f]{32}|(?<=port )\d+|(?<=127.0.0.1:)\d+", "_", line) for line in without_time]


# --- options ---


def options_of(*arguments: str) -> dict[str, Any]:
    return vars(parser().parse_args(["a:b", *arguments]))


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a wrong command line prints."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert out == ""
    return str(line)


def test_what_is_not_given_is_not_passed_on() -> None:
    assert options_of() == {"app": "a:b"}


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (["a:b", "--queue-limit", "many"], "argument --queue-limit: invalid int value: 'many'"),
        (["a:b", "--durability", "burst"], "argument --durability: 'burst' is none of power, process"),
        (["a:b", "--loop", "trio"], "argument --loop: 'trio' is none of auto, asyncio, uvloop"),
        (["a:b", "--nothing"], "there is no option --nothing"),
        (["a:b", "--queue-limits", "3"], "there is no option --queue-limits, did you mean --queue-limit?"),
        (["a:b", "--timeout-keep-alive", "3"], "there is no option --timeout-keep-alive, did you mean --keep-alive?"),
        (["a:b", "--queue", "3"], "there is no option --queue, did you mean --queue-limit?"),
        (["a:b", "c:d"], "unrecognized arguments: c:d"),
        ([], "the following arguments are required: module:attribute"),
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_one_line_and_2(wrong: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, *wrong) == f"minibg: {line}; minibg --help lists the options"


@pytest.mark.parametrize("arguments", [["a:b", "--workers", "4"], ["--workers=4", "a:b"], ["--workers"]], ids=" ".join)
def test_workers_are_answered_with_what_is_meant_here(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, *arguments) == (
        "minibg: there is no option --workers: minibg is one process: --task-workers is how many tasks run at once; "
        "for more processes start the command several times, each with its own --port"
    )


@pytest.mark.parametrize("arguments", [["a:b", "--reload"], ["--reload", "a:b"]], ids=" ".join)
def test_reload_is_answered_with_what_does_it(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, *arguments) == (
        "minibg: there is no option --reload: minibg does not watch files; a program that does can restart it: "
        "watchfiles 'minibg module:app'"
    )


def test_the_help_has_tasks_as_a_command_and_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert re.match(r"usage: minibg \[options\] module:attribute\n +minibg tasks FILE \[list", text)
    assert "\ncommands:\n  tasks FILE: " in text
    words = " ".join(text.split())
    for name in kinds():
        assert f" --{name.replace('_', '-')}" in text
    assert "tasks that run at once (8)" in words
    assert "write a line per request (on)" in words
    assert "None" not in text
    assert {"workers", "reload"}.isdisjoint(re.findall(r"--(\w+)", text))


def test_every_option_has_one_text() -> None:
    assert {*HELP, *LIMITS} == {*kinds()}
    assert HELP.keys().isdisjoint(LIMITS)


# --- the environment ---


def test_the_environment_gives_options_and_the_command_line_wins() -> None:
    found, warnings = environment({"MINIBG_QUEUE_LIMIT": " 50 ", "MINIBG_UDS_PERMISSIONS": "660", "PATH": "/bin"})
    assert (found, warnings) == ({"queue_limit": 50, "uds_permissions": 0o660}, {})
    assert (found | options_of("--queue-limit", "7"))["queue_limit"] == 7
    assert environment({"MINIBG_FACTORY": "1"})[0] | options_of("--no-factory") == {"app": "a:b", "factory": False}


@pytest.mark.parametrize("value", ["0", "false", "False", "no", "No", "NO", "off", " off "])
def test_the_environment_turns_an_option_off(value: str) -> None:
    assert environment({"MINIBG_ACCESS_LOG": value}) == ({"access_log": False}, {})


@pytest.mark.parametrize("value", ["1", "true", "Yes", "ON"])
def test_the_environment_turns_an_option_on(value: str) -> None:
    assert environment({"MINIBG_FACTORY": value}) == ({"factory": True}, {})


@pytest.mark.parametrize("value", ["", "  "])
@pytest.mark.parametrize("name", ["PORT", "ACCESS_LOG", "FACTORY", "JOURNAL", "LOOP", "NOTHING_LIKE_IT"])
def test_an_empty_value_is_no_value(name: str, value: str) -> None:
    assert environment({f"MINIBG_{name}": value}) == ({}, {})


def test_a_text_is_taken_as_it_is() -> None:
    assert environment({"MINIBG_SSL_KEYFILE_PASSWORD": " x "})[0] == {"ssl_keyfile_password": " x "}


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("QUEUE_LIMIT", "many", "invalid literal for int() with base 10: 'many'"),
        ("KEEP_ALIVE", "long", "could not convert string to float: 'long'"),
        ("ACCESS_LOG", "maybe", "'maybe' is none of 1, true, yes, on, 0, false, no, off"),
        ("LOOP", "trio", "'trio' is none of auto, asyncio, uvloop"),
        ("DURABILITY", "burst", "'burst' is none of power, process"),
        ("UDS_PERMISSIONS", "rw", "invalid literal for int() with base 8: 'rw'"),
    ],
)
def test_a_value_that_cannot_be_read_is_a_warning_that_names_it(name: str, value: str, why: str) -> None:
    expected = f"MINIBG_{name}={value} is ignored, and the default stands: {why}"
    assert environment({f"MINIBG_{name}": value}) == ({}, {f"MINIBG_{name}": expected})


#: What Kubernetes sets in each container for the services "minibg" and "minibg-web", next to it.
KUBERNETES = {
    "MINIBG_PORT": "tcp://10.0.0.7:80",
    **{
        f"MINIBG_{name}": value
        for service in ("", "WEB_")
        for name, value in {
            f"{service}SERVICE_HOST": "10.0.0.7",
            f"{service}SERVICE_PORT": "80",
            f"{service}SERVICE_PORT_HTTP": "80",
            f"{service}PORT_80_TCP": "tcp://10.0.0.7:80",
            f"{service}PORT_80_TCP_ADDR": "10.0.0.7",
            f"{service}PORT_80_TCP_PORT": "80",
            f"{service}PORT_80_TCP_PROTO": "tcp",
        }.items()
    },
    "MINIBG_WEB_PORT": "udp://10.0.0.7:80",
}


def test_of_what_kubernetes_sets_only_the_port_is_a_warning() -> None:
    warning = (
        "MINIBG_PORT=tcp://10.0.0.7:80 is ignored: Kubernetes sets it for a service that is called minibg; "
        "give the port as --port"
    )
    assert environment(KUBERNETES) == ({}, {"MINIBG_PORT": warning})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("QUEUE_LIMITS", "there is no such option, did you mean MINIBG_QUEUE_LIMIT?"),
        ("NOTHING_LIKE_IT", "there is no such option"),
        ("RELOAD", "minibg does not watch files; a program that does can restart it: watchfiles 'minibg module:app'"),
        (
            "WORKERS",
            "minibg is one process: --task-workers is how many tasks run at once; for more processes start "
            "the command several times, each with its own --port",
        ),
    ],
)
def test_an_unknown_name_is_a_warning_that_says_what_is_meant_and_not_its_value(name: str, meant: str) -> None:
    """The value may be a password."""
    name = f"MINIBG_{name}"
    assert environment({name: "secret"}) == ({}, {name: f"{name} is ignored: {meant}"})


def test_the_warnings_are_in_the_log_and_the_server_starts(folder: Path) -> None:
    environment = {**KUBERNETES, "MINIBG_LOOP": "trio", "MINIBG_QUEUE_LIMIT": "many", "MINIBG_DRAIN_TIMEOUTS": "1"}
    options = ["--port", "0", "--loop", "asyncio"]  # What the command line gives is not warned about.
    with command(folder, "served:app", *options, environment=environment) as minibg:
        minibg.until("listening on")
        minibg.signal()
        assert minibg.ended() == 0
    assert sorted(line for line in messages(minibg.lines) if line.startswith("WARNING")) == [
        "WARNING minibg: MINIBG_DRAIN_TIMEOUTS is ignored: there is no such option, did you mean MINIBG_DRAIN_TIMEOUT?",
        "WARNING minibg: MINIBG_QUEUE_LIMIT=many is ignored, and the default stands: invalid literal for int() "
        "with base 10: 'many'",
    ]


def test_every_option_of_the_command_is_understood() -> None:
    options = options_of(
        *(
            "--host h --port 1 --uds u --uds-permissions 660 --fd 3 --root-path /r --no-access-log --max-body 5 "
            "--header-timeout 0.5 --keep-alive 2 --task-workers 2 --drain-timeout 3 "
            "--loop asyncio --log-level debug --log-format json --factory --app-dir d"
        ).split()
    )
    assert options == {
        "app": "a:b",
        "host": "h",
        "port": 1,
        "uds": "u",
        "uds_permissions": 0o660,
        "fd": 3,
        "root_path": "/r",
        "access_log": False,
        "max_body": 5,
        "header_timeout": 0.5,
        "keep_alive": 2.0,
        "task_workers": 2,
        "drain_timeout": 3.0,
        "loop": "asyncio",
        "log_level": "debug",
        "log_format": "json",
        "factory": True,
        "app_dir": "d",
    }


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["minibg", "--version"])
    monkeypatch.delitem(sys.modules, "minibg.__main__")
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("minibg", run_name="__main__")
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"minibg {minibg.__version__}\n"


# --- exit codes ---


@pytest.fixture
def logging_as_it_was() -> Iterator[None]:
    """The command configures logging; here it finds pytest's own handlers and leaves them."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere:app"], 1, "cannot import nowhere: No module named 'nowhere'; looked in "),
        (
            ["served:nothing"],
            1,
            "cannot load served:nothing: module 'served' has no attribute 'nothing'; did you mean ",
        ),
        (["served.py:app"], 1, "'served.py:app' is not the name of an application: did you mean served:app"),
        (["served"], 1, "'served' is not the name of an application: write module:attribute, such as served:app"),
        (["served:text"], 1, "served:text is a str and no ASGI application: it cannot be called"),
        (["served:Settings"], 1, "served:Settings is a class: name an instance of it, app = Settings(...)"),
        (["served:factory"], 1, "served:factory takes no arguments: if it makes the application, add --factory"),
        (["served:hello"], 1, "served:hello is no ASGI application: one is called with (scope, receive, send)"),
        (["served:app", "--factory"], 1, "served:app is an application and no factory: leave --factory out"),
        (["served:hello", "--factory"], 1, "served:hello is no factory; a factory is called without arguments"),
        (["served:Settings", "--factory"], 1, "what served:Settings returned is a Settings and no ASGI application"),
        (["served:app", "--task-workers", "0"], 2, "workers= is a whole number, 1 or more, not 0"),
        (["served:app", "--max-body", "0"], 2, "max_body must be positive, not 0"),
        (["served:fails"], 3, "the application failed to start: no database"),
    ],
)
@pytest.mark.parametrize("level", ["info", "debug"])
def test_what_cannot_start_ends_with_its_code_and_one_line(
    folder: Path,
    arguments: list[str],
    code: int,
    message: str,
    level: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "served", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--port", "0", "--app-dir", str(folder), "--log-level", level])
    assert stopped.value.code == code
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage().startswith(message)
    assert bool(record.exc_info and record.exc_info[0]) is (level == "debug")


def test_a_port_that_is_taken_ends_with_1_and_one_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with command(folder, "served:app", "--port", str(taken.getsockname()[1])) as minibg:
            assert minibg.ended() == 1
        port = taken.getsockname()[1]
    [line] = minibg.lines
    assert line.endswith(f"ddress already in use: '127.0.0.1 port {port}'")


def test_a_startup_that_fails_ends_with_3_and_the_message_of_the_application(folder: Path) -> None:
    with command(folder, "served:fails", "--port", "0", "--log-level", "warning") as minibg:
        assert minibg.ended() == 3
    assert messages(minibg.lines) == ["ERROR minibg: the application failed to start: no database"]


def test_a_startup_that_raises_ends_with_3_and_is_told_once(folder: Path) -> None:
    """The message is a traceback then, as it is with Starlette: one record of several lines."""
    with command(folder, "served:app_that_raises", "--port", "0") as minibg:
        assert minibg.ended() == 3
    [line] = [line for line in minibg.lines if "ERROR" in line]
    assert line.endswith("minibg: the application failed to start: Traceback (most recent call last):")
    assert minibg.lines.count("RuntimeError: no database") == 1


def test_an_error_of_the_module_begins_with_file_and_line(folder: Path) -> None:
    (folder / "broken.py").write_text("import served\n\nserved.app.get('no slash')(print)\n")
    with command(folder, "broken:app") as minibg:
        assert minibg.ended() == 1
    assert messages(minibg.lines)[0].startswith(f"ERROR minibg: {folder}/broken.py:3: cannot import broken: ")
    assert [line for line in minibg.lines if "File" in line] == [f'  File "{folder}/broken.py", line 3, in <module>']


def test_a_shutdown_that_raises_ends_with_3(folder: Path) -> None:
    with command(folder, "served:app_that_ends_badly", "--port", "0") as minibg:
        minibg.until("listening on")
        minibg.signal()
        assert minibg.ended() == 3
    assert minibg.lines.count("RuntimeError: cannot flush") == 1


def test_a_shutdown_that_is_said_to_have_failed_ends_with_3_whatever_threads_are_left(folder: Path) -> None:
    with command(folder, "served:says_so", "--port", "0") as minibg:
        minibg.until("listening on")
        minibg.signal()
        assert minibg.ended() == 3
    assert messages(minibg.lines)[-3:] == [
        "ERROR minibg.server: the application failed to shut down: cannot flush",
        "INFO minibg.server: stopped",
        "ERROR minibg: threads still run, and are left behind: stuck",
    ]


# --- signals ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_signal_ends_it_in_phases_after_its_tasks_and_with_0(folder: Path, number: signal.Signals, loop: str) -> None:
    with command(folder, "served:app", "--port", "0", "--loop", loop, "--no-access-log") as minibg:
        minibg.get(f"{minibg.url()}/slow")
        minibg.until("task started")
        minibg.signal(number)
        minibg.until("waiting up to")
        minibg.let_go()
        assert minibg.ended() == 0
    assert messages(minibg.lines) == [
        "INFO minibg.server: listening on 127.0.0.1 port _",
        "task started",
        "INFO minibg.server: stop 1/3: no new connections; 0 are open",
        "INFO minibg.server: stop 2/3: up to 10 s for 0 requests",
        "INFO minibg.server: stop 3/3: the application shuts down",
        "INFO minibg.background: waiting up to 30 s for 1 task: 0 held, 0 ready, 1 running, 0 waiting, "
        "served.wait _ of GET /slow runs for _ s",
        "task ended",
        "INFO minibg.background: served.wait _ of GET /slow: SUCCESSFUL after _ s, attempt 1",
        "INFO minibg.background: drained in _ s: 1 finished, 0 did not",
        "INFO minibg.server: stopped",
    ]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_second_signal_gives_up_the_drain_and_a_stuck_task_is_named_lost(folder: Path, loop: str) -> None:
    with command(folder, "served:app", "--port", "0", "--loop", loop, "--no-access-log") as minibg:
        minibg.get(f"{minibg.url()}/stuck")
        minibg.until("task started")
        minibg.signal()
        minibg.until("waiting up to 30 s for 1 task")
        minibg.signal()
        assert minibg.ended() == 0
    assert messages(minibg.lines)[-3:] == [
        "WARNING minibg.background: did not finish: served.hang _ of GET /stuck, _ s old, was RUNNING: LOST, "
        "its attempt goes on and is left behind",
        "WARNING minibg.background: drained in _ s: 0 finished, 1 did not",
        "INFO minibg.server: stopped",
    ]


def test_a_script_that_runs_itself_by_name_has_each_named_task_once(tmp_path: Path) -> None:
    """It is imported a second time, as shop."""
    (tmp_path / "shop.py").write_text(
        """
from minibg import App, BackgroundTasks, run, task

app = App()

@task(name="mail")
def mail(): print("mail sent", flush=True)

@task
def log(): pass

@app.get("/")
async def handler(background_tasks: BackgroundTasks):
    background_tasks.add_task(mail)
    return background_tasks.add_task(log).name

if __name__ == "__main__":
    import logging
    logging.basicConfig(level="INFO", format="%(message)s")
    run("shop:app", port=0, access_log=False)
"""
    )
    with subprocess.Popen(
        [sys.executable, "shop.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            shop = Command(process)
            assert shop.get(shop.url()) == "shop.log"
            shop.until("mail sent")
            shop.signal()
            assert shop.ended() == 0
        finally:
            process.kill()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_task_that_swallows_its_cancellation_does_not_keep_the_process(folder: Path, loop: str) -> None:
    with command(folder, "served:app", "--port", "0", "--loop", loop, "--drain-timeout", "0.1") as minibg:
        minibg.get(f"{minibg.url()}/endless")
        minibg.until("task started")
        minibg.signal()
        minibg.until("no")
        minibg.signal()  # The clean-up is not waited for either.
        assert minibg.ended() == 0
    assert any("its attempt goes on and is left behind" in line for line in minibg.lines)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_request_in_a_thread_does_not_keep_the_process(folder: Path, loop: str) -> None:
    """Python joins the threads of asyncio's default executor without limit."""
    with command(folder, "served:app", "--port", "0", "--loop", loop, "--graceful-timeout", "0.1") as minibg:
        port = minibg.port()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /blocked HTTP/1.1\r\nhost: a\r\n\r\n")
            minibg.until("task started")
            minibg.signal()
            assert minibg.ended() == 0
    assert re.search(r"threads still run, and are left behind: (asyncio|uvloop)_0$", minibg.lines[-1])


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_second_signal_gives_up_a_start_that_does_not_end(folder: Path, loop: str) -> None:
    with command(folder, "served:app_that_never_starts", "--port", "0", "--loop", loop) as minibg:
        minibg.until("task started")
        minibg.signal()
        minibg.signal(signal.SIGTERM)
        assert minibg.ended() == 0
    assert minibg.lines[-1].endswith("the start was given up: the application had not started")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("third", [signal.SIGINT, signal.SIGTERM])
def test_a_third_signal_ends_it_at_once(folder: Path, loop: str, third: signal.Signals) -> None:
    with command(folder, "served:app", "--port", "0", "--loop", loop) as minibg:
        minibg.get(f"{minibg.url()}/endless")
        minibg.until("task started")
        minibg.signal()
        minibg.until("waiting up to 30 s")
        minibg.signal()
        minibg.until("no")  # The task swallows its cancellation, for which the stop waits some seconds.
        minibg.signal(third)
        assert minibg.ended() == -third


# --- limits and deadlines, at the wire ---


def talk(port: int, data: bytes) -> bytes:
    """What comes back up to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(data)
        return rest(client)


def rest(client: socket.socket) -> bytes:
    answer = b""
    while piece := client.recv(65536):
        answer += piece
    return answer


HOST = b"Host: a\r\n"
GET, POST = b"GET / HTTP/1.1\r\n" + HOST, b"POST / HTTP/1.1\r\n" + HOST
#: An option, what a client sends, and the status that it gets; without the option it would get 200, or wait.
ANSWERS = {
    "--max-target 20": (b"GET /%b HTTP/1.1\r\n" % (b"x" * 20) + HOST + b"\r\n", 414),
    "--max-header-bytes 50": (GET + b"X: %b\r\n\r\n" % (b"x" * 50), 431),
    "--max-headers 2": (GET + b"A: b\r\nC: d\r\n\r\n", 431),
    "--max-body 4": (POST + b"Content-Length: 5\r\n\r\nhello", 413),
    "--header-timeout 0.2": (b"GET / HTTP/1.1\r\n", 408),
    "--body-timeout 0.2": (POST + b"Content-Length: 5\r\n\r\nhell", 408),
    "--keep-alive 0.2": (GET + b"\r\n", 200),
}


@pytest.mark.parametrize("option", ANSWERS)
def test_a_limit_given_to_the_command_is_kept(folder: Path, option: str) -> None:
    data, status = ANSWERS[option]
    with command(folder, "served:plain", "--port", "0", *option.split()) as minibg:
        port = minibg.port()
        assert talk(port, data)[9:12] == b"%d" % status
        minibg.until(f'" {status} ')
        if status != 200:
            assert talk(port, GET + b"Connection: close\r\n\r\n")[9:12] == b"200"


def test_limits_given_by_the_environment_are_kept(folder: Path) -> None:
    limits = {option: case for option, case in ANSWERS.items() if option.startswith("--max")}
    names = {f"MINIBG_{option.split()[0][2:].replace('-', '_').upper()}": option.split()[1] for option in limits}
    with command(folder, "served:plain", environment={"MINIBG_PORT": "0", **names}) as minibg:
        port = minibg.port()
        assert [int(talk(port, data)[9:12]) for data, _ in limits.values()] == [414, 431, 431, 413]


def test_a_client_that_does_not_read_is_cut_after_the_write_timeout(folder: Path) -> None:
    with command(folder, "served:plain", "--port", "0", "--write-timeout", "0.2") as minibg:
        with socket.create_connection(("127.0.0.1", minibg.port()), timeout=20) as client:
            client.sendall(b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n")
            minibg.until('"GET /large HTTP/1.1" 200')
            with pytest.raises(ConnectionResetError):
                rest(client)


def test_one_connection_more_than_max_connections_is_answered_with_503(folder: Path) -> None:
    with command(folder, "served:plain", "--port", "0", "--max-connections", "1") as minibg:
        port = minibg.port()
        with socket.create_connection(("127.0.0.1", port), timeout=20) as first:
            first.sendall(b"GET /never HTTP/1.1\r\n" + HOST + b"\r\n")  # an idle one would give way
            minibg.until("request started")
            assert talk(port, b"")[9:12] == b"503"
            first.close()


def test_a_stop_waits_graceful_timeout_for_a_request(folder: Path) -> None:
    with command(folder, "served:plain", "--port", "0", "--graceful-timeout", "0.2") as minibg:
        with socket.create_connection(("127.0.0.1", minibg.port()), timeout=20) as client:
            client.sendall(b"GET /never HTTP/1.1\r\n" + HOST + b"\r\n")
            minibg.until("request started")
            minibg.signal()
            assert minibg.ended() == 0
    assert [line.partition("stop 2/3: ")[2] for line in minibg.lines if "stop 2/3" in line] == [
        "up to 0.2 s for 1 requests",
        "given up; 1 requests are cancelled",
    ]


def test_a_stop_waits_drain_timeout_for_a_task(folder: Path) -> None:
    with command(folder, "served:app", "--port", "0", "--drain-timeout", "0.2") as minibg:
        minibg.get(f"{minibg.url()}/stuck")
        minibg.until("task started")
        minibg.signal()
        assert minibg.ended() == 0
    assert [line for line in minibg.lines if "waiting up to 0.2 s for 1 task:" in line]
    assert messages(minibg.lines)[-2:] == [
        "WARNING minibg.background: drained in _ s: 0 finished, 1 did not",
        "INFO minibg.server: stopped",
    ]


# --- where it listens ---


def asked(**transport: Any) -> Any:
    with httpx.Client(transport=httpx.HTTPTransport(**transport)) as client:
        return client.get("http://localhost/path").json()


def test_it_listens_on_a_unix_socket_with_its_permissions(folder: Path) -> None:
    path = folder / "socket"
    with command(folder, "served:plain", "--uds", str(path), "--uds-permissions", "660") as minibg:
        minibg.until(f"listening on {path}")
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert asked(uds=str(path)) == ["http", None, "", "/path"]
        minibg.signal()
        assert minibg.ended() == 0
    assert not path.exists()


@pytest.mark.parametrize("by", ["option", "environment"])
def test_it_listens_on_a_socket_that_it_inherits(folder: Path, by: str) -> None:
    """As systemd's socket activation hands it over: bound, and listened on already."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        number = str(opened.fileno())
        arguments = ["--fd", number] if by == "option" else []
        environment = {} if by == "option" else {"MINIBG_FD": number}
        with command(folder, "served:plain", *arguments, environment=environment, pass_fds=[opened.fileno()]) as minibg:
            assert minibg.port() == opened.getsockname()[1]
            assert minibg.get(f"http://127.0.0.1:{opened.getsockname()[1]}/") == ["http", "127.0.0.1", "", "/"]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[list[str], ssl.SSLContext]:
    """The options for a certificate whose key is kept apart and locked with "secret", and a client that trusts it."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (tmp_path / "key.pem").write_bytes(locked)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return ["--ssl-certfile", f"{tmp_path}/chain.pem", "--ssl-keyfile", f"{tmp_path}/key.pem"], context


@pytest.mark.parametrize("by", ["option", "environment"])
def test_it_speaks_tls_with_a_locked_key(folder: Path, certificate: tuple[list[str], ssl.SSLContext], by: str) -> None:
    options, context = certificate
    password = {"MINIBG_SSL_KEYFILE_PASSWORD": "secret"} if by == "environment" else {}
    options += ["--ssl-keyfile-password", "secret"] if by == "option" else []
    with command(folder, "served:plain", "--port", "0", *options, environment=password) as minibg:
        port = minibg.port()
        with httpx.Client(verify=context, trust_env=False) as client:
            assert client.get(f"https://127.0.0.1:{port}/").json() == ["https", "127.0.0.1", "", "/"]
        old = ssl._create_unverified_context()
        with pytest.warns(DeprecationWarning):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                old.wrap_socket(plain)


def test_a_wrong_password_ends_with_1_and_a_line_that_names_the_files(
    folder: Path, certificate: tuple[list[str], ssl.SSLContext]
) -> None:
    options, _ = certificate
    with command(folder, "served:plain", "--port", "0", *options, "--ssl-keyfile-password", "wrong") as minibg:
        assert minibg.ended() == 1
    [line] = minibg.lines
    assert line.endswith(f": '{options[1]}, {options[3]}'")


# --- what it serves ---


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], ["http", "127.0.0.1", "", "/"]),
        (["--root-path", "/api"], ["http", "127.0.0.1", "/api", "/api/"]),
        (["--forwarded-allow-ips", "10.0.0.0/8, 127.0.0.1"], ["https", "192.0.2.9", "", "/"]),
        (["--forwarded-allow-ips", "10.0.0.0/8"], ["http", "127.0.0.1", "", "/"]),
    ],
    ids=" ".join,
)
def test_the_application_is_told_who_asks_and_where_it_is(folder: Path, options: list[str], told: list[Any]) -> None:
    headers = {"X-Forwarded-For": "192.0.2.9, 10.1.1.1", "X-Forwarded-Proto": "https"}
    with command(folder, "served:plain", "--port", "0", *options) as minibg:
        with httpx.Client(trust_env=False, headers=headers) as client:
            assert client.get(minibg.url()).json() == told
        minibg.until(f"{told[1]}:")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_options_come_from_the_command_line_and_from_the_environment(folder: Path, loop: str) -> None:
    options = ["served:factory", "--factory", "--port", "0", "--task-workers", "2", "--loop", loop]
    with command(folder, *options, environment={"MINIBG_QUEUE_LIMIT": "7"}) as minibg:
        answer = minibg.get(minibg.url())
        assert answer["limit"] == 7
        assert answer["loop"].startswith(loop)
        minibg.until('"GET / HTTP/1.1" 200')
        minibg.signal()
        assert minibg.ended() == 0


def test_the_log_can_be_lines_of_json(folder: Path) -> None:
    with command(folder, "served:app", "--port", "0", "--log-format", "json") as minibg:
        port = json.loads(minibg.until("listening on"))["message"].rsplit(maxsplit=1)[-1]
        minibg.get(f"http://127.0.0.1:{port}/")
        minibg.signal()
        assert minibg.ended() == 0
    records = [json.loads(line) for line in minibg.lines]
    [access] = [record for record in records if record["logger"] == "minibg.access"]
    assert (access["request"], access["status"], access["level"]) == ("GET / HTTP/1.1", 200, "INFO")
    [run] = [record for record in records if "event" in record]
    assert (run["task"], run["origin"], run["attempt"], run["event"]) == ("served.work", "GET /", 1, "succeed")
    assert (len(run["id"]), run["level"]) == (32, "INFO")
    assert {record["logger"] for record in records} >= {"minibg.server", "minibg.access"}


def test_the_access_log_can_be_left_out(folder: Path) -> None:
    with command(folder, "served:app", "--port", "0", "--no-access-log") as minibg:
        minibg.get(minibg.url())
        minibg.signal()
        assert minibg.ended() == 0
    assert not [line for line in minibg.lines if "minibg.access" in line]


def test_curl_talks_to_it(folder: Path) -> None:
    need("curl")
    with command(folder, "served:app", "--port", "0", "--loop", "asyncio") as minibg:
        url = minibg.url()
        curl = [
            "curl",
            "--silent",
            "--show-error",
            "--noproxy",
            "*",
            "--max-time",
            "20",
            "--write-out",
            " %{http_code}\n",
        ]
        answer = subprocess.run([*curl, url, url], capture_output=True, text=True, check=True, timeout=30).stdout
        posted = subprocess.run([*curl, "-d", "x", url], capture_output=True, text=True, check=True, timeout=30).stdout
        minibg.signal()
        assert minibg.ended() == 0
    assert answer == '{"loop":"asyncio.unix_events","limit":1000} 200\n' * 2
    assert posted.endswith(" 405\n")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_wrk_with_64_connections_leaves_no_error_and_no_traceback(folder: Path, loop: str) -> None:
    """Every request has a task. Two seconds are ten thousand requests."""
    need("wrk")
    options = ["served:app", "--port", "0", "--loop", loop, "--no-access-log", "--queue-limit", "100000"]
    with command(folder, *options) as minibg:
        url = minibg.url()
        wrk = ["wrk", "-t1", "-c64", "-d2s", url]
        report = subprocess.run(wrk, capture_output=True, text=True, check=True, timeout=60).stdout
        minibg.signal()
        assert minibg.ended() == 0
    assert "Socket errors" not in report
    assert "Non-2xx" not in report
    requests = re.search(r"(\d+) requests in", report)
    assert requests is not None and int(requests[1]) > 100
    assert [line for line in messages(minibg.lines) if line.startswith(("ERROR", "CRITICAL", "Traceback"))] == []
    assert messages(minibg.lines)[-1] == "INFO minibg.server: stopped"
