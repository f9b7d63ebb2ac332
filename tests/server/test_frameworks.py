"""Real Starlette, FastAPI and Django applications under `serve`, with what is theirs to run after the response.

minibg's server is an ASGI server like any other: nothing here knows `add_task`. What each framework runs after its response
(Starlette's BackgroundTask, FastAPI's BackgroundTasks, Django's signal "request_finished") runs inside the application's
coroutine, after `send` has returned from the last message. So the client has its answer, and the connection is free for the
next request, while such a task still waits: each test holds its task until the client has been answered twice.

The clients are httpx, and bytes where the moment matters.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import django.conf
import django.core.asgi
import django.core.signals
import django.http
import django.urls
import fastapi
import httpx
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask, BackgroundTasks
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from minibg.asgi import ASGIApp
from minibg.serving import serve
from tests.server.wire import GET, Client


@asynccontextmanager
async def client_of(app: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of a server of its own, which is stopped at the end."""
    async with asyncio.timeout(30), serve(app, port=0, **options) as server:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
            yield client


class Gate:
    """A task that waits, and what has run."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.done: list[str] = []

    async def wait(self, name: str) -> None:
        await self.open.wait()
        self.done.append(name)

    def note(self, name: str) -> None:
        self.done.append(name)


async def answered_twice_before_the_task(app: ASGIApp, gate: Gate, expected: bytes) -> None:
    """Two requests on one connection are answered while the task of the first waits."""
    async with asyncio.timeout(30), serve(app, port=0) as server:
        client = await Client.to(server)
        for _ in range(2):
            status, _, body = await client.ask(GET)
            assert (status, body) == (200, expected)
        assert gate.done == []
        gate.open.set()
        client.writer.close()


PIECES = [b"%d " % number * 1000 for number in range(50)]
UPLOAD = bytes(range(256)) * 4096


# --- Starlette ---


async def test_starlette_background_tasks_run_after_the_response_and_before_the_stop() -> None:
    gate = Gate()

    async def home(request: Request) -> Response:
        tasks = BackgroundTasks([BackgroundTask(gate.wait, "async"), BackgroundTask(gate.note, "sync")])
        return PlainTextResponse("home", background=tasks)

    await answered_twice_before_the_task(Starlette(routes=[Route("/", home)]), gate, b"home")
    assert sorted(gate.done) == ["async", "async", "sync", "sync"]


async def test_a_starlette_task_that_fails_is_logged_and_the_connection_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        raise ValueError("in the task")

    async def home(request: Request) -> Response:
        return PlainTextResponse("home", background=BackgroundTask(fail))

    async with asyncio.timeout(30), serve(Starlette(routes=[Route("/", home)]), port=0) as server:
        client = await Client.to(server)
        assert [(await client.ask(GET))[2] for _ in range(3)] == [b"home"] * 3
        client.writer.close()
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors == ["GET '/': the application failed while its response was sent"] * 3


async def test_starlette_streams_both_ways_and_sees_its_lifespan_state(tmp_path: Any) -> None:
    (tmp_path / "file").write_bytes(UPLOAD)
    seen: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
        seen.append("startup")
        yield {"greeting": "hello"}
        seen.append("shutdown")

    async def stream(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for piece in PIECES:
                yield piece

        return StreamingResponse(pieces(), media_type="text/plain")

    async def sync_stream(request: Request) -> Response:
        return StreamingResponse(iter(PIECES))

    async def upload(request: Request) -> Response:
        sizes = [len(piece) async for piece in request.stream()]
        return JSONResponse({"bytes": sum(sizes), "pieces": len([size for size in sizes if size]) > 1})

    async def state(request: Request) -> Response:
        return PlainTextResponse(request.state.greeting)

    async def file(request: Request) -> Response:
        return FileResponse(tmp_path / "file")

    paths = {"/stream": stream, "/sync": sync_stream, "/state": state, "/file": file}
    routes = [Route(path, endpoint) for path, endpoint in paths.items()]
    app = Starlette(routes=[*routes, Route("/upload", upload, methods=["POST"])], lifespan=lifespan)
    async with client_of(app) as client:
        for path in ("/stream", "/sync"):
            response = await client.get(path)
            assert (response.headers["transfer-encoding"], response.content) == ("chunked", b"".join(PIECES))
        assert (await client.post("/upload", content=UPLOAD)).json() == {"bytes": len(UPLOAD), "pieces": True}

        async def chunks() -> AsyncIterator[bytes]:
            for piece in PIECES:
                yield piece

        assert (await client.post("/upload", content=chunks())).json()["bytes"] == sum(map(len, PIECES))
        assert (await client.get("/state")).text == "hello"
        assert (await client.get("/file")).content == UPLOAD
        part = await client.get("/file", headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, UPLOAD[10:20])
        head = await client.head("/file")
        assert (head.headers["content-length"], head.content) == (str(len(UPLOAD)), b"")
        assert [(await client.get("/none")).status_code, (await client.put("/state")).status_code] == [404, 405]
        assert seen == ["startup"]
    assert seen == ["startup", "shutdown"]


async def test_a_starlette_stream_ends_when_its_client_leaves_and_that_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Starlette turns our ClientDisconnected into an exception of its own."""
    ended = asyncio.Event()

    async def forever(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield bytes(10_000)
            finally:
                ended.set()

        return StreamingResponse(pieces())

    async with asyncio.timeout(30), serve(Starlette(routes=[Route("/", forever)]), port=0) as server:
        client = await Client.to(server)
        await client.send(GET)
        await client.reader.readexactly(100_000)
        client.writer.transport.abort()
        await ended.wait()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_starlette_upload_whose_client_leaves_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """Starlette tells the end of the client by the same exception here, and none of ours is behind it."""
    reading, ended = asyncio.Event(), asyncio.Event()

    async def upload(request: Request) -> Response:
        reading.set()
        try:
            return Response(await request.body())
        finally:
            ended.set()

    async with asyncio.timeout(30), serve(Starlette(routes=[Route("/", upload, methods=["POST"])]), port=0) as server:
        client = await Client.to(server)
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf")
        await reading.wait()
        client.writer.transport.abort()
        await ended.wait()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


# --- FastAPI ---


async def test_fastapi_background_tasks_run_after_the_response_and_before_the_stop() -> None:
    gate = Gate()
    app = fastapi.FastAPI()

    @app.get("/")
    async def home(tasks: fastapi.BackgroundTasks) -> str:
        tasks.add_task(gate.wait, "async")
        tasks.add_task(gate.note, "sync")
        return "home"

    await answered_twice_before_the_task(app, gate, b'"home"')
    assert sorted(gate.done) == ["async", "async", "sync", "sync"]


async def test_fastapi_validates_uploads_streams_and_sees_its_lifespan_state() -> None:
    @asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {"prefix": ">"}

    app = fastapi.FastAPI(lifespan=lifespan)
    closed: list[str] = []

    async def resource() -> AsyncIterator[str]:
        yield "resource"
        closed.append("resource")

    @app.get("/items/{number}")
    async def item(number: int, request: fastapi.Request, given: str = fastapi.Depends(resource)) -> dict[str, Any]:
        return {"number": number, "given": given, "prefix": request.state.prefix}

    @app.get("/sync")
    def in_a_thread(q: list[int] = fastapi.Query()) -> int:
        return sum(q)

    @app.post("/upload")
    async def upload(request: fastapi.Request) -> int:
        return len(await request.body())

    @app.get("/stream")
    def stream() -> StreamingResponse:
        return StreamingResponse(iter(PIECES))

    async with client_of(app) as client:
        assert (await client.get("/items/7")).json() == {"number": 7, "given": "resource", "prefix": ">"}
        assert (await client.get("/items/seven")).status_code == 422
        assert (await client.get("/sync?q=1&q=2")).json() == 3
        assert (await client.post("/upload", content=UPLOAD)).json() == len(UPLOAD)
        assert (await client.get("/stream")).content == b"".join(PIECES)
        assert "/items/{number}" in (await client.get("/openapi.json")).json()["paths"]
        many = await asyncio.gather(*(client.get(f"/items/{number}") for number in range(50)))
        assert [response.json()["number"] for response in many] == list(range(50))
    assert set(closed) == {"resource"}


# --- Django ---


def django_home(request: django.http.HttpRequest) -> django.http.HttpResponse:
    return django.http.HttpResponse("home")


async def django_show(request: django.http.HttpRequest, name: str) -> django.http.JsonResponse:
    shown = {"name": name, "method": request.method, "path": request.path, "query": request.GET.dict()}
    return django.http.JsonResponse({**shown, "host": request.get_host(), "length": len(request.body)})


async def django_stream(request: django.http.HttpRequest) -> django.http.StreamingHttpResponse:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in PIECES:
            yield piece

    return django.http.StreamingHttpResponse(pieces())


def django_upload(request: django.http.HttpRequest) -> django.http.HttpResponse:
    return django.http.HttpResponse(request.FILES["file"].read())


urlpatterns = [
    django.urls.path("", django_home),
    django.urls.path("show/<str:name>", django_show),
    django.urls.path("stream", django_stream),
    django.urls.path("upload", django_upload),
]


@pytest.fixture(scope="module")
def django_app() -> Any:
    options = {"ROOT_URLCONF": __name__, "ALLOWED_HOSTS": ["127.0.0.1", "a"], "SECRET_KEY": "of this test"}
    if not django.conf.settings.configured:
        django.conf.settings.configure(**options, DATABASES={}, LOGGING_CONFIG=None)
    return django.core.asgi.get_asgi_application()


@pytest.fixture
def finished() -> Iterator[Gate]:
    """What Django runs after its response: the receivers of this signal."""
    gate = Gate()

    async def receiver(**_: Any) -> None:
        await gate.wait("finished")

    django.core.signals.request_finished.connect(receiver)
    yield gate
    django.core.signals.request_finished.disconnect(receiver)


async def test_what_django_does_after_a_response_does_not_hold_the_connection(django_app: Any, finished: Gate) -> None:
    await answered_twice_before_the_task(django_app, finished, b"home")
    assert finished.done == ["finished", "finished"]


async def test_django_serves_sync_and_async_views_streams_and_uploads(django_app: Any) -> None:
    async with client_of(django_app) as client:
        assert (await client.get("/")).text == "home"
        shown = (await client.put("/show/%C3%A9%20e?q=1", content=b"12345")).json()
        host = f"127.0.0.1:{client.base_url.port}"
        expected = {"name": "é e", "method": "PUT", "path": "/show/é e", "query": {"q": "1"}, "host": host, "length": 5}
        assert shown == expected
        assert (await client.get("/stream")).content == b"".join(PIECES)
        assert (await client.post("/upload", files={"file": UPLOAD})).content == UPLOAD
        assert [(await client.head("/")).content, (await client.get("/")).content] == [b"", b"home"]
        assert (await client.get("/none")).status_code == 404
