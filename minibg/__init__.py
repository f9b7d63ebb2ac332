"""minibg: a small asyncio web framework and ASGI server whose tasks run after the response, in the open.

The map, in the order in which a request travels:

- `minibg.serving`: `serve()` and `run()` put the parts together; `minibg.__main__` is the command, `minibg.tasks` its other half
- `minibg.server`: bytes to ASGI and back. Knows no tasks
- `minibg.after_response`: the joint. Holds a response's tasks, releases them after its last byte
- `minibg.web`: ASGI to functions and back
- `minibg.background`: the queue and its workers. Knows no HTTP
- `minibg.asgi`: the contract between them

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
