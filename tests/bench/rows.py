"""A journal with many rows: one real run, written by minibg, and copies of its row. Used by the bench `scale`."""

import asyncio
import logging
import sqlite3
import time
from pathlib import Path

from minibg import Pool
from minibg.serving import loop_factory
from tests.bench.apps.minibg_app import noop


def fill(journal: Path, rows: int, *, finished: bool) -> None:
    """Make a journal with ``rows`` runs of the no-op task: finished a moment ago, or all waiting for an hour."""

    logging.getLogger("minibg").setLevel(logging.ERROR)  # The drain reports the task that waits.

    async def one() -> None:
        async with Pool(journal=journal, drain_timeout=0.0) as pool:
            await pool.aenqueue(noop if finished else noop.using(delay=3600.0))
            if finished:
                await pool.idle()

    with asyncio.Runner(loop_factory=loop_factory("auto")) as runner:
        runner.run(one())
    with sqlite3.connect(journal) as file:
        columns = [name for _, name, *_ in file.execute("PRAGMA table_info(runs)") if name not in {"row", "id"}]
        names = ", ".join(columns)
        # An id is twelve digits of time and twenty more; those of the copies are older than any new one.
        file.execute(
            f"WITH RECURSIVE number (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM number WHERE n < ?)"
            f" INSERT INTO runs (row, id, {names}) SELECT n, printf('%012x%020x', ?, n), {names} FROM number, runs"
            " WHERE row = (SELECT max(row) FROM runs)",
            (max(rows, 2), int(time.time() * 1000) - 1000),
        )
    file.close()
