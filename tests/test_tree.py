"""The claims about the tree: the size of the code, what each file may know, its words.

Sizes are lines of code: docstrings, comments and blank lines are not counted, because prose is what
the package is for.

- *The path* is what a reader has to know to follow a task from the first byte to its end: the files
  that the README's table of the twelve moments links to.
- *The core* is all that is needed to run a task after a response: `background` without its
  `journal`, `server`, `web`, and the three files that they share. The journal on disk, the command,
  the monitor and the engines stand beside it: a pool works without them.

The bounds may fall. A feature that would make one rise replaces another. ``python -m
tests.test_tree`` prints the sizes.

Rejected: the bounds of a linter (statements, branches). They say whether a function is long, not
whether the package can be read in an evening.
"""

import ast
import graphlib
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import minibg

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minibg"
README = ROOT / "README.md"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {file: ast.parse(file.read_text()) for file in FILES}

#: Tokens that are no code: comments, blank lines, and the layout.
LAYOUT = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING, tokenize.ENDMARKER),
    *(tokenize.INDENT, tokenize.DEDENT),
}
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef

#: The word of the glossary -> the words that once meant the same. Only phrases that mean nothing
#: else: the line of a log is no queue, and a place where a rule is kept is no slot.
PRIVATE_WORDS = {
    "slot": r"\b(a|the|its|their|free) (?<!in the )(?<!in its )places?\b(?! where| of| that)|\bno place for a",
    "queue": r"\b(in|into) line\b|\bout of the line\b|\bst(ands?|ood|anding) in the line\b",
    "cancel, reset, split": r"\bcuts?\b|\bcutting\b",
    "block (the event loop)": r"\b(hold|holds|held|holding) the (event )?loop\b|\bloop (is|was|has been) held\b",
    "drain": r"\bwork(s|ed|ing)? off\b",
    "commit": r"\bowe[sd]\b|\bpromised\b",
    "accept": r"\btak(e|es|en|ing) on\b",
    "requeue": r"\bput(s|ting)? back\b",
    "defer; idle": r"\bpark(s|ed|ing)?\b",
    "process": r"\b(each|earlier|former|next|one|this) (life|lives)\b",
    "the client, the caller, ...": r"\b(no|some)body\b|\bwhoever\b",
}


# --- sizes ---


@cache
def lines_of_code(file: Path) -> set[int]:
    """Return the numbers of the lines that hold code: not blank, not a comment, not a docstring."""
    prose: set[int] = set()
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
        if token.type not in LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    return code - prose


SIZES = {file: len(lines_of_code(file)) for file in FILES}


def size(files: set[Path]) -> int:
    """Return the lines of code of these files. `test_readme` finds a link that leads nowhere."""
    return sum(SIZES.get(file, 0) for file in files)


def path() -> set[Path]:
    """Return the files that the README's section on the path of one request links to."""
    section = re.search(r"^## The path of one request\n([^\0]*?)^## ", README.read_text(), re.MULTILINE)
    assert section is not None
    return {ROOT / file for file in re.findall(r"\]\((minibg/[\w/]+\.py)\b", section[1])}


def core() -> set[Path]:
    """Return the files of the core."""
    folders = {PACKAGE / folder for folder in ("background", "server", "web")}
    shared = {PACKAGE / file for file in ("after_response.py", "threads.py", "log.py")}
    beside = PACKAGE / "background" / "journal"
    return {file for file in FILES if file in shared or (folders & {*file.parents} and beside not in file.parents)}


def test_the_path_is_read_in_an_evening() -> None:
    assert size(path()) < 1750


def test_the_core_is_small() -> None:
    """The design asks for 3,150. Each guarantee that was added since costs lines; the bound is what they cost, and may fall."""
    assert size(core()) < 4400


def test_no_file_is_long() -> None:
    assert {str(file.relative_to(ROOT)): lines for file, lines in SIZES.items() if lines > 260} == {}


def test_no_function_is_long() -> None:
    long = []
    for file, tree in TREES.items():
        code = lines_of_code(file)
        for node in ast.walk(tree):
            if isinstance(node, FUNCTION) and node.end_lineno is not None:
                lines = len(code & {*range(node.lineno, node.end_lineno + 1)})
                long += [f"{file.relative_to(ROOT)}: {node.name} has {lines} lines"] if lines > 40 else []
    assert long == []


# --- what each file may know ---


def test_each_folder_knows_only_what_it_may() -> None:
    """The layers are import-linter's contracts in pyproject.toml."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    lint = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert lint.returncode == 0, lint.stdout + lint.stderr


#: Module -> its file.
MODULES = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}


def imports(module: str) -> Iterator[str]:
    """Yield the modules of the package that a module imports, wherever it does."""
    for node in ast.walk(TREES[MODULES[module]]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)


def test_imports_make_no_circle() -> None:
    """Inside the folders too. To import from a file is not to import the ``__init__`` of its folder."""
    graph = {module: {*imports(module)} for module in MODULES}
    # Raises CycleError, which names the circle.
    assert [*graphlib.TopologicalSorter(graph).static_order()]


def test_no_import_is_for_the_type_checker_only() -> None:
    """Such an import hides a circle."""
    hidden = [file.name for file in FILES if re.search(r"\bTYPE_CHECKING\b", file.read_text())]
    assert hidden == []


def test_the_framework_knows_of_the_queue_only_how_to_use_it() -> None:
    known: set[str] = set()
    for file in (PACKAGE / "web").glob("*.py"):
        for node in ast.walk(TREES[file]):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minibg.background"):
                known |= {alias.name for alias in node.names}
    assert known <= {"BackgroundTasks", "NotAccepted", "Pool", "QueueFull", "TaskResult"}


def test_the_ledger_is_the_only_writer_of_a_status() -> None:
    """In `server` and `web` a status is one of HTTP. A record is created with its first status."""
    http = {PACKAGE / "server", PACKAGE / "web"}
    writers = {
        str(file.relative_to(PACKAGE))
        for file in FILES
        if not http & {*file.parents} and any(_writes_a_status(node) for node in _after_construction(TREES[file]))
    }
    assert writers == {"background/ledger.py"}


def _after_construction(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below this one, but for those in an ``__init__``."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, FUNCTION) and child.name == "__init__"):
            yield child
            yield from _after_construction(child)


def _writes_a_status(node: ast.AST) -> bool:
    """Whether it is ``x.status = ...`` in any form, or ``setattr(x, "status", ...)``."""
    if isinstance(node, ast.Attribute):
        return node.attr == "status" and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
        return any(isinstance(argument, ast.Constant) and argument.value == "status" for argument in node.args)
    return False


# --- words ---


def test_each_file_opens_with_what_it_is() -> None:
    assert [str(file) for file, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_the_glossary_is_short() -> None:
    """One entry a line, as ``- **word**: what it means`` in the docstring of the package."""
    words = re.findall(r"^- \*\*(.+?)\*\*", minibg.__doc__ or "", re.MULTILINE)
    assert 0 < len(words) <= 15
    assert len({*words}) == len(words)


def prose(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the comments, docstrings and messages of a file, each with its first line's number."""
    for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_the_words_are_those_of_the_glossary() -> None:
    texts = [(str(file.relative_to(ROOT)), line, text) for file in FILES for line, text in prose(file)]
    readme = re.sub(r"^```.*?^```", lambda code: "\n" * code[0].count("\n"), README.read_text(), flags=re.M | re.S)
    texts += [("README.md", number, line) for number, line in enumerate(readme.splitlines(), 1)]
    found = []
    for where, first, text in texts:
        for word, pattern in PRIVATE_WORDS.items():
            for match in re.finditer(pattern, re.sub(r"\s", " ", text), re.IGNORECASE):
                line = first + text.count("\n", 0, match.start())
                found.append(f"{where}:{line}: {match[0]!r}, write: {word}")
    assert not found, "\n".join(found)


if __name__ == "__main__":
    for file, lines in SIZES.items():
        print(f"{lines:5}  {file.relative_to(ROOT)}")
    for folder in (PACKAGE / "background", PACKAGE / "server", PACKAGE / "web"):
        print(f"{size({file for file in core() if folder in file.parents}):5}  {folder.name}, in the core")
    print(f"{size(path()):5}  the path")
    print(f"{size(core()):5}  the core")
    print(f"{sum(SIZES.values()):5}  all of it")
