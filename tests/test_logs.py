"""The log of the command: what is a field in JSON, for requests, for runs, and for the application's own lines."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minibg import Pool, Retry, task
from minibg.logs import JsonFormatter, configure
from minibg.server import access
from tests.server.wire import GET, Client, echo, serving


class Lines(logging.Handler):
    """Keeps each record as the formatter writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record), parse_constant=refused))

    def of(self, logger: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["logger"] == logger]


def refused(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The log of all loggers, from DEBUG on."""
    handler, root = Lines(), logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


async def test_a_request_has_its_parts_as_fields_and_no_message(lines: Lines) -> None:
    async with serving(echo) as server:
        client = await Client.to(server)
        await client.ask(GET)
        client.writer.close()
    [line] = lines.of("minibg.access")
    assert [*line] == ["time", "level", "logger", *access.PARTS]
    assert (line["request"], line["status"], line["level"]) == ("GET / HTTP/1.1", 200, "INFO")


async def test_a_run_has_task_id_origin_attempt_and_event_as_fields(lines: Lines) -> None:
    """Each transition is a line: INFO at the end, WARNING when another attempt follows, else DEBUG."""
    failures = [ValueError("once")]

    @task(name="mail", retry=Retry(attempts=2, base=0.0, cap=0.0))
    async def mail() -> None:
        if failures:
            raise failures.pop()

    async with Pool() as pool:
        result = await pool.enqueue(mail)
    told = [line for line in lines.of("minibg.background") if "event" in line]
    assert [(line["event"], line["attempt"], line["level"]) for line in told] == [
        ("release", 0, "DEBUG"),
        ("start", 1, "DEBUG"),
        ("retry", 1, "WARNING"),
        ("due", 1, "DEBUG"),
        ("start", 2, "DEBUG"),
        ("succeed", 2, "INFO"),
    ]
    assert {(line["task"], line["id"], line["origin"]) for line in told} == {("mail", result.id, "")}
    assert "ValueError: once" in told[2]["traceback"]


class Unwritable:
    def __str__(self) -> str:
        raise ValueError

    __repr__ = __str__


circle: dict[str, Any] = {}
circle["itself"] = circle


@pytest.mark.parametrize(
    ("extra", "fields"),
    [
        ({"order": 5, "paid": True, "items": ["a"]}, {"order": 5, "paid": True, "items": ["a"]}),
        ({"level": 3, "time": 0, "event": "paid"}, {"level_": 3, "time_": 0, "event": "paid"}),
        ({"where": {1, 1}}, {"where": "{1}"}),
        ({"rate": float("nan"), "order": 5}, {"rate": "nan", "order": 5}),
        ({"circle": circle}, {"circle": "{'itself': {...}}"}),
        ({"keys": {(1, 2): 3}}, {"keys": "{(1, 2): 3}"}),
        ({"object": Unwritable(), "order": 5}, {"object": "<Unwritable>", "order": 5}),
    ],
    ids=["fields", "names of ours", "set", "nan", "circle", "keys", "object"],
)
def test_extra_of_the_application_is_fields_and_no_record_is_lost(
    lines: Lines, extra: dict[str, Any], fields: dict[str, Any]
) -> None:
    logging.getLogger("shop").info("order %d", 5, extra=extra)
    [line] = lines.of("shop")
    assert {name: value for name, value in line.items() if name not in ("time", "level", "logger", "message")} == fields
    assert (line["level"], line["message"]) == ("INFO", "order 5")


def test_an_exception_and_a_stack_are_texts(lines: Lines) -> None:
    logger = logging.getLogger("shop")
    try:
        raise RuntimeError("x")
    except RuntimeError:
        logger.exception("failed", stack_info=True)
    [line] = lines.of("shop")
    assert line["traceback"].endswith("RuntimeError: x")
    assert line["stack"].startswith("Stack (most recent call last):")


@pytest.mark.parametrize(
    ("log_format", "expected"),
    [
        ("text", lambda line: line.endswith(" INFO    shop: sold")),
        ("json", lambda line: json.loads(line)["order"] == 5),
    ],
)
def test_one_formatter_is_for_all_loggers(
    log_format: str,
    expected: Callable[[str], bool],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    try:
        configure("info", log_format)
        logging.getLogger("shop").info("sold", extra={"order": 5})
    finally:
        root.setLevel(level)
    assert expected(capsys.readouterr().err.strip())
