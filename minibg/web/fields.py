"""Names that may repeat: the header fields of a message, the pairs of a query or of a form.

`MultiDict` is a query or a form: a dict in which the last value of a name is its value (as in
Starlette), while ``getlist`` returns all of them.

ASGI carries header fields as a list of pairs of bytes. `Headers` reads such a list,
`MutableHeaders` writes it too. Neither copies it: a field that a handler sets on
``response.headers`` is in the list that is sent, and a request whose handler never reads its
headers costs nothing. A dict was rejected: fields repeat (``Set-Cookie``), and their order belongs
to the message.

Names are compared without case and are lower-case in the list (ASGI http 2.5, "headers"). Text is
Latin-1, the only decoding that cannot fail and loses nothing (RFC 9110 §5.5). ``headers[name]`` is
the first field of that name, as in Starlette; ``getlist`` returns the values of all.

**A field is checked where it is written**, in the handler: `field` raises ValueError for a CR, an
LF, a NUL or another control character. minibg's server checks the finished head once more, but
another server may check nothing, and a line end in a value would then split the response. A list of
bytes that a handler edits itself (``response.raw_headers``) passes no such check.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import TypeVar

V = TypeVar("V")

#: RFC 9110 §5.6.2.
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
#: RFC 9110 §5.5: of the control characters, a value may contain the horizontal tab.
VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


def field(name: str, value: str) -> tuple[bytes, bytes]:
    """Return one header field as ASGI carries it.

    Raises ValueError for characters that a head cannot hold.
    """
    if not TOKEN.fullmatch(name) or not VALUE.fullmatch(value):
        raise ValueError(f"no header field can hold {name!r}: {value!r}")
    return name.lower().encode("latin-1"), value.encode("latin-1")


class MultiDict(dict[str, V]):
    """The pairs of a query or of a form: a dict of each name's last value, and `getlist`."""

    def __init__(self, pairs: Iterable[tuple[str, V]] = ()) -> None:
        self._pairs = list(pairs)
        super().__init__(self._pairs)

    def getlist(self, name: str) -> list[V]:
        """Return the values of ``name`` in their order; an empty list when it is absent."""
        return [value for found, value in self._pairs if found == name]


class Headers(Mapping[str, str]):
    """The header fields of a message, by name without case.

    ``raw`` is ASGI's list of pairs of bytes.
    """

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self.raw = raw

    def __getitem__(self, name: str) -> str:
        for value in self.getlist(name):
            return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.decode("latin-1") for name, _ in self.raw))

    def __len__(self) -> int:
        return len({name for name, _ in self.raw})

    def getlist(self, name: str) -> list[str]:
        """Return the values of the fields called ``name`` in their order.

        An empty list when there is none.
        """
        wanted = name.lower().encode("latin-1")
        return [value.decode("latin-1") for found, value in self.raw if found == wanted]


class MutableHeaders(Headers, MutableMapping[str, str]):
    """The header fields of a response that has not been sent.

    Writing raises ValueError as `field` does.
    """

    def __setitem__(self, name: str, value: str) -> None:
        """Replace every field of that name with this one, which becomes the last."""
        written = field(name, value)
        del self[name]
        self.raw.append(written)

    def __delitem__(self, name: str) -> None:
        """Remove every field of that name. It may be absent."""
        unwanted = name.lower().encode("latin-1")
        self.raw[:] = [pair for pair in self.raw if pair[0] != unwanted]

    def append(self, name: str, value: str) -> None:
        """Add a field, whether or not others have that name."""
        self.raw.append(field(name, value))
