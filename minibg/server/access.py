"""The access log: one line per request, written when its response has ended.

    127.0.0.1:52114 "GET /register HTTP/1.1" 200 51 0.004

The client, the request line as it came, the status, the bytes of the response on the wire, the seconds from the end of
the request head to the moment the kernel had the last byte. At its end a response has a size and a duration; at its
start, where uvicorn logs, it has neither. What the application does afterwards is not in the seconds: tasks have their
own log. A request that never got its response has the status 499, as nginx writes it.

What a client sent is escaped: quotes, backslashes and everything that is not printable ASCII. Otherwise a target could
end the quoted line and begin one of its own, or speak to the terminal of whoever reads it.

The record carries its parts as attributes (``client``, ``request``, ``status``, ``bytes``, ``seconds``), so `JsonFormatter`,
or anybody's formatter, can write them apart. Nothing here configures logging.
"""

import json
import logging

logger = logging.getLogger("minibg.access")

#: Attributes of an access record beside its text.
PARTS = ("client", "request", "status", "bytes", "seconds")


def escaped(line: bytes) -> str:
    """Printable ASCII without quotes, whatever the client sent."""
    text = line.decode("latin-1").encode("unicode_escape").decode("ascii")
    return text.replace('"', '\\"')


def log(client: tuple[str, int] | None, request: bytes, status: int, size: int, seconds: float) -> None:
    """Write the line of one response."""
    name = f"{client[0]}:{client[1]}" if client else "-"
    parts = dict(zip(PARTS, (name, escaped(request), status, size, round(seconds, 6)), strict=True))
    logger.info('%(client)s "%(request)s" %(status)d %(bytes)d %(seconds).3f', parts, extra=parts)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for access lines and all other records."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        time = self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z")
        line: dict[str, object] = {"time": time, "level": record.levelname, "logger": record.name}
        access = {part: getattr(record, part, None) for part in PARTS}
        line |= access if record.name == logger.name else {"message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
