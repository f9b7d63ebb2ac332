"""A logger that never raises into the code that logs.

Handlers of `logging` catch and report their own errors; filters do not. An exception in a filter,
such as ``record.request_id = request_id.get()`` outside a request, is raised by
``logger.info(...)``. In a worker, in the stop, or in a callback of the event loop it would end the
code that logs, so a filter could stop the queue. Therefore `minibg` logs through an adapter around
the standard logger. It prints the exception to standard error, as `logging.Handler.handleError`
does, and only the record is lost.

The names stay those of `logging`: "minibg.background", "minibg.server" and "minibg.access" are
ordinary loggers that an application configures in the ordinary way.
"""

import logging
import sys
import traceback
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any


class SafeLogger(logging.LoggerAdapter[logging.Logger]):
    """The logger of this name. Its methods are those of `logging.Logger`, and never raise."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name))

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log like `logging.Logger.log`; print an exception of a filter or a handler to standard
        error.
        """
        try:
            self.logger.log(level, msg, *args, stacklevel=kwargs.pop("stacklevel", 1) + 2, **kwargs)
        except BaseException:  # noqa: BLE001 - whatever the application's filter raises.
            with suppress(BaseException):
                print(f"--- Logging error in {self.logger.name} ---", file=sys.stderr)  # noqa: T201
                traceback.print_exc()

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Leave message and ``extra`` as they are."""
        return msg, kwargs
