"""Exceptions that a handler raises instead of returning, and the one that is raised for it.

An exception that becomes a response is a failure all the same: the tasks of its request are
dropped. A handler that wants its client to see an error *and* its tasks to run returns a response
with that status instead of raising.

Names and shapes are FastAPI's, so a client that reads ``{"detail": ...}`` there reads it here. An
exception is turned into a response in `app.py`; an application may register a handler for either
class, or for a status.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

#: One bad parameter: FastAPI's ``{"type", "loc", "msg", "input"}``.
Problem = dict[str, Any]


class HTTPException(Exception):
    """Answer the request with ``status_code`` and the JSON body ``{"detail": detail}``.

    ``detail`` is any value that `JSONResponse` can render; None means the status's phrase,
    such as "Not Found". ``headers`` are further header fields of the response. Raises ValueError
    for a status that has no phrase when there is no ``detail`` either.
    """

    def __init__(self, status_code: int, detail: Any = None, headers: Mapping[str, str] | None = None) -> None:
        self.status_code = status_code
        self.detail: Any = HTTPStatus(status_code).phrase if detail is None else detail
        self.headers = headers
        super().__init__(f"{status_code}: {self.detail}")


class RequestValidationError(HTTPException):
    """Answer with 422 and every bad parameter of the request at once.

    A subclass of HTTPException with the problems as its ``detail``, so a handler for HTTPException
    covers it.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(422, problems)

    def errors(self) -> Sequence[Problem]:
        """Return one `Problem` per bad value, in the order of the signature."""
        problems: Sequence[Problem] = self.detail
        return problems
