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
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypedDict, TypeVar, Unpack

from minibg.asgi import ASGIApp, ClientDisconnected, Message, Receive, Scope, Send
from minibg.background import QueueFull
from minibg.web.depends import Dependency, Plan
from minibg.web.exceptions import HTTPException, RequestValidationError
from minibg.web.request import Request, State
from minibg.web.response import JSONResponse, PlainTextResponse, Response
from minibg.web.routing import Route, Router, compile_path
from minibg.web.threads import Threads

Handler = TypeVar("Handler", bound=Callable[..., Any])
#: ``(request, exception) -> Response``, sync or async.
ExceptionHandler = Callable[[Request, Any], Any]
#: ``(app) -> async context manager``, which may give a dict that becomes each request's state.
Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]


class RouteOptions(TypedDict, total=False):
    """What a route may say about its answers."""

    #: The status of what the handler returns when that is no response itself; that of the class, so 200.
    status_code: int | None
    #: What is made of it; JSONResponse.
    response_class: type[Response] | None
    #: ``Depends(...)`` to run before the handler, for what they do and not for what they give.
    dependencies: Iterable[Dependency] | None
    #: What it is called; the handler's name.
    name: str | None


class _Sending:
    """A `send` that knows whether the response has started."""

    __slots__ = ("_send", "started")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Message) -> None:
        await self._send(message)
        self.started = True


async def _http_exception(_: Request, error: HTTPException) -> Response:
    if error.status_code < 200 or error.status_code in {204, 304}:
        return Response(None, error.status_code, error.headers)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


async def _bad_parameters(_: Request, error: RequestValidationError) -> Response:
    return JSONResponse({"detail": error.errors()}, 422)


async def _queue_full(_: Request, error: QueueFull) -> Response:
    return JSONResponse({"detail": str(error)}, 503, {"retry-after": str(error.retry_after)})


class App:
    """An ASGI application made of functions.

    `lifespan` is an async context manager function: what it does before its ``yield`` happens before the first
    request, the rest after the last. `threads` bounds the sync handlers that run at once.
    """

    def __init__(
        self,
        *,
        debug: bool = False,
        lifespan: Lifespan | None = None,
        exception_handlers: Mapping[int | type[Exception], ExceptionHandler] | None = None,
        threads: int = 40,
    ) -> None:
        self.debug = debug
        self.state = State({})
        self._lifespan = lifespan
        self._router = Router()
        self._threads = Threads(threads)
        self._middleware: list[tuple[Callable[..., ASGIApp], dict[str, Any]]] = []
        self._stack: ASGIApp | None = None
        self._exception_handlers: dict[int | type[Exception], ExceptionHandler] = {
            HTTPException: _http_exception,
            RequestValidationError: _bad_parameters,
            QueueFull: _queue_full,
            **(exception_handlers or {}),
        }

    # Registering.

    def route(
        self, path: str, *, methods: Iterable[str] = ("GET",), **options: Unpack[RouteOptions]
    ) -> Callable[[Handler], Handler]:
        """Answer these methods of `path` with the decorated function.

        Raises ValueError for a path that makes no sense and TypeError for a signature that nothing can fill.
        """
        pattern = compile_path(path)

        def register(handler: Handler) -> Handler:
            route = Route(
                path,
                options.get("name") or getattr(handler, "__name__", repr(handler)),
                Plan(handler, pattern.converters, options.get("dependencies") or ()),
                options.get("status_code"),
                options.get("response_class") or JSONResponse,
            )
            self._router.add(pattern, route, methods)
            return handler

        return register

    def get(self, path: str, **options: Unpack[RouteOptions]) -> Callable[[Handler], Handler]:
        """Answer GET, and HEAD unless it has a handler of its own."""
        return self.route(path, methods=["GET"], **options)

    def post(self, path: str, **options: Unpack[RouteOptions]) -> Callable[[Handler], Handler]:
        """Answer POST."""
        return self.route(path, methods=["POST"], **options)

    def put(self, path: str, **options: Unpack[RouteOptions]) -> Callable[[Handler], Handler]:
        """Answer PUT."""
        return self.route(path, methods=["PUT"], **options)

    def patch(self, path: str, **options: Unpack[RouteOptions]) -> Callable[[Handler], Handler]:
        """Answer PATCH."""
        return self.route(path, methods=["PATCH"], **options)

    def delete(self, path: str, **options: Unpack[RouteOptions]) -> Callable[[Handler], Handler]:
        """Answer DELETE."""
        return self.route(path, methods=["DELETE"], **options)

    def head(self, path: str, **options: Unpack[RouteOptions]) -> Callable[[Handler], Handler]:
        """Answer HEAD."""
        return self.route(path, methods=["HEAD"], **options)

    def options(self, path: str, **options: Unpack[RouteOptions]) -> Callable[[Handler], Handler]:
        """Answer OPTIONS; nobody does it by himself."""
        return self.route(path, methods=["OPTIONS"], **options)

    def exception_handler(self, kind: int | type[Exception]) -> Callable[[Handler], Handler]:
        """Answer a status of HTTPException, or an exception class, with what the decorated function returns.

        The one for 500 or Exception answers what nobody else does; that exception still reaches the server's log.
        """

        def register(handler: Handler) -> Handler:
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
        if scope["type"] == "lifespan":
            await self._stack(scope, receive, send)
            return
        sending = _Sending(send)
        try:
            await self._stack(scope, receive, sending)
        except ClientDisconnected:
            raise
        except Exception as error:
            if not sending.started:
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
        except ClientDisconnected:
            raise
        except Exception as error:
            handler = self._handler_of(error)
            if handler is None:
                raise
            if sending.started:
                raise RuntimeError(
                    "an exception came too late to be answered: the response has started"
                ) from error
            response = await _call(handler, request, error)
            hold = scope.get("minibg.background")
            if hold is not None:
                hold.drop()
            await response(scope, receive, send)

    async def _respond(self, request: Request, receive: Receive, send: Send) -> None:
        found = self._router.find(request)
        if isinstance(found, Response):
            await found(request.scope, receive, send)
            return
        route, request.scope["path_params"] = found
        response = None
        async with AsyncExitStack() as stack:
            result = await route.plan(request, stack)
            response = result if isinstance(result, Response) else _made(route, result)
            await response(request.scope, receive, send)
        if response is None:
            raise RuntimeError(
                f"a dependency of {route.name} swallowed its exception: there is nothing to answer"
            )

    def _handler_of(self, error: Exception) -> ExceptionHandler | None:
        """Whoever answers this exception, the most particular first; Exception itself is the outermost layer's."""
        if isinstance(error, HTTPException) and error.status_code in self._exception_handlers:
            return self._exception_handlers[error.status_code]
        classes = [
            cls for cls in type(error).__mro__ if cls is not Exception and cls in self._exception_handlers
        ]
        return self._exception_handlers[classes[0]] if classes else None

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
            async with AsyncExitStack() as stack:
                await receive()
                if self._lifespan is not None:
                    state = await stack.enter_async_context(self._lifespan(self))
                    scope.setdefault("state", {}).update(state or {})
                await send({"type": "lifespan.startup.complete"})
                part = "shutdown"
                await receive()
        except Exception:
            await send({"type": f"lifespan.{part}.failed", "message": traceback.format_exc()})
            raise
        finally:
            self._threads.close()
        await send({"type": "lifespan.shutdown.complete"})


async def _call(handler: ExceptionHandler, request: Request, error: Exception) -> Response:
    """An exception handler's response."""
    if inspect.iscoroutinefunction(handler):
        response: Response = await handler(request, error)
    else:
        response = await request.threads.run(handler, request, error)
    return response


def _made(route: Route, result: Any) -> Response:
    """The response of what a handler returned."""
    if route.status_code is None:
        return route.response_class(result)
    if route.status_code in {204, 304}:  # RFC 9110 §15.3.5, §15.4.5: no content, so None is not said as JSON
        return Response(None, route.status_code)
    return route.response_class(result, route.status_code)
