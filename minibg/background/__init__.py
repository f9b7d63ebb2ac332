"""The after-response task queue. Standard library only; HTTP does not exist here.

The files of the path, in the order in which a task passes them. A file imports only files of lower
layers (see pyproject.toml):

- `hold`: the tasks of one response
- `admission`: which tasks are accepted, and when that becomes final
- `slots`: the limit of the queue
- `queue`: batches that wait for a worker, or are due later
- `worker`: takes a batch and runs it
- `attempt`, `retry`: one attempt, and the decision about the next one
- `ledger`: every run and its status; the only writer of a status
- `drain`: the stop
- `pool`: the public object around these files

Beneath the path, data without input or output: `task`, `result`, `run`, `errors`, `clock`. Beside
it: `follow`, `periodic`, `watchdog`; and `journal/`, the ledger kept on disk, behind the seam in
`kept`.
"""

from minibg.background.clock import Clock as Clock, SystemClock as SystemClock
from minibg.background.drain import DrainReport as DrainReport, Unfinished as Unfinished
from minibg.background.errors import (
    IllegalTransition as IllegalTransition,
    JournalFailed as JournalFailed,
    JournalUnusable as JournalUnusable,
    NotAccepted as NotAccepted,
    PoolStopped as PoolStopped,
    QueueFull as QueueFull,
)
from minibg.background.follow import Follower as Follower, Transition as Transition
from minibg.background.hold import BackgroundTasks as BackgroundTasks
from minibg.background.periodic import Periodic as Periodic
from minibg.background.pool import Pool as Pool
from minibg.background.result import (
    TRANSITIONS as TRANSITIONS,
    CancelOutcome as CancelOutcome,
    Event as Event,
    Statistics as Statistics,
    TaskError as TaskError,
    TaskResult as TaskResult,
    TaskStatus as TaskStatus,
)
from minibg.background.retry import Retry as Retry, RetryLater as RetryLater
from minibg.background.task import Task as Task, task as task
