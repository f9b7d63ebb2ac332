"""The example as a user meets it: the command, the requests of curl, a mail server, a browser.

The mail server is aiosmtpd, the browser is Chromium; both are real, on 127.0.0.1.
"""

import asyncio
import json
import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from examples.signup import app, invitation
from examples.signup.page import page, progress
from examples.signup.tasks import send_welcome_email
from minibg import TaskResult, TaskStatus, serve
from minibg.serving import TaskServer
from tests.needs import need

ROOT = Path(__file__).parent.parent.parent
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(autouse=True)
def outbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUTBOX", str(tmp_path / "outbox"))
    monkeypatch.setenv("MAIL_SECONDS", "0")
    monkeypatch.delenv("SMTP_URL", raising=False)
    return tmp_path / "outbox"


@pytest.fixture
async def server() -> AsyncIterator[TaskServer]:
    async with serve(app, port=0) as server:
        yield server


@pytest.fixture
async def client(server: TaskServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        yield client


async def register(client: httpx.AsyncClient, email: str = "a@example.org") -> list[dict[str, Any]]:
    response = await client.post("/register", params={"email": email})
    assert response.status_code == 202
    tasks: list[dict[str, Any]] = response.json()["tasks"]
    return tasks


class Inbox:
    """A mail server that keeps each message, and refuses a recipient whose name begins with unknown."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        #: While it is clear, a message is not accepted yet.
        self.open = threading.Event()
        self.open.set()

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if address.startswith("unknown"):
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        await asyncio.to_thread(self.open.wait, 20)
        self.messages.append((envelope.rcpt_tos, envelope.content.decode()))
        return "250 OK"


@pytest.fixture
def inbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    inbox = Inbox()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller = Controller(inbox, hostname="127.0.0.1", port=port)
    controller.start()
    monkeypatch.setenv("SMTP_URL", f"smtp://127.0.0.1:{port}")
    yield inbox
    controller.stop()


async def test_the_three_tasks_run_in_order_after_the_answer(
    server: TaskServer, client: httpx.AsyncClient, outbox: Path
) -> None:
    follower = server.pool.follow()
    tasks = await register(client)
    await server.pool.idle()
    ids = [task["id"] for task in tasks]
    ended: list[tuple[int, TaskStatus]] = []
    while len(ended) < 3:
        transition = await anext(follower)
        if transition.after.is_final:
            ended.append((ids.index(transition.id), transition.after))
    assert ended == [(number, TaskStatus.SUCCESSFUL) for number in range(3)]
    assert "To: a@example.org" in next(outbox.glob("*.eml")).read_text()
    assert (outbox / "audit.log").read_text().endswith("registered a@example.org\n")
    assert (await client.get("/registrations")).json() == {"registrations": 1}


async def test_the_audit_log_may_be_elsewhere(
    server: TaskServer, client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIT_LOG", str(tmp_path / "audit"))
    await register(client)
    await server.pool.idle()
    assert (tmp_path / "audit").read_text().endswith("registered a@example.org\n")


async def test_a_task_can_be_looked_up_and_an_unknown_one_is_a_404(
    server: TaskServer, client: httpx.AsyncClient
) -> None:
    mail = (await register(client))[0]
    await server.pool.idle()
    found = (await client.get(f"/tasks/{mail['id']}")).json()
    assert (found["status"], found["attempts"], found["origin"]) == ("SUCCESSFUL", 1, "POST /register")
    assert (await client.get("/tasks/nothing")).status_code == 404


@pytest.mark.parametrize(
    "email",
    [
        *("", "a", "a@b", "a@b.", "a@-b.org", "a b@example.org", "<a@example.org>", "a(b)@example.org"),
        *(
            "a@example.org\nBcc: b@example.org",
            "a@example.org\r\nBcc: b@example.org",
            "a@example.org\n",
            "a\0@example.org",
        ),
        *("a@example.org,b@example.org", "a@example.org;b@example.org", "a@" + "example." * 32 + "org"),
    ],
)
async def test_a_text_that_is_no_address_is_refused(client: httpx.AsyncClient, email: str) -> None:
    response = await client.post("/register", params={"email": email})
    assert (response.status_code, "not an email address" in response.text) == (422, True)


@pytest.mark.parametrize("address", ["a@example.org\nBcc: b@example.org", "a@example.org\r\n\r\nanother body"])
def test_the_mail_itself_refuses_an_address_with_a_line_break(address: str, outbox: Path) -> None:
    with pytest.raises(ValueError, match="linefeed or carriage return"):
        send_welcome_email(address)
    assert not outbox.exists()


@pytest.mark.parametrize("url", ["mail.example.org:25", "http://mail.example.org", "smtp://"])
def test_a_setting_that_names_no_mail_server_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTP_URL", url)
    with pytest.raises(ValueError, match="SMTP_URL is"):
        send_welcome_email("a@example.org")


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ([("127.0.0.1", 81), ("::1", 81)], "curl -X POST 'http://127.0.0.1:81/register?email=a@example.org'"),
        ([("::1", 81)], "curl -X POST 'http://[::1]:81/register?email=a@example.org'"),
        (["/run/ab"], "curl -X POST --unix-socket /run/ab 'http://localhost/register?email=a@example.org'"),
    ],
)
def test_the_invitation_names_the_address_of_the_server(addresses: Any, expected: str) -> None:
    assert invitation(addresses)[-1].strip() == expected


def test_there_is_no_invitation_to_an_unknown_address() -> None:
    assert invitation(()) == []


async def test_the_mail_goes_through_a_real_server(server: TaskServer, client: httpx.AsyncClient, inbox: Inbox) -> None:
    await register(client)
    await server.pool.idle()
    [(recipients, content)] = inbox.messages
    assert recipients == ["a@example.org"]
    assert "Subject: Welcome" in content


# aiosmtpd does not count TLS from the start as TLS.
@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_the_mail_is_encrypted_and_its_sender_known(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By STARTTLS, or from the first byte. Without the authority of the certificate nothing is sent."""
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    logins: list[LoginPassword] = []

    def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, login: LoginPassword) -> AuthResult:
        logins.append(login)
        return AuthResult(success=login == LoginPassword(b"me@here", b"pass:word"))

    inbox = Inbox()
    how = {"tls_context": tls, "require_starttls": True} if scheme == "smtp" else {"ssl_context": tls}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller = Controller(
        inbox,
        "localhost",
        port,
        authenticator=authenticate,
        auth_required=True,
        **how,
        auth_require_tls=scheme == "smtp",
    )
    controller.start()
    try:
        monkeypatch.setenv("SMTP_URL", f"{scheme}://me%40here:pass%3Aword@localhost:{port}")
        with pytest.raises(ssl.SSLCertVerificationError):
            send_welcome_email("a@example.org")
        authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        assert send_welcome_email("a@example.org") == "localhost"
    finally:
        controller.stop()
    assert logins == [LoginPassword(b"me@here", b"pass:word")]
    assert [recipients for recipients, _ in inbox.messages] == [["a@example.org"]]


async def test_a_mail_that_is_refused_is_visible(server: TaskServer, client: httpx.AsyncClient, inbox: Inbox) -> None:
    mail, audit, _ = await register(client, "unknown@example.org")
    follower = server.pool.follow()
    while (found := (await client.get(f"/tasks/{mail['id']}")).json())["status"] not in ("WAITING", "FAILED"):
        await anext(follower)
    assert "550" in found["errors"][0]["message"]
    assert found["errors"][0]["type"] == "smtplib.SMTPRecipientsRefused"
    # Its siblings wait for it: they run strictly one after another.
    assert (await client.get(f"/tasks/{audit['id']}")).json()["status"] == "READY"
    await server.pool.idle()
    found = (await client.get(f"/tasks/{mail['id']}")).json()
    assert (found["status"], found["attempts"], len(found["errors"])) == ("FAILED", 3, 3)
    assert (await client.get(f"/tasks/{audit['id']}")).json()["status"] == "SUCCESSFUL"


# --- server-sent events ---


async def told(client: httpx.AsyncClient, ids: list[str]) -> list[dict[str, Any]]:
    """The events of a stream, up to its end."""
    async with client.stream("GET", "/events", params={"id": ids}) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line async for line in response.aiter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def test_the_stream_has_each_change_and_ends_with_the_tasks(client: httpx.AsyncClient, inbox: Inbox) -> None:
    """The mail server keeps the mail until the stream has told that the mail is being sent."""
    inbox.open.clear()
    ids = [task["id"] for task in await register(client)]
    events = []
    async with client.stream("GET", "/events", params={"id": ids}) as response:
        async for line in response.aiter_lines():
            if line:
                events.append(json.loads(line.removeprefix("data: ")))
                if events[-1]["tasks"][0]["status"] == "RUNNING":
                    inbox.open.set()
    assert [event["ended"] for event in events] == [False] * (len(events) - 1) + [True]
    names = [task["name"] for task in events[-1]["tasks"]]
    assert names == ["send welcome email", "write audit line", "refresh cache"]
    assert all(re.fullmatch(r"SUCCESSFUL after [\d,]+ ms", task["status"]) for task in events[-1]["tasks"])
    running = next(event for event in events if event["tasks"][0]["kind"] == "RUNNING")
    assert re.fullmatch(r"response left after \d+ ms", running["summary"])
    assert [task["status"] for task in running["tasks"]] == ["RUNNING", "READY", "READY"]


async def test_the_stream_of_tasks_that_have_ended_is_one_event(server: TaskServer, client: httpx.AsyncClient) -> None:
    ids = [task["id"] for task in await register(client)]
    await server.pool.idle()
    [event] = await told(client, ids)
    assert event["ended"]
    assert re.fullmatch(r"response left after \d+ ms, mail ended after [\d,]+ ms", event["summary"])


async def test_the_stream_of_an_unknown_task_is_a_404(client: httpx.AsyncClient) -> None:
    assert (await client.get("/events", params={"id": "nothing"})).status_code == 404


def at(milliseconds: float) -> float:
    return 1_700_000_000 + milliseconds / 1000


def result(status: TaskStatus, **times: float) -> TaskResult[Any]:
    made: TaskResult[Any] = TaskResult("1", "tasks.send_welcome_email", "POST /register", at(0))
    made.status = status
    for name, milliseconds in times.items():
        setattr(made, name, at(milliseconds))
    return made


@pytest.mark.parametrize(
    ("mail", "summary", "status"),
    [
        (result(TaskStatus.HELD), "the response is on its way", "HELD"),
        (result(TaskStatus.READY, released=14), "response left after 14 ms", "READY"),
        (
            result(TaskStatus.SUCCESSFUL, released=14, finished=2014),
            "response left after 14 ms, mail ended after 2,014 ms",
            "SUCCESSFUL after 2,014 ms",
        ),
    ],
)
def test_the_page_tells_when_the_response_left_and_when_the_mail_ended(
    mail: TaskResult[Any], summary: str, status: str
) -> None:
    shown = progress([mail])
    assert shown["summary"] == summary
    assert shown["tasks"] == [{"kind": mail.status, "name": "send welcome email", "status": status, "error": ""}]


# --- the page without JavaScript ---


async def test_without_javascript_the_form_is_answered_with_the_page_of_its_tasks(
    server: TaskServer, client: httpx.AsyncClient
) -> None:
    form = (await client.get("/")).text
    assert '<form method="post" action="/">' in form
    assert "<noscript>" not in form
    redirect = await client.post("/", data={"email": "a@example.org"})
    assert redirect.status_code == 303
    await server.pool.idle()
    shown = (await client.get(redirect.headers["location"])).text
    assert re.search(r'role="status">response left after \d+ ms, mail ended after [\d,]+ ms<', shown)
    row = '<li class="SUCCESSFUL" aria-atomic="true"><span class="name">'
    assert re.findall(rf"{row}(.*?)</span>", shown) == ["send welcome email", "write audit line", "refresh cache"]
    [again] = re.findall(r"<noscript><p>Without JavaScript this page shows .* loaded: <a href=\"(.*)\">look", shown)
    assert unescape(again) == redirect.headers["location"].removeprefix("/")


async def test_without_javascript_a_wrong_address_is_kept_in_its_field_with_what_is_wrong(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post("/", data={"email": '"><script>'})
    assert answer.status_code == 422
    assert 'value="&quot;&gt;&lt;script&gt;"' in answer.text
    assert 'aria-describedby="email-error" aria-invalid="true"' in answer.text
    assert "&#x27;&quot;&gt;&lt;script&gt;&#x27; is not an email address</p>" in answer.text


async def test_the_page_of_forgotten_tasks_is_the_form(client: httpx.AsyncClient) -> None:
    assert (await client.get("/?id=nothing")).text == (await client.get("/")).text


# --- contrast ---


def luminance(colour: str) -> float:
    """The relative luminance of ``#rgb`` or ``#rrggbb`` (WCAG 2.2)."""
    digits = colour.lstrip("#")
    pairs = [digits[i : i + 2] for i in (0, 2, 4)] if len(digits) == 6 else [digit * 2 for digit in digits]
    parts = [int(pair, 16) / 255 for pair in pairs]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


THEMES = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", page(), re.DOTALL)]
BORDERS = [(border, ground) for border in ("line", "accent", "bad") for ground in ("ground", "field")]
TEXTS = [(text, "ground") for text in ("text", "quiet", "accent", "good", "bad", "now")]


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])
def test_borders_have_a_contrast_of_3_to_1_and_texts_of_4_5_to_1(theme: dict[str, str]) -> None:
    assert contrast("#000", "#fff") == 21
    assert [pair for pair in BORDERS if contrast(theme[pair[0]], theme[pair[1]]) < 3] == []
    texts = [*TEXTS, ("text", "field"), ("quiet", "field"), ("ground", "accent")]
    assert [pair for pair in texts if contrast(theme[pair[0]], theme[pair[1]]) < 4.5] == []


# --- the command ---


def test_ctrl_c_during_the_mail_waits_for_it_and_says_so(outbox: Path) -> None:
    environment = {**os.environ, "MAIL_SECONDS": "1"}
    command = [sys.executable, "-m", "minibg", "examples.signup:app", "--port", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found is not None, line
        assert process.stderr is not None
        while "listening" not in process.stderr.readline():
            pass
        answer = httpx.post(f"{found[0]}register", params={"email": "a@example.org"})
        assert answer.status_code == 202
        assert list(outbox.glob("*.eml")) == []  # The answer came first.
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "waiting up to 30 s for 3 tasks" in log
    assert "3 finished, 0 did not" in log
    assert len(list(outbox.glob("*.eml"))) == 1


# --- in a browser ---


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Start one browser for all tests; each opens the page of a server of its own."""
    need("chromium", "chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


def sign_up(browser: webdriver.Chrome, port: int, address: str, expected: dict[str, int]) -> str:
    """Register through the page; return its list of tasks, without times, when it has each expected text so often."""

    def shows_it(page: webdriver.Chrome) -> bool:
        text = page.find_element(By.ID, "tasks").text
        return all(text.count(part) == times for part, times in expected.items())

    browser.get(f"http://127.0.0.1:{port}/")
    browser.find_element(By.NAME, "email").send_keys(address)
    browser.find_element(By.TAG_NAME, "button").click()
    WebDriverWait(browser, 20).until(shows_it)
    return re.sub(r" after [\d,]+ ms", "", browser.find_element(By.ID, "tasks").text)


async def test_a_person_watches_the_tasks_of_a_registration(server: TaskServer, browser: webdriver.Chrome) -> None:
    shown = await asyncio.to_thread(sign_up, browser, server.port, "a@example.org", {"SUCCESSFUL": 3})
    assert shown.splitlines() == [
        *("send welcome email", "SUCCESSFUL", "write audit line", "SUCCESSFUL", "refresh cache", "SUCCESSFUL")
    ]
    message = await asyncio.to_thread(lambda: browser.find_element(By.ID, "message").text)
    assert re.fullmatch(r"response left after \d+ ms, mail ended after [\d,]+ ms", message)


class Requests(logging.Handler):
    """The requests of the access log, in the order in which their responses ended."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        method, target, _ = record.__dict__["request"].split()
        self.requests.put_nowait(f"{method} {target.partition('?')[0]}")


async def test_a_registration_is_one_stream_and_no_polling(
    server: TaskServer, browser: webdriver.Chrome, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "minibg.access")
    ended, logger = Requests(), logging.getLogger("minibg.access")
    logger.addHandler(ended)
    try:
        await asyncio.to_thread(sign_up, browser, server.port, "a@example.org", {"SUCCESSFUL": 3})
        assert [await ended.requests.get() for _ in range(3)] == ["GET /", "POST /register", "GET /events"]
        assert ended.requests.empty()
    finally:
        logger.removeHandler(ended)


async def test_a_reload_shows_the_tasks_again(server: TaskServer, browser: webdriver.Chrome) -> None:
    def after_reload() -> str:
        browser.refresh()
        WebDriverWait(browser, 20).until(lambda page: page.find_element(By.ID, "tasks").text.count("SUCCESSFUL") == 3)
        return browser.find_element(By.ID, "tasks").text

    shown = await asyncio.to_thread(sign_up, browser, server.port, "a@example.org", {"SUCCESSFUL": 3})
    assert re.sub(r" after [\d,]+ ms", "", await asyncio.to_thread(after_reload)) == shown


async def test_a_screen_reader_reads_a_status_with_its_task(server: TaskServer, browser: webdriver.Chrome) -> None:
    """A row is one atomic region inside a polite one (WAI-ARIA 1.2, aria-atomic)."""

    def rows() -> list[tuple[str | None, str | None]]:
        found = browser.find_elements(By.CSS_SELECTOR, "ol[aria-live=polite] > li")
        return [(row.get_attribute("aria-atomic"), row.get_attribute("class")) for row in found]

    await asyncio.to_thread(sign_up, browser, server.port, "a@example.org", {"SUCCESSFUL": 3})
    assert await asyncio.to_thread(rows) == [("true", "SUCCESSFUL")] * 3


@pytest.mark.parametrize(("width", "is_full"), [(360, True), (800, False)])
async def test_on_a_phone_the_button_is_as_wide_as_the_form(
    server: TaskServer, browser: webdriver.Chrome, width: int, is_full: bool
) -> None:
    def widths() -> tuple[int, int]:
        browser.set_window_size(width, 700)
        browser.get(f"http://127.0.0.1:{server.port}/")
        button, form = browser.find_element(By.TAG_NAME, "button"), browser.find_element(By.TAG_NAME, "form")
        return button.size["width"], form.size["width"]

    button, form = await asyncio.to_thread(widths)
    assert (abs(button - form) <= 1) is is_full


async def test_a_person_sees_that_the_mail_failed(server: TaskServer, browser: webdriver.Chrome, inbox: Inbox) -> None:
    expected = {"FAILED": 1, "SUCCESSFUL": 2}
    shown = await asyncio.to_thread(sign_up, browser, server.port, "unknown@example.org", expected)
    lines = shown.splitlines()
    assert lines[:2] == ["send welcome email", "FAILED, attempt 3"]
    assert "550" in lines[2]
    assert "no such mailbox" in lines[2]
    assert lines[3:] == ["write audit line", "SUCCESSFUL", "refresh cache", "SUCCESSFUL"]


async def test_the_page_shows_an_error_as_text(server: TaskServer, browser: webdriver.Chrome, inbox: Inbox) -> None:
    """The error contains the address, and browsers accept this one."""
    address = "unknown&lt@example.org"
    await asyncio.to_thread(sign_up, browser, server.port, address, {address: 1})


async def test_a_person_sees_what_is_wrong_with_an_address(server: TaskServer, browser: webdriver.Chrome) -> None:
    """The browser accepts a domain without a dot, the server does not."""

    def field_after_sign_up() -> tuple[str, dict[str, str | None], bool]:
        browser.get(f"http://127.0.0.1:{server.port}/")
        field = browser.find_element(By.NAME, "email")
        field.send_keys("a@b", Keys.ENTER)
        error = browser.find_element(By.ID, "email-error")
        WebDriverWait(browser, 20).until(lambda _: error.text)
        attributes = {name: field.get_attribute(name) for name in ("aria-describedby", "aria-invalid")}
        return error.text, attributes, browser.switch_to.active_element == field

    assert await asyncio.to_thread(field_after_sign_up) == (
        "'a@b' is not an email address",
        {"aria-describedby": "email-error", "aria-invalid": "true"},
        True,
    )
