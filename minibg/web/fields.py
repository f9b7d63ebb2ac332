"""Names that may repeat: the fields of a head, of a query, of a form.

`MultiDict` is a query or a form: a dict in which the last value of a name is its value (as in Starlette) and
`getlist` gives them all.

Header fields are another matter, because ASGI carries them as a list of pairs of bytes. `Headers` reads such a list, `MutableHeaders` also writes it. Neither copies it: what a handler sets on
``response.headers`` is in the list that leaves, and a request whose handler never looks at its headers pays nothing.
A dict was rejected: fields repeat (``Set-Cookie``) and their order is theirs.

Names compare without case and are lower-case in the list (ASGI http 2.5, "headers"); text is
Latin-1, the only decoding that cannot fail and loses nothing (RFC 9110 §5.5). ``headers[name]`` is the first field of
that name, as in Starlette; ``getlist`` gives all.

What is written here is not checked for stray line ends. The server checks the finished head once, whoever wrote it.
"""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import TypeVar

V = TypeVar("V")


class MultiDict(dict[str, V]):
    """The fields of a query or of a form."""

    def __init__(self, pairs: Iterable[tuple[str, V]] = ()) -> None:
        self._pairs = list(pairs)
        super().__init__(self._pairs)

    def getlist(self, name: str) -> list[V]:
        """Every value of that name, in order."""
        return [value for found, value in self._pairs if found == name]


class Headers(Mapping[str, str]):
    """The fields of a request, by name."""

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
        """The values of every field called `name`, in order."""
        wanted = name.lower().encode("latin-1")
        return [value.decode("latin-1") for found, value in self.raw if found == wanted]


class MutableHeaders(Headers, MutableMapping[str, str]):
    """The fields of a response, by name, still to be written."""

    def __setitem__(self, name: str, value: str) -> None:
        """One field of that name, whatever was there."""
        del self[name]
        self.append(name, value)

    def __delitem__(self, name: str) -> None:
        """No field of that name; it need not be there."""
        unwanted = name.lower().encode("latin-1")
        self.raw[:] = [field for field in self.raw if field[0] != unwanted]

    def append(self, name: str, value: str) -> None:
        """One more field of that name."""
        self.raw.append((name.lower().encode("latin-1"), value.encode("latin-1")))
