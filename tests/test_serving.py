"""`serve` and `run` in the process of the test: which options go where, whose pool it is, what signals do.

What only a process of its own can show (exit codes, the log, the third signal) is in `tests/test_command.py`.
"""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import typing
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from minibg import AfterResponse, App, BackgroundTasks, Limits, Pool, Server, TaskStatus, run, serve
from minibg.__main__ import kinds
from minibg.application import AppNotFound
from minibg.serving import LIMITS, POOL, SERVER, STOP_SIGNALS, Options, ShutdownFailed, loop_factory

from tests.background.recording import reached
from tests.server.wire import GET, Client


ROOT = Path(__file__).parent.parent


def greeting(text: str) -> App:
    app = App()

    @app.get("/")
    async def handler() -> str:
        return text

    return app


async def answer(port: int) -> Any:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"http://127.0.0.1:{port}/")).json()


# --- serve ---


async def test_options_go_to_the_part_that_they_belong_to() -> None:
    app = greeting("hello")
    async with serve(app, port=0, root_path="/api", max_target=100, task_workers=3, queue_limit=5) as server:
        assert server.port > 0
        assert (server.root_path, server.limits) == ("/api", Limits(max_target=100))
        statistics = server.pool.statistics()
        assert (statistics.workers, statistics.queue_limit) == (3, 5)
        assert await answer(server.port) == "hello"


def test_every_option_of_the_command_is_a_keyword_of_serve_and_the_other_way_round() -> None:
    options = kinds().keys() - {"factory", "app_dir", "loop", "log_level", "log_format"}
    assert options == {**SERVER, **LIMITS, **POOL}.keys()
    defaults: Any = {name: option.default for name, option in {**SERVER, **LIMITS, **POOL}.items()}
    serve(greeting("hello"), **defaults)


def test_the_options_are_typed_as_they_are_where_they_come_from() -> None:
    hints = typing.get_type_hints(Server) | typing.get_type_hints(Limits) | typing.get_type_hints(Pool.__init__)
    hints["task_workers"] = hints["workers"]
    assert typing.get_type_hints(Options) == {name: hints[name] for name in (*SERVER, *LIMITS, *POOL)}
    assert Options.__optional_keys__ == {*SERVER, *LIMITS, *POOL}


def test_a_type_checker_knows_the_options_of_serve_and_run(tmp_path: Path) -> None:
    """Each wrong line has an ignore of its own; mypy reports one that is not needed."""
    (tmp_path / "typed.py").write_text("""
from minibg import App, Limits, Pool, run, serve

app = App()
serve(app, port=0, task_workers=4, journal="tasks.db", durability="process", max_body=5, limits=Limits(), pool=Pool())
run("module:app", port=0, task_workers=4, loop="asyncio", limits=Limits(), pool=Pool(), access_log=False)
serve(app, workers=4)  # type: ignore[call-arg]
serve(app, port="80")  # type: ignore[arg-type]
serve(app, durability="burst")  # type: ignore[arg-type]
run(app, reload=True)  # type: ignore[call-arg]
""")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--cache-dir",
        str(tmp_path / "cache"),
        str(tmp_path / "typed.py"),
    ]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout


async def test_limits_can_be_given_whole() -> None:
    async with serve(greeting("hello"), port=0, limits=Limits(max_target=20)) as server:
        client = await Client.to(server)
        status, _, _ = await client.ask(b"GET /0123456789012345678901234567890 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert status == 414
        client.writer.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wrokers": 3, "colour": "red"}, r"serve\(\) has no option colour, wrokers"),
        ({"limits": Limits(), "max_body": 3}, r"options of Limits \(max_body\) next to limits="),
        ({"pool": Pool(), "task_workers": 3}, r"options of a pool \(workers\) next to a pool"),
        ({"clock": None}, r"serve\(\) has no option clock"),
    ],
)
def test_options_that_make_no_sense_are_type_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        serve(greeting("hello"), **options)


@pytest.mark.parametrize(
    ("app", "message"),
    [
        (App, r"the application is a class: name an instance of it, app = App\(\.\.\.\)"),
        ("served:app", "the application is a str and no ASGI application: it cannot be called"),
    ],
)
def test_what_is_no_application_is_not_served(app: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        serve(app)


@pytest.mark.parametrize("options", [{"task_workers": 3}, {"pool": Pool()}])
def test_an_after_response_has_its_pool_already(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="an AfterResponse already"):
        serve(AfterResponse(greeting("hello")), **options)


async def test_an_after_response_is_served_as_it_is() -> None:
    app = AfterResponse(greeting("hello"), workers=2)
    async with serve(app, port=0) as server:
        assert server.pool is app.pool
        assert await answer(server.port) == "hello"


async def test_a_pool_that_is_given_open_outlives_the_server_and_one_that_is_not_does_not() -> None:
    async with Pool() as open_pool:
        async with serve(greeting("hello"), port=0, pool=open_pool) as server:
            assert server.pool is open_pool
        assert (await open_pool.enqueue(bool).wait()).status is TaskStatus.SUCCESSFUL
    pool = Pool()
    async with serve(greeting("hello"), port=0, pool=pool):
        assert (await pool.enqueue(bool).wait()).status is TaskStatus.SUCCESSFUL
    with pytest.raises(RuntimeError):
        await pool.open()


async def test_two_servers_live_in_one_loop() -> None:
    async with serve(greeting("one"), port=0) as one, serve(greeting("two"), port=0) as two:
        assert one.port != two.port
        assert one.pool is not two.pool
        assert [await answer(one.port), await answer(two.port)] == ["one", "two"]
        await one.stop()
        assert await answer(two.port) == "two"


async def test_serving_leaves_signals_and_logging_alone() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS], logging.getLogger().handlers[:]
    async with serve(greeting("hello"), port=0):
        assert before == ([signal.getsignal(number) for number in STOP_SIGNALS], logging.getLogger().handlers)


async def test_an_address_in_use_is_an_error_of_entering() -> None:
    async with serve(greeting("one"), port=0) as server:
        with pytest.raises(OSError, match="Address already in use|address already in use"):
            await serve(greeting("two"), port=server.port).start()


class Said(logging.Handler):
    """Sets an event when a record that begins so is written."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning, self.event = beginning, asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self.beginning):
            self.event.set()


async def test_who_is_in_a_hurry_during_the_drain_gives_up_the_tasks(caplog: pytest.LogCaptureFixture) -> None:
    app, never = App(), asyncio.Event()

    @app.get("/")
    async def handler(background_tasks: BackgroundTasks) -> str:
        return background_tasks.add_task(never.wait).id

    draining = Said("waiting up to")
    logger = logging.getLogger("minibg.background")
    logger.addHandler(draining)
    with caplog.at_level(logging.INFO):
        async with asyncio.timeout(20), serve(app, port=0) as server:
            result = server.pool.get(await answer(server.port))
            assert result is not None
            await reached(server.pool, result, TaskStatus.RUNNING)
            stop = asyncio.create_task(server.stop())
            await draining.event.wait()
            server.hurry()
            await stop
    logger.removeHandler(draining)
    assert result.status is TaskStatus.LOST
    assert any(message.startswith(f"did not finish: {result.name} {result.id} of GET /") for message in caplog.messages)


async def test_who_is_in_a_hurry_while_a_request_is_in_flight_gives_up_the_request() -> None:
    entered, story = asyncio.Event(), list[str]()
    app = App()

    @app.get("/")
    async def handler() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            story.append("cleaned up")

    async with asyncio.timeout(20), serve(app, port=0) as server:
        client = await Client.to(server)
        await client.send(GET)
        await entered.wait()
        waiting = Said("stop 2/3")
        logger = logging.getLogger("minibg.server")
        level = logger.level
        logger.setLevel(logging.INFO)
        logger.addHandler(waiting)
        stop = asyncio.create_task(server.stop())
        await waiting.event.wait()
        server.hurry()
        await stop
        logger.removeHandler(waiting)
        logger.setLevel(level)
        client.writer.close()
    assert story == ["cleaned up"]


# --- run ---


@pytest.fixture
def signals_as_they_were() -> Iterator[None]:
    """`run` changes what signals do in this process."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stopping_itself(*numbers: signal.Signals, story: list[str]) -> App:
    """An application that sends its process the first signal at the startup, the others at the shutdown."""

    @asynccontextmanager
    async def lifespan(_: App) -> AsyncIterator[None]:
        story.append(f"up on {type(asyncio.get_running_loop()).__module__}")
        os.kill(os.getpid(), numbers[0])
        yield
        for number in numbers[1:]:
            os.kill(os.getpid(), number)
        try:
            await asyncio.sleep(0 if len(numbers) == 1 else 60)  # Until it is given up.
        finally:
            story.append("down")

    return App(lifespan=lifespan)


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.usefixtures("signals_as_they_were")
def test_a_signal_ends_the_run_also_one_that_comes_during_the_startup(number: signal.Signals) -> None:
    story: list[str] = []
    run(stopping_itself(number, story=story), port=0, loop="asyncio")
    assert story == ["up on asyncio.unix_events", "down"]


@pytest.mark.parametrize("loop", ["auto", "asyncio", "uvloop"])
@pytest.mark.usefixtures("signals_as_they_were")
def test_a_second_signal_gives_up_the_phase_and_the_third_has_its_default_effect(loop: Any) -> None:
    story: list[str] = []
    run(stopping_itself(signal.SIGINT, signal.SIGTERM, story=story), port=0, loop=loop)
    assert story == [f"up on {'asyncio.unix_events' if loop == 'asyncio' else 'uvloop'}", "down"]
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == [signal.SIG_DFL, signal.SIG_DFL]


@pytest.mark.usefixtures("signals_as_they_were")
def test_a_factory_is_called_for_its_application() -> None:
    story: list[str] = []
    run(lambda: stopping_itself(signal.SIGINT, story=story), factory=True, port=0, loop="asyncio")
    assert story[-1] == "down"


def test_a_factory_that_fails_is_no_application() -> None:
    def factory() -> App:
        raise KeyError("DATABASE_URL")

    with pytest.raises(AppNotFound, match="the factory failed: KeyError: 'DATABASE_URL'"):
        run(factory, factory=True)


@pytest.mark.usefixtures("signals_as_they_were")
def test_a_shutdown_that_fails_is_raised_after_the_stop() -> None:
    story: list[str] = []

    @asynccontextmanager
    async def lifespan(_: App) -> AsyncIterator[None]:
        os.kill(os.getpid(), signal.SIGINT)
        yield
        story.append("down")
        raise RuntimeError("cannot flush")

    with pytest.raises(ShutdownFailed, match="the application failed to shut down"):
        run(App(lifespan=lifespan), port=0, loop="asyncio")
    assert story == ["down"]


# --- the loop ---


def test_without_uvloop_the_loop_is_asyncios_unless_uvloop_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loop_factory("auto") is uvloop.new_event_loop
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory("auto") is asyncio.new_event_loop
    with pytest.raises(ImportError):
        loop_factory("uvloop")
