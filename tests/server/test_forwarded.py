"""The client behind a proxy."""

import pytest

from minibg.server.forwarded import MAX_HOPS, TrustedProxies
from tests.server.wire import Client, Recorder, serving

from tests.shared import Stopwatch

PEER = ("10.0.0.1", 5000)


TRUSTED = "10.0.0.0/8"


def client_of(allowed: str, peer: tuple[str, int] | None, *headers: str) -> tuple[tuple[str, int] | None, str]:
    fields = [tuple(header.encode("latin-1").split(b": ")) for header in headers]
    return TrustedProxies(allowed).client_and_scheme({"client": peer, "scheme": "http", "headers": fields})


@pytest.mark.parametrize(
    ("allowed", "peer", "headers", "client", "scheme"),
    [
        ("10.0.0.1", PEER, [], PEER, "http"),
        ("10.0.0.1", PEER, ["x-forwarded-for: 1.2.3.4"], ("1.2.3.4", 0), "http"),
        ("10.0.0.1", PEER, ["x-forwarded-for: 6.6.6.6, 1.2.3.4"], ("1.2.3.4", 0), "http"),
        (TRUSTED, PEER, ["x-forwarded-for: 6.6.6.6, 1.2.3.4, 10.0.0.2"], ("1.2.3.4", 0), "http"),
        (TRUSTED, PEER, ["x-forwarded-for: 6.6.6.6", "x-forwarded-for: 1.2.3.4"], ("1.2.3.4", 0), "http"),
        (TRUSTED, PEER, ["x-forwarded-for: 10.0.0.3,10.0.0.2"], ("10.0.0.3", 0), "http"),
        (TRUSTED, PEER, ["x-forwarded-for: 2001:DB8::1, 10.0.0.2"], ("2001:db8::1", 0), "http"),
        (TRUSTED, PEER, ["x-forwarded-proto: https"], PEER, "https"),
        (TRUSTED, PEER, ["x-forwarded-proto: https", "x-forwarded-proto: http"], PEER, "http"),
        (TRUSTED, PEER, ["x-forwarded-proto: gopher"], PEER, "http"),
        ("10.0.0.2", PEER, ["x-forwarded-for: 1.2.3.4", "x-forwarded-proto: https"], PEER, "http"),
        ("10.0.0.1", None, ["x-forwarded-for: 1.2.3.4"], None, "http"),
        ("10.0.0.1", ("a name", 1), ["x-forwarded-for: 1.2.3.4"], ("a name", 1), "http"),
        ("*", None, ["x-forwarded-for: 1.2.3.4"], ("1.2.3.4", 0), "http"),
        ("*, 10.0.0.1", PEER, ["x-forwarded-for: 1.2.3.4, 10.0.0.1"], ("10.0.0.1", 0), "http"),
    ],
)
def test_the_client_is_the_rightmost_address_that_is_no_proxy(
    allowed: str, peer: tuple[str, int] | None, headers: list[str], client: tuple[str, int] | None, scheme: str
) -> None:
    assert client_of(allowed, peer, *headers) == (client, scheme)


def test_when_every_peer_is_trusted_the_client_is_what_the_last_proxy_saw() -> None:
    assert client_of("*", PEER, "x-forwarded-for: 6.6.6.6, 1.2.3.4")[0] == ("1.2.3.4", 0)
    assert client_of("*", None, "x-forwarded-for: 6.6.6.6", "x-forwarded-for: 1.2.3.4")[0] == ("1.2.3.4", 0)


@pytest.mark.parametrize(
    "hop",
    ["a name", "unknown", "1.2.3.4:80", "[::1]", "1.2.3", "fe80::1%eth0", "fe80::1%\x9b31m", "\x85", "1.2.3.4\x85"],
)
@pytest.mark.parametrize("allowed", [TRUSTED, "*"])
def test_an_entry_that_is_no_address_leaves_the_peer_as_the_client(allowed: str, hop: str) -> None:
    assert client_of(allowed, PEER, f"x-forwarded-for: 6.6.6.6, {hop}")[0] == PEER
    assert client_of(TRUSTED, PEER, f"x-forwarded-for: 6.6.6.6, {hop}, 10.0.0.2")[0] == PEER


@pytest.mark.parametrize("value", ["1.2.3.4, ", "1.2.3.4,", "1.2.3.4, , ,10.0.0.2,\t", ",1.2.3.4,"])
def test_empty_entries_are_skipped(value: str) -> None:
    assert client_of(TRUSTED, PEER, f"x-forwarded-for: {value}")[0] == ("1.2.3.4", 0)
    assert client_of("*", PEER, "x-forwarded-for: 1.2.3.4", "x-forwarded-for: ")[0] == ("1.2.3.4", 0)
    assert client_of(TRUSTED, PEER, "x-forwarded-for: , ")[0] == PEER


@pytest.mark.parametrize("allowed", ["10.0.0.1", TRUSTED, "::ffff:10.0.0.1", "::ffff:a00:1"])
def test_an_ipv4_address_in_the_form_of_ipv6_is_that_ipv4_address(allowed: str) -> None:
    mapped = ("::ffff:10.0.0.1", 5000)
    assert client_of(allowed, mapped, "x-forwarded-for: 6.6.6.6, 1.2.3.4")[0] == ("1.2.3.4", 0)
    assert client_of(allowed, mapped, "x-forwarded-for: ::ffff:1.2.3.4, ::ffff:10.0.0.1")[0] == ("1.2.3.4", 0)
    assert client_of("10.0.0.2", mapped, "x-forwarded-for: 1.2.3.4")[0] == mapped


@pytest.mark.parametrize("allowed", ["*", TRUSTED])
@pytest.mark.parametrize("hop", ["10.0.0.2,", "1.2.3.4,", ",", "::1,", "x,"])
def test_no_header_blocks_the_event_loop_for_20_ms(allowed: str, hop: str) -> None:
    value = (hop * 32_000)[:32_000]
    with Stopwatch() as watch:
        client_of(allowed, PEER, f"x-forwarded-for: {value}")
    assert watch.seconds < 0.02


def test_only_so_many_entries_are_read() -> None:
    for more, client in ((-1, "1.2.3.4"), (0, "10.0.0.2")):
        hops = ["1.2.3.4", *["10.0.0.2"] * (MAX_HOPS + more)]
        assert client_of(TRUSTED, PEER, f"x-forwarded-for: {', '.join(hops)}")[0] == (client, 0)


def test_no_peer_is_trusted_by_default_and_nonsense_is_refused() -> None:
    assert not TrustedProxies("")
    assert TrustedProxies("*")
    with pytest.raises(ValueError):
        TrustedProxies("proxy.example.org")


async def test_the_scope_has_the_client_that_a_trusted_proxy_reports() -> None:
    request = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n\r\n"
    for allowed, client, scheme in (("127.0.0.1", "1.2.3.4", "https"), ("", "127.0.0.1", "http")):
        app = Recorder()
        async with serving(app, forwarded_allow_ips=allowed) as server:
            connection = await Client.to(server)
            await connection.ask(request)
            connection.writer.close()
        assert (app.scopes[0]["client"][0], app.scopes[0]["scheme"]) == (client, scheme)
