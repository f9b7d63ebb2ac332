"""Forms: ``application/x-www-form-urlencoded`` by the standard library, ``multipart/form-data`` by
`multipart`.

The library is an optional extra, ``minibg[forms]``. It is a push parser without input or output, so
this file decides where the bytes go: text fields into memory, files into a temporary file that
stays in memory up to 1 MiB. Parsing and writing happen in the application's threads; the event loop
never waits for a disk, nor for a form of many fields.

A form is bounded while it is read, whichever of the two it is: `MAX_PARTS` fields, `MAX_TEXT` bytes
of text. A form over a bound is answered with 413, a malformed one with 400. The size of an uploaded
file is the server's limit on bodies.

A Content-Type is searched for the two words that matter, in linear time. `email.message`, which
knows everything about it, takes 0.8 s for one of 32 KB.

An upload is closed when nothing refers to it any more, and not when the response has left: a
background task may read the file that it was given. Starlette closes it first, and then the task
finds a closed file.
"""

import re
import weakref
from collections.abc import AsyncIterator, Generator
from tempfile import SpooledTemporaryFile
from urllib.parse import parse_qsl

from minibg.threads import Threads
from minibg.web.exceptions import HTTPException
from minibg.web.fields import MultiDict

#: Fields of one form, as in Starlette. Each costs objects, however small it is.
MAX_PARTS = 1000
#: Bytes of all text fields of one form together: they are kept in memory.
MAX_TEXT = 1024 * 1024
#: Bytes of one file kept in memory before it moves to the disk, as in Starlette.
SPOOLED = 1024 * 1024
#: A parameter of a media type (RFC 9110 §5.6.6). A boundary has at most 70 characters (RFC 2046
#: §5.1.1).
BOUNDARY = re.compile(r'(?:^|;)\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))\s*(?:;|$)', re.IGNORECASE)


class UploadFile:
    """A file of a form. It is read in a thread, since it may be on the disk.

    ``filename`` is the client's name for it, ``headers`` the header fields of its part by
    lower-case name, ``content_type`` one of them, and ``file`` the temporary file itself.
    """

    def __init__(self, threads: Threads, filename: str | None, headers: dict[str, str]) -> None:
        self.filename, self.headers, self.content_type = filename, headers, headers.get("content-type")
        #: ``size`` is in bytes.
        self.size, self._threads = 0, threads
        self.file: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(SPOOLED)  # noqa: SIM115 - closed by the finalizer
        weakref.finalize(self, self.file.close)

    async def read(self, size: int = -1) -> bytes:
        """Return at most ``size`` bytes, by default all that follow."""
        return await self._threads.run(self.file.read, size)

    async def seek(self, offset: int) -> None:
        """Continue reading at this byte."""
        await self._threads.run(self.file.seek, offset)


FormData = MultiDict[str | UploadFile]


async def parse_form(content_type: str, chunks: AsyncIterator[bytes], threads: Threads) -> FormData:
    """Return the form in a body of that content type, an empty one when the body is no form.

    Raises HTTPException: 400 for a malformed form, 413 for one over a bound.
    """
    media_type, _, parameters = content_type.partition(";")
    media_type = media_type.strip().lower()
    try:
        if media_type == "application/x-www-form-urlencoded":
            body = bytearray()
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_TEXT:
                    raise _too_much(f"{MAX_TEXT} bytes of text")
            return FormData(await threads.run(_pairs, body))
        if media_type != "multipart/form-data":
            return FormData()
        found = BOUNDARY.search(parameters)
        parts = _parts(found[1] or found[2] if found else "", threads)
        fields = next(parts)
        async for chunk in chunks:
            await threads.run(parts.send, chunk)
        await threads.run(parts.send, b"")
        return FormData(fields)
    except ValueError as error:  # Of the parser, whose limits have a status, or of a text that is no UTF-8.
        status = 413 if getattr(error, "http_status", 400) == 413 else 400
        raise HTTPException(status, f"The form cannot be read: {error}") from error


def _pairs(body: bytearray) -> list[tuple[str, str]]:
    if body.count(b"&") >= MAX_PARTS:
        raise _too_much(f"{MAX_PARTS} fields")
    return parse_qsl(body.decode(), keep_blank_values=True)


def _parts(boundary: str, threads: Threads) -> Generator[list[tuple[str, str | UploadFile]], bytes, None]:
    """Return a generator that is sent the body by chunks, and fills the list that it yields."""
    try:
        from multipart import PushMultipartParser  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise RuntimeError("multipart/form-data needs the library `multipart`: install minibg[forms]") from error
    parser = PushMultipartParser(boundary, max_segment_count=MAX_PARTS)
    fields: list[tuple[str, str | UploadFile]] = []
    name, part, text = "", UploadFile(threads, None, {}), 0
    while True:
        chunk = yield fields
        # RFC 2046 §5.1.1: the epilogue is ignored.
        for event in () if parser.closed else parser.parse(chunk):
            if event is None:  # The end of a part.
                part.file.seek(0)
                fields.append((name, part.file.read().decode() if part.filename is None else part))
            elif isinstance(event, bytes | bytearray):
                part.size += part.file.write(event)
                text += len(event) if part.filename is None else 0
                if text > MAX_TEXT:
                    raise _too_much(f"{MAX_TEXT} bytes of text")
            else:  # The head of a part.
                headers = {field.lower(): value for field, value in event.headerlist}
                name, part = event.name, UploadFile(threads, event.filename, headers)


def _too_much(bound: str) -> HTTPException:
    return HTTPException(413, f"The form cannot be read: it has more than {bound}")
