import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from minibg.background.errors import JournalUnusable
from minibg.background.journal.file import File
from minibg.background.journal.lock import Lock
from tests.background.journal.files import NOW, insert, write

OWNER = """
import sys
from minibg.background.journal.lock import Lock
lock = Lock(sys.argv[1])
print(lock.acquire(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_process(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that owns the lock until it ends, or its standard input does."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", OWNER, str(path)], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_the_lock_is_a_file_beside_the_journal_that_names_its_owner(file: File, path: Path) -> None:
    assert Path(f"{path}.lock").read_text() == f"process {os.getpid()}\n"


def test_a_process_cannot_own_a_file_twice_and_keeps_its_lock_when_it_tries(
    file: File, path: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    for same in (str(path), str(link), os.path.relpath(path)):
        refusal = f"^{re.escape(same)} is in use by this process: a journal has one owner$"
        with pytest.raises(JournalUnusable, match=refusal):
            File(same, "power").open(NOW)
    write(file, {"inserts": insert(1)})
    code = f"import sys; from minibg.background.journal.lock import Lock; sys.exit(Lock({str(path)!r}).acquire(0))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_that_another_process_owns_is_refused_until_that_process_is_killed(
    path: Path, other_process: "subprocess.Popen[str]"
) -> None:
    refusal = rf"tasks\.db is in use by process {other_process.pid}: a journal has one owner"
    with pytest.raises(JournalUnusable, match=refusal):
        File(str(path), "power").open(NOW)
    assert not path.exists()
    other_process.kill()
    other_process.wait()
    lock = Lock(str(path))
    assert lock.acquire(patience=0)
    lock.release()


@pytest.mark.parametrize("owner", ["another process", "this process"])
def test_a_lock_that_becomes_free_in_time_is_acquired(
    path: Path, other_process: "subprocess.Popen[str]", owner: str
) -> None:
    tried = threading.Event()

    class Watched(Lock):
        def _try(self) -> bool:
            acquired = super()._try()
            tried.set()
            return acquired

    assert other_process.stdin is not None
    first, lock, acquired = Lock(str(path)), Watched(str(path)), list[bool]()
    if owner == "this process":
        other_process.stdin.close()
        assert first.acquire(patience=60)
    thread = threading.Thread(target=lambda: acquired.append(lock.acquire(patience=60)))
    thread.start()
    assert tried.wait(60)
    first.release()
    other_process.stdin.close()
    thread.join(60)
    assert acquired == [True]
    assert Path(f"{path}.lock").read_text() == f"process {os.getpid()}\n"
    lock.release()


def test_a_lock_may_be_released_twice_and_acquired_again(path: Path) -> None:
    lock = Lock(str(path))
    for _ in range(2):
        assert lock.acquire(patience=0)
        lock.release()
        lock.release()


def test_of_many_threads_that_want_one_file_one_gets_it(path: Path) -> None:
    """The kernel does not decide between them: they are one process."""
    barrier, acquired = threading.Barrier(8), list[Lock]()

    def want() -> None:
        lock = Lock(str(path))
        barrier.wait(60)
        if lock.acquire(patience=0):
            acquired.append(lock)

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(acquired) == 1
    acquired[0].release()


def test_an_owner_that_has_not_written_its_name_is_another_process(path: Path) -> None:
    assert Lock(str(path)).owner() == "another process"
    Path(f"{path}.lock").touch()
    assert Lock(str(path)).owner() == "another process"
