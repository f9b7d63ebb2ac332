"""Which bytes of a file a request asks for: conditional requests and ranges (RFC 9110 §13, §14), decided without I/O.

`select` follows the order of §13.2.2: first whether the client has the file already (``If-None-Match``, else
``If-Modified-Since``), then whether it wants a part of it (``Range``, guarded by ``If-Range``). The file itself is
opened, measured and read by `response.FileResponse`.

Where the RFC leaves a choice, this file takes the simple one:

- Several ranges at once are answered with the whole file, which §14.2 allows. Multipart answers are rare, and a list of
  thousand overlapping ranges is a known attack.
- ``If-Modified-Since`` is compared for equality. §13.1.3 would accept later dates too; browsers repeat the date that
  they were given.
- Preconditions that protect writes (``If-Match``, ``If-Unmodified-Since``) are the handler's business.
"""

import re
from dataclasses import dataclass

from minibg.web.fields import Headers

#: One range of bytes. Eighteen digits are more than any file has, and fewer than an integer that is slow to read.
RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class Selection:
    """The status of the answer, and the bytes ``start`` to ``stop`` (exclusive) that it carries."""

    status: int
    start: int
    stop: int
    #: The Content-Range of a part, or of a range that the file does not have; else None.
    content_range: str | None = None


def select(method: str, asked: Headers, shown: Headers, size: int) -> Selection:
    """Return the answer to a GET or HEAD for a file of ``size`` bytes.

    ``asked`` are the header fields of the request; of ``shown``, the ones of the response, ``etag`` and
    ``last-modified`` are compared with them.
    """
    etag, modified = shown["etag"], shown["last-modified"]
    if "if-none-match" in asked:
        # §13.1.2: tags are compared weakly, and If-Modified-Since is ignored.
        known = [tag.strip().removeprefix("W/") for tag in asked["if-none-match"].split(",")]
        is_current = etag in known or "*" in known
    else:
        is_current = asked.get("if-modified-since") == modified
    if is_current:
        return Selection(304, 0, 0)
    # §14.2: Range is for GET, and a range that is malformed is ignored. §13.1.5: If-Range is compared strongly.
    found = RANGE.fullmatch(asked.get("range", ""))
    if method != "GET" or found is None or asked.get("if-range", etag) not in {etag, modified}:
        return Selection(200, 0, size)
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last or 0))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        return Selection(416, 0, 0, f"bytes */{size}")
    return Selection(206, start, stop, f"bytes {start}-{stop - 1}/{size}")
