"""An ASGI server on h11 and asyncio, without tasks. It imports only `minibg.asgi` from minibg.

The files in the order in which a request travels: `server` (start and stop), `protocol` (one
client), `head` and `body` (bytes to a request), `cycle` (one request), `writer` (a response to
bytes). Beside the path: `service` (shared by all connections), `limits`, `listen`, `lifespan`,
`forwarded`, `access`. The layers in pyproject.toml state which file may import which.
"""

from minibg.server.lifespan import StartupFailed
from minibg.server.limits import Limits
from minibg.server.server import Server

__all__ = ["Limits", "Server", "StartupFailed"]
