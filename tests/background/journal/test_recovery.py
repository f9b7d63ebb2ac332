"""The batches that a start gets back from rows."""

from typing import Any

import pytest

from minibg.background.journal.recovery import recover
from minibg.background.journal.schema import Row
from tests.background.journal.files import NOW


def row(number: int, batch: int | None = None, status: str = "READY", **columns: Any) -> Row:
    given: dict[str, Any] = dict.fromkeys(Row.__dataclass_fields__)
    given |= {"row": number, "id": str(number), "batch": batch, "name": "play", "status": status, "origin": ""}
    given |= {"arguments": '[["a"], {}]', "overrides": "{}", "errors": "[]", "added_at": NOW}
    given |= {"attempts": 0, "uncounted_attempts": 0, "crashes": 0, **columns}
    return Row(**given)


DELAY = '{"delay": 5}'


@pytest.mark.parametrize(
    ("rows", "batches"),
    [
        ([], []),
        ([row(1, 1), row(2, 1), row(3, 3), row(4, 1)], [[1, 2, 4], [3]]),
        ([row(1), row(2), row(3, 3)], [[1], [2], [3]]),
        # The first of a batch has ended: the batch keeps its number.
        ([row(2, 1), row(3, 3), row(4, 1)], [[2, 4], [3]]),
        # A run with a delay leaves its batch when it is released, which was still to come.
        ([row(1, 1, "HELD", overrides=DELAY), row(2, 1, "HELD")], [[1], [2]]),
        ([row(1, None, "WAITING", overrides=DELAY, due_at=NOW, wait_seconds=5), row(2, 1, "HELD")], [[1], [2]]),
        # A run that waits for its retry does not.
        ([row(1, 1, "WAITING", due_at=NOW, wait_seconds=5, attempts=1), row(2, 1)], [[1, 2]]),
        # Suspects come back one after another, each with its siblings, where the first of them was.
        (
            [row(1, 1), row(2, 2, crashes=1), row(3, 2), row(4, 4), row(5, 5, crashes=2), row(6, 6)],
            [[1], [2, 3, 5], [4], [6]],
        ),
        ([row(1, 1, crashes=1), row(2, None, crashes=1), row(3, None, crashes=1)], [[1, 2, 3]]),
        # One that waits for its retry has ended an attempt.
        ([row(1, 1, "WAITING", due_at=NOW, wait_seconds=5, crashes=1), row(2, 2, crashes=1)], [[1], [2]]),
    ],
    ids=lambda value: str([each.row for each in value]) if value and isinstance(value[0], Row) else str(value),
)
def test_runs_come_back_in_the_batches_they_were_in(rows: list[Row], batches: list[list[int]]) -> None:
    recovered, unknown = recover(rows, NOW)
    assert [[run.stored.row for run in batch if run.stored] for batch in recovered] == batches
    assert unknown == []


def test_a_row_that_cannot_be_a_run_is_described_on_one_line_and_the_others_come_back() -> None:
    rows = [row(1), row(2, name="a name\nERROR forged"), row(3, arguments="{"), row(4)]
    recovered, unknown = recover(rows, NOW)
    assert [[run.result.id for run in batch] for batch in recovered] == [["1"], ["4"]]
    assert [line.split(" (")[0] for line in unknown] == ["a name\\nERROR forged 2", "play 3"]
