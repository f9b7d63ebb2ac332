"""Make batches for the workers from the runs that the last process has left: pure functions.

Runs that were in one batch come back in one batch, in their order. A run that has left its batch,
because of a delay, comes back alone. If a row cannot be decoded (its task is not registered any
more, or the file was edited by hand), it stays in the file for a later start, and the log names it.

**Suspects.** A run that was RUNNING when its process died may have killed the process, or may only
have run at the same time as the run that did. If they ran at the same time again, a poisonous run
would kill them all twice more, and all of them would be FAILED after three crashes. So all suspects
come back as *one* batch and run one after another, in their order, each followed by its own
siblings. At the next crash at most one of them is RUNNING, and only its count rises. A run that
waits for a retry is not a suspect, because its attempt has ended.

One case remains: an innocent run becomes FAILED if three different *new* runs kill the process
beside it. Rejected: to let all other runs wait while a suspect runs, which may take hours.
"""

from collections.abc import Sequence

from minibg.background.journal import codec
from minibg.background.journal.schema import Row
from minibg.background.result import TaskStatus
from minibg.background.run import Run


def recover(rows: Sequence[Row], now: float) -> tuple[list[list[Run]], list[str]]:
    """Return the runs of unfinished rows in batches, and a description of each undecodable row."""
    batches: dict[int, list[Run]] = {}
    suspects: set[int] = set()
    unknown: list[str] = []
    for row in rows:
        try:
            run = codec.decode_run(row, now)
        except Exception as error:  # noqa: BLE001 - a faulty row must not stop the others.
            unknown.append(f"{row.describe()} ({type(error).__name__}: {error})")
            continue
        # A run that is alone gets a batch number of its own. It is negative, and no row number is.
        batch = -row.row if row.batch is None or _will_leave(run, row) else row.batch
        batches.setdefault(batch, []).append(run)
        if row.crashes and row.status == TaskStatus.READY:
            suspects.add(batch)
    return _chain(batches, suspects), unknown


def _will_leave(run: Run, row: Row) -> bool:
    """Return whether a run has a delay that has not begun, because it was not released yet."""
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
