"""Who the client is when a proxy stands between: X-Forwarded-For and X-Forwarded-Proto. Pure.

A proxy that ends the client's connection tells its address in a header. Anybody can send that header, so it is believed
only if the connection comes from an address that the operator trusts, and it is off by default: with an empty list
nothing is believed. "*" trusts everybody, and is right where only the proxy can reach the server (a Unix socket).

X-Forwarded-For grows to the right: each proxy appends the address it saw. The client is therefore the *rightmost* address
that is not itself a trusted proxy; taking the leftmost, as is often done, takes what the client made up. Neither header
is a standard (RFC 7239's Forwarded is, and few send it). The port of the client is not told: 0.

Rejected: rewriting Host from X-Forwarded-Host. Frameworks do that where they need it, with their own list of hosts.
"""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any


class Trust:
    """The addresses whose forwarded headers are believed: comma-separated addresses and networks, or "*"."""

    def __init__(self, allowed: str = "") -> None:
        """Raises ValueError if an entry is neither an address nor a network."""
        entries = [entry.strip() for entry in allowed.split(",") if entry.strip()]
        self.everybody = "*" in entries
        self.networks: list[IPv4Network | IPv6Network] = [ip_network(e) for e in entries if e != "*"]

    def __bool__(self) -> bool:
        return self.everybody or bool(self.networks)

    def __contains__(self, address: str) -> bool:
        try:
            parsed = ip_address(address)
        except ValueError:  # a name, or the empty address of a Unix socket
            return self.everybody
        return self.everybody or any(parsed in network for network in self.networks)

    def client_and_scheme(self, scope: dict[str, Any]) -> tuple[tuple[str, int] | None, str]:
        """The client's address and what it spoke, "http" or "https", as the trusted proxies tell it."""
        client, scheme = scope["client"], scope["scheme"]
        if (client[0] if client else "") not in self:
            return client, scheme
        told = [(name, value.decode("latin-1")) for name, value in scope["headers"] if name.startswith(b"x-forwarded-")]
        hops = [hop.strip() for name, value in told if name == b"x-forwarded-for" for hop in value.split(",")]
        # The rightmost stranger; without one the leftmost hop, as with "*", where nobody is a stranger.
        strangers = [hop for hop in hops if hop not in self]
        if hops:
            client = ((strangers or hops[:1])[-1], 0)
        schemes = [value for name, value in told if name == b"x-forwarded-proto" and value in ("http", "https")]
        return client, (schemes or [scheme])[-1]
