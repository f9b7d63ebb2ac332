"""The table of requirements is the one that the tests would write."""

import pytest

from tests.server import requirements
from tests.server.requirements import FILES, README, rows, table


def test_the_committed_table_is_what_the_tests_would_write() -> None:
    """If not: python -m tests.server.requirements."""
    assert README.read_text() == table()


def test_no_file_of_requirements_is_left_out() -> None:
    files = {path.stem for pattern in ("test_rfc9*.py", "test_asgi_*.py") for path in README.parent.glob(pattern)}
    assert files == set(FILES)


def test_no_requirement_is_told_twice() -> None:
    told = [row.what for row in rows()]
    assert len(told) == len(set(told))


@pytest.mark.parametrize("mark", [None, pytest.mark.skip, pytest.mark.xfail], ids=["unnamed", "skipped", "xfail"])
def test_a_test_that_shows_nothing_has_no_row(
    mark: pytest.MarkDecorator | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def test() -> None: ...

    named = test if mark is None else mark(requirements.requirement("RFC 9112 §1", "MUST", "Nothing.")(test))
    monkeypatch.setattr("tests.server.test_rfc9112_head.test_that_shows_nothing", named, raising=False)
    with pytest.raises(ValueError, match="test_that_shows_nothing shows no requirement, or may not be run"):
        rows()
