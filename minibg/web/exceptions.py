"""What a handler raises instead of returning, and what is raised for it.

An exception that becomes a response still is a failure: the tasks of its request are dropped. Who wants an error
answered *and* the tasks run returns the response instead of raising it. Names and shapes are FastAPI's, so a client
that reads ``{"detail": ...}`` reads it here.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

#: One bad parameter: FastAPI's ``{"type", "loc", "msg", "input"}``.
Problem = dict[str, Any]


class HTTPException(Exception):
    """Answer with this status and ``{"detail": detail}``; the detail may be anything JSON can say."""

    def __init__(self, status_code: int, detail: Any = None, headers: Mapping[str, str] | None = None) -> None:
        self.status_code = status_code
        self.detail: Any = HTTPStatus(status_code).phrase if detail is None else detail
        self.headers = headers
        super().__init__(f"{status_code}: {self.detail}")


class RequestValidationError(HTTPException):
    """The request's parameters are not what the handler asks for: answered with 422 and every problem at once.

    An HTTPException whose detail is the problems, so that who answers those in a way of his own answers these alike.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(422, problems)

    def errors(self) -> Sequence[Problem]:
        """Every bad parameter, in the order of the signature."""
        problems: Sequence[Problem] = self.detail
        return problems
