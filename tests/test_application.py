"""The application that a name means: what is found, what is refused, and how the errors of the user's module are told.

Each module of a test is a file of the folder `folder`, which is put in front of ``sys.path``.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from minibg import App
from minibg.application import FOREIGN, AppNotFound, checked, load, make

MODULES = {
    "served.py": """
from minibg import App
from asyncio import run
import json
app = App()
class Holder:
    app = app
def make():
    return app
async def bare(scope, receive, send): ...
""",
    "package/__init__.py": "",
    "package/app.py": "",
    "needs.py": "import not_installed",
    "package/needs.py": "\nfrom package import nothing_like_it",
    "raises.py": "import json\n\ndef settings():\n    return json.loads('{')\n\nsettings()",
    "registers.py": "from minibg import App\n\napp = App()\n\n@app.get('no slash')\ndef handler(): ...\n",
    "chained.py": "import json\ntry:\n    json.loads('{')\nexcept ValueError as error:\n    raise KeyError('x') from error",
    "attribute.py": "import json\njson.nothing_like_it",
    "typo.py": "import wrong_syntax",
    "wrong_syntax.py": "x = 1\nif x\n    pass\n",
    "grouped.py": "import json\nraise ExceptionGroup('both', [ValueError('a'), TypeError('b')])",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", sys.path[:])
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py").replace("/", "."), raising=False)
    monkeypatch.delitem(sys.modules, "package", raising=False)
    return tmp_path


def refusal(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(AppNotFound) as refused:
        call(*arguments)
    return str(refused.value)


# --- the name ---


def test_an_application_is_loaded_by_the_name_of_its_module_and_attribute(folder: Path) -> None:
    app = load("served:Holder.app", str(folder))
    assert isinstance(app, App)
    assert load("served:app", str(folder)) is app
    assert sys.path.count(str(folder)) == 1


@pytest.mark.parametrize(
    ("name", "what_to_write"),
    [
        ("s.py:app", "did you mean s:app"),
        ("./src/s.py:app", "did you mean src.s:app"),
        ("src\\s.py:app", "did you mean src.s:app"),
        ("src/s:app.inner", "did you mean src.s:app.inner"),
        ("s.py", "write module:attribute, such as s:app"),
        ("served", "write module:attribute, such as served:app"),
        ("served:", "write module:attribute, such as served:app"),
        (":app", "did you mean module:app"),
        ("", "write module:attribute, such as module:app"),
    ],
)
def test_what_is_no_name_is_answered_with_what_to_write(folder: Path, name: str, what_to_write: str) -> None:
    assert refusal(load, name, str(folder)) == f"{name!r} is not the name of an application: {what_to_write}"


# --- the module ---


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("not_here:app", "not_here: No module named 'not_here'"),
        ("package.not_here:app", "package.not_here: No module named 'package.not_here'"),
        ("not_here.app:app", "not_here.app: No module named 'not_here'"),
        ("served.app:app", "served.app: No module named 'served.app'; 'served' is not a package"),
    ],
)
def test_a_module_that_is_not_there_is_one_line(folder: Path, name: str, missing: str) -> None:
    """Only if it is the module that was named."""
    where = f"looked in {folder.resolve()} (--app-dir) and in what is installed"
    assert refusal(load, name, str(folder)) == f"cannot import {missing}; {where}"


ERRORS = {
    "needs:app": """{folder}/needs.py:1: cannot import needs: ModuleNotFoundError: No module named 'not_installed'
Traceback (most recent call last):
  File "{folder}/needs.py", line 1, in <module>
    import not_installed
ModuleNotFoundError: No module named 'not_installed'""",
    "raises:app": """{folder}/raises.py:4: cannot import raises: json.decoder.JSONDecodeError: Expecting ...
Traceback (most recent call last):
  File "{folder}/raises.py", line 6, in <module>
    settings()
  File "{folder}/raises.py", line 4, in settings
    return json.loads('{{')
           ^^^^^^^^^^^^^^^
json.decoder.JSONDecodeError: Expecting ...""",
    "chained:app": """{folder}/chained.py:5: cannot import chained: KeyError: 'x'
Traceback (most recent call last):
  File "{folder}/chained.py", line 3, in <module>
    json.loads('{{')
json.decoder.JSONDecodeError: Expecting ...

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "{folder}/chained.py", line 5, in <module>
    raise KeyError('x') from error
KeyError: 'x'""",
    "typo:app": """{folder}/wrong_syntax.py:2: cannot import typo: SyntaxError: expected ':'
Traceback (most recent call last):
  File "{folder}/typo.py", line 1, in <module>
    import wrong_syntax
  File "{folder}/wrong_syntax.py", line 2
    if x
        ^
SyntaxError: expected ':'""",
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_the_module_begins_with_file_and_line_and_shows_its_own_frames(folder: Path, name: str) -> None:
    text = refusal(load, name, str(folder)).replace(
        "Expecting property name enclosed in double quotes", "Expecting ..."
    )
    text = text.replace(": line 1 column 2 (char 1)", "")
    assert text == ERRORS[name].format(folder=folder)


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("registers:app", "registers.py:5: cannot import registers: "),
        ("attribute:app", "attribute.py:2: cannot import attribute: AttributeError: "),
        ("package.needs:app", "package/needs.py:2: cannot import package.needs: ImportError: cannot import name"),
        ("grouped:app", "grouped.py:2: cannot import grouped: "),
    ],
)
def test_no_frame_is_of_minibg_or_of_a_library(folder: Path, name: str, beginning: str) -> None:
    """An error of registration is raised in minibg, and told where the user's line is."""
    text = refusal(load, name, str(folder))
    assert text.startswith(f"{folder}/{beginning}")
    frames = [line for line in text.splitlines() if line.lstrip(" |").startswith("File ")]
    assert frames
    assert [line for line in frames if str(folder) not in line] == []


def test_without_a_frame_of_the_user_those_of_the_library_are_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application may be in an installed package."""
    monkeypatch.setattr("minibg.application.FOREIGN", (*FOREIGN, folder))
    assert f'File "{folder}/raises.py", line 4' in refusal(load, "raises:app", str(folder))


# --- the attribute ---


def test_an_attribute_that_is_missing_is_answered_with_the_applications_of_the_module(folder: Path) -> None:
    missing = "cannot load served:ap: module 'served' has no attribute 'ap'"
    assert refusal(load, "served:ap", str(folder)) == f"{missing}; did you mean served:app or served:bare"
    assert refusal(load, "package:app_", str(folder)).endswith("module 'package' has no attribute 'app_'")


class Application:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class Endpoint:
    """As Starlette's HTTPEndpoint: an instance is the answer to a call."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None: ...
    def __await__(self) -> Any: ...


class NotAwaitable:
    def __init__(self, scope: Any, receive: Any, send: Any) -> None: ...


class ASGI2:
    def __call__(self, scope: Any) -> None: ...


class WSGI:
    def __call__(self, environ: Any, start_response: Any) -> None: ...


class Proxy:
    """As werkzeug's LocalProxy outside of a request."""

    def __call__(self, *arguments: Any) -> None: ...

    @property
    def __signature__(self) -> Any:
        raise RuntimeError("outside of a request")


async def bare(scope: Any, receive: Any, send: Any) -> None: ...
async def with_default(scope: Any, receive: Any, send: Any, more: int = 1) -> None: ...
async def anything(*arguments: Any) -> None: ...
async def handler(background_tasks: Any) -> None: ...
async def with_keyword(scope: Any, receive: Any, send: Any, *, more: int) -> None: ...
def factory() -> App:
    return App()


@pytest.mark.parametrize(
    "app",
    [
        App(),
        Application(),
        Application().__call__,
        Endpoint,
        Proxy(),
        bare,
        with_default,
        anything,
        partial(bare),
        App(),
        max,
    ],
)
def test_what_takes_three_arguments_or_cannot_be_known_is_an_application(app: Any) -> None:
    assert checked(app) is app


@pytest.mark.parametrize(
    ("app", "objection"),
    [
        (App, "is a class: name an instance of it, app = App(...)"),
        (NotAwaitable, "is a class: name an instance of it, app = NotAwaitable(...)"),
        ("text", "is a str and no ASGI application: it cannot be called"),
        (None, "is a NoneType and no ASGI application: it cannot be called"),
        (pytest, "is the module pytest: write pytest:app, where app is the application in it"),
        (factory, "takes no arguments: if it makes the application, add --factory (in run(): factory=True)"),
        (WSGI(), "is a WSGI application, and minibg serves ASGI: a2wsgi.WSGIMiddleware(app) is one way between them"),
        *(
            (app, f"is no ASGI application: one is called with (scope, receive, send), and this takes {names}")
            for app, names in (
                (ASGI2(), "(scope)"),
                (handler, "(background_tasks)"),
                (with_keyword, "(scope, receive, send, more)"),
            )
        ),
    ],
)
def test_what_cannot_be_called_so_is_refused_with_what_to_write(app: Any, objection: str) -> None:
    assert refusal(checked, app, "served:app") == f"served:app {objection}"


def test_a_module_in_place_of_its_application_is_named(folder: Path) -> None:
    package = load("package.app:__name__", str(folder)) and load("package:app", str(folder))
    assert refusal(checked, package, "package:app").endswith(
        "is the module package.app: write package.app:app, where app is the application in it"
    )


# --- factories ---


async def async_factory() -> App:
    return App()


def test_a_factory_is_called() -> None:
    assert isinstance(make(factory), App)
    assert isinstance(make(App), App)


@pytest.mark.parametrize(
    ("given", "objection"),
    [
        ("text", "is no factory but a str"),
        (
            bare,
            "is an application and no factory: leave --factory out; a factory is called without arguments, "
            "and it takes (scope, receive, send)",
        ),
        (async_factory, "is async, and a factory is not awaited: what waits belongs in the lifespan"),
        (
            App(),
            "is an application and no factory: leave --factory out; a factory is called without arguments, "
            "and it takes (scope, receive, send)",
        ),
        (lambda email: None, "is no factory; a factory is called without arguments, and it takes (email)"),
    ],
)
def test_what_is_no_factory_is_refused(given: Any, objection: str) -> None:
    assert refusal(make, given, "served:make") == f"served:make {objection}"


def test_a_factory_that_raises_is_told_as_its_module_would_be() -> None:
    def raises() -> None:
        raise KeyError("DATABASE_URL")

    line = raises.__code__.co_firstlineno + 1
    first, *traceback = refusal(make, raises, "served:make").splitlines()
    assert first == f"{__file__}:{line}: served:make failed: KeyError: 'DATABASE_URL'"
    assert [text for text in traceback if "File" in text] == [f'  File "{__file__}", line {line}, in raises']
