"""Forms, urlencoded and multipart."""

import gc
import sys
from typing import Any

import pytest

from minibg.web import forms
from minibg.web.app import App
from minibg.web.forms import UploadFile
from minibg.web.request import Request
from tests.web.driver import Answer, call

URLENCODED = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
MULTIPART = {"Content-Type": 'multipart/form-data; boundary="xx"'}


def part(content: bytes, disposition: str, *more: str) -> bytes:
    head = "\r\n".join([f"Content-Disposition: form-data; {disposition}", *more])
    return b"--xx\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"


BODY = (
    part(b"Ann \xc3\xa4", 'name="name"')
    + part(b"1", 'name="tag"')
    + part(b"2", 'name="tag"')
    + part(b"\x00\r\n--x\r\n\xff", 'name="file"; filename="a.bin"', "Content-Type: image/png")
    + b"--xx--\r\nepilogue"
)


async def send(body: bytes | list[bytes], headers: dict[str, str] | None = None) -> tuple[Any, Answer]:
    """The form as a handler sees it."""
    seen: list[Any] = []
    app = App()

    @app.post("/")
    async def handler(request: Request) -> None:
        form = await request.form()
        assert await request.form() is form
        seen.append(form)

    answer = await call(app, "POST", "/", body=body, headers=headers)
    return (seen[0] if seen else None), answer


async def test_an_urlencoded_form() -> None:
    form, _ = await send([b"a=1&b=&a=2", b"&c=%C3%A4+x"], URLENCODED)
    assert (dict(form), form.getlist("a")) == ({"a": "2", "b": "", "c": "ä x"}, ["1", "2"])


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_a_multipart_form_however_it_is_cut(size: int) -> None:
    form, answer = await send([BODY[i : i + size] for i in range(0, len(BODY), size)], MULTIPART)
    upload = form["file"]
    assert answer.error is None
    assert (form["name"], form.getlist("tag")) == ("Ann ä", ["1", "2"])
    assert isinstance(upload, UploadFile)
    assert (upload.filename, upload.content_type, upload.size) == ("a.bin", "image/png", 9)
    assert (await upload.read(2), await upload.read()) == (b"\x00\r", b"\n--x\r\n\xff")
    await upload.seek(8)
    assert await upload.read() == b"\xff"


async def test_a_large_upload_moves_to_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "SPOOLED", 100)
    form, _ = await send(part(b"x" * 1000, 'name="f"; filename="f"') + b"--xx--", MULTIPART)
    assert form["f"].file._rolled
    assert await form["f"].read() == b"x" * 1000


async def test_an_upload_is_open_as_long_as_somebody_refers_to_it() -> None:
    form, _ = await send(BODY, MULTIPART)
    file = form["file"].file
    gc.collect()
    assert await form["file"].read() == b"\x00\r\n--x\r\n\xff"  # and the thread has let go of the form
    del form
    gc.collect()
    assert file.closed


async def test_a_body_that_is_no_form_is_an_empty_one() -> None:
    assert dict((await send(b"{}", {"Content-Type": "application/json"}))[0]) == {}
    assert dict((await send(b"a=1"))[0]) == {}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (BODY[:40], MULTIPART),
        (b"nothing of the kind", MULTIPART),
        (BODY, {"Content-Type": "multipart/form-data"}),
        (part(b"\xff", 'name="x"') + b"--xx--", MULTIPART),
        (b"--xx\r\nno header\r\n\r\n", MULTIPART),
        (b"a=\xff", URLENCODED),
    ],
)
async def test_a_malformed_form_is_the_clients_fault(body: bytes, headers: dict[str, str]) -> None:
    _, answer = await send(body, headers)
    assert (answer.status, answer.error) == (400, None)
    assert answer.json["detail"].startswith("The form cannot be read: ")


async def test_too_much_text_and_too_many_parts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "MAX_TEXT", 10)
    monkeypatch.setattr(forms, "MAX_PARTS", 2)
    text = part(b"123456", 'name="a"')
    file = part(b"1" * 100, 'name="a"; filename="f"')
    statuses = [(await send(body + b"--xx--", MULTIPART))[1].status for body in (text, file * 2, text * 2, file * 3)]
    assert statuses == [200, 200, 413, 413]
    bodies: list[bytes | list[bytes]] = [
        b"a=1&b=2",
        b"a=1&b=2&c=3",
        b"a=12345678",
        b"a=123456789",
        [b"a=12345", b"6789"],
    ]
    assert [(await send(body, URLENCODED))[1].status for body in bodies] == [200, 413, 200, 413, 413]


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ("; boundary=xx", 200),
        ('; charset=utf-8; Boundary = "no"; BOUNDARY="xx"', 200),
        (";boundary=xx ; charset=utf-8", 200),
        ('; name="boundary=no"; boundary=xx', 200),
        ("; boundary=", 400),
        ("; xboundary=xx", 400),
        ("; boundary=x x", 400),
        ("; boundary=" + "x" * 71, 400),
    ],
)
async def test_the_boundary_is_found_among_the_parameters(parameters: str, status: int) -> None:
    _, answer = await send(BODY, {"Content-Type": f"Multipart/Form-Data {parameters}"})
    assert answer.status == status


async def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "multipart", None)
    _, answer = await send(BODY, MULTIPART)
    assert str(answer.error) == "multipart/form-data needs the library `multipart`: install minibg[forms]"
