"""The runs that the last process has left, in batches for the workers: pure functions.

Runs that were in one batch come back in one batch, in their order. A run that has left its batch,
because of a delay, comes back alone. A row that cannot be made a run (its task is not registered
any more, or the file was edited by hand) is not lost: it stays in the file for a later start, and
the log names it.

**Suspects.** A run that was RUNNING when its process died may have killed it, or may only have run
beside the one that did. If they ran side by side again, a poisonous task would take its neighbours
along: three crashes, and all of them are FAILED. So all suspects come back as *one* batch: one
after another, in their order, each followed by its own siblings. At the next crash at most one of
them is RUNNING, and only its count rises. A run that waits for a retry is no suspect: its attempt
has ended.

What remains is an innocent run beside which three different *new* runs kill the process. To exclude
that, every other run would have to wait as long as a suspect runs. Rejected: a suspect may run for
hours.
"""

from collections.abc import Sequence

from minibg.background.journal import codec
from minibg.background.journal.schema import Row
from minibg.background.result import TaskStatus
from minibg.background.run import Run


def recover(rows: Sequence[Row], now: float) -> tuple[list[list[Run]], list[str]]:
    """Return the runs of unfinished rows in batches, and a description of each row that cannot be
    made a run.
    """
    batches: dict[int, list[Run]] = {}
    suspects: set[int] = set()
    unknown: list[str] = []
    for row in rows:
        try:
            run = codec.decode_run(row, now)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one row, the others run.
            unknown.append(f"{row.describe()} ({type(error).__name__}: {error})")
            continue
        # A run that is alone has a batch of its own here: no row is negative.
        batch = -row.row if row.batch is None or _will_leave(run, row) else row.batch
        batches.setdefault(batch, []).append(run)
        if row.crashes and row.status == TaskStatus.READY:
            suspects.add(batch)
    return _chain(batches, suspects), unknown


def _will_leave(run: Run, row: Row) -> bool:
    """Return whether a run has a delay that has not begun, because its process died before the
    release.
    """
    return row.status == TaskStatus.HELD and (run.options.delay is not None or run.options.run_at is not None)


def _chain(batches: dict[int, list[Run]], suspects: set[int]) -> list[list[Run]]:
    """Join the batches of the suspects into the first of them."""
    chain: list[Run] = []
    joined: list[list[Run]] = []
    for number, batch in batches.items():
        if number not in suspects:
            joined.append(batch)
            continue
        if not chain:
            joined.append(chain)
        chain += batch
    return joined
