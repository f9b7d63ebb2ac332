"""``minibg --explain``: the path of one request, with line numbers of the installed code.

The text is `explain.md` beside this file. The README contains the same text, and a test compares
the two. A reference such as ``background/ledger.py#Ledger.note`` names a file of the package and a
function or class in it. It is printed as ``background/ledger.py:132 Ledger.note``. The line number
is read from the source at that moment, so it cannot be outdated.

A Markdown table is too wide for a terminal. So each row becomes a paragraph: its first cell is the
heading, and the other cells are indented.

A reference to a missing name raises KeyError; a test checks all references.
"""

import ast
import re
import shutil
import textwrap
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
TEXT = PACKAGE / "explain.md"
REFERENCE = re.compile(r"\[`([\w/.]+)(?:#([\w.]+))?`\]\([^)]*\)")
#: Maximum columns of a line, because longer lines are hard to read.
WIDTH = 110


def explain(width: int | None = None) -> str:
    """Return the text for ``width`` columns, by default those of the terminal."""
    width = min(width or shutil.get_terminal_size().columns, WIDTH)
    paragraphs = TEXT.read_text(encoding="utf-8").strip().split("\n\n")
    return "\n\n".join(_told(paragraph, width) for paragraph in paragraphs) + "\n"


def _told(paragraph: str, width: int) -> str:
    if paragraph.startswith("|"):
        head, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in paragraph.splitlines()]
        return "\n".join(_row(head, row, width) for row in rows)
    text = _plain(paragraph)
    if text.startswith("## "):
        return f"{text[3:]}\n{'=' * (len(text) - 3)}"
    return textwrap.fill(text, width)


def _row(head: list[str], row: list[str], width: int) -> str:
    lines = textwrap.wrap(_plain(row[0]), width) if row[0] else []
    for name, cell in zip(head[1:], row[1:], strict=True):
        if text := _plain(cell):
            lines += textwrap.wrap(f"{name}: {text}", width, initial_indent="    ", subsequent_indent="        ")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Replace references by file and line, and remove the marks of Markdown."""
    text = re.sub(r" \(\[test\]\([^)]*\)\)", "", text)
    text = REFERENCE.sub(lambda found: _line(found[1], found[2]), text)
    return re.sub(r"\*\*|`", "", text).strip(" |")


def _line(file: str, name: str | None) -> str:
    return f"{file}:{_lines_of(file)[name]} {name}" if name else file


@cache
def _lines_of(file: str) -> dict[str, int]:
    """Return the first line of each class, function and method of a file, by its qualified name."""
    lines: dict[str, int] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                lines[prefix + child.name] = child.lineno
                visit(child, f"{prefix}{child.name}.")

    visit(ast.parse((PACKAGE / file).read_text(encoding="utf-8")), "")
    return lines
