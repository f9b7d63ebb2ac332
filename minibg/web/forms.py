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
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
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

    def __init__(self, threads: Threads, filename: str, headers: dict[str, str]) -> None:
        self.filename = filename
        self.headers = headers
        self.content_type = headers.get("content-type")
        self.size = 0  #: bytes
        self.file: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(SPOOLED)  # noqa: SIM115 - closed below
        self._threads = threads
        weakref.finalize(self, self.file.close)

    async def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, or all that follow."""
        return await self._threads.run(self.file.read, size)

    async def seek(self, offset: int) -> None:
        """Continue reading at this byte."""
        await self._threads.run(self.file.seek, offset)

    async def close(self) -> None:
        """Give up the file now, and not when nobody refers to it."""
        await self._threads.run(self.file.close)


FormData = MultiDict[str | UploadFile]


async def parse_form(content_type: str, chunks: AsyncIterator[bytes], threads: Threads) -> FormData:
    """The form in a body of that content type; an empty one when the body is no form."""
    head = Message()
    head["content-type"] = content_type
    if head.get_content_type() == "application/x-www-form-urlencoded":
        body = b"".join([chunk async for chunk in chunks])
        with _answering_errors():
            return FormData(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_PARTS))
    if head.get_content_type() != "multipart/form-data":
        return FormData()
    parts = _Parts(head.get_boundary(""), threads)
    async for chunk in chunks:
        await threads.run(parts.feed, chunk)
    await threads.run(parts.feed, b"")
    return FormData(parts.fields)


class _Parts:
    """The parts of one multipart body, as they arrive."""

    def __init__(self, boundary: str, threads: Threads) -> None:
        try:
            from multipart import PushMultipartParser  # noqa: PLC0415 - an optional extra
        except ImportError as error:
            raise RuntimeError(
                "multipart/form-data needs the library `multipart`: install minibg[forms]"
            ) from error
        self.fields: list[tuple[str, str | UploadFile]] = []
        self._threads = threads
        self._text_left = MAX_TEXT
        self._part: tuple[str, UploadFile | bytearray] = ("", bytearray())
        with _answering_errors():
            self._parser = PushMultipartParser(boundary, max_segment_count=MAX_PARTS)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body; none at all mean its end."""
        if self._parser.closed:  # RFC 2046 §5.1.1: what follows the last boundary is to be ignored
            return
        with _answering_errors():
            for event in self._parser.parse(chunk):
                if event is None:
                    self._finish_part()
                elif isinstance(event, bytes | bytearray):
                    self._write(event)
                else:
                    headers = {name.lower(): value for name, value in event.headerlist}
                    file = (
                        None if event.filename is None else UploadFile(self._threads, event.filename, headers)
                    )
                    self._part = (event.name or "", bytearray() if file is None else file)

    def _write(self, data: bytes | bytearray) -> None:
        _, content = self._part
        if isinstance(content, UploadFile):
            content.size += content.file.write(data)
            return
        content += data
        self._text_left -= len(data)
        if self._text_left < 0:
            raise HTTPException(413, f"The text of a form may have {MAX_TEXT} bytes")

    def _finish_part(self) -> None:
        name, content = self._part
        if isinstance(content, UploadFile):
            content.file.seek(0)
            self.fields.append((name, content))
        else:
            self.fields.append((name, content.decode()))


@contextmanager
def _answering_errors() -> Iterator[None]:
    """The parser's errors are the client's: each says which status it is, or is a plain ValueError of the text."""
    try:
        yield
    except ValueError as error:
        status = 413 if getattr(error, "http_status", 400) == 413 else 400
        raise HTTPException(status, f"The form is malformed: {error}") from error
