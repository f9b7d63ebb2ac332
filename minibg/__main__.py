"""The command: ``minibg module:app``, and ``minibg tasks FILE`` (`minibg.tasks_command`).

The options are read from `Server`, `Limits` and `Pool`: name, default, and type are theirs, so the command cannot
differ from ``serve()``. What is not theirs is below: how the application is found, the loop, the logging.

Each option can also be set by the environment: ``MINIBG_QUEUE_LIMIT=50`` is ``--queue-limit 50``. The command line wins.

Exit codes: 0 after a stop, 1 when the application cannot be imported or the address cannot be bound, 2 for wrong
options, 3 when the application failed to start up. All but the first with a line that says why, which for 3 is
the application's own message, however long; ``--log-level debug`` adds the traceback.
"""

import argparse
import logging
import os
import sys
import threading
import time
import types
import typing
from collections.abc import Sequence
from typing import Any

from minibg import __version__, logs
from minibg.background import Pool
from minibg.server import Limits, Server, StartupFailed
from minibg.serving import LIMITS, POOL, SERVER, AppNotFound, run

#: Seconds that threads have to end after the stop.
THREAD_SECONDS = 2.0

#: What turns an option off in the environment; anything else turns it on.
NO = ("0", "false", "no", "off", "")

#: The words that the command's own options take; the first is the default.
WORDS = {
    "loop": ("auto", "asyncio", "uvloop"),
    "log_level": ("info", "debug", "warning", "error"),
    "log_format": ("text", "json"),
}

#: What the options of `Server` and `Pool` are, in the words of the command.
HELP = {
    "host": "name or address to listen on",
    "port": "port to listen on; 0 takes a free one",
    "uds": "path of a Unix socket to listen on, instead of host and port",
    "uds_permissions": "mode of that socket, octal: 660",
    "fd": "number of an open socket to listen on (socket activation)",
    "ssl_certfile": "certificate chain, PEM; turns TLS on",
    "ssl_keyfile": "its key, if it is in a file of its own",
    "ssl_keyfile_password": "the password of the key",
    "root_path": "path under which a proxy has mounted the application",
    "forwarded_allow_ips": "addresses and networks, comma-separated, whose X-Forwarded headers are believed",
    "access_log": "write a line per request",
    "task_workers": "tasks that run at once",
    "queue_limit": "tasks that may be held, ready or waiting",
    "drain_timeout": "seconds a stop waits for tasks",
    "keep_finished": "finished tasks that are remembered",
    "keep_for": "seconds they are remembered",
    "journal": "file that keeps the tasks, so that they outlive the process",
    "durability": "what an accepted task in that file outlives: a loss of power too, or a killed process",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, serve, and exit with the right code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["tasks"]:
        from minibg import tasks_command  # noqa: PLC0415 - needs fcntl, which does not exist everywhere.

        return tasks_command.main(arguments[1:])
    options = vars(parser().parse_args(arguments))
    level = options.pop("log_level").upper()
    logs.configure(level, options.pop("log_format"))
    try:
        run(**options)
        _leave()
    except StartupFailed as error:
        _give_up(3, f"the application failed to start: {error}", level)
    except (AppNotFound, OSError, ImportError) as error:
        _give_up(1, str(error), level)
    except (TypeError, ValueError) as error:
        _give_up(2, str(error), level)


def _give_up(code: int, message: str, level: str) -> typing.NoReturn:
    logging.getLogger("minibg").error("%s", message, exc_info=level == "DEBUG")
    sys.exit(code)


def _leave() -> None:
    """End the process although threads are still at work: a handler's ``asyncio.to_thread``, for example.

    Python joins every thread that is not a daemon, without limit. They have `THREAD_SECONDS` here, and are named then.
    """
    deadline = time.monotonic() + THREAD_SECONDS
    threads = [each for each in threading.enumerate() if each is not threading.main_thread() and not each.daemon]
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = [thread.name for thread in threads if thread.is_alive()]
    if left:
        logging.getLogger("minibg").error("left behind, still at work: %s", ", ".join(left))
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)


class _Explain(argparse.Action):
    """Print `minibg.explain` and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from minibg.explain import explain  # noqa: PLC0415 - the server does not need it.

        print(explain())  # noqa: T201
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        "minibg",
        description="Serve an ASGI application, and its tasks after the response.",
        epilog="minibg tasks FILE looks into a durable journal.",
    )
    parser.add_argument("app", help="where the application is: module:attribute")
    parser.add_argument(
        "--explain", action=_Explain, nargs=0, default=argparse.SUPPRESS, help="print the path of a request"
    )
    parser.add_argument("--version", action="version", version=f"minibg {__version__}")
    factory = _default("factory", "") not in NO
    parser.add_argument("--factory", action="store_true", default=factory, help="call it to get the application")
    parser.add_argument("--app-dir", default=_default("app_dir", "."), help="folder to import it from (.)")
    for name, words in WORDS.items():
        _add_words(parser, name, words, _default(name, words[0]), f"({words[0]})")
    hints = typing.get_type_hints(Server) | typing.get_type_hints(Limits) | typing.get_type_hints(Pool.__init__)
    hints["task_workers"] = hints["workers"]
    for name, option in {**SERVER, **LIMITS, **POOL}.items():
        _add_option(parser, name, hints[name], option.default, getattr(option, "metadata", {}).get("help"))
    return parser


def _add_option(parser: argparse.ArgumentParser, name: str, hint: Any, default: Any, help_text: str | None) -> None:
    flag = f"--{name.replace('_', '-')}"
    text = f"{help_text or HELP[name]} ({default})"
    # What is not given is not passed on: an AfterResponse that is served has a pool, and a pool its own options.
    given = _default(name, argparse.SUPPRESS)
    if hint is bool:
        if given in NO:
            given = False
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=given, help=text)
    elif typing.get_origin(hint) is typing.Literal:
        _add_words(parser, name, typing.get_args(hint), given, text)
    else:
        if isinstance(hint, types.UnionType):  # "int | None": None means that the option was not given.
            hint = typing.get_args(hint)[0]
        kind = octal if name == "uds_permissions" else hint
        parser.add_argument(flag, type=kind, default=given, help=text, metavar=hint.__name__.upper())


def _add_words(parser: argparse.ArgumentParser, name: str, words: Sequence[str], default: str, text: str) -> None:
    def one_of(word: str) -> str:  # A type: argparse does not compare a default, the environment's, with ``choices``.
        if word not in words:
            raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(words)}")
        return word

    flag, metavar = f"--{name.replace('_', '-')}", f"{{{','.join(words)}}}"
    parser.add_argument(flag, type=one_of, default=default, help=text, metavar=metavar)


def octal(text: str) -> int:
    """Read the mode of a file as chmod does."""
    return int(text, 8)


def _default(name: str, default: Any) -> Any:
    """Look into the environment. A string is parsed by argparse as if it had stood on the command line."""
    return os.environ.get(f"MINIBG_{name.upper()}", default)


if __name__ == "__main__":
    main()
