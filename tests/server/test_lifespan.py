"""The startup and shutdown conversation."""

import asyncio
import logging
from pathlib import Path

import pytest

from minibg.asgi import Receive, Scope, Send
from minibg.server import Server, StartupFailed
from minibg.server import lifespan as module
from minibg.server.lifespan import Lifespan
from tests.server.wire import GET, Client, respond, serving


async def test_the_application_starts_before_and_ends_after_every_request() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            seen.append("request")
            await respond(send, b"ok")
            return
        assert scope["asgi"] == {"version": "3.0", "spec_version": "2.0"}
        for _ in range(2):
            message = await receive()
            seen.append(message["type"])
            await send({"type": f"{message['type']}.complete"})

    async with serving(app) as server:
        client = await Client.to(server)
        await client.ask(GET)
        client.writer.close()
    assert seen == ["lifespan.startup", "request", "lifespan.shutdown"]


async def test_each_request_gets_a_copy_of_the_state() -> None:
    shared = object()
    seen: list[dict[str, object]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            seen.append(dict(scope["state"]))
            scope["state"]["mine"] = True
            await respond(send, b"ok")
            return
        scope["state"]["shared"] = shared
        for _ in range(2):
            await send({"type": f"{(await receive())['type']}.complete"})

    async with serving(app) as server:
        client = await Client.to(server)
        await client.ask(GET)
        await client.ask(GET)
        client.writer.close()
    assert seen == [{"shared": shared}] * 2


@pytest.mark.parametrize("message", [{"message": "no database"}, {}])
async def test_a_failed_startup_is_raised_and_nothing_is_left(message: dict[str, str]) -> None:
    ended: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", **message})
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleanup")

    server = Server(app, port=0)
    with pytest.raises(StartupFailed, match=message.get("message", "did not say why")):
        await server.start()
    assert ended == ["cleanup"]
    with pytest.raises(ConnectionRefusedError):
        await Client.to(server)


async def test_a_failed_startup_leaves_no_unix_socket(tmp_path: Path) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed"})

    with pytest.raises(StartupFailed):
        await Server(app, uds=f"{tmp_path}/s").start()
    assert list(tmp_path.iterdir()) == []


async def test_a_cancelled_start_ends_the_application() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    start = asyncio.create_task(Server(app, port=0).start())
    await started.wait()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert ended.is_set()


@pytest.mark.parametrize("how", ["raises", "returns"])
async def test_an_application_without_lifespan_is_served(how: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await respond(send, b"ok")
        elif how == "raises":
            raise NotImplementedError(scope["type"])

    async with serving(app) as server:
        client = await Client.to(server)
        assert (await client.ask(GET))[2] == b"ok"
        client.writer.close()


@pytest.mark.parametrize(
    ("answer", "logged"),
    [
        ({"type": "lifespan.shutdown.failed", "message": "late"}, "the application failed to shut down: late"),
        ({"type": "lifespan.startup.complete"}, "the lifespan of the application failed"),
    ],
)
async def test_a_failed_shutdown_is_logged(
    answer: dict[str, str], logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send(answer)

    async with serving(app):
        pass
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == [logged]


async def test_an_application_that_does_not_end_is_left_behind(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CANCEL_GRACE", 0.05)
    end = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                pass

    async with serving(app) as server:
        pass
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == [
        "the lifespan of the application does not end when cancelled; it is left running"
    ]
    end.set()
    assert server._lifespan._task is not None
    await server._lifespan._task


# --- exceptions that would end the event loop, and starts that hang ---

FATAL = pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError(), BaseException("x")],
    ids=lambda error: type(error).__name__,
)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


@FATAL
async def test_an_exception_that_is_no_exception_is_a_failed_startup(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise error

    server = Server(app, port=0)
    with pytest.raises(StartupFailed, match=f"the application raised .*{type(error).__name__}"):
        await server.start()
    with pytest.raises(ConnectionRefusedError):
        await Client.to(server)
    assert errors(caplog) == []


@FATAL
async def test_an_exception_that_is_no_exception_is_a_failed_shutdown(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise error

    async with serving(app) as server:
        pass
    cancelled = isinstance(error, asyncio.CancelledError)
    assert errors(caplog) == ([] if cancelled else ["the lifespan of the application failed"])
    assert server._lifespan.shutdown_failed is not cancelled


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ValueError()], ids=repr)
async def test_a_lifespan_that_fails_while_the_server_serves_leaves_it_serving(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    fail = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await respond(send, b"ok")
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await fail.wait()
        raise error

    async with serving(app) as server:
        client = await Client.to(server)
        await client.ask(GET)
        fail.set()
        assert (await client.ask(GET))[2] == b"ok"
        client.writer.close()
    assert errors(caplog) == ["the lifespan of the application failed"]
    assert server._lifespan.shutdown_failed


@pytest.mark.parametrize(
    ("answers", "failed"),
    [
        ([], False),
        (["startup.complete"], False),
        (["startup.complete", "shutdown.complete"], False),
        (["startup.complete", "shutdown.failed"], True),
        (["startup.complete", "startup.complete"], True),
    ],
)
async def test_a_failed_shutdown_is_visible(answers: list[str], failed: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for answer in answers:
            await receive()
            await send({"type": f"lifespan.{answer}"})

    lifespan = Lifespan(app, {})
    await lifespan.startup()
    lifespan.shutdown()
    await lifespan.answered.wait()
    await lifespan.give_up()
    assert lifespan.shutdown_failed is failed


@pytest.mark.parametrize("how", ["hurry", "cancel"])
@pytest.mark.parametrize("cleanup", ["quiet", "raises"])
async def test_a_startup_that_hangs_can_be_given_up(how: str, cleanup: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    started = asyncio.Event()
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cleanup")
            if cleanup == "raises":
                raise ValueError("cleanup")

    lifespan = Lifespan(app, {})
    startup = asyncio.create_task(lifespan.startup())
    await started.wait()
    if how == "hurry":
        lifespan.hurry()
        with pytest.raises(StartupFailed, match="given up"):
            await startup
    else:
        startup.cancel()
        with pytest.raises(asyncio.CancelledError):
            await startup
    assert seen == ["cleanup"]
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    assert caplog.records == []


async def test_hurry_before_the_start_and_after_it() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(2):
            await send({"type": f"{(await receive())['type']}.complete"})

    lifespan = Lifespan(app, {})
    lifespan.hurry()
    with pytest.raises(StartupFailed, match="given up"):
        await lifespan.startup()
    lifespan = Lifespan(app, {})
    await lifespan.startup()
    lifespan.hurry()
    lifespan.shutdown()
    await lifespan.answered.wait()
    await lifespan.give_up()
    assert not lifespan.shutdown_failed


@pytest.mark.parametrize("how", ["hurry", "cancel"])
async def test_a_startup_that_swallows_its_cancellation_is_left_behind(
    how: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CANCEL_GRACE", 0.05)
    started, end = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                pass

    server = Server(app, port=0)
    start = asyncio.create_task(server.start())
    await started.wait()
    if how == "hurry":
        server._lifespan.hurry()
    else:
        start.cancel()
    with pytest.raises(StartupFailed if how == "hurry" else asyncio.CancelledError):
        await asyncio.wait_for(start, 5)
    assert errors(caplog) == ["the lifespan of the application does not end when cancelled; it is left running"]
    with pytest.raises(ConnectionRefusedError):
        await Client.to(server)
    end.set()
    assert server._lifespan._task is not None
    await server._lifespan._task
