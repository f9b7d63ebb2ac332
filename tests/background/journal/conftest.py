from collections.abc import Iterator
from pathlib import Path

import pytest

from minibg.background.journal.file import File
from minibg.background.task import TASKS
from tests.background.journal.files import NOW
from tests.background.journal.tasks import TASKS_HERE, Disk, calls, plays


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def file(path: Path) -> Iterator[File]:
    file = File(str(path), "power")
    file.open(NOW)
    yield file
    file.release()


@pytest.fixture(autouse=True)
def registered_tasks(no_task_name_outlives_its_test: None) -> Iterator[None]:
    """Register the tasks of `tasks.py`, whose names the common conftest has cleared."""
    TASKS.update(TASKS_HERE)
    yield
    calls.clear()
    plays.clear()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)
