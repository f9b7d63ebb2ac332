"""What happens after a registration: a mail, an audit line, a cache refresh.

Three ordinary functions. Only the mail is a `@task`, because it wants more than the defaults: it is tried three times, and
none of the attempts may take longer than half a minute. Nothing here knows of HTTP.

Settings come from the environment: ``SMTP_URL`` (``smtp://user:password@host:587``, ``smtps://`` for TLS from the start;
without it the mail becomes a file), ``OUTBOX`` (the folder of those files and of the audit log), ``MAIL_SECONDS`` (how long
a mail to a file takes, so that one can watch).
"""

import os
import smtplib
import time
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import make_msgid
from pathlib import Path
from urllib.parse import unquote, urlsplit

from minibg import Retry, task

#: The answer to "how many have registered?", so that nobody has to read the audit log for it.
cache = {"registrations": 0}


def outbox() -> Path:
    folder = Path(os.environ.get("OUTBOX", "outbox"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@task(retry=Retry(attempts=3, base=1.0), timeout=30)
def send_welcome_email(address: str) -> str:
    """Send the mail, or write it to a file. Gives back where it went."""
    message = EmailMessage()
    message["From"] = "welcome@example.org"
    message["To"] = address
    message["Subject"] = "Welcome"
    message["Message-ID"] = make_msgid(domain="example.org")
    message.set_content("Good to have you with us.\n")
    url = os.environ.get("SMTP_URL")
    return _to_server(message, url) if url else _to_file(message)


def _to_server(message: EmailMessage, url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("smtp", "smtps") or parts.hostname is None:
        raise ValueError(f"SMTP_URL is smtp://host:port or smtps://host:port, not {url!r}")
    connect = smtplib.SMTP_SSL if parts.scheme == "smtps" else smtplib.SMTP
    with connect(parts.hostname, parts.port or 0, timeout=10) as smtp:
        if parts.scheme == "smtp" and smtp.has_extn("starttls"):
            smtp.starttls()
        if parts.username:
            smtp.login(unquote(parts.username), unquote(parts.password or ""))
        smtp.send_message(message)
    return f"{parts.hostname}:{parts.port}"


def _to_file(message: EmailMessage) -> str:
    time.sleep(float(os.environ.get("MAIL_SECONDS", "2")))
    file = outbox() / f"{time.time_ns()}.eml"
    file.write_bytes(bytes(message))
    return str(file)


def write_audit_line(address: str) -> None:
    with (outbox() / "audit.log").open("a", encoding="utf-8") as log:
        log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} registered {address}\n")


async def refresh_cache() -> None:
    log = outbox() / "audit.log"
    cache["registrations"] = len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0
