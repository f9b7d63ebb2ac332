"""minibg: a small asyncio web framework and ASGI server whose tasks run after the response, in the open.

The map, in the order in which a request travels:

- `minibg.serving`: `serve()` and `run()` put the parts together; `minibg.__main__` is the command
- `minibg.server`: bytes to ASGI and back. Tasks do not exist there
- `minibg.after_response`: the joint between server and queue
- `minibg.web`: ASGI to functions and back
- `minibg.background`: the queue and its workers. HTTP does not exist there
- `minibg.asgi`, `minibg.threads`, `minibg.log`: what the folders share

``minibg --explain`` prints the path of one request and its tasks, with the lines of code that do it.

The glossary. Code, comments and messages use these words, and each for one thing:

- **task**: a function that can run after a response
- **run**: one call of a task, from ``add_task`` to its final status; its record is a `TaskResult`
- **hold**: the runs of one response until it has left; handlers know it as `BackgroundTasks`
- **slot**: one unit of ``queue_limit``; a run has one from ``add_task`` on
- **commit**: accept the runs of a hold for good, just before the response head leaves
- **release**: hand the runs of a hold to the workers, after the response has left; the opposite is *drop*
- **batch**: the runs that were released together; they run one after another
- **queue**: the batches that wait for a worker
- **worker**: takes a batch and runs it
- **attempt**: one execution of a run
- **ledger**: the list of runs, records and counts in memory; the only writer of a status
- **journal**: the ledger kept on disk
- **drain**: finishing accepted runs during a stop
- **joint**: `AfterResponse`, between server and queue
- **cycle**: one request and its response, in the server

The public names, in reading order:
"""

from minibg.asgi import ASGIApp as ASGIApp, ClientDisconnected as ClientDisconnected
from minibg.background import BackgroundTasks as BackgroundTasks, Pool as Pool, QueueFull as QueueFull
from minibg.background import CancelOutcome as CancelOutcome, TaskResult as TaskResult, TaskStatus as TaskStatus
from minibg.background import Retry as Retry, RetryLater as RetryLater, task as task
from minibg.server import Limits as Limits, Server as Server
from minibg.web.app import App as App
from minibg.web.depends import Depends as Depends
from minibg.web.exceptions import HTTPException as HTTPException
from minibg.web.request import Request as Request
from minibg.web.response import FileResponse as FileResponse, HTMLResponse as HTMLResponse, JSONResponse as JSONResponse
from minibg.web.response import PlainTextResponse as PlainTextResponse, RedirectResponse as RedirectResponse
from minibg.web.response import Response as Response, StreamingResponse as StreamingResponse
from minibg.after_response import AfterResponse as AfterResponse
from minibg.serving import run as run, serve as serve

__version__ = "0.1.0"
