"""The messages of one request, with two readers: one of its body, one of its end.

A stream that waits for its next event does not send, so it learns of the end of its client only
from "http.disconnect". ``receive`` returns that message behind the body, and the body belongs to
the handler, which may read it while it streams. So `Incoming.left` waits for the end, and a message
of the body that it meets is kept for the reader of the body.

At most one message is kept. When more of the body follows and the kept message is taken within
`READER` seconds, the body has a reader, who comes to the end. Otherwise the rest is thrown away, so
that a client that leaves in the middle of a body is noticed as well; a later reader gets an error.

Rejected: to throw the whole body away, as Starlette does. A stream that answers what it reads would
lose a part of its request.
"""

import asyncio

from minibg.asgi import Message, Receive

#: Seconds in which a stream begins to read a body of more than one message, if it does.
READER = 0.5


class Incoming:
    """The ``receive`` of one request, whose end can be awaited beside the reader of its body."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        #: A message of the body that came while the end was awaited: it is its reader's.
        self._kept: Message | None = None
        #: The rest of the body was thrown away.
        self._lost = False
        self._turn = asyncio.Lock()

    async def __call__(self) -> Message:
        """Return the next message. Raises RuntimeError when the rest of the body was thrown away."""
        if self._lost:
            raise RuntimeError("the body was thrown away: its stream had begun, and did not read it")
        async with self._turn:
            message, self._kept = self._kept, None
            return message or await self._receive()

    async def left(self) -> bool:
        """Wait until the client has left, and return True. Return False if the body has a reader."""
        async with self._turn:
            message = self._kept = self._kept or await self._receive()
        if message.get("more_body", False):
            await asyncio.sleep(READER)
            if self._kept is not message:
                return False
            self._lost = True
        while message["type"] != "http.disconnect":
            message = await self._receive()
        return True
