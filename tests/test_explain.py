"""``minibg --explain`` and the README tell the same, and both are held to the code: lines, deadlines, bounds."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minibg import Pool
from minibg.explain import PACKAGE, REFERENCE, TEXT, _lines_of, explain
from minibg.serving import LIMITS, POOL

README = (Path(__file__).parent.parent / "README.md").read_text()
EXPLAINED = TEXT.read_text().strip()
STOP = EXPLAINED[EXPLAINED.index("## The stop") : EXPLAINED.index("## What bounds what")]


def test_the_readme_contains_the_text() -> None:
    assert EXPLAINED in README


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 350


@pytest.mark.parametrize("reference", sorted(set(REFERENCE.findall(EXPLAINED))), ids="#".join)
def test_each_reference_leads_to_a_function_or_class(reference: tuple[str, str]) -> None:
    file, name = reference
    assert name in _lines_of(file) if name else (PACKAGE / file).is_file()


def test_it_prints_the_lines_of_the_installed_code() -> None:
    line = 1 + next(
        number
        for number, text in enumerate((PACKAGE / "background/ledger.py").read_text().splitlines())
        if text.startswith("    def note(")
    )
    printed = subprocess.run([sys.executable, "-m", "minibg", "--explain"], capture_output=True, text=True, check=True)
    assert f"background/ledger.py:{line} Ledger.note" in " ".join(printed.stdout.split())
    assert "The stop\n========" in printed.stdout


def test_no_line_is_wider_than_the_terminal() -> None:
    assert max(len(line) for line in explain(90).splitlines()) <= 90


def value_of(name: str, file: str) -> Any:
    """The default of an option, or the constant of a module."""
    for options in (LIMITS, POOL):
        if name in options:
            return options[name].default
    return getattr(importlib.import_module(f"minibg.{file.removesuffix('.py').replace('/', '.')}"), name)


def deadlines() -> list[tuple[float, str, str]]:
    """The seconds of the stop's table, with the name of each and the file of its row."""
    found = []
    for line in STOP.splitlines():
        if (reference := REFERENCE.search(line)) is not None and line.startswith("|"):
            cell = line[1:-1].split("|")[2]
            found += [(float(seconds), name, reference[1]) for seconds, name in re.findall(r"(\d+) `(\w+)`", cell)]
    return found


def test_each_deadline_of_the_stop_is_the_one_of_the_code() -> None:
    where = {"CANCEL_GRACE": "server/lifespan.py", "CLEANUP_SECONDS": "background/drain.py"}
    where |= {"JOURNAL_SECONDS": "background/drain.py", "CANCEL_SECONDS": "background/worker.py"}
    for seconds, name, file in deadlines():
        assert value_of(name, where.get(name, file)) == seconds, name


def test_the_sum_of_the_stop_is_the_sum_of_its_deadlines() -> None:
    total = re.search(r"The sum is (\d+) seconds", STOP)
    assert total is not None
    assert int(total[1]) == sum(seconds for seconds, _, _ in deadlines())


@pytest.mark.parametrize(
    ("name", "text"),
    [("queue_limit", "`queue_limit` (1,000)"), ("workers", "`task_workers` (8)"), ("keep_finished", "(10,000)")],
)
def test_each_bound_is_the_default_of_its_option(name: str, text: str) -> None:
    default = inspect.signature(Pool).parameters[name].default
    assert text in EXPLAINED
    assert f"{default:,}" in text


if __name__ == "__main__":  # python -m tests.test_explain: copy the text into the README
    first, last = README.index("## The path of one request"), README.index("## I want to ...")
    (Path(__file__).parent.parent / "README.md").write_text(f"{README[:first]}{EXPLAINED}\n\n{README[last:]}")
