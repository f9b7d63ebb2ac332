"""Exceptions that a handler raises instead of returning, and the one that is raised for it.

An exception that becomes a response is a failure all the same: the tasks of its request are
dropped. A handler that wants its client to see an error *and* its tasks to run returns a response
with that status instead of raising.

Names and shapes are FastAPI's, so a client that reads ``{"detail": ...}`` there reads it here. An
exception is turned into a response in `app.py`; an application may register a handler for either
class, or for a status.

An error of the application itself is one sentence: the function, its file and line, and what to
write instead. `place_of` and `caller` find the line, because the traceback of an error at
registration or in a result begins in this package, and not in the line to change.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from traceback import walk_stack
from typing import Any

#: One bad parameter: FastAPI's ``{"type", "loc", "msg", "input"}``.
Problem = dict[str, Any]


def place_of(func: Callable[..., Any]) -> str:
    """Return the name of a function with the file and line of its definition."""
    name, code = getattr(func, "__name__", repr(func)), getattr(inspect.unwrap(func), "__code__", None)
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code else name


def caller() -> str:
    """Return the function of the application that called this package, with its file and line."""
    frames = (frame for frame, _ in walk_stack(sys._getframe()))  # noqa: SLF001 - as in `warnings`.
    frame = next(frame for frame in frames if not frame.f_globals["__name__"].startswith("minibg."))
    return f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"


class HTTPException(Exception):
    """Answer the request with ``status_code`` and the JSON body ``{"detail": detail}``.

    ``detail`` is any value that `JSONResponse` can render; None means the status's phrase,
    such as "Not Found". ``headers`` are further header fields of the response. Raises ValueError
    for a status that has no phrase when there is no ``detail`` either, and TypeError without a status.
    """

    def __init__(self, status_code: int = 0, detail: Any = None, headers: Mapping[str, str] | None = None) -> None:
        if not status_code:
            raise TypeError(f"{caller()} raises HTTPException without a status: write `raise HTTPException(404)`")
        self.status_code, self.headers = status_code, headers
        self.detail: Any = HTTPStatus(status_code).phrase if detail is None else detail
        super().__init__(f"{status_code}: {self.detail}")


class RequestValidationError(HTTPException):
    """Answer with 422 and every bad parameter of the request at once.

    A subclass of HTTPException with the problems as its ``detail``, so a handler for HTTPException
    covers it.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(422, problems)

    def errors(self) -> Any:  # A Sequence[Problem].
        """Return one `Problem` per bad value, in the order of the signature."""
        return self.detail
