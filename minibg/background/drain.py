"""What a stop has to say: which runs did not finish, and what became of them.

The report is a value. The pool fills it while it stops, logs it, and gives it back to whoever called `Pool.stop`; the
tests compare it. One line per run that did not finish, and a summary.
"""

from dataclasses import dataclass
from datetime import datetime

from minibg.background.result import TaskStatus
from minibg.background.run import Run, of_origin


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A run that the stop did not wait for."""

    id: str
    name: str
    origin: str
    #: Seconds since it was added.
    age: float
    #: Where it was when the waiting ended.
    was: TaskStatus
    #: What became of it.
    became: TaskStatus
    #: Its thread cannot be stopped, and may still be at work while the process exits.
    in_thread: bool = False

    @classmethod
    def of(cls, run: Run, was: TaskStatus, now: datetime, *, in_thread: bool) -> "Unfinished":
        result = run.result
        age = (now - result.added_at).total_seconds()
        return cls(result.id, result.name, result.origin, age, was, result.status, in_thread)

    def __str__(self) -> str:
        kept = "" if self.became.is_final else ", kept for the next start"
        thread = ", its thread is still at work" if self.in_thread else ""
        return f"{self.name} {self.id}{of_origin(self.origin)}, {self.age:.1f} s old, was {self.was}: {self.became}{kept}{thread}"


@dataclass(frozen=True, slots=True)
class DrainReport:
    """How a stop went."""

    #: How many runs ended while it waited.
    finished: int
    #: Those that did not.
    unfinished: tuple[Unfinished, ...]
    #: Seconds it took.
    seconds: float

    def __str__(self) -> str:
        return f"drained in {self.seconds:.1f} s: {self.finished} finished, {len(self.unfinished)} did not"
