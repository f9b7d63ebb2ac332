"""The application: routes, middleware and lifespan, put together as one ASGI callable.

A request passes, from the outside in:

1. `App.__call__`: an exception that nothing has answered becomes a 500, and is raised again for the
   server's log.
2. The middleware, the last added first. Each is a pure ASGI callable made with ``cls(app,
   **options)``.
3. `App._answer`: an exception of the handler becomes a response by its exception handler.
4. `App._respond`: the route, its plan, the response.

An exception that becomes a response is a failure all the same, and `AfterResponse` around the
application must learn of it: the tasks of the request are dropped here (`hold.drop`). A 4xx that
the handler returns is a response like any other and keeps them. **After the head has left nothing
is dropped**: an error in the stream or in a dependency's clean-up comes too late to be answered,
and the client has been told that its request was accepted.

The response is sent while the generator dependencies are open. The application returns after they
are closed, and only then the first task starts [start.3].

No middleware is added after the first request or lifespan: a stack that grows under load cannot be
reasoned about.

Names and behaviour are FastAPI's and Starlette's where they have them. A handler's result that is
no `Response` becomes one by the route's ``response_class``, which is JSON unless told otherwise.
"""

import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from functools import partial
from typing import Any, TypedDict, TypeVar, Unpack

from minibg.asgi import ASGIApp, ClientDisconnected, Message, Receive, Scope, Send
from minibg.background import NotAccepted
from minibg.threads import Threads
from minibg.web.depends import Dependency, Plan, hold_of
from minibg.web.exceptions import HTTPException, caller, place_of
from minibg.web.incoming import Incoming
from minibg.web.request import Request, State
from minibg.web.response import JSONResponse, PlainTextResponse, Response
from minibg.web.routing import Route, Router, compile_path

#: Threads for sync handlers, sync dependencies and file reads. Starlette (by anyio) allows forty,
#: and handlers written for it expect no less.
HANDLER_THREADS = 40

Handler = TypeVar("Handler", bound=Callable[..., Any])
#: ``(request, exception) -> Response``, sync or async; registered for a status or for a class.
ExceptionHandler = Callable[[Request, Any], Any]
ExceptionHandlers = Mapping[int | type[Exception], ExceptionHandler] | None
#: ``(app)`` or ``(app, pool)``; it may yield a dict that becomes each request's state.
LifespanFactory = Callable[..., AbstractAsyncContextManager[Mapping[str, Any] | None]] | None


class RouteOptions(TypedDict, total=False):
    """The options of `App.route`, and so of the verbs."""

    #: The status of a result that is no `Response`, 200 unless it is set.
    status_code: int | None
    #: Makes the response of such a result, `JSONResponse` unless it is set.
    response_class: type[Response]
    #: Run before those of the handler; their results are discarded.
    dependencies: Iterable[Dependency]
    #: The handler's name in error messages.
    name: str | None


class _Sending:
    """A ``send`` that knows whether the response has started."""

    def __init__(self, send: Send) -> None:
        self._send, self.started = send, False

    async def __call__(self, message: Message) -> None:
        # Before the call: when it fails, the client may have seen the head, and cannot be sent a
        # second one.
        self.started = True
        await self._send(message)


async def _http_exception(_: Request, error: HTTPException) -> Response:
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


async def _not_accepted(_: Request, error: NotAccepted) -> Response:
    return JSONResponse({"detail": str(error)}, 503, {"retry-after": str(error.retry_after)})


class App:
    """An ASGI application made of functions.

    ``lifespan`` is an async context manager function, ``lifespan(app)`` or ``lifespan(app, pool)``:
    the part before its ``yield`` runs before the first request, the rest after the last. By then
    ``app.state.pool`` is the `Pool` of the background tasks, or None where nothing runs any, and on
    minibg's server ``app.state.addresses`` is set. ``debug`` puts the traceback into a 500.
    ``exception_handlers`` are those of `exception_handler`, by status or class.
    """

    def __init__(
        self, *, debug: bool = False, lifespan: LifespanFactory = None, exception_handlers: ExceptionHandlers = None
    ) -> None:
        self.debug = debug
        self.state: Any = State({})
        self._lifespan: Any = lifespan or (lambda _: nullcontext())
        self._router = Router()
        self._threads = Threads("minibg-handler", HANDLER_THREADS)
        self._middleware: list[tuple[Callable[..., ASGIApp], dict[str, Any]]] = []
        #: The middleware around `_answer`; None before the first request or lifespan.
        self._stack: ASGIApp | None = None
        self._periodic: list[tuple[Callable[[], Any], float]] = []
        self._handlers: dict[Any, ExceptionHandler] = {HTTPException: _http_exception, NotAccepted: _not_accepted}
        self._handlers |= {Exception: self._server_error, **(exception_handlers or {})}

    # --- the way of a request ---

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or speak one lifespan (ASGI 3.0)."""
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
            if scope["type"] == "http":
                handler = self._handlers.get(500, self._handlers[Exception])
                await _fail(error, handler, Request(scope, receive), receive, sending)
            raise

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the innermost application, with the middleware around it."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        receive = Incoming(receive)
        request = Request(scope, receive)
        # Middleware that replaces ``send`` may hold a head back, so only its own side has started
        # then.
        sending = send if isinstance(send, _Sending) else _Sending(send)
        try:
            await self._respond(request, receive, sending)
        except Exception as error:
            handler = None if isinstance(error, ClientDisconnected) else self._handler_of(error)
            if handler and sending.started:
                raise RuntimeError("the response has started: it is too late to answer this exception") from error
            if not await _fail(error, handler, request, receive, sending):
                raise
        finally:
            request.end()

    async def _respond(self, request: Request, receive: Receive, send: Send) -> None:
        """Find the route, run its plan, send the response, close the generators."""
        route = self._router.find(request)
        if not isinstance(route, Route):  # A redirect, or a mounted application.
            await route(request.scope, receive, send)
            return
        response = None
        async with AsyncExitStack() as stack:
            response = route.response(await route.plan(request, stack))
            await response(request.scope, receive, send)
        if response is None:
            raise RuntimeError(f"a dependency of {route.name} swallowed its exception: there is nothing to answer")

    def _handler_of(self, error: Exception) -> ExceptionHandler | None:
        """Return the handler of an exception's status or nearest class.

        The one for Exception is the outer layer's. Starlette's HTTPException, which its `StaticFiles` raises, is answered as minibg's.
        """
        status = [vars(error)["status_code"]] if {"status_code", "detail", "headers"} <= vars(error).keys() else []
        keys = [*status, *type(error).__mro__, *(status and [HTTPException])]
        return next((self._handlers[key] for key in keys if key in self._handlers and key is not Exception), None)

    async def _server_error(self, _: Request, error: Exception) -> Response:
        text = "".join(traceback.format_exception(error)) if self.debug else "Internal Server Error"
        return PlainTextResponse(text, 500)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak the lifespan protocol (ASGI lifespan 2.0)."""
        part = "startup"
        try:
            await receive()
            self.state.addresses = scope.get("extensions", {}).get("minibg.addresses", {}).get("addresses", ())
            self.state.pool = scope["minibg.background"].pool if "minibg.background" in scope else None
            required = [p for p in inspect.signature(self._lifespan).parameters.values() if p.default is p.empty]
            arguments = [self] if len(required) == 1 else [self, hold_of(scope).pool]
            async with self._lifespan(*arguments) as state:
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

    # --- registering ---

    def route(
        self, path: str, *, methods: Iterable[str] = ("GET",), **options: Unpack[RouteOptions]
    ) -> Callable[[Handler], Handler]:
        """Answer these methods of ``path`` with the decorated function. The verbs below take the
        same options.

        A result that is no `Response` becomes a ``response_class`` with ``status_code``.
        ``dependencies`` run before the function, and their results are discarded. ``name`` is the
        one in error messages, by default the function's. Raises ValueError for a malformed path or
        one that has a handler for the method, TypeError for a signature that cannot be filled and
        for an option that does not exist.
        """
        if not isinstance(path, str):
            raise TypeError(f'{place_of(path)} is decorated without a path: write `@app.get("/path")`')
        if unknown := options.keys() - RouteOptions.__annotations__.keys():
            raise TypeError(f"{caller()}: a route has no option {', '.join(sorted(unknown))}")
        status_code, response_class = options.get("status_code"), options.get("response_class", JSONResponse)

        def register(handler: Handler) -> Handler:
            plan = Plan(handler, compile_path(path)[1], options.get("dependencies", ()))
            respond = response_class if status_code is None else partial(response_class, status_code=status_code)
            self._router.add(path, methods, Route(options.get("name") or place_of(handler), plan, respond))
            return handler

        return register

    def get(self, path: str, **options: Unpack[RouteOptions]) -> Callable[[Handler], Handler]:
        """Answer GET requests for ``path``, as `route` does, and HEAD unless it has a handler of its own."""
        return self.route(path, methods=["GET"], **options)

    def post(self, path: str, **options: Unpack[RouteOptions]) -> Callable[[Handler], Handler]:
        """Answer POST requests for ``path``, as `route` does."""
        return self.route(path, methods=["POST"], **options)

    def put(self, path: str, **options: Unpack[RouteOptions]) -> Callable[[Handler], Handler]:
        """Answer PUT requests for ``path``, as `route` does."""
        return self.route(path, methods=["PUT"], **options)

    def patch(self, path: str, **options: Unpack[RouteOptions]) -> Callable[[Handler], Handler]:
        """Answer PATCH requests for ``path``, as `route` does."""
        return self.route(path, methods=["PATCH"], **options)

    def delete(self, path: str, **options: Unpack[RouteOptions]) -> Callable[[Handler], Handler]:
        """Answer DELETE requests for ``path``, as `route` does."""
        return self.route(path, methods=["DELETE"], **options)

    def head(self, path: str, **options: Unpack[RouteOptions]) -> Callable[[Handler], Handler]:
        """Answer HEAD requests for ``path``, as `route` does."""
        return self.route(path, methods=["HEAD"], **options)

    def options(self, path: str, **options: Unpack[RouteOptions]) -> Callable[[Handler], Handler]:
        """Answer OPTIONS requests for ``path``, as `route` does. Without a handler they get a 405."""
        return self.route(path, methods=["OPTIONS"], **options)

    def mount(self, prefix: str, app: ASGIApp) -> None:
        """Let another ASGI application answer the paths below ``prefix`` that no route has.

        It finds the prefix at the end of its ``root_path`` (ASGI http 2.5), and the tasks of its
        requests run as those of handlers do. Its lifespan is not run: the lifespan of this
        application opens what it needs. Of two mounts that fit, the first one answers. Raises
        ValueError for a prefix that does not begin with a slash.
        """
        compile_path(prefix)
        self._router.mounts[prefix.rstrip("/")] = app

    def every(self, *, seconds: float) -> Callable[[Handler], Handler]:
        """Enqueue the decorated function, which takes no arguments, every ``seconds`` while the
        application is served.

        The first run is due one interval after the startup. A moment that passes while a run goes
        on, or while the queue is full, is skipped and logged, not made up for. The startup fails
        with a ValueError for an interval that is not positive, and with a RuntimeError where no
        tasks can run. `Pool.every` returns an object to cancel it.
        """

        def register(handler: Handler) -> Handler:
            self._periodic.append((handler, seconds))
            return handler

        return register

    def exception_handler(self, kind: int | type[Exception]) -> Callable[[Handler], Handler]:
        """Answer a status of HTTPException, or an exception class, with the response of the
        decorated function.

        The function takes the request and the exception. One for 500 or Exception answers whatever
        no other handler does; that exception is raised again after its response, for the server's
        log.
        """

        def register(handler: Handler) -> Handler:
            self._handlers[kind] = handler
            return handler

        return register

    def add_middleware(self, cls: Callable[..., ASGIApp], **options: Any) -> None:
        """Put ``cls(app, **options)`` around everything so far.

        Raises RuntimeError once the application has started, TypeError for a middleware that was
        made already.
        """
        if inspect.iscoroutinefunction(cls) or inspect.iscoroutinefunction(type(cls).__call__):
            name = getattr(cls, "__name__", type(cls).__name__)
            raise TypeError(f"{caller()} adds middleware that is no class: write `add_middleware({name}, option=...)`")
        if self._stack is not None:
            raise RuntimeError("middleware is added before the application starts")
        self._middleware.append((cls, options))


async def _fail(
    error: Exception, handler: ExceptionHandler | None, request: Request, receive: Receive, send: _Sending
) -> bool:
    """Drop the tasks of a request whose handler failed, and send the response of ``handler``, a
    sync one called in a thread. Return whether the exception is answered.

    It is not when a response has started, or when the client has gone.
    """
    if send.started or isinstance(error, ClientDisconnected):
        return False
    if "minibg.background" in request.scope:  # Before the handler, which may add tasks of its own.
        request.scope["minibg.background"].drop()
    if handler is None:
        return False
    is_async = inspect.iscoroutinefunction(handler)
    response = await (handler if is_async else partial(request.threads.run, handler))(request, error)
    await response(request.scope, receive, send)
    return True
