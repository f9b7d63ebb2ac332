"""The client behind a proxy: X-Forwarded-For and X-Forwarded-Proto. Pure.

A proxy that ends the client's connection reports the client's address in a header. Any client can send
such a header too, so it is believed only on a connection from an address that the operator trusts. By
default the list is empty and no header is believed. "*" trusts every peer, which is right where only
the proxy can reach the server (a Unix socket).

X-Forwarded-For grows to the right: each proxy appends the address that it saw. The client is therefore
the *rightmost* address that does not belong to a trusted proxy. The leftmost, which is often taken, is
whatever the client wrote. Neither header is a standard; RFC 7239's Forwarded is, and few proxies send
it. The client's port is not in the header, so it is 0.

Rejected: rewriting Host from X-Forwarded-Host. Frameworks do that where they need it, with a list of
hosts of their own.
"""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any


class TrustedProxies:
    """The peers whose forwarded headers are believed. False if there are none."""

    def __init__(self, allowed: str = "") -> None:
        """Parse ``allowed``: comma-separated addresses and networks, or "*". Raises ValueError for anything else."""
        entries = [entry.strip() for entry in allowed.split(",") if entry.strip()]
        self.everybody = "*" in entries
        self.networks: list[IPv4Network | IPv6Network] = [ip_network(e) for e in entries if e != "*"]

    def __bool__(self) -> bool:
        return self.everybody or bool(self.networks)

    def __contains__(self, address: str) -> bool:
        try:
            parsed = ip_address(address)
        except ValueError:  # A Unix socket has an empty address.
            return self.everybody
        return self.everybody or any(parsed in network for network in self.networks)

    def client_and_scheme(self, scope: dict[str, Any]) -> tuple[tuple[str, int] | None, str]:
        """Return the client's address and port, and "http" or "https", as the trusted proxies report them."""
        client, scheme = scope["client"], scope["scheme"]
        if (client[0] if client else "") not in self:
            return client, scheme
        forwarded = [
            (name, value.decode("latin-1")) for name, value in scope["headers"] if name.startswith(b"x-forwarded-")
        ]
        hops = [hop.strip() for name, value in forwarded if name == b"x-forwarded-for" for hop in value.split(",")]
        # The rightmost untrusted hop. If all are trusted, as with "*", the leftmost.
        untrusted = [hop for hop in hops if hop not in self]
        if hops:
            client = ((untrusted or hops[:1])[-1], 0)
        schemes = [value for name, value in forwarded if name == b"x-forwarded-proto" and value in ("http", "https")]
        return client, (schemes or [scheme])[-1]


# The former name, for the files that still use it.
Trust = TrustedProxies
