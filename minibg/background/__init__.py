"""The after-response task queue. Standard library only; HTTP does not exist here.

In reading order:

- `retry`: whether a failed attempt is followed by another, and when
- `task`: what can be run, and with which options
- `result`: the statuses of a run, and the record it leaves
- `run`: one call, with everything that is needed to make it
- `journal`: what happened; the only place that changes a status
- `queue`: the line, and the places in it
- `threads`, `attempt`, `worker`: doing it
- `pool`: all of that put together; how it starts and stops
- `hold`: the tasks of one response
- `sqlite`, `durable`: a journal on disk, so that accepted means kept
- `periodic`, `watchdog`, `drain`, `clock`: what stands beside the path
"""

from minibg.background.clock import Clock as Clock, SystemClock as SystemClock
from minibg.background.drain import DrainReport as DrainReport, Unfinished as Unfinished
from minibg.background.hold import BackgroundTasks as BackgroundTasks
from minibg.background.journal import (
    Follower as Follower,
    IllegalTransition as IllegalTransition,
    JournalFailed as JournalFailed,
    JournalUnusable as JournalUnusable,
    Transition as Transition,
)
from minibg.background.periodic import Periodic as Periodic
from minibg.background.pool import (
    CancelOutcome as CancelOutcome,
    Pool as Pool,
    PoolStopped as PoolStopped,
    Statistics as Statistics,
)
from minibg.background.queue import NotAccepted as NotAccepted, QueueFull as QueueFull
from minibg.background.result import (
    TRANSITIONS as TRANSITIONS,
    Event as Event,
    TaskError as TaskError,
    TaskResult as TaskResult,
    TaskStatus as TaskStatus,
)
from minibg.background.retry import Retry as Retry, RetryLater as RetryLater
from minibg.background.task import Task as Task, task as task
