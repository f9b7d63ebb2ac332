"""Forms: ``application/x-www-form-urlencoded`` by the standard library, ``multipart/form-data`` by `multipart`.

The library is an optional extra, ``minibg[forms]``. It is a push parser without input or output, so this file decides
where the bytes go: text fields into memory, files into a temporary file that stays in memory up to 1 MiB. Parsing and
writing happen in the application's threads, one chunk at a time; the loop never waits for a disk.

A form is bounded before it is read: so many parts, so much text. A form over a bound is answered with 413, a
malformed one with 400. How many bytes a file may have is the server's limit on bodies.

An upload is closed when nobody refers to it any more, and not when the response has left: a background task may
read the file it was given. Starlette closes it first, and then the task finds a closed file.
"""

import weakref
from collections.abc import AsyncIterator, Generator
from email.message import Message
from tempfile import SpooledTemporaryFile
from urllib.parse import parse_qsl

from minibg.web.exceptions import HTTPException
from minibg.web.fields import MultiDict
from minibg.web.threads import Threads

#: Parts of one form, as in Starlette. A part costs objects, however small it is.
MAX_PARTS = 1000
#: Bytes of all text fields of one form together: they are kept in memory.
MAX_TEXT = 1024 * 1024
#: Bytes of one file kept in memory before it moves to the disk, as in Starlette.
SPOOLED = 1024 * 1024


class UploadFile:
    """A file of a form. Reading happens in a thread, since the file may be on the disk."""

    def __init__(self, threads: Threads, filename: str | None, headers: dict[str, str]) -> None:
        self.filename, self.headers, self.content_type = filename, headers, headers.get("content-type")
        self.size = 0  #: bytes
        self.file: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(SPOOLED)  # noqa: SIM115 - closed by the finalizer
        self._threads = threads
        weakref.finalize(self, self.file.close)

    async def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, or all that follow."""
        return await self._threads.run(self.file.read, size)

    async def seek(self, offset: int) -> None:
        """Continue reading at this byte."""
        await self._threads.run(self.file.seek, offset)


FormData = MultiDict[str | UploadFile]


async def parse_form(content_type: str, chunks: AsyncIterator[bytes], threads: Threads) -> FormData:
    """The form in a body of that content type; an empty one when the body is no form."""
    head = Message()
    head["content-type"] = content_type
    try:
        if head.get_content_type() == "application/x-www-form-urlencoded":
            text = b"".join([chunk async for chunk in chunks]).decode()
            return FormData(parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_PARTS))
        if head.get_content_type() != "multipart/form-data":
            return FormData()
        parts = _parts(head.get_boundary(""), threads)
        fields = next(parts)
        async for chunk in chunks:
            await threads.run(parts.send, chunk)
        await threads.run(parts.send, b"")
        return FormData(fields)
    except ValueError as error:  # of the parser, which says when it was too much; of parse_qsl; of a text's encoding
        status = 413 if getattr(error, "http_status", 400) == 413 else 400
        raise HTTPException(status, f"The form cannot be read: {error}") from error


def _parts(boundary: str, threads: Threads) -> Generator[list[tuple[str, str | UploadFile]], bytes, None]:
    """A generator that is sent the body, chunk by chunk, and fills the list it yields."""
    try:
        from multipart import ParserLimitReached, PushMultipartParser  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise RuntimeError("multipart/form-data needs the library `multipart`: install minibg[forms]") from error
    parser = PushMultipartParser(boundary, max_segment_count=MAX_PARTS)
    fields: list[tuple[str, str | UploadFile]] = []
    name, part, text = "", UploadFile(threads, None, {}), 0
    while True:
        chunk = yield fields
        for event in () if parser.closed else parser.parse(chunk):  # RFC 2046 §5.1.1: the epilogue is ignored
            if event is None:
                part.file.seek(0)
                fields.append((name, part.file.read().decode() if part.filename is None else part))
            elif isinstance(event, bytes | bytearray):
                part.size += part.file.write(event)
                text += len(event) if part.filename is None else 0
                if text > MAX_TEXT:
                    raise ParserLimitReached(f"all text together may have {MAX_TEXT} bytes")
            else:
                headers = {field.lower(): value for field, value in event.headerlist}
                name, part = event.name, UploadFile(threads, event.filename, headers)
