"""The client behind a proxy: X-Forwarded-For and X-Forwarded-Proto. Pure.

A proxy that ends the client's connection reports the client's address in a header. Any client can
send such a header too, so the server believes it only from a peer whose address the operator
trusts. By default no address is trusted. "*" trusts every peer; it is meant for a server that only
the proxy can reach (a Unix socket).

Each proxy appends the address of its own peer to X-Forwarded-For. So the header is read from the
right, and only as far as trusted proxies have written it:

- The client is the rightmost address that is not a trusted proxy's. If all addresses are trusted,
  the client is the leftmost.
- With "*" the client is the rightmost address: the peer of the last proxy. The leftmost, which is
  often taken instead, can be chosen by the client.
- Empty entries are skipped (RFC 9110 §5.6.1.2). No more than `MAX_HOPS` entries are read, so a
  header of 32 KiB costs no more than a short one.
- If an entry is not an IP address, the reading ends and the client is the peer. So no name, port or
  control byte reaches ``scope["client"]`` and the access log.
- An IPv4-mapped IPv6 address ("::ffff:10.0.0.1"), which a socket for both protocols reports, is
  read as the IPv4 address.

Neither header is a standard. The standard header is Forwarded (RFC 7239), but few proxies send it.
X-Forwarded-For does not contain the client's port, so the port is 0.

Rejected: rewriting Host from X-Forwarded-Host. Frameworks do this with their own list of allowed
hosts.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

#: The number of entries of X-Forwarded-For that are read. Chains of proxies have one to four; 32
#: leaves room and follows no precedent.
MAX_HOPS = 32


class TrustedProxies:
    """The peers whose forwarded headers are believed; false in a condition if there are none."""

    def __init__(self, allowed: str = "") -> None:
        """Parse ``allowed``: comma-separated addresses and networks, or "*".

        Raises ValueError for anything else.
        """
        entries = [entry.strip() for entry in allowed.split(",") if entry.strip()]
        self._all = "*" in entries
        self._networks = [ip_network(_parsed(entry) or entry) for entry in entries if entry != "*"]

    def __bool__(self) -> bool:
        return self._all or bool(self._networks)

    def client_and_scheme(self, scope: dict[str, Any]) -> tuple[tuple[str, int] | None, str]:
        """Return (address, port) of the client, and the scheme, as the trusted proxies report them.

        The client is None, as in the scope, on a Unix socket without X-Forwarded-For.
        """
        peer, scheme, headers = scope["client"], scope["scheme"], scope["headers"]
        # The peer on a Unix socket has no address.
        if not (self._all or (peer and self._is_proxy(_parsed(peer[0])))):
            return peer, scheme
        schemes = [value for name, value in headers if name == b"x-forwarded-proto" and value in (b"http", b"https")]
        hops = b",".join(value for name, value in headers if name == b"x-forwarded-for").rsplit(b",", MAX_HOPS)
        address = None
        for hop in filter(None, (hop.strip() for hop in reversed(hops[-MAX_HOPS:]))):
            address = _parsed(hop.decode("latin-1"))
            if self._all or not self._is_proxy(address):
                break
        return (str(address), 0) if address else peer, schemes[-1].decode() if schemes else scheme

    def _is_proxy(self, address: IPv4Address | IPv6Address | None) -> bool:
        return any(address in network for network in self._networks if address)


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address, converted to IPv4 if it is IPv4-mapped; None if ``text`` is not an address."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # `ipaddress` accepts any text as a zone ("fe80::1%zone"), but the zone of another host has no
    # meaning here.
    return None if "%" in text else getattr(address, "ipv4_mapped", None) or address
