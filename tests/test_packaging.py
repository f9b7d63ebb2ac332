"""The package as it is handed out: what is in the wheel and in the sdist, and that a fresh environment installs and runs it.

Nothing is downloaded. Both are built by the backend that pyproject.toml names, from a copy of the files that
belong to them; the fresh environment gets the two runtime dependencies from the environment of the tests.
"""

import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from importlib.metadata import distribution
from pathlib import Path

import httpx
import pytest

import minibg

ROOT = Path(__file__).parent.parent
#: The hosts that pyproject.toml may link to: they exist. There is no page of the project.
HOSTS = {"asgi.readthedocs.io", "www.rfc-editor.org"}


def build(source: Path, target: Path, kind: str) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=60)
    [built] = target.iterdir()
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, so that a build leaves nothing in the repository."""
    source = tmp_path_factory.mktemp("source") / "minibg"
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("minibg", "examples", "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / file, source)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def unpacked(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that an sdist unpacks to."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(build(source, tmp_path_factory.mktemp("sdist"), "sdist")) as sdist:
        sdist.extractall(folder, filter="data")
    return folder / f"minibg-{minibg.__version__}"


def files(folder: Path, *parts: str) -> set[str]:
    found = {path for part in parts for path in (folder / part).rglob("*") if path.is_file()}
    return {str(path.relative_to(folder)) for path in found if "__pycache__" not in path.parts}


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(wheel: Path) -> Message:
    [text] = [data.decode() for name, data in content(wheel).items() if name.endswith("/METADATA")]
    return Parser().parsestr(text)


def test_the_wheel_is_the_package_its_text_and_its_licence(wheel: Path) -> None:
    names = {name for name in content(wheel) if ".dist-info/" not in name}
    assert names == files(ROOT, "minibg")
    assert names >= {"minibg/explain.md", "minibg/py.typed"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in content(wheel))


def test_the_sdist_has_the_lessons_and_the_tests_and_builds_the_same_wheel(
    wheel: Path, unpacked: Path, tmp_path: Path
) -> None:
    assert files(unpacked, "minibg", "examples", "tests") == files(ROOT, "minibg", "examples", "tests")
    assert content(build(unpacked, tmp_path, "wheel")) == content(wheel)


def test_the_metadata_says_what_it_is(wheel: Path) -> None:
    found = metadata(wheel)
    assert (found["Name"], found["Version"], found["License-Expression"]) == ("minibg", minibg.__version__, "MIT")
    assert found["Description-Content-Type"] == "text/markdown"
    assert found.get_payload() == (ROOT / "README.md").read_text()
    classifiers = found.get_all("Classifier") or []
    assert {"Typing :: Typed", "Framework :: AsyncIO", "Programming Language :: Python :: 3.11"} <= {*classifiers}
    assert found["Requires-Python"] == ">=3.11"
    needed = [line for line in found.get_all("Requires-Dist") or [] if "extra ==" not in line]
    assert [line.split("<")[0].split(">")[0] for line in needed] == ["h11", "uvloop"]


def test_its_links_lead_to_hosts_that_exist(wheel: Path) -> None:
    links = [line.split(", ")[1] for line in metadata(wheel).get_all("Project-URL") or []]
    assert links
    assert {httpx.URL(link).host for link in links} <= HOSTS
    assert {httpx.URL(link).scheme for link in links} == {"https"}


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of a fresh environment, in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=True)
    [packages] = folder.glob("lib/python*/site-packages")
    for name in ("h11", "uvloop"):
        for file in distribution(name).files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file.locate(), packages / file)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "--no-index", str(wheel)], check=True, timeout=100)
    subprocess.run([*pip, "check"], check=True, timeout=100, stdout=subprocess.DEVNULL)
    return folder / "bin"


def output(*command: str | Path, cwd: Path) -> str:
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def test_a_fresh_environment_has_the_command_and_the_text_it_prints(fresh: Path, tmp_path: Path) -> None:
    assert output(fresh / "minibg", "--version", cwd=tmp_path) == f"minibg {minibg.__version__}\n"
    assert "The path of one request" in output(fresh / "minibg", "--explain", cwd=tmp_path)
    where = output(fresh / "python", "-c", "import minibg; print(minibg.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(fresh.parent)


@pytest.fixture
def served(fresh: Path, tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
    shutil.copy(ROOT / "examples" / "hello.py", tmp_path)
    command = [str(fresh / "minibg"), "hello:app", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.terminate()


def test_a_fresh_environment_serves_a_lesson_and_runs_its_task(served: "subprocess.Popen[str]", tmp_path: Path) -> None:
    assert served.stderr is not None
    port = int(served.stderr.readline().split()[-1])
    with httpx.Client(trust_env=False) as client:
        assert client.post(f"http://127.0.0.1:{port}/log").json() == {"message": "recorded"}
    served.terminate()
    _, log = served.communicate(timeout=30)
    assert served.returncode == 0, log
    assert (tmp_path / "log.txt").read_text() == "someone called /log\n"
