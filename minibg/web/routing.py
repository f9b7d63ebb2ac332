"""From a path and a method to a handler.

Paths without parameters are in a dict; the others are regular expressions, tried in the order they were registered.
A literal path wins over a pattern that would match it too, whatever the order: ``/users/me`` is found although
``/users/{name}`` came first. (Starlette takes the first. A dict costs the same for ten routes and for a thousand.)

All that can be wrong with a route is wrong at its registration, not at its first request: a path that does not begin
with a slash, an unknown converter, a parameter named twice, two handlers for one path and method, a handler whose
signature nothing can fill.

A path that is unknown is 404; a known path with another method is 405 and says which methods there are (RFC 9110
§15.5.6). HEAD is answered by a GET handler unless it has its own. A path that differs from a known one by its last
slash is redirected with 307, as Starlette does.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote
from uuid import UUID

from minibg.web.depends import Plan
from minibg.web.exceptions import HTTPException
from minibg.web.request import Request
from minibg.web.response import RedirectResponse, Response

#: ``{name}`` or ``{name:converter}``.
PARAMETER = re.compile(r"{([a-zA-Z_]\w*)(?::(\w+))?}")
#: What a converter matches and what it makes of it, as in Starlette.
CONVERTERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "str": ("[^/]+", str),
    "int": ("[0-9]+", int),
    "float": (r"[0-9]+(?:\.[0-9]+)?", float),
    "path": (".*", str),
    "uuid": ("[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}", UUID),
}


@dataclass(frozen=True, slots=True)
class Route:
    """One handler and how it answers."""

    path: str
    name: str
    #: What runs: the handler, after its dependencies.
    plan: Plan
    #: The status of what it returns when that is not a response already; None is that of the class.
    status_code: int | None
    #: What is made of what it returns.
    response_class: type[Response]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A path with parameters."""

    regex: re.Pattern[str]
    converters: dict[str, Callable[[str], Any]]
    routes: dict[str, Route] = field(default_factory=dict)

    def match(self, path: str) -> dict[str, Any] | None:
        """The parameters of a path, converted, or None when it is another path."""
        found = self.regex.fullmatch(path)
        if found is None:
            return None
        try:
            return {name: self.converters[name](text) for name, text in found.groupdict().items()}
        except ValueError:  # an int of more digits than Python reads: no such path
            return None


def compile_path(path: str) -> Pattern:
    """The pattern of a path such as ``/files/{name:path}``. Raises ValueError for one that makes no sense."""
    if not path.startswith("/"):
        raise ValueError(f"a path begins with a slash: {path!r}")
    regex, end, converters = "", 0, {}
    for parameter in PARAMETER.finditer(path):
        name, kind = parameter[1], parameter[2] or "str"
        if kind not in CONVERTERS:
            raise ValueError(f"{path!r} has an unknown converter {kind!r}; there are {', '.join(CONVERTERS)}")
        if name in converters:
            raise ValueError(f"{path!r} has two parameters named {name!r}")
        expression, converters[name] = CONVERTERS[kind]
        regex += f"{re.escape(path[end : parameter.start()])}(?P<{name}>{expression})"
        end = parameter.end()
    if "{" in path[end:] or "}" in PARAMETER.sub("", path):
        raise ValueError(f"{path!r} has a brace that belongs to no parameter")
    return Pattern(re.compile(regex + re.escape(path[end:]), re.DOTALL), converters)


class Router:
    """Every route of an application."""

    def __init__(self) -> None:
        self._literals: dict[str, dict[str, Route]] = {}
        self._patterns: dict[str, Pattern] = {}

    def add(self, pattern: Pattern, route: Route, methods: Iterable[str]) -> None:
        """Answer these methods of the route's path. Raises ValueError when one of them is answered already."""
        if pattern.converters:
            routes = self._patterns.setdefault(route.path, pattern).routes
        else:
            routes = self._literals.setdefault(route.path, {})
        for method in map(str.upper, methods):
            if method in routes:
                raise ValueError(f"{method} {route.path} has a handler already: {routes[method].name}")
            routes[method] = route

    def find(self, request: Request) -> tuple[Route, dict[str, Any]] | Response:
        """A request's route and its path's parameters, or a redirect to it. Raises HTTPException: 404 or 405."""
        path: str = request.scope["path"]
        root: str = request.scope.get("root_path", "")
        if root and path.startswith(root):  # ASGI http 2.5: path contains root_path
            path = path[len(root) :]
        method, allowed = request.method, set[str]()
        for routes, parameters in self._matches(path):
            route = routes.get(method) or (routes.get("GET") if method == "HEAD" else None)
            if route is not None:
                return route, parameters
            allowed.update(routes, ["HEAD"] if "GET" in routes else [])
        if allowed:
            raise HTTPException(405, headers={"allow": ", ".join(sorted(allowed))})
        other = path.removesuffix("/") if path.endswith("/") else path + "/"
        if next(self._matches(other), None) is None:
            raise HTTPException(404)
        # The whole URL: a path that begins with two slashes would name another host.
        return RedirectResponse(request.url._replace(path=quote(root + other)))

    def _matches(self, path: str) -> Iterator[tuple[dict[str, Route], dict[str, Any]]]:
        if path in self._literals:
            yield self._literals[path], {}
        for pattern in self._patterns.values():
            parameters = pattern.match(path)
            if parameters is not None:
                yield pattern.routes, parameters
