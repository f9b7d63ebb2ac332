"""The journal: the ledger kept on disk, so that accepted runs outlive the process.

Read `group_commit.py` first: class `DiskJournal` is all that the pool sees. Below it, each file
needs only those that follow: `file.py` (one SQLite file, one owner, one thread), `recovery.py`
(what a start gets back), `pending.py` (a group that gathers), `codec.py` (a run as JSON and back,
pure), `schema.py` (the table and its statements), `lock.py` (who owns the file).

A pool without a journal imports nothing of this folder: it needs fcntl, which not every system has.
"""

from minibg.background.journal.group_commit import DiskJournal

__all__ = ["DiskJournal"]
