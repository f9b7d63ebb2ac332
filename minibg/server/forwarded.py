"""The client behind a proxy: X-Forwarded-For and X-Forwarded-Proto. Pure.

A proxy that ends the client's connection reports the client's address in a header. Any client can
send such a header too, so it is believed only on a connection from an address that the operator
trusts. By default the list is empty and no header is believed. "*" trusts every peer, which is
right where only the proxy can reach the server (a Unix socket).

X-Forwarded-For grows to the right: each proxy appends the address that it saw. So it is read from
the right, and only as far as it was written by proxies that are trusted:

- The client is the rightmost address that does not belong to a trusted proxy. If all of them do, it
  is the leftmost.
- With "*" it is the rightmost address, which is the one that the last proxy saw. The leftmost,
  which is often taken, is whatever the client wrote.
- Empty entries are skipped (RFC 9110 §5.6.1.2). No more than `MAX_HOPS` entries are read, so a
  header of 32 KiB costs no more than a short one.
- An entry that has to be read and is no IP address ends the reading, and the client is the peer. So
  a name, a port, or control bytes do not reach ``scope["client"]`` and the access log.
- An IPv4 address in the form of IPv6 ("::ffff:10.0.0.1"), as a socket for both protocols reports
  it, is that IPv4 address.

Neither header is a standard; RFC 7239's Forwarded is, and few proxies send it. The client's port is
not in the header, so it is 0.

Rejected: rewriting Host from X-Forwarded-Host. Frameworks do that where they need it, with a list
of hosts of their own.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

#: Entries of X-Forwarded-For that are read. Real chains have one to four; the rest is room, without
#: a precedent.
MAX_HOPS = 32


class TrustedProxies:
    """The peers whose forwarded headers are believed. False if there are none."""

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
        """Return (address, port) of the client and "http" or "https", as trusted proxies report them.

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
    """Return the address, an IPv4 one for an IPv4-mapped one; None if ``text`` is no address."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # `ipaddress` takes any text for a zone ("fe80::1%zone"); in the header of another host it has
    # no meaning.
    return None if "%" in text else getattr(address, "ipv4_mapped", None) or address
