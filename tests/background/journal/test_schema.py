"""The table and its statements: which rows can be written, what a group makes of a row, and how a query finds its rows."""

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from minibg import tasks_command
from minibg.background.errors import JournalUnusable
from minibg.background.journal import schema
from minibg.background.journal.file import File, connect
from minibg.background.journal.schema import APPLICATION_ID, COLUMNS, SCHEMA_VERSION, UPGRADES, Row
from tests.background.journal.files import FINAL, NOW, change, end, insert, insert_by_hand, rows, update, write

# --- rows ---


@pytest.mark.parametrize(
    "columns",
    [
        *({"status": status} for status in FINAL),
        *({"status": status, "finished_at": NOW} for status in ("HELD", "READY")),
        {"status": "RUNNING", "owner": "process 1", "finished_at": NOW},
        {"status": "WAITING", "due_at": NOW, "finished_at": NOW},
        {"status": "RUNNING"},
        {"status": "READY", "owner": "process 1"},
        {"status": "SUCCESSFUL", "finished_at": NOW, "owner": "process 1"},
        {"status": "WAITING"},
        {"status": "READY", "due_at": NOW},
        {"status": "FAILED", "finished_at": NOW, "due_at": NOW},
        {"status": "LOST"},
        {"status": "ready"},
        {"status": "READY", "request": "delete"},
        {"status": None},
        {"status": "READY", "arguments": None},
        {"status": "READY", "attempts": "one"},
        {"status": "READY", "added_at": "yesterday"},
        {"status": "READY", "arguments": b"\x80\x04pickle"},
    ],
    ids=str,
)
def test_a_row_that_contradicts_itself_cannot_be_written(file: File, path: Path, columns: dict[str, Any]) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        insert_by_hand(path, **columns)
    assert rows(path) == []


def test_a_consistent_row_can_be_written(file: File, path: Path) -> None:
    consistent: list[dict[str, Any]] = [
        {"status": "HELD"},
        {"status": "READY"},
        {"status": "RUNNING", "owner": "process 1"},
        {"status": "WAITING", "due_at": NOW},
        *({"status": status, "finished_at": NOW} for status in FINAL),
        {"status": "FAILED", "finished_at": NOW, "request": "retry"},
    ]
    for columns in consistent:
        insert_by_hand(path, **columns)
    assert rows(path, "status") == [columns["status"] for columns in consistent]


def test_one_unfinished_run_of_a_task_has_a_key(file: File, path: Path) -> None:
    for _ in range(2):
        insert_by_hand(path, status="FAILED", finished_at=NOW, key="k")
    insert_by_hand(path, status="READY", key="k")
    insert_by_hand(path, status="READY", key="k", name="other")
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        insert_by_hand(path, status="WAITING", due_at=NOW, key="k")


def test_a_row_has_the_columns_that_are_read() -> None:
    assert [name.strip() for name in COLUMNS.split(",")] == list(Row.__dataclass_fields__)
    assert APPLICATION_ID == int.from_bytes(b"mbg1", "big")


# --- a group ---

STEPS: dict[str, list[dict[str, Any]]] = {
    "held": [{"inserts": insert(1)}],
    "ready": [{"inserts": insert(1), "updates": update(1)}],
    "running": [{"inserts": insert(1), "updates": update(1)}, {"claims": [1]}],
    "waiting": [{"inserts": insert(1)}, {"claims": [1]}, {"ends": end(1, status="WAITING")}],
    "claimed again": [{"updates": update(1), "claims": [1]}],
    "cancelled": [{"inserts": insert(1)}, {"ends": end(1, status="CANCELLED", attempts=0)}],
    "successful": [{"ends": end(1, status="SUCCESSFUL")}],
    "failed": [{"ends": end(1, status="FAILED")}],
}


@pytest.mark.parametrize(
    ("before", "last", "became", "granted"),
    [
        ([], {"inserts": insert(1)}, ("HELD", 0, None), set()),
        ([], {"inserts": insert(1), "updates": update(1)}, ("READY", 0, None), set()),
        ([], {"inserts": insert(1), "updates": update(1), "claims": [1]}, ("RUNNING", 1, None), {1}),
        (["held"], {"claims": [1]}, ("RUNNING", 1, None), {1}),
        (["held"], {"updates": update(1, status="WAITING", due_at=NOW + 5)}, ("WAITING", 0, NOW + 5), set()),
        (["held"], {"ends": end(1, status="DROPPED", attempts=0)}, ("DROPPED", 0, None), set()),
        (["held"], {"updates": update(1), "ends": end(1, status="CANCELLED")}, ("CANCELLED", 0, None), set()),
        (["ready"], {"claims": [1], "ends": end(1, status="CANCELLED", attempts=0)}, ("CANCELLED", 0, None), set()),
        (["ready"], {"claims": [1, 1]}, ("RUNNING", 1, None), {1}),
        (["running"], {"ends": end(1, status="SUCCESSFUL")}, ("SUCCESSFUL", 1, None), set()),
        (["running"], {"ends": end(1, status="FAILED")}, ("FAILED", 1, None), set()),
        (["running"], {"ends": end(1, status="WAITING")}, ("WAITING", 1, NOW + 10), set()),
        # Cancelled while the claim was written: the ledger has not counted the attempt.
        (["running"], {"ends": end(1, status="CANCELLED", attempts=0)}, ("CANCELLED", 1, None), set()),
        (["running"], {"ends": end(1, status="WAITING"), "updates": update(1)}, ("READY", 1, None), set()),
        (["running"], {"ends": end(1, status="WAITING"), "claims": [1]}, ("RUNNING", 2, None), {1}),
        (["waiting"], {"updates": update(1), "claims": [1]}, ("RUNNING", 2, None), {1}),
        (["waiting"], {"ends": end(1, status="CANCELLED")}, ("CANCELLED", 1, None), set()),
        (["running", "failed"], {"resets": [1]}, ("READY", 0, None), set()),
        (["running", "failed"], {"resets": [1], "claims": [1]}, ("RUNNING", 1, None), {1}),
        # A change that is late, or belongs to another attempt, changes nothing.
        (["running"], {"ends": end(1, status="SUCCESSFUL", attempts=2)}, ("RUNNING", 1, None), set()),
        (["running"], {"updates": update(1)}, ("RUNNING", 1, None), set()),
        (["waiting", "claimed again"], {"ends": end(1, status="SUCCESSFUL")}, ("RUNNING", 2, None), set()),
        (["ready"], {"ends": end(1, status="SUCCESSFUL", attempts=0)}, ("READY", 0, None), set()),
        (["cancelled"], {"updates": update(1), "claims": [1]}, ("CANCELLED", 0, None), set()),
        (["cancelled"], {"resets": [1]}, ("CANCELLED", 0, None), set()),
        (["running", "successful"], {"ends": end(1, status="FAILED")}, ("SUCCESSFUL", 1, None), set()),
        (["running", "successful"], {"ends": end(1, status="CANCELLED")}, ("SUCCESSFUL", 1, None), set()),
        (["running", "successful"], {"resets": [1], "claims": [1]}, ("SUCCESSFUL", 1, None), set()),
        # A row whose insert was refused is not there.
        (["held"], {"updates": update(2), "claims": [2], "ends": end(3, status="DROPPED")}, ("HELD", 0, None), set()),
    ],
    ids=str,
)
def test_a_group_makes_of_a_row_what_has_happened_to_its_run(
    file: File,
    path: Path,
    before: list[str],
    last: dict[str, Any],
    became: tuple[str, int, float | None],
    granted: set[int],
) -> None:
    for word in before:
        write(file, *STEPS[word])
    assert write(file, last).granted == granted
    assert rows(path, "status, attempts, due_at") == [became]


def test_an_end_frees_a_key_that_an_insert_of_the_same_group_takes(file: File, path: Path) -> None:
    write(file, {"inserts": insert(1, key="k")}, {"claims": [1]})
    write(file, {"ends": end(1, status="SUCCESSFUL"), "inserts": insert(2, key="k")})
    assert rows(path, "row, key, status") == [(1, "k", "SUCCESSFUL"), (2, "k", "HELD")]


def test_a_key_that_is_taken_in_the_file_is_left_out_and_never_refuses_the_group(file: File, path: Path) -> None:
    write(file, {"inserts": insert(1, key="k")}, {"claims": [1]}, {"ends": end(1, status="FAILED")})
    write(file, {"inserts": insert(2, key="k")}, {"inserts": insert(3, key="k") | insert(4), "resets": [1]})
    found = rows(path, "row, key, status")
    assert found == [(1, None, "READY"), (2, "k", "HELD"), (3, None, "HELD"), (4, None, "HELD")]


def test_texts_and_times_come_back_as_they_were(file: File, path: Path) -> None:
    text = "ä \U0001f600 \" \\ ' \n \x01 : null"
    texts = {"name": text, "arguments": json.dumps([[text], {}]), "overrides": json.dumps({"a": text}), "key": text}
    inserted = insert(1)[1] | texts | {"origin": text, "added_at": NOW + 0.123456, "batch": 7}
    ended = end(1, status="FAILED")[1] | {"errors": json.dumps([{"message": text}]), "return_value": json.dumps(text)}
    ended |= {"finished_at": NOW + 0.654321}
    write(file, {"inserts": {1: inserted}}, {"claims": [1]}, {"ends": {1: ended}})
    columns = [*texts, "origin", "added_at", "batch", "errors", "return_value", "finished_at"]
    assert rows(path, ", ".join(columns)) == [tuple((inserted | ended)[name] for name in columns)]


# --- older and newer schemas ---

SCHEMA_1 = """
    CREATE TABLE runs (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, response INTEGER NOT NULL, name TEXT NOT NULL,
        payload TEXT NOT NULL, options TEXT NOT NULL, key TEXT, origin TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('HELD', 'READY', 'RUNNING', 'WAITING',
            'SUCCESSFUL', 'FAILED', 'CANCELLED', 'DROPPED')),
        owner TEXT, attempts INTEGER NOT NULL DEFAULT 0, excused INTEGER NOT NULL DEFAULT 0,
        crashes INTEGER NOT NULL DEFAULT 0, added_at REAL NOT NULL, released_at REAL, started_at REAL, due_at REAL,
        wait REAL, finished_at REAL, errors TEXT NOT NULL DEFAULT '[]', value TEXT,
        asked TEXT CHECK (asked IN ('retry', 'cancel')),
        CHECK ((finished_at IS NOT NULL) = (status IN ('SUCCESSFUL', 'FAILED', 'CANCELLED', 'DROPPED'))),
        CHECK ((owner IS NOT NULL) = (status = 'RUNNING')),
        CHECK ((due_at IS NOT NULL) = (status = 'WAITING'))
    ) STRICT;
    CREATE INDEX unfinished ON runs (seq) WHERE finished_at IS NULL;
    CREATE INDEX finished ON runs (status, finished_at) WHERE finished_at IS NOT NULL;
    CREATE INDEX asked ON runs (seq) WHERE asked IS NOT NULL;
    CREATE UNIQUE INDEX one_per_key ON runs (name, key) WHERE key IS NOT NULL AND finished_at IS NULL;
    INSERT INTO runs VALUES
        (3, 'a', 3, 'mail', '[[1], {}]', '{}', 'k', 'GET /', 'READY', NULL, 2, 1, 1, 10, 11, 12, NULL, NULL, NULL,
            '[]', NULL, NULL),
        (4, 'b', 3, 'mail', '[[2], {}]', '{}', NULL, 'GET /', 'HELD', NULL, 0, 0, 0, 10, NULL, NULL, NULL, NULL, NULL,
            '[]', NULL, NULL),
        (5, 'c', -5, 'mail', '[[3], {}]', '{}', NULL, '', 'WAITING', NULL, 1, 0, 0, 10, 11, 12, 2e6, 7, NULL,
            '[]', NULL, NULL),
        (6, 'd', 6, 'mail', '[[4], {}]', '{}', 'k', '', 'SUCCESSFUL', NULL, 1, 0, 0, 10, 11, 12, NULL, NULL, 13,
            '[]', '"v"', NULL),
        (7, 'e', 7, 'mail', '[[4], {}]', '{}', NULL, '', 'FAILED', NULL, 3, 0, 0, 10, 11, 12, NULL, NULL, 14,
            '[]', NULL, 'retry');
    PRAGMA application_id = 0x6D626731;
    PRAGMA user_version = 1;
"""


def version(path: Path) -> int:
    database = connect(str(path), "ro")
    (number,) = database.execute("PRAGMA user_version").fetchone()
    database.close()
    return int(number)


def test_a_file_of_schema_1_is_upgraded_and_keeps_its_runs_its_requests_and_its_constraints(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.executescript(SCHEMA_1)
    database.close()
    for _ in range(2):  # The second time there is nothing to do.
        file = File(str(path), "power")
        unfinished, last = file.open(NOW)
        assert [(row.row, row.batch, row.uncounted_attempts, row.wait_seconds) for row in unfinished] == [
            (3, 3, 1, None),
            (4, 3, 0, None),
            (5, None, 0, 7.0),
            (7, None, 0, None),
        ]
        assert last == 7
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            insert_by_hand(path, status="READY", key="k")
        file.close()
    assert rows(path, "id, status, attempts, finished_at, return_value") == [
        ("a", "READY", 2, None, None),
        ("b", "HELD", 0, None, None),
        ("c", "WAITING", 1, None, None),
        ("d", "SUCCESSFUL", 1, 13.0, '"v"'),
        ("e", "READY", 0, None, None),
    ]
    assert version(path) == SCHEMA_VERSION == 2


def left_behind(path: Path) -> None:
    file = File(str(path), "power")
    file.open(NOW)
    write(file, {"inserts": insert(1, 2)})
    file.close()


def test_an_upgrade_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind(path)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "SCHEMA_VERSION", 3)
        patch.setitem(UPGRADES, 2, "ALTER TABLE runs ADD COLUMN colour TEXT; SELECT nonsense;")
        with pytest.raises(JournalUnusable, match="no such column: nonsense"):
            File(str(path), "power").open(NOW)
    assert version(path) == 2
    file = File(str(path), "power")
    assert [row.row for row in file.open(NOW)[0]] == [1, 2]
    file.close()


def test_a_file_of_a_newer_schema_is_refused_and_left_as_it_is(path: Path) -> None:
    left_behind(path)
    change(path, "PRAGMA user_version = 3")
    before = path.read_bytes()
    with pytest.raises(JournalUnusable, match=r"tasks\.db has schema 3, of a newer minibg: this one reads up to 2"):
        File(str(path), "power").open(NOW)
    assert path.read_bytes() == before


# --- the plans of the queries ---


def statements() -> dict[str, str]:
    """Return every statement that names the table, also one that is added tomorrow, and the steps of the trigger."""
    texts = {name: text for name, text in vars(schema).items() if isinstance(text, str) and name.isupper()}
    texts |= {f"command {n}": text for n, text in vars(tasks_command).items() if isinstance(text, str) and n.isupper()}
    _, _, steps = schema.TRIGGER.rpartition("BEGIN")
    texts |= {f"step {n}": re.sub(r"NEW\.\w+", "?", text) for n, text in enumerate(steps.split(";")[:-2])}
    verbs = re.compile(r"\s*(SELECT|UPDATE|INSERT|DELETE)\b.*\bruns\b", re.DOTALL)
    return {name: text for name, text in texts.items() if verbs.match(text)}


def plan(database: sqlite3.Connection, statement: str) -> list[str]:
    numbers = [int(number) for number in re.findall(r"\?(\d+)", statement)]
    values = (None,) * (max(numbers) if numbers else statement.count("?"))
    return [detail for *_, detail in database.execute(f"EXPLAIN QUERY PLAN {statement}", values)]


def scans_all_runs(detail: str) -> bool:
    """Return whether a step visits every run. A scan of these partial indexes visits only the rows that are wanted."""
    if not re.match(r"SCAN runs\b", detail):
        return False
    index = re.search(r"USING (?:COVERING )?INDEX (\w+)", detail)
    return index is None or index[1] not in ("unfinished", "requested")


@pytest.mark.parametrize("analysed", [False, True])
@pytest.mark.parametrize(("finished", "unfinished"), [(20_000, 100), (100, 5_000), (0, 0)])
def test_no_statement_scans_all_runs(file: File, path: Path, finished: int, unfinished: int, analysed: bool) -> None:
    many = """WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
        INSERT INTO runs (id, batch, name, arguments, overrides, key, origin, added_at, status, finished_at)
        SELECT hex(randomblob(16)), i, 'mail', '[]', '{}', iif(i % 2, hex(randomblob(4)), NULL), '', i, ?, ?
        FROM n WHERE ? > 0"""
    change(path, many, finished, "SUCCESSFUL", NOW, finished)
    change(path, many, unfinished, "READY", None, unfinished)
    if analysed:
        change(path, "ANALYZE")
    database = connect(str(path), "rw")
    plans = {name: plan(database, text) for name, text in statements().items()}
    database.close()
    assert len(plans) > 20
    assert {name for name in plans if name.startswith("step")} == {f"step {n}" for n in range(4)}
    scanning = {name for name, steps in plans.items() if any(map(scans_all_runs, steps))}
    assert scanning <= {"command NEWEST", "command COUNTS"}  # Backwards to its limit; and what is counted is visited.
    assert any("SEARCH runs" in step for steps in plans.values() for step in steps)


def test_a_plan_that_scans_all_runs_is_recognised(file: File, path: Path) -> None:
    scans = [
        "SELECT * FROM runs WHERE origin = 'x'",
        "UPDATE runs SET owner = NULL WHERE status = 'READY'",
        "DELETE FROM runs WHERE finished_at < 7 OR finished_at IS NULL",
        "SELECT count(*) FROM runs",
    ]
    database = connect(str(path), "ro")
    found = [any(map(scans_all_runs, plan(database, each))) for each in scans]
    database.close()
    assert found == [True] * 4
