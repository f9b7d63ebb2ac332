"""The README: its code runs, its diagram is the table's, its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from minibg.background import TRANSITIONS, Event, TaskStatus

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DIAGRAM = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def diagram() -> str:
    """The state diagram of `TRANSITIONS`, in mermaid's language."""
    lines = ["stateDiagram-v2", f"    [*] --> {TaskStatus.HELD}: {Event.ADD.value}"]
    for status, row in TRANSITIONS.items():
        lines += [f"    {status} --> {after}: {event.value}" for event, after in row.items()]
    lines += [f"    {status} --> [*]" for status in TaskStatus if status.is_final]
    return "\n".join(lines) + "\n"


def test_the_diagram_is_drawn_from_the_table() -> None:
    found = DIAGRAM.search(README.read_text())
    assert found is not None
    assert found[1] == diagram(), "run python -m tests.test_readme"


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_its_code_runs(number: int, tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(SNIPPETS[number])
    run = subprocess.run(
        [sys.executable, "-W", "error", "snippet.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, "")
    for line in re.findall(r"print\(.*\)  # (.*)", SNIPPETS[number]):
        assert line in run.stdout.splitlines()


def test_it_has_snippets() -> None:
    assert len(SNIPPETS) == 3


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README.read_text()))))
def test_its_links_lead_to_files(link: str) -> None:
    assert (ROOT / link).exists()


if __name__ == "__main__":
    README.write_text(DIAGRAM.sub(f"```mermaid\n{diagram()}```", README.read_text()))
