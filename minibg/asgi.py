"""The contract between the folders: the shape of an ASGI application (ASGI 3.0).

An application is one asynchronous callable. The server calls it once per request with

- a *scope*: a dict that says what the request is (method, path, headers, ...),
- *receive*: awaited for the next message from the client,
- *send*: awaited with the next message to the client.

Everything between the server and a handler is such a callable: the server does not know the framework, the joint
(`minibg.after_response`) does not know either of them, and each runs with anybody else's other half. That is why this
file is the only one that all the folders import.

The types are as loose as the specification: messages are dicts whose keys depend on their ``"type"``. Where a file
reads one, it says which section of the specification it relies on.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class ClientDisconnected(OSError):
    """Raised by ``send`` when the client has gone: nobody is there to read this message.

    An ``OSError``, as ASGI http 2.4 asks ("Disconnected Client"), so that an application which catches ``OSError``
    around its ``send`` works on every server that follows the specification.
    """
