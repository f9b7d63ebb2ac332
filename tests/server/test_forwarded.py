"""Who the client is behind a proxy."""

import pytest

from minibg.server.forwarded import TrustedProxies
from tests.server.wire import Client, Recorder, serving

PEER = ("10.0.0.1", 5000)


@pytest.mark.parametrize(
    ("allowed", "peer", "headers", "client", "scheme"),
    [
        ("10.0.0.1", PEER, [], PEER, "http"),
        ("10.0.0.1", PEER, ["x-forwarded-for: 1.2.3.4"], ("1.2.3.4", 0), "http"),
        ("10.0.0.1", PEER, ["x-forwarded-for: 6.6.6.6, 1.2.3.4"], ("1.2.3.4", 0), "http"),
        ("10.0.0.0/8", PEER, ["x-forwarded-for: 6.6.6.6, 1.2.3.4, 10.0.0.2"], ("1.2.3.4", 0), "http"),
        ("10.0.0.0/8", PEER, ["x-forwarded-for: 6.6.6.6", "x-forwarded-for: 1.2.3.4"], ("1.2.3.4", 0), "http"),
        ("10.0.0.0/8", PEER, ["x-forwarded-for: 10.0.0.3,10.0.0.2"], ("10.0.0.3", 0), "http"),
        ("10.0.0.0/8", PEER, ["x-forwarded-proto: https"], PEER, "https"),
        ("10.0.0.0/8", PEER, ["x-forwarded-proto: gopher"], PEER, "http"),
        ("10.0.0.2", PEER, ["x-forwarded-for: 1.2.3.4", "x-forwarded-proto: https"], PEER, "http"),
        ("*", PEER, ["x-forwarded-for: 1.2.3.4, 10.0.0.2"], ("1.2.3.4", 0), "http"),
        ("*", None, ["x-forwarded-for: 1.2.3.4"], ("1.2.3.4", 0), "http"),
        ("10.0.0.1", None, ["x-forwarded-for: 1.2.3.4"], None, "http"),
        ("::1", ("::1", 1), ["x-forwarded-for: a name"], ("a name", 0), "http"),
    ],
)
def test_the_client_is_the_rightmost_stranger(
    allowed: str, peer: tuple[str, int] | None, headers: list[str], client: tuple[str, int] | None, scheme: str
) -> None:
    fields = [tuple(header.encode().split(b": ")) for header in headers]
    scope = {"client": peer, "scheme": "http", "headers": fields}
    assert TrustedProxies(allowed).client_and_scheme(scope) == (client, scheme)


def test_nobody_is_trusted_by_default_and_nonsense_is_refused() -> None:
    assert not TrustedProxies("")
    assert TrustedProxies("*")
    with pytest.raises(ValueError):
        TrustedProxies("proxy.example.org")


async def test_the_scope_tells_what_a_trusted_proxy_told() -> None:
    request = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n\r\n"
    for allowed, client, scheme in (("127.0.0.1", "1.2.3.4", "https"), ("", "127.0.0.1", "http")):
        app = Recorder()
        async with serving(app, forwarded_allow_ips=allowed) as server:
            connection = await Client.to(server)
            await connection.ask(request)
            connection.writer.close()
        assert (app.scopes[0]["client"][0], app.scopes[0]["scheme"]) == (client, scheme)
