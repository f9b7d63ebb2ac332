"""minibg: a small asyncio web framework and ASGI server whose tasks run after the response, in the open.

The map, in the order in which a request travels:

- `minibg.serving`: `serve()` and `run()` put the parts together; `minibg.__main__` is the command
- `minibg.server`: bytes to ASGI and back. Knows no tasks
- `minibg.after_response`: the joint. Holds a response's tasks, releases them after its last byte
- `minibg.web`: ASGI to functions and back
- `minibg.background`: the queue and its workers. Knows no HTTP
- `minibg.asgi`: the contract between them

The public names, in reading order:
"""

from .asgi import ASGIApp as ASGIApp, ClientDisconnected as ClientDisconnected
from .background import BackgroundTasks as BackgroundTasks, Pool as Pool, QueueFull as QueueFull
from .background import CancelOutcome as CancelOutcome, TaskResult as TaskResult, TaskStatus as TaskStatus
from .background import Retry as Retry, RetryLater as RetryLater, task as task
from .server import Limits as Limits, Server as Server
from .web.app import App as App
from .web.depends import Depends as Depends
from .web.exceptions import HTTPException as HTTPException
from .web.request import Request as Request
from .web.response import FileResponse as FileResponse, HTMLResponse as HTMLResponse, JSONResponse as JSONResponse
from .web.response import PlainTextResponse as PlainTextResponse, RedirectResponse as RedirectResponse
from .web.response import Response as Response, StreamingResponse as StreamingResponse
from .after_response import AfterResponse as AfterResponse
from .serving import run as run, serve as serve

__version__ = "0.1.0"
