"""The log of the command, as text for people or as JSON for programs.

Only the command calls `configure`. `serve` and `run` leave logging to the program that calls them,
which may use `JsonFormatter` for handlers of its own.

One formatter writes the access records (the logger "minibg.access") and all other records. As text,
a record is its message. As JSON, a record is one object on one line::

    {"time": "2026-03-01T12:00:00+0000", "level": "INFO", "logger": "minibg.background",
     "message": "mail.send 019c... of POST /register: SUCCESSFUL after 0.120 s, attempt 1",
     "task": "mail.send", "id": "019c...", "origin": "POST /register", "attempt": 1, "event": "succeed"}

Rules of this file:

- **Every attribute that a record gets from ``extra=`` is a field.** A request has its
  `minibg.server.access.PARTS`, a run has task, id, origin, attempt and event, and a line of the
  application has the fields that the application gave it. This file has no list of names.
- A field of ``extra=`` that has the name of a field of this formatter ("time", "level", ...) gets
  an underscore at its end. So both fields are kept.
- An access record has no message, because its fields contain the same data.
- Each line is JSON that any parser reads. A value of a type that JSON does not know is written as
  ``str(value)``. NaN, a circular value and an object whose ``__str__`` raises are written as text,
  so that the record is not lost.

Rejected: adding the current task, from a context variable, to each line of the application. A
filter of `logging` in the application can do that for the lines that need it.
"""

import json
import logging

TEXT_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
#: The attributes of each record. All others come from ``extra=``. Python 3.12 added "taskName".
STANDARD = {*vars(logging.makeLogRecord({})), "asctime", "message", "taskName"}


def configure(level: str, log_format: str) -> None:
    """Write the log of the process to standard error, from this level on, as "text" or as "json".
    Existing handlers are kept, as with `logging.basicConfig`.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(TEXT_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])


class JsonFormatter(logging.Formatter):
    """A formatter that writes each record as one line of JSON.

    The fields are time (ISO 8601, with the offset from UTC), level, logger, message, the fields of
    ``extra=``, and the traceback of an exception as one string.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        time = self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z")
        line: dict[str, object] = {"time": time, "level": record.levelname, "logger": record.name}
        if record.name != "minibg.access":
            line["message"] = record.getMessage()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        for name, value in vars(record).items():
            if name not in STANDARD:
                line[f"{name}_" if name in line else str(name)] = value
        try:
            return json.dumps(line, default=str, allow_nan=False)
        except Exception:  # noqa: BLE001 - also what ``str(value)`` of the application raises.
            return json.dumps({name: _written(value) for name, value in line.items()})


def _written(value: object) -> object:
    """Return a value that JSON can write: the value itself, its `repr`, or the name of its class."""
    try:
        json.dumps(value, allow_nan=False)
    except Exception:  # noqa: BLE001 - TypeError and ValueError, and whatever a mapping of the application raises.
        try:
            return repr(value)
        except Exception:  # noqa: BLE001 - whatever ``__repr__`` raises.
            return f"<{type(value).__name__}>"
    return value
