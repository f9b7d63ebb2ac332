"""The example as a user meets it: the command, the requests of curl, a mail server, a browser.

The mail server is aiosmtpd, the browser is Chromium; both are real, on 127.0.0.1.
"""

import asyncio
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
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
from examples.signup.tasks import send_welcome_email
from minibg import TaskStatus, serve
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

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if address.startswith("unknown"):
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
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
    """Register through the page; return its list of tasks when it has each expected text so often.

    The page asks for each task separately: it can show the end of one before that of an earlier one.
    """

    def shows_it(page: webdriver.Chrome) -> bool:
        text = page.find_element(By.ID, "tasks").text
        return all(text.count(part) == times for part, times in expected.items())

    browser.get(f"http://127.0.0.1:{port}/")
    browser.find_element(By.NAME, "email").send_keys(address)
    browser.find_element(By.TAG_NAME, "button").click()
    WebDriverWait(browser, 20).until(shows_it)
    return browser.find_element(By.ID, "tasks").text


async def test_a_person_watches_the_tasks_of_a_registration(server: TaskServer, browser: webdriver.Chrome) -> None:
    shown = await asyncio.to_thread(sign_up, browser, server.port, "a@example.org", {"SUCCESSFUL": 3})
    assert shown.splitlines() == [
        *("send welcome email", "SUCCESSFUL", "write audit line", "SUCCESSFUL", "refresh cache", "SUCCESSFUL")
    ]
    assert "answered in" in await asyncio.to_thread(lambda: browser.find_element(By.ID, "message").text)


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

    def message_after_sign_up() -> str:
        browser.get(f"http://127.0.0.1:{server.port}/")
        browser.find_element(By.NAME, "email").send_keys("a@b", Keys.ENTER)
        message = browser.find_element(By.ID, "message")
        WebDriverWait(browser, 20).until(lambda _: message.text)
        return message.text

    assert await asyncio.to_thread(message_after_sign_up) == "'a@b' is not an email address"
