"""A task that was accepted survives a process that is killed in the middle of it.

Run it::

    python -m examples.durable

You will see::

    registered: 202 queued
    the mail to a@example.org begins
    kill -9
    the mail to a@example.org begins
    the mail to a@example.org is sent
    stopped: 0

The script starts this file as a server with a journal, registers an address, kills the server with
SIGKILL during the mail, and starts it again. By hand, in two terminals::

    minibg examples.durable:app --journal tasks.db
    curl -X POST 'http://127.0.0.1:8000/register?email=a@example.org'

then ``kill -9`` the server, look at the unfinished tasks with ``minibg tasks tasks.db``, and start
it again.

The answer left after the task was on disk, so the task outlives the process. The guarantee is **at
least once**: the process died during the first attempt, and nothing can tell how far that had come.
Write tasks for which running twice does no harm. Here a mail server would see the same Message-ID
twice, because it is made in the handler and passed on.
"""

import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path

from minibg import App, BackgroundTasks, Retry, task

app = App()


@task(name="send_welcome_email", retry=Retry(attempts=3))
def send_welcome_email(address: str, message_id: str) -> str:
    print(f"the mail to {address} begins", flush=True)
    time.sleep(0.3)
    print(f"the mail to {address} is sent", flush=True)
    return message_id


@app.post("/register", status_code=202)
async def register(email: str, background_tasks: BackgroundTasks) -> dict[str, str]:
    background_tasks.add_task(send_welcome_email, email, f"<{uuid.uuid4()}@example.org>")
    return {"status": "queued"}


def start(journal: Path) -> tuple["subprocess.Popen[str]", str]:
    """Start the server; return its process and its URL."""
    server = subprocess.Popen(
        [sys.executable, "-m", "minibg", "examples.durable:app", "--port", "0", "--journal", str(journal)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    port = next(line.split()[-1] for line in server.stderr if "listening on" in line)
    return server, f"http://127.0.0.1:{port}"


def show(server: "subprocess.Popen[str]") -> None:
    """Print the next line of the server."""
    assert server.stdout is not None
    print(server.stdout.readline().rstrip())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder, "tasks.db")
        server, url = start(journal)
        request = urllib.request.Request(f"{url}/register?email=a@example.org", method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            print(f"registered: {answer.status} queued")
        show(server)
        server.kill()
        server.communicate()
        print("kill -9")
        server, _ = start(journal)
        show(server)
        show(server)
        server.send_signal(signal.SIGTERM)
        server.communicate()
        print(f"stopped: {server.returncode}")


if __name__ == "__main__":
    main()
