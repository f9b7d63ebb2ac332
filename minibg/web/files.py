"""Which bytes of a file a request asks for: conditional requests and ranges (RFC 9110 §13, §14),
decided without I/O.

`select` follows the order of §13.2.2: first whether the client has the file already
(``If-None-Match``, else ``If-Modified-Since``), then whether it wants a part of it (``Range``,
guarded by ``If-Range``). The file itself is opened, measured and read by `response.FileResponse`.

Where the RFC leaves a choice, this file takes the simple one:

- Several ranges at once are answered with the whole file, which §14.2 allows. Answers in several
  parts are rare, and a thousand overlapping ranges are a known attack.
- ``If-Modified-Since`` is compared for equality. §13.1.3 would accept later dates too; browsers
  repeat the date that they were given.
- Preconditions that protect writes (``If-Match``, ``If-Unmodified-Since``) are the handler's
  business.
"""

import re

from minibg.asgi import Scope
from minibg.web.fields import Headers, MutableHeaders

#: One range of bytes. Eighteen digits are more than any file has, and fewer than an integer that is
#: slow to read.
RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def select(scope: Scope, headers: MutableHeaders, size: int) -> tuple[int, int, int]:
    """Return the status, the first byte, and the byte after the last, of the answer to a GET or
    HEAD.

    ``headers`` are those of the response: the request's conditions are compared with ``etag`` and
    ``last-modified``, and a Content-Range is added where one is due.
    """
    asked, etag, modified = Headers(scope["headers"]), headers["etag"], headers["last-modified"]
    # §13.1.2: tags are compared weakly, and If-Modified-Since is ignored beside them.
    known = {tag.strip().removeprefix("W/") for tag in asked.get("if-none-match", "").split(",")}
    is_current = {etag, "*"} & known if "if-none-match" in asked else asked.get("if-modified-since") == modified
    if is_current:
        return 304, 0, 0
    # §14.2: Range is for GET, and a malformed one is ignored. §13.1.5: If-Range is compared
    # strongly.
    found = RANGE.fullmatch(asked.get("range", ""))
    if scope["method"] != "GET" or found is None or asked.get("if-range", etag) not in {etag, modified}:
        return 200, 0, size
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last or 0))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        headers["content-range"] = f"bytes */{size}"
        return 416, 0, 0
    headers["content-range"] = f"bytes {start}-{stop - 1}/{size}"
    return 206, start, stop
