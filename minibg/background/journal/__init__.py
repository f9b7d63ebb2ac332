"""The journal: the ledger kept on disk, so that accepted runs outlive the process.

Read `group_commit.py` first: the pool uses only its class `DiskJournal`. Each file below needs only
those that follow it: `file.py` (one SQLite file, one owner, one thread), `recovery.py` (the runs
that a start gets back), `pending.py` (a group that is being filled), `codec.py` (a run as JSON and
back, pure), `schema.py` (the table and its statements), `lock.py` (the ownership of the file).

A pool without a journal imports nothing of this folder, which needs fcntl; not every system has it.
"""

from minibg.background.journal.group_commit import DiskJournal

__all__ = ["DiskJournal"]
