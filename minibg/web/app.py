"""The application: routes, middleware and lifespan, put together as one ASGI callable.

A request passes, from the outside in:

1. `App.__call__`: an exception that nobody answered becomes a 500, and is raised again so that the server logs it once.
2. The middleware, the last added first. Each is a pure ASGI callable made with ``cls(app, **options)``.
3. `App._answer`: the route, its plan, the response. What is raised in there is answered by its exception handler.

When an exception becomes a response, the handler has failed nevertheless, and the joint around the application must
know: the request's tasks are dropped here (`hold.drop`). A 4xx that the handler returns is a response like any other
and keeps them. The response is sent while the generator dependencies are open; the application returns after they are
closed, and only then the first task starts.

No middleware is added after the first request or lifespan: a stack that grows under load cannot be reasoned about.

Names and behaviour are FastAPI's and Starlette's where they have them. A handler's result that is no `Response` is
made one by the route's ``response_class``: as JSON unless told otherwise.
"""

import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from functools import partial
from typing import Any, Protocol, TypeVar

from minibg.asgi import ASGIApp, ClientDisconnected, Message, Receive, Scope, Send
from minibg.background import NotAccepted
from minibg.web.depends import Dependency, Plan, hold_of
from minibg.web.exceptions import HTTPException
from minibg.web.request import Request, State
from minibg.web.response import JSONResponse, PlainTextResponse, Response
from minibg.web.routing import Route, Router, compile_path
from minibg.web.threads import Threads

Handler = TypeVar("Handler", bound=Callable[..., Any])
#: ``(request, exception) -> Response``, sync or async; by status or by class.
ExceptionHandler = Callable[[Request, Any], Any]
ExceptionHandlers = Mapping[int | type[Exception], ExceptionHandler] | None
#: ``(app) -> async context manager``, which may give a dict that becomes each request's state.
Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]


class Register(Protocol):
    """A decorator that registers a function and leaves it as it was."""

    def __call__(self, handler: Handler, /) -> Handler: ...


class _Sending:
    """A `send` that knows whether the response has started."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Message) -> None:
        self.started = True  # even if it fails: nobody may be there for another answer
        await self._send(message)


async def _http_exception(_: Request, error: HTTPException) -> Response:
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


async def _not_accepted(_: Request, error: NotAccepted) -> Response:
    return JSONResponse({"detail": str(error)}, 503, {"retry-after": str(error.retry_after)})


class App:
    """An ASGI application made of functions.

    `lifespan` is an async context manager function: what it does before its ``yield`` happens before the first
    request, the rest after the last. On minibg's server ``state.addresses`` is there by then. `debug` puts the traceback into a 500.
    """

    def __init__(
        self, *, debug: bool = False, lifespan: Lifespan | None = None, exception_handlers: ExceptionHandlers = None
    ) -> None:
        self.debug = debug
        self.state = State({})
        self._lifespan: Lifespan = lifespan or (lambda _: nullcontext())
        self._router = Router()
        self._threads = Threads()
        self._middleware: list[tuple[Callable[..., ASGIApp], dict[str, Any]]] = []
        self._stack: ASGIApp | None = None
        self._periodic: list[tuple[Callable[[], Any], float]] = []
        self._exception_handlers: dict[Any, ExceptionHandler] = {
            HTTPException: _http_exception,
            NotAccepted: _not_accepted,
            **(exception_handlers or {}),
        }

    # Registering.

    def route(
        self,
        path: str,
        *,
        methods: Iterable[str] = ("GET",),
        status_code: int | None = None,
        response_class: type[Response] = JSONResponse,
        dependencies: Iterable[Dependency] = (),
        name: str | None = None,
    ) -> Register:
        """Answer these methods of `path` with the decorated function. The other verbs take the same options.

        What it returns becomes a `response_class` with that status. `dependencies` run before it, for what they do and
        not for what they give. Raises ValueError for a path that makes no sense and TypeError for a signature that
        nothing can fill.
        """

        def register(handler: Handler, /) -> Handler:
            called = name or str(getattr(handler, "__name__", handler))
            plan = Plan(handler, compile_path(path)[1], dependencies)
            self._router.add(path, methods, Route(called, plan, status_code, response_class))
            return handler

        return register

    def get(self, path: str, **options: Any) -> Register:
        """Answer GET, and HEAD unless it has a handler of its own."""
        return self.route(path, methods=["GET"], **options)

    def post(self, path: str, **options: Any) -> Register:
        """Answer POST."""
        return self.route(path, methods=["POST"], **options)

    def put(self, path: str, **options: Any) -> Register:
        """Answer PUT."""
        return self.route(path, methods=["PUT"], **options)

    def patch(self, path: str, **options: Any) -> Register:
        """Answer PATCH."""
        return self.route(path, methods=["PATCH"], **options)

    def delete(self, path: str, **options: Any) -> Register:
        """Answer DELETE."""
        return self.route(path, methods=["DELETE"], **options)

    def head(self, path: str, **options: Any) -> Register:
        """Answer HEAD."""
        return self.route(path, methods=["HEAD"], **options)

    def options(self, path: str, **options: Any) -> Register:
        """Answer OPTIONS; nothing does it by itself."""
        return self.route(path, methods=["OPTIONS"], **options)

    def every(self, *, seconds: float) -> Register:
        """Enqueue the decorated function as a task every so many seconds, as long as the application is served."""

        def register(handler: Handler, /) -> Handler:
            self._periodic.append((handler, seconds))
            return handler

        return register

    def exception_handler(self, kind: int | type[Exception]) -> Register:
        """Answer a status of HTTPException, or an exception class, with what the decorated function returns.

        The one for 500 or Exception answers what nobody else does; that exception still reaches the server's log.
        """

        def register(handler: Handler, /) -> Handler:
            self._exception_handlers[kind] = handler
            return handler

        return register

    def add_middleware(self, cls: Callable[..., ASGIApp], **options: Any) -> None:
        """Put ``cls(app, **options)`` around everything so far. Raises RuntimeError once the application has started."""
        if self._stack is not None:
            raise RuntimeError("middleware is added before the application starts")
        self._middleware.append((cls, options))

    # Answering.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or live through one lifespan (ASGI 3.0)."""
        if scope["type"] not in {"http", "lifespan"}:
            raise RuntimeError(f"minibg speaks http and lifespan, not {scope['type']}")
        scope["app"], scope["minibg.threads"] = self, self._threads
        if self._stack is None:
            self._stack = self._answer
            for cls, options in self._middleware:
                self._stack = cls(self._stack, **options)
        sending = _Sending(send)
        try:
            await self._stack(scope, receive, sending)
        except Exception as error:
            if scope["type"] == "http" and not sending.started and not isinstance(error, ClientDisconnected):
                _drop_tasks(scope)
                response = await self._server_error(Request(scope, receive), error)
                await response(scope, receive, send)
            raise

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The innermost application: what the middleware is around."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        request, sending = Request(scope, receive), _Sending(send)
        try:
            await self._respond(request, receive, sending)
        except Exception as error:
            if not isinstance(error, ClientDisconnected):
                _drop_tasks(scope)  # Before the exception's handler, which may add some of its own.
            response = await self._answer_to(error, request)
            if response is None:
                raise
            if sending.started:
                raise RuntimeError("the response has started: it is too late to answer this exception") from error
            await response(scope, receive, send)

    async def _respond(self, request: Request, receive: Receive, send: Send) -> None:
        """Route, run, send, close: the way of a request on which nothing fails."""
        found = self._router.find(request)
        if isinstance(found, Response):
            await found(request.scope, receive, send)
            return
        route, request.path_params = found
        request.scope["path_params"] = request.path_params
        response = None
        async with AsyncExitStack() as stack:
            result = await route.plan(request, stack)
            response = result if isinstance(result, Response) else _made(route, result)
            await response(request.scope, receive, send)
        if response is None:
            raise RuntimeError(f"a dependency of {route.name} swallowed its exception: there is nothing to answer")

    async def _answer_to(self, error: Exception, request: Request) -> Response | None:
        """The response of the most particular exception handler, if any; Exception itself is the outer layer's."""
        handlers = self._exception_handlers
        status = error.status_code if isinstance(error, HTTPException) else None
        for key in (status, *type(error).__mro__):
            if key in handlers and key is not Exception and not isinstance(error, ClientDisconnected):
                return await _call(handlers[key], request, error)
        return None

    async def _server_error(self, request: Request, error: Exception) -> Response:
        handler = self._exception_handlers.get(500) or self._exception_handlers.get(Exception)
        if handler is not None:
            return await _call(handler, request, error)
        text = "".join(traceback.format_exception(error)) if self.debug else "Internal Server Error"
        return PlainTextResponse(text, 500)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The lifespan conversation (ASGI lifespan 2.0)."""
        part = "startup"
        try:
            await receive()
            self.state.addresses = scope.get("extensions", {}).get("minibg.addresses", {}).get("addresses", ())
            async with self._lifespan(self) as state:
                scope.setdefault("state", {}).update(state or {})
                for function, seconds in self._periodic:
                    hold_of(scope).pool.every(function, seconds=seconds)
                await send({"type": "lifespan.startup.complete"})
                part = "shutdown"
                await receive()
        except Exception:
            await send({"type": f"lifespan.{part}.failed", "message": traceback.format_exc()})
            raise
        finally:
            self._threads.close()
        await send({"type": "lifespan.shutdown.complete"})


def _drop_tasks(scope: Scope) -> None:
    """The handler failed, and the joint must know although the exception may end here."""
    if "minibg.background" in scope:
        scope["minibg.background"].drop()


async def _call(handler: ExceptionHandler, request: Request, error: Exception) -> Response:
    """An exception handler's response."""
    is_async = inspect.iscoroutinefunction(handler)
    response: Response = await (handler if is_async else partial(request.threads.run, handler))(request, error)
    return response


def _made(route: Route, result: Any) -> Response:
    """The response of what a handler returned."""
    if route.status_code is None:
        return route.response_class(result)
    return route.response_class(result, route.status_code)
