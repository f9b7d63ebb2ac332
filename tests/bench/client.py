"""The load: one request over and over on some keep-alive connections, in a process of its own, on 127.0.0.1 only.

It reads its order as JSON from stdin: ``port``, ``data`` (the request; eight ``@`` in it become a number that
is another one each time), ``count``, ``connections``, ``seconds``, ``refusals``. It ends when ``count`` requests
have been answered, prints how many of them with 503, and ends with an error when ``seconds`` have passed or an
answer is neither a 2xx nor, with ``refusals``, a 503.

The first answer is read as HTTP. The others must be as long as the first, and are counted and not parsed:
so this process costs less than the fastest server that it loads.
"""

import json
import select
import socket
import sys
import time

order = json.load(sys.stdin)
address, count, number = ("127.0.0.1", order["port"]), order["count"], 0
deadline = time.monotonic() + order["seconds"]
before, varying, after = order["data"].encode("latin-1").partition(b"@" * 8)


def request() -> bytes:
    global number
    number += 1
    return b"%b%08d%b" % (before, number, after) if varying else before


def length_of_the_first() -> int:
    with socket.create_connection(address, timeout=10) as sock:
        sock.sendall(request())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += sock.recv(65536)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 2"), answer
        length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
        if length:
            return len(head) + 4 + int(length)
        while not body.endswith(b"\r\n0\r\n\r\n"):  # Chunked.
            body += sock.recv(65536)
        return len(head) + 4 + len(body)


length = length_of_the_first()
poll = select.epoll()
sockets: dict[int, socket.socket] = {}
missing: dict[int, int] = {}
for _ in range(min(order["connections"], count - 1)):
    sock = socket.create_connection(address, timeout=10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sockets[sock.fileno()], missing[sock.fileno()] = sock, length
    poll.register(sock, select.EPOLLIN)
for sock in sockets.values():
    sock.sendall(request())
answered, refused = 1, 0
while answered < count:
    for fd, _ in poll.poll(1.0):
        sock = sockets[fd]
        data = sock.recv(65536)
        if missing[fd] == length and not data.startswith(b"HTTP/1.1 2"):
            if not order["refusals"] or not data.startswith(b"HTTP/1.1 503"):
                sys.exit(f"an answer that is no 2xx: {data[:300]!r}")
            refused += 1
            missing[fd] = len(data)
        missing[fd] -= len(data)
        if missing[fd] < 0:
            sys.exit(f"an answer that is longer than the first: {data[:300]!r}")
        if not missing[fd]:
            answered += 1
            missing[fd] = length
            if number < count:
                sock.sendall(request())
    if time.monotonic() > deadline:
        sys.exit(f"{answered} of {count} answers after {order['seconds']} s")
print(refused)
