"""The errors of the background path, and the cause of each.

======================  ==========================================================================
`NotAccepted`           The load's. The work was refused as a whole and may be tried again later.
  `QueueFull`           The load's: every slot of the queue is taken.
  `PoolStopped`         The operator's: the pool is stopping or has stopped.
  `JournalFailed`       The disk's: the tasks could not be written.
`JournalUnusable`       The operator's: the file cannot be the journal of this process.
`IllegalTransition`     minibg's own: an event that a run's status does not allow.
======================  ==========================================================================

``add_task`` raises TypeError or ValueError for a task that can never run (a coroutine object, an
argument that is not JSON). An exception raised by the task itself is recorded in its `TaskResult`,
and not raised to the caller.

The web framework answers `NotAccepted` with a 503 and ``Retry-After``. It knows none of the
subclasses.
"""

#: Seconds. The shortest delay that ``Retry-After`` can express: it is a whole number (RFC 9110
#: §10.2.3).
SHORTEST_RETRY_AFTER = 1


class NotAccepted(Exception):
    """The tasks were refused, and none of them will run."""

    def __init__(self, message: str, *, retry_after: int = SHORTEST_RETRY_AFTER) -> None:
        super().__init__(message)
        #: Seconds after which the client may try again: the value of ``Retry-After``.
        self.retry_after = retry_after


class QueueFull(NotAccepted):
    """No slot is free: ``queue_limit`` runs are held, ready or waiting."""

    def __init__(self, limit: int, *, wanted: int = 1, retry_after: int = SHORTEST_RETRY_AFTER) -> None:
        slots = "no slot is free for another task" if wanted == 1 else f"no {wanted} slots are free together"
        super().__init__(f"{slots}: the queue's limit is {limit}", retry_after=retry_after)
        #: The pool's ``queue_limit``.
        self.limit = limit
        #: The number of slots that were requested.
        self.wanted = wanted


class PoolStopped(NotAccepted):
    """The pool accepts no more tasks: its process is about to end."""


class JournalFailed(NotAccepted):
    """The tasks were refused because they could not be written to disk."""


class JournalUnusable(Exception):
    """A file cannot be the journal of this process; the message names the file and the reason."""


class IllegalTransition(RuntimeError):
    """An event that the run's status does not allow: a fault of minibg, never of a task."""
