"""Start and stop: phases, deadlines, hurry; several servers; where it listens."""

import asyncio
import contextlib
import logging
import os
import re
import socket
import ssl
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trustme

from minibg.asgi import ClientDisconnected, Receive, Scope, Send
from minibg.server import Limits, Server, StartupFailed
from minibg.server import server as module
from minibg.server.listen import bind_tcp
from tests.server.wire import GET, Client, Recorder, connections, echo, respond, serving, without_lifespan


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "minibg.server" and r.levelno >= logging.INFO]


async def test_a_stop_without_clients_has_a_line_for_each_phase(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(without_lifespan(echo)) as server:
        port = server.port
    assert lines(caplog) == [
        f"listening on 127.0.0.1 port {port}",
        "stop 1/3: no new connections; 0 are open",
        "stop 2/3: up to 10 s for 0 requests",
        "stop 3/3: the application shuts down",
        "stopped",
    ]
    with pytest.raises(ConnectionRefusedError):
        await Client.to(server)


async def test_idle_and_half_sent_connections_do_not_hold_the_stop() -> None:
    async with serving(echo) as server:
        silent, half, idle = [await Client.to(server) for _ in range(3)]
        await half.send(b"GET / HT")
        await idle.ask(GET)
        async with asyncio.timeout(2):
            await server.stop()
        assert [await client.rest() for client in (silent, half, idle)] == [b"", b"", b""]
        for client in (silent, half, idle):
            client.writer.close()


async def test_a_response_in_flight_finishes_and_the_application_after_it() -> None:
    running, go, after = asyncio.Event(), asyncio.Event(), asyncio.Event()
    seen: list[str] = []

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        running.set()
        await go.wait()
        await respond(send, b"ok")
        await after.wait()
        seen.append("after the response")

    async with serving(app) as server:
        client = await Client.to(server)
        await client.send(GET)
        await running.wait()
        stop = asyncio.create_task(server.stop())
        await server.service.stopping.wait()
        go.set()
        status, headers, body = await client.response()
        assert (status, headers["connection"], body) == (200, "close", b"ok")
        client.writer.close()
        assert not stop.done()
        after.set()
        await stop
    assert seen == ["after the response"]


async def test_what_does_not_finish_is_cancelled_and_awaited(caplog: pytest.LogCaptureFixture) -> None:
    running = asyncio.Event()
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                message = await receive()
                seen.append(message["type"])
                await send({"type": f"{message['type']}.complete"})
            return
        try:
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
            running.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            seen.append("cleanup")
            raise

    async with serving(app, graceful_timeout=0.1) as server:
        client = await Client.to(server)
        await client.send(GET)
        await running.wait()
    assert await client.is_reset()
    assert seen == ["lifespan.startup", "cleanup", "lifespan.shutdown"]
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        "stop 2/3: given up; 1 requests are cancelled"
    ]


async def test_a_client_that_lingers_is_cut_at_the_deadline() -> None:
    async with serving(echo, graceful_timeout=0.05) as server:
        client = await Client.to(server)
        await client.ask(GET.replace(b"Host", b"Connection: close\r\nHost"))
    assert server.service.connections == set()
    client.writer.close()


async def test_hurry_gives_up_the_phase_that_is_waited_for() -> None:
    running = asyncio.Event()
    shutdown = asyncio.Event()
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "lifespan":
                await receive()
                await send({"type": "lifespan.startup.complete"})
                await receive()
                shutdown.set()
            else:
                running.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append(scope["type"])
            raise

    async with serving(app, graceful_timeout=1000) as server:
        client = await Client.to(server)
        await client.send(GET)
        await running.wait()
        stop = asyncio.create_task(server.stop())
        await server.service.stopping.wait()
        await asyncio.sleep(0)
        server.hurry()
        await asyncio.wait_for(shutdown.wait(), 5)
        assert seen == ["http"]
        server.hurry()
        await asyncio.wait_for(stop, 5)
    assert seen == ["http", "lifespan"]
    client.writer.close()


async def test_an_application_that_swallows_its_cancellation_is_left_behind(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CANCEL_GRACE", 0.05)
    running, end, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        running.set()
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                pass
        with pytest.raises(ClientDisconnected):
            await respond(send, b"nobody")
        gone.set()

    async with serving(app, graceful_timeout=0.05) as server:
        client = await Client.to(server)
        await client.send(GET)
        await running.wait()
    assert [r.getMessage()[:64] for r in caplog.records if r.levelno >= logging.ERROR] == [
        "a request does not end when cancelled, and is left running: <Tas"
    ]
    end.set()
    await asyncio.wait_for(gone.wait(), 5)
    assert await client.is_reset()
    await asyncio.gather(*server.service.requests)


async def test_hurry_goes_on_to_the_next_phase_whatever_the_application_swallows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It swallows its cancellation in a request and in the shutdown, and sits in a thread that does not end."""
    running, shutdown, thread = asyncio.Event(), asyncio.Event(), threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            shutdown.set()
        running.set()
        if scope.get("path") == "/thread":
            await asyncio.to_thread(thread.wait)
        while not thread.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    async with serving(app, graceful_timeout=1000, shutdown_timeout=1000) as server:
        clients = [await Client.to(server) for _ in range(2)]
        for client, path in zip(clients, (b"/ ", b"/thread "), strict=True):
            running.clear()
            await client.send(GET.replace(b"/ ", path))
            await running.wait()
        async with asyncio.timeout(2):
            stop = asyncio.create_task(server.stop())
            await server.service.stopping.wait()
            for _ in ("the requests", "their clean-up"):
                for _ in range(10):
                    await asyncio.sleep(0)  # turns of the loop: until the phase waits
                server.hurry()
            await shutdown.wait()
            while not stop.done():  # the shutdown, and its clean-up
                server.hurry()
                await asyncio.sleep(0)
        left = tuple(server.service.requests)
        thread.set()
        await asyncio.gather(*left, return_exceptions=True)
        assert await clients[0].is_reset()
        assert (await clients[1].response())[0] == 500  # its application ended by its cancellation
        for client in clients:
            client.writer.close()
    complaints = [record.getMessage()[:42] for record in caplog.records if record.levelno == logging.ERROR]
    assert complaints.count("a request does not end when cancelled, and") == 1  # the thread's request did end


async def test_a_stop_ends_within_the_sum_of_its_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CANCEL_GRACE", 0.1)
    monkeypatch.setattr("minibg.server.lifespan.CANCEL_GRACE", 0.1)
    running, end = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
        running.set()
        while not end.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await end.wait()

    async with serving(app, graceful_timeout=0.1, shutdown_timeout=0.1) as server:
        client = await Client.to(server)
        running.clear()
        await client.send(GET)
        await running.wait()
        async with asyncio.timeout(1):
            await server.stop()
        left = tuple(server.service.requests)
        end.set()
        await asyncio.gather(*left)
        client.writer.close()


async def test_a_startup_that_hangs_can_be_given_up() -> None:
    asked = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.set()
        await asyncio.Event().wait()

    server = Server(app, port=0)
    start = asyncio.create_task(server.start())
    await asked.wait()
    server.hurry()
    async with asyncio.timeout(1):
        with pytest.raises(StartupFailed):
            await start


async def test_the_end_of_the_server_can_be_seen_by_a_stream() -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stopping = scope["extensions"]["minibg.stopping"]["event"]
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"tick", "more_body": True})
        assert not stopping.is_set()
        await stopping.wait()
        await send({"type": "http.response.body", "body": b"bye"})

    async with serving(app) as server:
        client = await Client.to(server)
        await client.send(GET)
        await client.reader.readuntil(b"tick\r\n")
        stop = asyncio.create_task(server.stop())
        assert await client.rest() == b"3\r\nbye\r\n0\r\n\r\n"
        client.writer.close()
        await stop


async def test_a_stop_is_not_announced_as_the_end_of_the_client() -> None:
    waiting, go = asyncio.Event(), asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        end = asyncio.ensure_future(receive())
        waiting.set()
        await go.wait()
        announced = end.done()
        await respond(send, f"{announced}".encode())
        assert await end == {"type": "http.disconnect"}  # the response is over

    async with serving(app) as server:
        client = await Client.to(server)
        await client.send(GET)
        await waiting.wait()
        stop = asyncio.create_task(server.stop())
        await server.service.stopping.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        go.set()
        assert (await client.response())[2] == b"False"
        client.writer.close()
        await stop


async def test_two_servers_live_in_one_loop_and_stopping_twice_is_one_stop() -> None:
    async with serving(echo) as first, serving(echo) as second:
        assert first.port != second.port
        await asyncio.gather(first.stop(), first.stop())
        client = await Client.to(second)
        assert (await client.ask(GET))[0] == 200
        client.writer.close()


async def test_a_cancelled_stop_goes_on() -> None:
    running, go = asyncio.Event(), asyncio.Event()

    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        running.set()
        await go.wait()
        await respond(send, b"ok")

    async with serving(app) as server:
        client = await Client.to(server)
        await client.send(GET)
        await running.wait()
        stop = asyncio.create_task(server.stop())
        await server.service.stopping.wait()
        stop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stop
        go.set()
        assert (await client.response())[0] == 200
        client.writer.close()


# --- where it listens ---


async def test_an_address_in_use_is_an_error_that_names_it() -> None:
    async with serving(echo) as server:
        with pytest.raises(OSError, match=f"ddress already in use: '127.0.0.1 port {server.port}'"):
            await Server(echo, port=server.port).start()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "nowhere.invalid", "port": 80}, ": 'nowhere.invalid port 80'"),
        ({"host": "192.0.2.1", "port": 0}, ": '192.0.2.1 port 0'"),
        ({"uds": "missing/socket"}, "No such file or directory: 'missing/socket'"),
        ({"uds": "x" * 200}, "path too long: 'xxx"),
        ({"fd": 999_999}, "Bad file descriptor: 'fd 999999'"),
        ({"port": 0, "ssl_certfile": "missing.pem"}, "No such file or directory: 'missing.pem'"),
        ({"port": 0, "ssl_certfile": __file__, "ssl_keyfile": "k"}, f": '{__file__}, k'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
async def test_what_cannot_be_listened_on_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OSError, match=re.escape(message)):
        await Server(echo, **settings).start()


@pytest.mark.parametrize("port", [-1, 65536, 70000])
async def test_what_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match=f"{port} is not a port"):
        await Server(echo, port=port).start()


async def test_who_is_a_moment_quicker_to_listen_gets_the_address_and_the_application_is_shut_down() -> None:
    """Linux lets two sockets be bound to an address, and one of them listen on it."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(2):
            seen.append((await receive())["type"])
            quicker.listen()
            await send({"type": f"{seen[-1]}.complete"})

    with socket.socket() as quicker:
        quicker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        quicker.bind(("127.0.0.1", 0))
        server = Server(app, port=quicker.getsockname()[1])
        with pytest.raises(OSError, match=f"ddress already in use: '127.0.0.1 port {server.port}'"):
            await server.start()
        await server.stop()
    assert seen == ["lifespan.startup", "lifespan.shutdown"]


@pytest.mark.parametrize("started", [False, True])
async def test_a_server_that_did_not_start_is_stopped_and_leaves_the_others_socket(
    started: bool, tmp_path: Path
) -> None:
    path = str(tmp_path / "s")
    async with serving(echo, uds=path):
        other = Server(echo, uds=path)
        if started:
            with pytest.raises(OSError, match="in use"):
                await other.start()
        async with asyncio.timeout(5):
            await other.stop()
        reader, writer = await asyncio.open_unix_connection(path)
        assert (await Client(reader, writer).ask(GET))[0] == 200
        writer.close()


async def test_every_address_of_a_name_gets_the_same_port() -> None:
    async with serving(echo, host="localhost") as server:
        assert {address[1] for address in server.addresses} == {server.port}
        for host, port in (address for address in server.addresses if not isinstance(address, str)):
            reader, writer = await asyncio.open_connection(host, port)
            assert (await Client(reader, writer).ask(GET))[0] == 200
            writer.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_ipv6_addresses_are_pairs_in_the_scope() -> None:
    app = Recorder()
    async with serving(app, host="::1") as server:
        reader, writer = await asyncio.open_connection("::1", server.port)
        assert (await Client(reader, writer).ask(GET))[0] == 200
        assert app.scopes[0]["server"] == ("::1", server.port)
        assert app.scopes[0]["client"] == writer.get_extra_info("sockname")[:2]
        writer.close()


def test_an_empty_host_means_every_address() -> None:
    sockets = bind_tcp("", 0)
    assert len({sock.getsockname()[1] for sock in sockets}) == 1
    assert "0.0.0.0" in {sock.getsockname()[0] for sock in sockets}
    for sock in sockets:
        sock.close()


async def test_a_unix_socket_is_made_with_its_permissions_and_removed(tmp_path: Path) -> None:
    path, app = tmp_path / "s", Recorder()
    with socket.socket(socket.AF_UNIX) as dead:  # what a killed server leaves
        dead.bind(str(path))
    async with serving(app, uds=str(path), uds_permissions=0o600) as server:
        assert server.addresses == [str(path)]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(OSError, match="in use"):
            await Server(app, uds=str(path)).start()
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert (await Client(reader, writer).ask(GET))[0] == 200
        assert (app.scopes[0]["client"], app.scopes[0]["server"]) == (None, (str(path), None))
        writer.close()
    assert not path.exists()


async def test_an_empty_path_is_no_unix_socket() -> None:
    with pytest.raises(ValueError, match="an empty path"):
        await Server(echo, uds="").start()


async def test_a_server_whose_unix_socket_was_replaced_leaves_that_of_the_other(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with contextlib.AsyncExitStack() as stack:
        async with serving(echo, uds=str(path)):
            path.unlink()  # as a script does before it starts the next server
            await stack.enter_async_context(serving(echo, uds=str(path)))
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert (await Client(reader, writer).ask(GET))[0] == 200
        writer.close()
    assert not path.exists()


async def test_what_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        await Server(echo, uds=str(path)).start()
    assert path.read_text() == "precious"


async def test_an_inherited_descriptor_is_listened_on() -> None:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    async with serving(echo, fd=sock.detach()) as server:
        client = await Client.to(server)
        assert (await client.ask(GET))[0] == 200
        client.writer.close()


@pytest.fixture
def authority(tmp_path: Path) -> tuple[trustme.CA, Path]:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "all.pem")
    return authority, tmp_path / "all.pem"


async def test_tls_is_served_and_https_in_the_scope(authority: tuple[trustme.CA, Path]) -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, scope["scheme"].encode() + bytes(5_000_000))

    context = ssl.create_default_context()
    authority[0].configure_trust(context)
    async with serving(app, ssl_certfile=os.fspath(authority[1])) as server:
        client = await Client.to(server, ssl=context, server_hostname="localhost")
        assert (await client.ask(GET))[2][:10] == b"https" + bytes(5)
        assert len((await client.ask(GET + GET))[2]) == 5_000_005
        assert len((await client.response())[2]) == 5_000_005
        client.writer.close()


async def test_a_cut_response_over_tls_is_no_whole_one(authority: tuple[trustme.CA, Path]) -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        raise RuntimeError

    context = ssl.create_default_context()
    authority[0].configure_trust(context)
    async with serving(app, ssl_certfile=os.fspath(authority[1])) as server:
        client = await Client.to(server, ssl=context, server_hostname="localhost")
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises((ConnectionResetError, ssl.SSLError)):
            await client.rest()


async def test_tls_before_1_2_is_refused(authority: tuple[trustme.CA, Path]) -> None:
    old = ssl.create_default_context()
    authority[0].configure_trust(old)
    with pytest.warns(DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with serving(echo, ssl_certfile=os.fspath(authority[1])) as server:
        with pytest.raises((ssl.SSLError, OSError)):
            await Client.to(server, ssl=old, server_hostname="localhost")


async def test_a_client_that_connects_and_never_begins_with_tls_is_cut(
    authority: tuple[trustme.CA, Path], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(echo, ssl_certfile=os.fspath(authority[1]), header_timeout=0.2) as server:
        silent = await Client.to(server)
        await silent.is_reset()  # or closed
        silent.writer.close()
        assert server.service.connections == set()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(("sent", "seconds"), [(b"", 2), (b"GET / HT", 5)], ids=["silent", "half a head"])
async def test_an_idle_client_of_tls_ends_in_time_and_holds_no_stop(
    sent: bytes, seconds: float, authority: tuple[trustme.CA, Path]
) -> None:
    """asyncio waits 30 s for the client's farewell, which a client that does not read never sends.

    Half a head is answered with a 408, which lingers for two seconds.
    """
    context = ssl.create_default_context()
    authority[0].configure_trust(context)

    def connect(server: Server) -> ssl.SSLSocket:
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        return context.wrap_socket(sock, server_hostname="localhost")

    async with serving(echo, ssl_certfile=os.fspath(authority[1]), header_timeout=0.6) as server:
        with await asyncio.to_thread(connect, server) as client:
            client.sendall(sent)
            async with asyncio.timeout(seconds):
                while not server.service.connections:
                    await asyncio.sleep(0)
                while server.service.connections:
                    await asyncio.sleep(0.01)
    async with serving(echo, ssl_certfile=os.fspath(authority[1]), graceful_timeout=1000) as server:
        with await asyncio.to_thread(connect, server) as client:
            client.sendall(sent)
            while not server.service.connections:
                await asyncio.sleep(0)
            async with asyncio.timeout(1):
                await server.stop()


async def test_clients_that_never_begin_with_tls_take_no_more_room_than_connections_have(
    authority: tuple[trustme.CA, Path],
) -> None:
    context = ssl.create_default_context()
    authority[0].configure_trust(context)
    async with serving(echo, ssl_certfile=os.fspath(authority[1]), max_connections=3) as server:
        silent = [await Client.to(server) for _ in range(12)]
        for oldest in silent[:9]:
            await oldest.is_reset()  # or closed
        client = await Client.to(server, ssl=context, server_hostname="localhost")
        assert (await client.ask(GET))[0] == 200
        for each in (client, *silent):
            each.writer.close()


async def test_a_key_without_a_certificate_is_refused_and_not_served_without_tls() -> None:
    with pytest.raises(ValueError, match="ssl_keyfile without ssl_certfile"):
        await Server(echo, port=0, ssl_keyfile="key.pem").start()


async def test_a_missing_certificate_is_an_error() -> None:
    with pytest.raises(OSError):
        await Server(echo, port=0, ssl_certfile="missing.pem").start()


async def test_a_connection_that_comes_with_the_stop_is_closed() -> None:
    async with serving(echo) as server:
        server.service.stopping.set()
        client = await Client.to(server)
        assert await client.rest() == b""
        client.writer.close()


def test_a_limit_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="keep_alive must be positive, not 0"):
        Limits(keep_alive=0)


async def test_time_in_which_the_server_was_paused_is_not_the_clients() -> None:
    async with serving(echo, header_timeout=0.5, body_timeout=0.5) as server:
        head, body, idle = [await Client.to(server) for _ in range(3)]
        await head.send(GET[:20])
        await body.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel")
        await idle.ask(GET)
        while {each.phase.value for each in connections(server)} != {"head", "body", "idle"}:
            await asyncio.sleep(0)
        time.sleep(1.5)  # the loop is blocked, as by a paused process
        await asyncio.sleep(0.1)  # a tick comes, late
        assert (await head.ask(GET[20:]))[0] == 200
        assert (await body.ask(b"lo"))[0] == 200
        assert (await idle.ask(GET))[0] == 200
        for client in (head, body, idle):
            client.writer.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, SystemExit])
async def test_no_exception_of_a_handler_stops_the_server(error: type[BaseException]) -> None:
    @without_lifespan
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/fails":
            raise error
        await respond(send, b"ok")

    async with serving(app) as server:
        for path, status in ((b"/fails ", 500), (b"/ ", 200)):
            client = await Client.to(server)
            assert (await client.ask(GET.replace(b"/ ", path)))[0] == status
            client.writer.close()
