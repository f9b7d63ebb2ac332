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

Headers = list[tuple[bytes, bytes]]


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

    def client_of(self, headers: Headers, peer: tuple[str, int] | None) -> tuple[str, int] | None:
        """The client's address as the trusted proxies tell it."""
        if (peer[0] if peer else "") not in self:
            return peer
        told = [value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"]
        hops = [hop.strip() for hop in ",".join(told).split(",") if hop.strip()]
        if not hops:
            return peer
        strangers = [hop for hop in hops if self.everybody or hop not in self]
        # With "*" every hop is trusted, so the first one is the client.
        return (strangers[0] if self.everybody else strangers[-1] if strangers else hops[0], 0)

    def scheme_of(self, headers: Headers, peer: tuple[str, int] | None, scheme: str) -> str:
        """What the client spoke to the proxy: "http" or "https"."""
        if (peer[0] if peer else "") in self:
            for name, value in headers:
                if name == b"x-forwarded-proto" and value.lower() in (b"http", b"https"):
                    return value.lower().decode()
        return scheme
