"""The listening sockets: TCP, Unix, or an inherited descriptor; and the TLS context.

The functions here bind. The server calls them before the application starts, so that an address in
use raises OSError at once. It listens after the application has started, so that no client waits
for an application that fails to start.

- A host name may have several addresses ("localhost" has two). All are bound to the same port, also
  with port 0.
- The Unix socket of a dead server is replaced. The Unix socket of a living server is an address in
  use, also while the application of that server starts. (asyncio removes both, and the first server
  loses its clients to the second.)
- An inherited descriptor (systemd's socket activation, a supervisor's socket) is used as it is.
- An OSError of the system does not name the address or the file; `oserrors_about` adds the name.

**Two servers on one Unix socket.** To connect a stream socket does not show whether a server is
dead: the kernel also refuses a socket that is bound and does not listen yet. So the probe is a
datagram socket. The kernel answers it with ECONNREFUSED if no process has the socket open, and with
EPROTOTYPE (wrong type) otherwise. Between the probe and the bind, two processes could still remove
each other's socket, so each of them holds a lock (flock) on the folder during these few system
calls. The kernel releases the lock when a process dies, and no file is left behind.

Rejected: a lock file beside the socket. It has to be held as long as the server lives, to remove it
is a race, and to leave it there puzzles the operator. Rejected: a socket that is bound under a
temporary name and linked to its path. The link fails if a dead socket is there, and to remove the
dead socket is the same race.

Rejected too: SO_REUSEPORT. Two servers that are started on one port by mistake would share its
requests, and each would seem to lose half of them.
"""

import errno
import os
import select
import socket
import ssl
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path

#: Seconds of silence after which the kernel probes a connection. When a client's program has closed
#: its socket, its Linux kernel still answers probes for 60 seconds (tcp_fin_timeout), so an earlier
#: probe would not notice the close.
KEEP_ALIVE_IDLE = 60


@contextmanager
def oserrors_about(what: object) -> Iterator[None]:
    """Add ``what`` to an OSError: "[Errno 98] Address already in use: '127.0.0.1 port 8000'"."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(what)) from None


def bind_tcp(host: str, port: int) -> list[socket.socket]:
    """Return a bound socket for each address of ``host``; an empty host means all addresses.

    Raises OSError, and ValueError for an invalid port.
    """
    if not 0 <= port < 1 << 16:  # getaddrinfo accepts larger numbers, modulo 65,536.
        raise ValueError(f"{port} is not a port: 0 to 65535")
    sockets: list[socket.socket] = []
    with oserrors_about(f"{host or '*'} port {port}"), ExitStack() as undo:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = undo.enter_context(socket.socket(family, kind, protocol))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # Accepted sockets inherit both.
            if hasattr(socket, "TCP_KEEPIDLE"):  # pragma: no branch - macOS has another name for it
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_IDLE)
            if family == socket.AF_INET6:  # Otherwise it would also bind the IPv4 port.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # With port 0 the first address gets a free port, and the other addresses get the same
            # port.
            sock.bind((address[0], sockets[0].getsockname()[1] if sockets else address[1], *address[2:]))
            sockets.append(sock)
        undo.pop_all()
    return sockets


def bind_unix(path: str, permissions: int | None) -> socket.socket:
    """Return a socket bound to ``path``, with the mode ``permissions`` unless that is None.

    Raises OSError, with EADDRINUSE if another server listens there, and ValueError for no path: the
    kernel would choose a name that has no file.
    """
    if not path:
        raise ValueError("an empty path is no Unix socket")
    import fcntl  # noqa: PLC0415 - it does not exist everywhere; neither do Unix sockets.

    with oserrors_about(path), ExitStack() as always, ExitStack() as undo:
        # A second process that starts on this path waits here until this one has bound or failed.
        folder = os.open(Path(path).parent, os.O_RDONLY)
        always.callback(os.close, folder)
        fcntl.flock(folder, fcntl.LOCK_EX)
        if Path(path).is_socket():
            probe = always.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            if probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            Path(path).unlink(missing_ok=True)
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sock.bind(path)
        if permissions is not None:
            Path(path).chmod(permissions)
        undo.pop_all()
    return sock


def tls_context(certfile: str, keyfile: str | None, password: str | None) -> ssl.SSLContext:
    """Return a context for TLS 1.2 or newer.

    Raises OSError if a file is missing, or if the files are not a certificate and its key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    with oserrors_about(f"{certfile}, {keyfile}" if keyfile else certfile):
        context.load_cert_chain(certfile, keyfile, password)
    return context


# --- connected sockets ---


class Peer(Enum):
    """The state of the client's end of a connection, as the kernel knows it."""

    OPEN = "open"
    #: The client has closed its sending half, and may have closed both.
    HALF_CLOSED = "half closed"
    #: The client has closed both halves, or has reset the connection.
    GONE = "gone"


def presence_of_peer(sock: socket.socket | None) -> Peer:
    """Return the state of the peer by poll(2), also while its bytes are not read.

    A peer that has closed both halves at once is HALF_CLOSED at first. It is GONE when it has
    answered a write or a probe (`KEEP_ALIVE_IDLE`) with a reset.
    """
    if sock is None or not hasattr(select, "POLLRDHUP"):  # A closing TLS connection, or not Linux.
        return Peer.OPEN
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    events = sum(event for _, event in poll.poll(0))
    if events & (select.POLLHUP | select.POLLERR):
        return Peer.GONE
    return Peer.HALF_CLOSED if events else Peer.OPEN


def reset_when_closed(sock: socket.socket | None) -> None:
    """Set SO_LINGER to zero seconds, so that closing this socket sends a reset."""
    if sock is not None:  # None: asyncio's TLS drops its socket before it reports the loss.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# --- descriptors ---


def descriptor_limit() -> int:
    """Return the number of descriptors that the process may open: its soft limit of RLIMIT_NOFILE."""
    try:
        import resource  # noqa: PLC0415 - it does not exist on Windows.
    except ImportError:  # pragma: no cover
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def raise_descriptor_limit() -> None:
    """Raise the soft limit of the process's descriptors to the hard limit; no privilege is needed."""
    # Windows has no such limit; macOS refuses to raise the soft limit to its own hard limit.
    with suppress(ImportError, ValueError, OSError):
        import resource  # noqa: PLC0415

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
