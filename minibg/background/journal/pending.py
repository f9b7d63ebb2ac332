"""A group that is being filled: changes of runs, until the journal's thread is free to write them.

`schema.Group` is the data that the thread writes. A `PendingGroup` is the same data while the event
loop fills it. The table `WRITES` maps each event to its write. Two rules:

- **A later change of a run wins**, since the dicts have one entry for each row. A run that is
  released, deferred and due between two writes costs one update.
- **A run that ends before it is inserted leaves no trace.** Its insert is removed from the group,
  and no reader ever sees the run.
"""

import asyncio
from enum import Enum, auto

from minibg.background.journal import codec
from minibg.background.journal.schema import Group
from minibg.background.result import Event
from minibg.background.run import Run, StoredRun


class Write(Enum):
    """The write that follows from an event."""

    #: No write: the file has the change already, or does not need it.
    NOTHING = auto()
    #: READY: no write of its own before the claim; a write at the next tick if no claim came by
    #: then.
    WITH_CLAIM = auto()
    #: WAITING: an update in the next group.
    UPDATE = auto()
    #: The end of an attempt or of the run, in the next group.
    END = auto()


WRITES = {
    Event.ADD: Write.NOTHING,  # The commit inserts it.
    Event.RELEASE: Write.WITH_CLAIM,
    Event.DEFER: Write.UPDATE,
    Event.DUE: Write.WITH_CLAIM,
    Event.START: Write.NOTHING,  # The claim has written it.
    Event.SUCCEED: Write.END,
    Event.FAIL: Write.END,
    Event.RETRY: Write.END,
    Event.CANCEL: Write.END,
    Event.DROP: Write.END,
    Event.REQUEUE: Write.NOTHING,  # `close` requeues whatever is RUNNING, in one statement.
    Event.LOSE: Write.NOTHING,  # Only a run that is not in the file is lost.
}


class PendingGroup(Group):
    """A group that is being filled, and the event for which its commits and claims wait."""

    def __init__(self) -> None:
        super().__init__()
        #: The runs of its inserts, also of the removed ones.
        self.runs: list[Run] = []
        #: Set after the write, also after a failed one. It is no future, because a second response
        #: with the same run may begin to wait when it is already set.
        self.written = asyncio.Event()

    def insert(self, run: Run, stored: StoredRun, row: int, first: StoredRun | None) -> None:
        """Add the insert of a run. ``first``: the first run of its batch; None if the run is alone."""
        stored.row = row
        stored.batch = None if first is None else first.batch or first.row
        self.inserts[row] = codec.insert_fields(run, stored)
        self.runs.append(run)

    def update(self, run: Run, stored: StoredRun, now: float) -> None:
        """Add the status of a run that is READY or WAITING."""
        if stored.row is not None:
            self.updates[stored.row] = codec.update_fields(run, stored, now)

    def end(self, run: Run, stored: StoredRun, now: float) -> None:
        """Add the end of an attempt, or remove the insert of a run that ends before it is written."""
        if stored.row in self.inserts:
            del self.inserts[stored.row]
            self.updates.pop(stored.row, None)
            stored.row = None
        elif stored.row is not None:
            self.ends[stored.row] = codec.end_fields(run, stored, now)

    def take_over(self, failed: Group) -> None:
        """Add the changes of a failed group. If both groups change a run, the change of this one is
        newer.
        """
        self.ends = failed.ends | self.ends
        self.updates = failed.updates | self.updates
        self.answers = failed.answers | self.answers

    def fail(self, error: Exception) -> None:
        """Note an error for the whole group, unless the thread has noted errors itself."""
        self.insert_error = self.insert_error or error
        self.update_error = self.update_error or error
