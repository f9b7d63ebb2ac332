"""From a path and a method to a handler.

Paths without parameters are in a dict; the others are regular expressions, tried in the order they
were registered. A literal path wins over a pattern that would match it too, whatever the order:
``/users/me`` is found although ``/users/{name}`` came first. (Starlette takes the first. A dict
costs the same for ten routes and for a thousand.)

A route is checked when it is registered, not at its first request: a path that does not begin with
a slash, an unknown converter, a parameter named twice, two handlers for one path and method, a
handler whose signature cannot be filled.

An unknown path is 404. A known path with another method is 405 and lists the methods it has (RFC
9110 §15.5.6). HEAD is answered by a GET handler unless it has its own. A path that differs from a
known one by its last slash is redirected with 307, as in Starlette.

**Matching takes time linear in the path.** In ``/{a}-{b}-{c}`` each parameter can take the text of
the others, and a backtracking matcher tries every way to divide it: 2.7 s for 800 bytes. Two rules
leave one way:

- A str parameter behind another one in its segment does not contain the first character of the text
  between them: ``/{name}.{extension}`` divides ``a.tar.gz`` at the last dot, as Starlette does.
  (path-to-regexp fixed the same fault in the same way, CVE-2024-45296.) Behind a number it may:
  ``/{id:int}-{slug}``.
- A parameter of another kind is refused there if it could contain that text, and so is one without
  a text before it: ``/{a}{b}``, or a second ``path`` in one route.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import UUID

from minibg.asgi import ASGIApp
from minibg.web.depends import Plan
from minibg.web.exceptions import HTTPException
from minibg.web.request import Request
from minibg.web.response import RedirectResponse, Response

#: ``{name}`` or ``{name:converter}``.
PARAMETER = re.compile(r"{([a-zA-Z_]\w*)(?::(\w+))?}")
#: What each converter matches and makes of it, as in Starlette. An int has as many digits as Python
#: reads.
CONVERTERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "str": ("[^/]+", str),
    "int": ("[0-9]{1,4300}", int),
    "float": (r"[0-9]+(?:\.[0-9]+)?", float),
    "path": (".*", str),
    "uuid": ("[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}", UUID),
}

Converters = dict[str, Callable[[str], Any]]


class Route(NamedTuple):
    """One handler and how its result is sent."""

    name: str
    #: The handler after its dependencies.
    plan: Plan
    #: Makes a response of a result that is none.
    respond: Callable[[Any], Response]

    def response(self, result: Any) -> Response:
        """Return the response of the handler's result. Raises TypeError for a result that has none."""
        match result:
            case Response():
                return result
            case dict() | list() | str() | Response() | None, int(status) if isinstance(result, tuple) and status > 99:
                raise TypeError(f"{self.name} returns a body and a status: write `return JSONResponse(body, {status})`")
        try:
            return self.respond(result)
        except (TypeError, ValueError) as error:
            why = "write `return await ...`" if inspect.iscoroutine(result) else error
            raise TypeError(f"{self.name} returns {type(result).__name__}, no response: {why}") from error


class Router:
    """The routes of an application."""

    def __init__(self) -> None:
        #: The routes of each path, by method.
        self._routes: dict[str, dict[str, Route]] = {}
        #: The paths with parameters.
        self._patterns: dict[str, tuple[re.Pattern[str], Converters]] = {}
        #: The applications below a prefix, which has no slash at its end.
        self.mounts: dict[str, ASGIApp] = {}

    def find(self, request: Request) -> Route | ASGIApp:
        """Return a request's route, and add the parameters of its path; or return what answers it
        instead: a mounted application, whose prefix joins the ``root_path``, or a redirect.

        Raises HTTPException: 404 or 405.
        """
        root: str = request.scope.get("root_path", "")
        path = request.scope["path"].removeprefix(root)  # ASGI http 2.5: path contains root_path.
        allowed = set[str]()
        for routes, parameters in self._matches(path):
            route = routes.get(request.method) or (routes.get("GET") if request.method == "HEAD" else None)
            if route is not None:
                request.path_params |= parameters
                return route
            allowed.update(routes, ["HEAD"] if "GET" in routes else [])
        if allowed:
            raise HTTPException(405, headers={"allow": ", ".join(sorted(allowed))})
        for prefix, app in self.mounts.items():
            if f"{path}/".startswith(f"{prefix}/"):
                request.scope["root_path"] = root + prefix
                return app
        other = path.removesuffix("/") if path.endswith("/") else path + "/"
        if next(self._matches(other), None) is None:
            raise HTTPException(404)
        # The whole URL: a path that begins with two slashes would name another host.
        return RedirectResponse(request.url._replace(path=quote(root + other)))

    def _matches(self, path: str) -> Iterator[tuple[dict[str, Route], dict[str, Any]]]:
        """Yield the routes of a path for every method: those of a literal path first, then of
        patterns in order.
        """
        if path in self._routes and path not in self._patterns:
            yield self._routes[path], {}
        for pattern, (regex, converters) in self._patterns.items():
            found = regex.fullmatch(path)
            if found is not None:
                yield self._routes[pattern], {name: convert(found[name]) for name, convert in converters.items()}

    def add(self, path: str, methods: Iterable[str], route: Route) -> None:
        """Register a route for these methods.

        Raises ValueError for a malformed path, or one with a handler already.
        """
        if "{" in path:
            self._patterns[path] = compile_path(path)
        routes = self._routes.setdefault(path, {})
        for method in methods:
            if method.upper() in routes:
                raise ValueError(f"{method} {path} has a handler already: {routes[method].name}")
            routes[method.upper()] = route


def compile_path(path: str) -> tuple[re.Pattern[str], Converters]:
    """Return the pattern of a path such as ``/files/{name:path}``.

    Raises ValueError for one that makes no sense.
    """
    if not path.startswith("/"):
        raise ValueError(f"a path begins with a slash: {path!r}")
    pieces = PARAMETER.split(path)
    regex, converters = "", dict[str, Callable[[str], Any]]()
    #: Whether an earlier parameter could take text of this one; the one before it; whether one is a
    #: path.
    shared, previous, path_before = False, "", False
    for before, (name, kind) in zip(pieces[::3], PARAMETER.findall(path), strict=False):
        if (kind or "str") not in CONVERTERS:
            raise ValueError(f"{path!r} has an unknown converter {kind!r}; there are {', '.join(CONVERTERS)}")
        if name in converters:
            raise ValueError(f"{path!r} has two parameters named {name!r}")
        expression, converters[name] = CONVERTERS[kind or "str"]
        shared = ("/" not in before or path_before) and bool(shared or not before or re.match(previous, before))
        if shared and kind in {"", "str"}:
            expression = f"[^/{re.escape(before[:1])}]+"
        if shared and (not before or re.match(expression, before)):
            raise ValueError(f"{path!r} is ambiguous: {name!r} needs a text before it that it cannot contain")
        regex += f"{re.escape(before)}(?P<{name}>{expression})"
        previous, path_before = expression, path_before or kind == "path"
    if "{" in "".join(pieces[::3]):
        raise ValueError(f"{path!r} has a brace that belongs to no parameter")
    return re.compile(regex + re.escape(pieces[-1]), re.DOTALL), converters
