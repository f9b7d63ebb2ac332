"""The contract between the folders: the shape of an ASGI application (ASGI 3.0).

An application is one asynchronous callable. The server calls it once per request with

- a *scope*: a dict that describes the request (method, path, headers, ...),
- *receive*: awaited for the next message from the client,
- *send*: awaited with the next message to the client.

Every layer between the server and a handler is such a callable: the server does not know the
framework, the joint (`minibg.after_response`) knows neither of them, and each of the three also
works with other ASGI servers and frameworks. For that reason this file is imported by the server,
the joint and the framework alike.

The types are as loose as the specification: scopes and messages are dicts whose keys depend on
their ``"type"``. Code that reads a message cites the section of the specification on which it
relies.

Rejected: typed messages (a TypedDict for each, as in asgiref). The applications that pass through
here are other people's, so every value would still have to be checked where it is read.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

#: The description of one request or of one lifespan. A new dict for each call of the application.
Scope = MutableMapping[str, Any]
#: One message; its ``"type"`` says which.
Message = MutableMapping[str, Any]
#: Waits for the next message to the application.
Receive = Callable[[], Awaitable[Message]]
#: Takes one message of the application. Raises `ClientDisconnected` when the client has gone.
Send = Callable[[Message], Awaitable[None]]
#: An application, or a layer around one.
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class ClientDisconnected(OSError):
    """Raised by ``send`` when the connection to the client is lost.

    It is an ``OSError``, as ASGI http 2.4 asks ("Disconnected Client"), so that an application which
    catches ``OSError`` around its ``send`` works on every server that follows the specification.
    """
