"""An ASGI server on h11 and asyncio. Tasks do not exist here: it imports nothing of minibg but `minibg.asgi`.

The files in reading order: `limits`, `server` (start and stop), `listen`, `lifespan`,
`protocol` (one client), `head` and `body` (bytes to a request), `cycle` (one request), `writer` (a response to bytes),
`forwarded` and `access`.
"""

from minibg.server.lifespan import StartupFailed
from minibg.server.limits import Limits
from minibg.server.server import Server

__all__ = ["Limits", "Server", "StartupFailed"]
