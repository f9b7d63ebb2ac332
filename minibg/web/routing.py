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
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import UUID

from minibg.web.depends import Plan
from minibg.web.exceptions import HTTPException
from minibg.web.request import Request
from minibg.web.response import RedirectResponse, Response

#: ``{name}`` or ``{name:converter}``.
PARAMETER = re.compile(r"{([a-zA-Z_]\w*)(?::(\w+))?}")
#: What a converter matches and what it makes of it, as in Starlette; an int has as many digits as Python reads.
CONVERTERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "str": ("[^/]+", str),
    "int": ("[0-9]{1,4300}", int),
    "float": (r"[0-9]+(?:\.[0-9]+)?", float),
    "path": (".*", str),
    "uuid": ("[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}", UUID),
}

Converters = dict[str, Callable[[str], Any]]


@dataclass(frozen=True, slots=True)
class Route:
    """One handler and how it answers."""

    name: str
    #: What runs: the handler, after its dependencies.
    plan: Plan
    #: The status of what it returns when that is not a response already; None is that of the class.
    status_code: int | None
    #: What is made of what it returns.
    response_class: type[Response]


def compile_path(path: str) -> tuple[re.Pattern[str], Converters]:
    """The pattern of a path such as ``/files/{name:path}``. Raises ValueError for one that makes no sense."""
    if not path.startswith("/"):
        raise ValueError(f"a path begins with a slash: {path!r}")
    converters: Converters = {}
    regex, *rest = map(re.escape, PARAMETER.split(path)[::3])
    for (name, kind), literal in zip(PARAMETER.findall(path), rest, strict=True):
        if (kind or "str") not in CONVERTERS:
            raise ValueError(f"{path!r} has an unknown converter {kind!r}; there are {', '.join(CONVERTERS)}")
        if name in converters:
            raise ValueError(f"{path!r} has two parameters named {name!r}")
        expression, converters[name] = CONVERTERS[kind or "str"]
        regex += f"(?P<{name}>{expression}){literal}"
    if "{" in PARAMETER.sub("", path):
        raise ValueError(f"{path!r} has a brace that belongs to no parameter")
    return re.compile(regex, re.DOTALL), converters


class Router:
    """Every route of an application."""

    def __init__(self) -> None:
        #: The routes of each path, by method.
        self._routes: dict[str, dict[str, Route]] = {}
        #: The paths with parameters.
        self._patterns: dict[str, tuple[re.Pattern[str], Converters]] = {}

    def add(self, path: str, methods: Iterable[str], route: Route) -> None:
        """Answer these methods of a path. Raises ValueError when the path makes no sense or is answered already."""
        if "{" in path:
            self._patterns[path] = compile_path(path)
        routes = self._routes.setdefault(path, {})
        for method in methods:
            if method.upper() in routes:
                raise ValueError(f"{method} {path} has a handler already: {routes[method].name}")
            routes[method.upper()] = route

    def find(self, request: Request) -> tuple[Route, dict[str, Any]] | Response:
        """A request's route and its path's parameters, or a redirect to it. Raises HTTPException: 404 or 405."""
        root: str = request.scope.get("root_path", "")
        path = request.scope["path"].removeprefix(root)  # ASGI http 2.5: path contains root_path
        allowed = set[str]()
        for routes, parameters in self._matches(path):
            route = routes.get(request.method) or (routes.get("GET") if request.method == "HEAD" else None)
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
        """The routes of a path, whatever their method: a literal path's first, then those of patterns in order."""
        if path in self._routes and path not in self._patterns:
            yield self._routes[path], {}
        for pattern, (regex, converters) in self._patterns.items():
            found = regex.fullmatch(path)
            if found is not None:
                yield self._routes[pattern], {name: convert(found[name]) for name, convert in converters.items()}
