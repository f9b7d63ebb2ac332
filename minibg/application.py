"""Loading the application by its name, with errors for people.

``minibg module:attribute`` names an application. Four kinds of mistake are possible. Each ends the
start with `AppNotFound`, and the user sees only its text:

1. **The name.** A path instead of a module, or no attribute. The text suggests a name.
2. **The module is not there.** The text is one line if the named module itself is missing. If one
   of its imports is missing, the error is of the next kind, with file and line.
3. **The module raises**: on import, or where a handler is registered. The text begins with file and
   line, like a compiler's error, followed by the traceback, reduced to the user's own frames.
   Frames of minibg, of the standard library and of installed packages do not help to find the
   mistake; ``--log-level debug`` logs them too. A factory that raises is reported in the same way.
4. **The attribute is no ASGI application.** ASGI 3 calls an application with (scope, receive,
   send). The signature is checked for that before the first request. Otherwise each request would
   be answered with a 500, and the lifespan would seem unsupported. An object without a readable
   signature is accepted.

Rejected: calling the attribute to find out whether it is a factory, as some servers do. The call
runs the user's code, which may connect to a database.
"""

import importlib
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

#: The folders with code that is not the user's.
FOREIGN = (
    Path(__file__).parent,
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)
#: The largest number of applications that are suggested.
SUGGESTIONS = 3


class AppNotFound(Exception):
    """There is no application with this name; the message has the reason."""


def load(name: str, app_dir: str = ".") -> Any:
    """Import ``module:attribute``, from ``app_dir`` first. Raises AppNotFound."""
    module_name, separator, attribute = name.partition(":")
    if not (module_name and separator and attribute) or re.search(r"[/\\]|\.py$", module_name):
        raise AppNotFound(f"{name!r} is not the name of an application: {_corrected(module_name, attribute)}")
    if app_dir not in sys.path:
        sys.path.insert(0, app_dir)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            where = f"looked in {Path(app_dir).resolve()} (--app-dir) and in what is installed"
            raise AppNotFound(f"cannot import {module_name}: {error}; {where}") from error
        raise AppNotFound(_told(f"cannot import {module_name}", error)) from error
    try:
        return reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise AppNotFound(f"cannot load {name}: {error}{_suggested(module)}") from error


def make(factory: Any, name: str = "the factory") -> Any:
    """Call a factory. Raises AppNotFound when it is no factory or raises; ``name`` is for the text."""
    if not callable(factory):
        raise AppNotFound(f"{name} is no factory but a {type(factory).__name__}")
    signature = _signature(factory)
    if signature is not None and not _takes(signature, 0):
        taken = _names(signature)
        what = "an application and no factory: leave --factory out" if _takes(signature, 3) else "no factory"
        raise AppNotFound(f"{name} is {what}; a factory is called without arguments, and it takes {taken}")
    if inspect.iscoroutinefunction(factory):
        raise AppNotFound(f"{name} is async, and a factory is not awaited: what waits belongs in the lifespan")
    try:
        return factory()
    except Exception as error:
        raise AppNotFound(_told(f"{name} failed", error)) from error


def checked(app: Any, name: str = "the application") -> Any:
    """Return ``app`` if it is an ASGI application. Raises an AppNotFound with the reason if it is
    not.
    """
    objection = objection_to(app)
    if objection is not None:
        raise AppNotFound(f"{name} {objection}")
    return app


def objection_to(app: Any) -> str | None:
    """Return why this is no ASGI 3 application, as the end of a sentence; None if it may be one."""
    if isinstance(app, ModuleType):
        return f"is the module {app.__name__}: write {app.__name__}:app, where app is the application in it"
    if not callable(app):
        return f"is a {type(app).__name__} and no ASGI application: it cannot be called"
    signature = _signature(app)
    if isinstance(app, type) and not hasattr(app, "__await__"):  # With it, the call returns an awaitable instance.
        return f"is a class: name an instance of it, app = {app.__name__}(...)"
    return None if signature is None or _takes(signature, 3) else _objection_to(signature)


def _objection_to(signature: inspect.Signature) -> str:
    if _takes(signature, 0):
        return "takes no arguments: if it makes the application, add --factory (in run(): factory=True)"
    if "environ" in signature.parameters:
        return "is a WSGI application, and minibg serves ASGI: a2wsgi.WSGIMiddleware(app) is one way between them"
    return f"is no ASGI application: one is called with (scope, receive, send), and this takes {_names(signature)}"


# --- signatures ---


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except Exception:  # noqa: BLE001 - TypeError and ValueError, and what a proxy of the application raises.
        return None


def _takes(signature: inspect.Signature, number: int) -> bool:
    """Return whether a callable accepts ``number`` positional arguments."""
    try:
        signature.bind(*range(number))
    except TypeError:
        return False
    return True


def _names(signature: inspect.Signature) -> str:
    return f"({', '.join(signature.parameters)})"


# --- suggestions ---


def _corrected(module_name: str, attribute: str) -> str:
    """Return a suggestion for a path, or for a name without an attribute."""
    path = re.sub(r"^(\./)+|\.py$", "", module_name.replace("\\", "/"))
    name = f"{path.strip('/').replace('/', '.') or 'module'}:{attribute or 'app'}"
    return f"did you mean {name}" if attribute else f"write module:attribute, such as {name}"


def _suggested(module: ModuleType) -> str:
    found = [f"{module.__name__}:{name}" for name, value in vars(module).items() if _looks_like_one(name, value)]
    return f"; did you mean {' or '.join(found[:SUGGESTIONS])}" if found else ""


def _looks_like_one(name: str, value: Any) -> bool:
    """Return whether an instance or a coroutine function can be served. Other functions are too
    many.
    """
    is_function = inspect.isroutine(value) and not inspect.iscoroutinefunction(value)
    is_hidden = name.startswith("_") or isinstance(value, type) or is_function
    return not is_hidden and callable(value) and _signature(value) is not None and objection_to(value) is None


# --- errors of the user's code ---


def _told(what: str, error: Exception) -> str:
    """Return ``file:line: what: error``, and the traceback below it, reduced to the user's own frames."""
    told = traceback.TracebackException.from_exception(error)
    _reduce(told, [frame for frame in told.stack if not frame.filename.startswith(("<frozen", str(FOREIGN[0])))])
    where = f"{told.stack[-1].filename}:{told.stack[-1].lineno}: " if told.stack else ""
    if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith("<"):
        where = f"{error.filename}:{error.lineno}: "
    [*_, last] = traceback.format_exception_only(error)
    return f"{where}{what}: {last.strip()}\n{''.join(told.format())}".rstrip()


def _reduce(told: traceback.TracebackException, otherwise: list[traceback.FrameSummary]) -> None:
    """Keep the user's own frames of an exception and of its causes; keep ``otherwise`` if it has no
    such frames.
    """
    own = [frame for frame in told.stack if _is_own(frame.filename)]
    told.stack = traceback.StackSummary.from_list(own or otherwise)
    for other in (told.__cause__, told.__context__, *(told.exceptions or ())):
        if other is not None:
            _reduce(other, [])


def _is_own(filename: str) -> bool:
    return not filename.startswith("<frozen") and not any(Path(filename).is_relative_to(folder) for folder in FOREIGN)
