"""The messages of one request, with two readers: one of its body, one of its end.

A stream that waits for its next event does not send, so it learns of the end of its client only
from "http.disconnect". ``receive`` returns that message behind the body, and the body belongs to
the handler, which may read it while it streams. So `Incoming.left` waits for the end, and a message
of the body that it meets is kept for the reader of the body.

At most one message is kept. When more of the body follows, only its reader can come to the end, and
`Incoming.left` says so.

Rejected: to throw the rest of the body away, as Starlette does. A stream that answers what it reads
would lose a part of its request.
"""

import asyncio

from minibg.asgi import Message, Receive


class Incoming:
    """The ``receive`` of one request, whose end can be awaited beside the reader of its body."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        #: A message of the body that came while the end was awaited: it is its reader's.
        self._kept: Message | None = None
        self._turn = asyncio.Lock()

    async def __call__(self) -> Message:
        """Return the next message."""
        async with self._turn:
            message, self._kept = self._kept, None
            return message or await self._receive()

    async def left(self) -> bool:
        """Wait until the client has left, and return True. Return False at once if more of the body
        follows than the message that is kept: only its reader can see the end then.
        """
        async with self._turn:
            message = self._kept = self._kept or await self._receive()
        if message.get("more_body", False):
            return False
        while message["type"] != "http.disconnect":
            message = await self._receive()
        return True
