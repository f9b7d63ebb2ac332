"""The tasks of a registration: a mail, an audit line, a cache refresh.

Three functions, each a `@task`, so that a journal can keep them (``--journal tasks.db``). The mail
has options: it is tried three times, and each attempt may take half a minute. Nothing here knows
HTTP.

Settings come from the environment, and are read when a task runs:

- ``SMTP_URL``: ``smtp://user:password@host:587``, or ``smtps://`` for TLS from the start; smtp
  turns to TLS when the server offers it. Without the setting the mail becomes a file.
- ``OUTBOX``: the folder of those files (``./outbox``).
- ``MAIL_SECONDS``: seconds that a mail to a file takes (2), so that a person can watch.
- ``AUDIT_LOG``: the file of the audit lines (``audit.log`` in the outbox).

A mail that is tried again may arrive twice: the server may have accepted it and the answer been
lost. Its Message-ID is made here and differs between attempts. A real service would make it once,
in the handler, and pass it on.

The mail is an `EmailMessage`, which raises ValueError for a line break in a header, whatever the
handler let through.
"""

import os
import smtplib
import ssl
import time
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import make_msgid
from pathlib import Path
from urllib.parse import unquote, urlsplit

from minibg import Retry, task

#: The number of registrations, so that a request for it need not read the audit log.
cache = {"registrations": 0}


def outbox() -> Path:
    folder = Path(os.environ.get("OUTBOX", "outbox"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@task(retry=Retry(attempts=3, base=1.0), timeout=30)
def send_welcome_email(address: str) -> str:
    """Send the mail, or write it to a file. Return the host or the file."""
    message = EmailMessage()
    message["From"] = "welcome@example.org"
    message["To"] = address
    message["Subject"] = "Welcome"
    message["Message-ID"] = make_msgid(domain="example.org")
    message.set_content("Good to have you with us.\n")
    url = os.environ.get("SMTP_URL")
    return _to_server(message, url) if url else _to_file(message)


def audit_log() -> Path:
    return Path(os.environ.get("AUDIT_LOG") or outbox() / "audit.log")


def _to_server(message: EmailMessage, url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("smtp", "smtps") or parts.hostname is None:
        raise ValueError(f"SMTP_URL is smtp://host:port or smtps://host:port, not {url!r}")
    tls = ssl.create_default_context()  # Verifies the certificate, which smtplib does not do by itself.
    with _connect(parts.scheme, parts.hostname, parts.port or 0, tls) as smtp:
        smtp.ehlo()
        if parts.scheme == "smtp" and smtp.has_extn("starttls"):
            smtp.starttls(context=tls)
        if parts.username:
            smtp.login(unquote(parts.username), unquote(parts.password or ""))
        smtp.send_message(message)
    return parts.hostname


def _connect(scheme: str, host: str, port: int, tls: ssl.SSLContext) -> smtplib.SMTP:
    """Connect; port 0 is the default of the scheme."""
    if scheme == "smtps":
        return smtplib.SMTP_SSL(host, port, timeout=10, context=tls)
    return smtplib.SMTP(host, port, timeout=10)


def _to_file(message: EmailMessage) -> str:
    time.sleep(float(os.environ.get("MAIL_SECONDS", "2")))
    file = outbox() / f"{time.time_ns()}.eml"
    file.write_bytes(bytes(message))
    return str(file)


@task
def write_audit_line(address: str) -> None:
    with audit_log().open("a", encoding="utf-8") as log:
        log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} registered {address}\n")


@task
def refresh_cache() -> None:
    cache["registrations"] = len(audit_log().read_text(encoding="utf-8").splitlines())
