"""The command: ``minibg module:app``, and ``minibg tasks FILE`` (`minibg.tasks_command`).

Most options take name, default and type from `Server`, `Limits` and `Pool`, so the command cannot
differ from ``serve()``. This file adds only the options for finding the application, the event loop
and the logging.

**The environment.** Each option can also be set in the environment: ``MINIBG_QUEUE_LIMIT=50`` is
``--queue-limit 50``. The command line wins. An environment is often inherited, or made by an
orchestrator, and not written for this program. Therefore:

- An empty value is ignored. The values 0, no, off and false, in any case, turn an option off.
- A value that cannot be parsed does not prevent the start: the default is used, and a warning names
  the value. A parsed value that makes no sense, such as 0 workers, is a wrong option.
- Kubernetes sets the addresses of each service in the environment. For a service that is called
  "minibg" these are ``MINIBG_PORT=tcp://10.0.0.7:80``, ``MINIBG_SERVICE_HOST`` and more. The first
  has the name of an option, so a warning names it. The others are ignored silently.
- Any other name that begins with ``MINIBG_`` is probably a mistake. A warning names it and the most
  similar option.

A wrong option on the command line ends the command with one line, because its user can read it. For
some options of other servers (`MEANT`) the line names the replacement.

Exit codes: 0 after a stop; 1 if the application is not found (`minibg.application`) or the address
cannot be bound; 2 for wrong options; 3 if the application failed to start or to shut down. For each
code but 0 the log has a line with the reason; for a failed shutdown it is the application's own
message. ``--log-level debug`` adds the traceback.

Rejected: abbreviated options, which argparse allows. A later option could make them ambiguous.
"""

import argparse
import difflib
import logging
import os
import re
import sys
import threading
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from minibg import __version__, logs
from minibg.application import AppNotFound
from minibg.background import Pool
from minibg.server import Limits, Server, StartupFailed
from minibg.serving import LIMITS, POOL, SERVER, ShutdownFailed, run

#: Seconds that other threads have to end after the stop.
THREAD_SECONDS = 2.0

#: The words that turn an option on or off in the environment.
SWITCH = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}

#: The words that the command's own options take; the first is the default.
WORDS = {
    "loop": ("auto", "asyncio", "uvloop"),
    "log_level": ("info", "debug", "warning", "error"),
    "log_format": ("text", "json"),
}
DEFAULTS = {"app_dir": "."} | {name: words[0] for name, words in WORDS.items()}

#: The exceptions that end the start, and their exit codes.
EXIT_CODES: dict[tuple[type[Exception], ...], int] = {
    (StartupFailed,): 3,
    (AppNotFound, OSError, ImportError): 1,
    (TypeError, ValueError): 2,
}

#: Options of other servers, and their replacement in minibg.
MEANT = {
    "workers": "minibg is one process: --task-workers is how many tasks run at once; for more processes start the command "
    "several times, each with its own --port",
    "reload": "minibg does not watch files; a program that does can restart it: watchfiles 'minibg module:app'",
}

#: The help texts of the options. The fields of `Limits` have their own.
HELP = {
    "factory": "call it to get the application",
    "app_dir": "folder to import it from",
    "loop": "event loop; auto is uvloop where that is installed",
    "log_level": "the least important records that are logged",
    "log_format": "text for people, or one JSON object a line",
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

#: The variables that Kubernetes sets for a service whose name is "minibg" or begins with "minibg-".
#: They are never options.
OF_KUBERNETES = re.compile(r"MINIBG_(\w+_)?(SERVICE_(HOST|PORT)|PORT_\d+_(TCP|UDP|SCTP))(_\w+)?")
#: The value of the Kubernetes variables ``..._PORT``.
KUBERNETES_PORT = re.compile(r"(tcp|udp|sctp)://")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, serve, and exit with the code of the result."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["tasks"]:
        from minibg import tasks_command  # noqa: PLC0415 - needs fcntl, which does not exist everywhere.

        tasks_command.main(arguments[1:])
    else:
        given = vars(parser().parse_args(arguments))
        found, warnings = environment(os.environ)
        _leave(_served(found | given, [text for name, text in warnings.items() if _option(name) not in given]))


def _served(options: dict[str, Any], warnings: Sequence[str]) -> int:
    """Serve until a signal, and return the exit code. Log the error that ends the start."""
    level = options.pop("log_level", DEFAULTS["log_level"])
    logs.configure(level, options.pop("log_format", DEFAULTS["log_format"]))
    logger = logging.getLogger("minibg")
    for warning in warnings:
        logger.warning("%s", warning)
    try:
        run(**options)
    except ShutdownFailed:
        return 3  # The log has the application's message already.
    except (StartupFailed, AppNotFound, OSError, ImportError, TypeError, ValueError) as error:
        what = "the application failed to start: " if isinstance(error, StartupFailed) else ""
        logger.error("%s%s", what, error, exc_info=level == "debug")  # noqa: TRY400 - the traceback is for debugging.
        return next(code for kinds, code in EXIT_CODES.items() if isinstance(error, kinds))
    return 0


def _leave(code: int) -> None:
    """End the process even if threads still run, such as those of ``asyncio.to_thread``.

    Python would join each thread that is no daemon, without a limit. Here the threads get
    `THREAD_SECONDS`, and the log names those that still run.
    """
    deadline = time.monotonic() + THREAD_SECONDS
    threads = [each for each in threading.enumerate() if each is not threading.main_thread() and not each.daemon]
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = [thread.name for thread in threads if thread.is_alive()]
    if left:
        logging.getLogger("minibg").error("threads still run, and are left behind: %s", ", ".join(left))
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    if code:
        sys.exit(code)


# --- the command line ---


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> typing.NoReturn:
        wrong = re.match(r"unrecognized arguments: --([\w-]+)", message)
        if wrong:
            message = f"there is no option --{wrong[1]}{_similar(wrong[1].replace('-', '_'), _flag)}"
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help lists the options\n")


class _Explain(argparse.Action):
    """Print `minibg.explain` and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from minibg.explain import explain  # noqa: PLC0415 - the server does not need it.

        print(explain())  # noqa: T201
        parser.exit()


class _Meant(argparse.Action):
    """Exit with the replacement of an option of another server."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.exit(2, f"{parser.prog}: there is no option --{self.dest}: {MEANT[self.dest]}\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Its result contains only the given options; `run` has the defaults.
    """
    parser = _Parser(
        "minibg",
        usage="minibg [options] module:attribute\n       minibg tasks FILE [list | show ID | retry ID | cancel ID]",
        description="Serve an ASGI application, and its tasks after the response.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("app", metavar="module:attribute", help="where the application is")
    commands = parser.add_argument_group("commands")
    commands.description = "tasks FILE: look into a durable journal, retry or cancel its tasks (minibg tasks --help)"
    parser.add_argument("--explain", action=_Explain, nargs=0, help="print the path of a request")
    parser.add_argument("--version", action="version", version=f"minibg {__version__}")
    for name, kind in kinds().items():
        if kind is switch:
            parser.add_argument(_flag(name), action=argparse.BooleanOptionalAction, help=_help(name))
        else:
            parser.add_argument(_flag(name), type=kind, help=_help(name), metavar=kind.__name__)
    for name in MEANT:
        parser.add_argument(_flag(name), action=_Meant, nargs="?", help=argparse.SUPPRESS)
    return parser


@cache
def kinds() -> dict[str, Callable[[str], Any]]:
    """Return the options of the command, each with the function that parses its text."""
    hints = typing.get_type_hints(Server) | typing.get_type_hints(Limits) | typing.get_type_hints(Pool.__init__)
    hints["task_workers"] = hints["workers"]
    own: dict[str, Callable[[str], Any]] = {"factory": switch, "app_dir": str}
    own |= {name: one_of(words) for name, words in WORDS.items()}
    return own | {name: _kind(name, hints[name]) for name in (*SERVER, *LIMITS, *POOL)}


def _kind(name: str, hint: Any) -> Callable[[str], Any]:
    if hint is bool:
        return switch
    if typing.get_origin(hint) is typing.Literal:
        return one_of(typing.get_args(hint))
    if name == "uds_permissions":
        return octal
    # "int | None": None means that the option was not given.
    kind: Callable[[str], Any] = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
    return kind


def _help(name: str) -> str:
    option = {**SERVER, **LIMITS, **POOL}.get(name)
    text = getattr(option, "metadata", {}).get("help") or HELP[name]
    default = DEFAULTS.get(name) if option is None else option.default
    if isinstance(default, bool):
        default = "on" if default else "off"
    return f"{text} ({default})" if default not in (None, "") else text


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return f"MINIBG_{name.upper()}"


def _option(variable: str) -> str:
    return variable.removeprefix("MINIBG_").lower()


def _similar(name: str, written: Callable[[str], str]) -> str:
    """Return the most similar option to an unknown name, as the end of a sentence."""
    found = difflib.get_close_matches(name, kinds(), n=1)
    return f", did you mean {written(found[0])}?" if found else ""


# --- values as text ---


def octal(text: str) -> int:
    """Parse the mode of a file, as chmod does."""
    return int(text, 8)


def switch(text: str) -> bool:
    """Parse a word that turns an option on or off. Raises ValueError."""
    if text.lower() not in SWITCH:
        raise ValueError(f"{text!r} is none of {', '.join(SWITCH)}")
    return SWITCH[text.lower()]


def one_of(words: Sequence[str]) -> Callable[[str], str]:
    """Return a function that parses one of these words, and raises ArgumentTypeError for any other."""

    def word(text: str) -> str:
        if text not in words:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(words)}")
        return text

    word.__name__ = f"{{{','.join(words)}}}"  # The help shows it as the name of the value.
    return word


# --- the environment ---


def environment(given: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the options that the environment sets, and a warning for each variable that is ignored."""
    found: dict[str, Any] = {}
    warnings: dict[str, str] = {}
    for variable, text in given.items():
        name, kind = _option(variable), kinds().get(_option(variable))
        if not variable.startswith("MINIBG_") or not text.strip() or _is_of_kubernetes(variable, text):
            continue
        if kind is None:
            meant = MEANT.get(name, f"there is no such option{_similar(name, _variable)}")
            warnings[variable] = f"{variable} is ignored: {meant}"
            continue
        try:
            found[name] = kind(text if kind is str else text.strip())
        except (ValueError, argparse.ArgumentTypeError) as error:
            warnings[variable] = f"{variable}={text} is ignored{_why(text, error)}"
    return found, warnings


def _is_of_kubernetes(variable: str, text: str) -> bool:
    """Return whether Kubernetes has set the variable, and it cannot be meant as an option."""
    if OF_KUBERNETES.fullmatch(variable):
        return True
    return variable != "MINIBG_PORT" and variable.endswith("_PORT") and KUBERNETES_PORT.match(text) is not None


def _why(text: str, error: Exception) -> str:
    if KUBERNETES_PORT.match(text):
        return ": Kubernetes sets it for a service that is called minibg; give the port as --port"
    return f", and the default stands: {error}"


if __name__ == "__main__":
    main()
