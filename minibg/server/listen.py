"""Where the server listens: TCP, a Unix socket, an inherited descriptor; and the TLS context.

Sockets are bound here, before the application starts, so that an address in use is an OSError at once; they begin to
listen after the application has started, so that no client waits for an application that never comes.

- A host name may have several addresses ("localhost" has two): all are bound, on the same port, also for port 0.
- A Unix socket whose owner is dead is replaced; one that somebody answers on is an "address in use" like any other.
  (asyncio removes either, and the first server loses its clients to the second.)
- A descriptor (systemd's socket activation, a supervisor's) is taken as it is.
- The system says what went wrong, but not where; each error is told with the address or the file it is about.

Rejected: SO_REUSEPORT. Two servers on one port by mistake look like one that forgets half its requests.
"""

import errno
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

#: Seconds of silence after which the kernel asks whether the client's machine still knows the connection. Linux forgets
#: a connection whose program has closed it after 60 (tcp_fin_timeout); asking earlier would find nothing.
KEEP_ALIVE_IDLE = 60


@contextmanager
def naming(what: object) -> Iterator[None]:
    """Tell what an OSError is about: "[Errno 98] Address already in use: '127.0.0.1 port 8000'"."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(what)) from None


def bind_tcp(host: str, port: int) -> list[socket.socket]:
    """A bound socket for each address of the host; an empty host means all. Raises OSError or ValueError."""
    if not 0 <= port < 1 << 16:  # getaddrinfo takes what is left when 65,536 is subtracted
        raise ValueError(f"{port} is not a port: 0 to 65535")
    sockets: list[socket.socket] = []
    with naming(f"{host or '*'} port {port}"), ExitStack() as undo:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = undo.enter_context(socket.socket(family, kind, protocol))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # what is accepted inherits both
            if hasattr(socket, "TCP_KEEPIDLE"):  # pragma: no branch - macOS has another name for it
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_IDLE)
            if family == socket.AF_INET6:  # or it would take the IPv4 port too
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Port 0: what the first address was given, the others get too.
            sock.bind((address[0], sockets[0].getsockname()[1] if sockets else address[1], *address[2:]))
            sockets.append(sock)
        undo.pop_all()
    return sockets


def bind_unix(path: str, permissions: int | None) -> socket.socket:
    """A socket bound to a path. Raises OSError, with EADDRINUSE if somebody listens there."""
    with naming(path), ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        if Path(path).exists() and stat.S_ISSOCK(Path(path).stat().st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(path) == 0:
                    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            Path(path).unlink()
        sock.bind(path)
        if permissions is not None:
            Path(path).chmod(permissions)
        undo.pop_all()
    return sock


def tls_context(certfile: str, keyfile: str | None, password: str | None) -> ssl.SSLContext:
    """TLS 1.2 or newer. Raises OSError if the files are not what they should be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    with naming(f"{certfile}, {keyfile}" if keyfile else certfile):
        context.load_cert_chain(certfile, keyfile, password)
    return context
