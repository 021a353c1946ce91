"""The examples of every page run, and what its prose names exists."""

import fnmatch
import importlib
import os
import random
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from bench.__main__ import COMMANDS
from noprop.cli.app import app
from noprop.datasets.dataset import Dataset
from noprop.inputs import InputFormat
from support import ROOT

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "bench/README.md",
    "bench/results/README.md",
    "csrc/README.md",
    "noprop_kernels/README.md",
    "noprop_kernels/backends/README.md",
    "python/noprop/README.md",
    "tests/README.md",
)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# bash blocks that no test runs: a line of each, and the reason
NOT_RUN = {
    'pip install -c constraints.txt -e ".[test]" && python -m pytest -q': "it runs the tests",
    "python -m bench run --quick": "it measures for two minutes",
    "python -m venv .venv": "it makes an environment and builds the package, as .ci/run does",
    "ruff check .": "the tools of development, which .ci/run runs",
}
# those that need more than this machine may have: what, and whether it is there
NEEDS: dict[str, tuple[str, Callable[[], bool]]] = {
    "--device cuda": ("a GPU", torch.cuda.is_available),
    "--engine ray": ("Ray, of the extra ray", lambda: find_spec("ray") is not None),
    "--engine slurm": ("submitit, of the extra slurm", lambda: find_spec("submitit") is not None),
    "--data mnist": (
        "MNIST in the folder NOPROP_DATA",
        lambda: bool(os.environ.get("NOPROP_DATA")),
    ),
}
# `pip install` is checked by a test of its own; a training is cut short
SHELL = """
set -euo pipefail
python() { "$PYTHON" "$@"; }
pip() { [ "$1" = install ]; }
noprop() {
  if [ "$1" = train ]; then set -- "$@" --epochs 1; fi
  python -m noprop "$@"
}
"""
FILES = [
    path.relative_to(ROOT).as_posix()
    for name in (".ci", "bench", "csrc", "noprop_kernels", "python", "tests")
    for path in (ROOT / name, *(ROOT / name).rglob("*"))
    if "__pycache__" not in path.parts
] + [path.name for path in ROOT.iterdir() if path.is_file()]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page, line: where its text begins.
        language: "python" and "bash" run, "text" does not.
        text: without the fence.
    """

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str | None = None) -> list[Block]:
    """The blocks of all pages, or those in one language."""
    found = [
        Block(page, text.count("\n", 0, match.start(2)) + 1, match[1], match[2])
        for page in PAGES
        for text in [read(page)]
        for match in FENCED.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def read(page: str) -> str:
    return (ROOT / page).read_text()


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return FENCED.sub("", read(page))


def code(page: str) -> list[str]:
    """The code in a page's prose, and each line of its bash blocks."""
    lines = [
        line for block in blocks("bash") if block.page == page for line in block.text.splitlines()
    ]
    return re.findall(r"`([^`\n]+)`", prose(page)) + lines


def installs() -> Iterator[tuple[str, list[str]]]:
    """Each page's `pip install` commands: their arguments."""
    for page in PAGES:
        for text in code(page):
            for command in re.findall(r"pip install ([^#&|;]+)", text):
                yield page, shlex.split(command)


def write_data(folder: Path) -> None:
    """The files that the examples read: flowers.csv with the column species, new.csv without."""
    draw = random.Random(0)
    names = ("setosa", "virginica", "versicolor")
    columns = "sepal_length,sepal_width,petal_length,petal_width"
    rows = [
        [f"{draw.gauss(4 * i + 3 * kind, 1):.3f}" for i in range(4)] + [names[kind]]
        for kind in (0, 1, 2) * 20
    ]
    table = [f"{columns},species", *(",".join(row) for row in rows)]
    (folder / "flowers.csv").write_text("\n".join(table) + "\n")
    new = [columns, *(",".join(row[:4]) for row in rows[:5])]
    (folder / "new.csv").write_text("\n".join(new) + "\n")


def few_images(name: str) -> Dataset:
    """A stand-in for CIFAR-10: random images of its form."""
    assert name == "cifar10"
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (60, 3072), dtype=torch.uint8, generator=generator)
    y = torch.arange(60) % 10
    return Dataset(name, x[20:], y[20:], x[:20], y[:20], 10, InputFormat((3, 32, 32), "bytes"))


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_example(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("noprop.data.load", few_images)
    source = "\n" * (block.line - 1) + block.text
    exec(compile(source, str(ROOT / block.page), "exec"), {"__name__": "page"})


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_bash_example(block: Block, tmp_path: Path) -> None:
    for line, reason in NOT_RUN.items():
        if line in block.text:
            pytest.skip(reason)
    for option, (need, there) in NEEDS.items():
        if option in block.text and not there():
            pytest.skip(f"needs {need}")
    write_data(tmp_path)
    environment = os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'python'}",
    }
    done = subprocess.run(
        ["bash", "-c", SHELL + block.text],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


def test_every_block_runs_or_says_why() -> None:
    assert {block.language for block in blocks()} <= {"python", "bash", "text"}
    texts = [block.text for block in blocks("bash")]
    for line in (*NOT_RUN, *NEEDS):
        assert sum(line in text for text in texts) == 1, line


def test_installed_packages_exist() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    pinned = {line.split("==")[0] for line in read("constraints.txt").splitlines()}
    commands = list(installs())
    assert len(commands) >= 8
    for page, (*arguments,) in commands:
        while arguments:
            argument = arguments.pop(0)
            if argument == "-c":
                assert (ROOT / arguments.pop(0)).is_file(), page
            elif match := re.fullmatch(r"(?:\.|noprop-kernels)(?:\[(.+)\])?", argument):
                extras = (match[1] or "").split(",")
                assert {*extras} <= {"", *project["optional-dependencies"]}, (page, argument)
            else:
                assert argument == "-e" or argument in pinned, (page, argument)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = prose(page)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
    for place in re.findall(r"\]\(([^)\s]+)\)", text):
        there = place in anchors or (ROOT / page).parent.joinpath(place).exists()
        assert "://" in place or there, place


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    a_file = r"[\w./*-]+\.(?:py|h|cpp|cuh|cu|md|toml|cmake|sh)\b"
    in_a_folder = r"(?:tests|bench|csrc|noprop_kernels|\.ci)/[\w./*-]*"
    for text in re.findall(r"`([^`\n]+)`", prose(page)):
        for name in re.findall(rf"(?<![\w./*-])(?:{a_file}|{in_a_folder})", text):
            name = name.removeprefix("../").rstrip("/")
            assert fnmatch.filter(FILES, name) or fnmatch.filter(FILES, f"*/{name}"), name


@pytest.mark.parametrize("page", PAGES)
def test_named_commands_exist(page: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    options = {option for item in commands.values() for each in item.params for option in each.opts}
    sources = "".join(path.read_text() for path in (ROOT / "bench").rglob("*.py"))
    for text in code(page):
        for name in re.findall(r"python -m bench (?!NAME)(\w+)", text):
            assert name in COMMANDS, text
        for name in re.findall(r"\bnoprop (?!NAME)([a-z]+)", text):
            assert name in commands, text
        if re.match(r"noprop |python -m bench |--", text):
            for option in re.findall(r"(?<!\S)--[\w-]+", text):
                assert option in options or f'"{option}"' in sources, text


def test_named_variables_exist() -> None:
    sources = [ROOT / "setup.py", ROOT / "CMakeLists.txt"] + [
        path
        for name in (".ci", "bench", "csrc", "noprop_kernels", "python", "tests")
        for path in (ROOT / name).rglob("*")
        if path.suffix in (".py", ".h", ".cpp", ".cmake", ".txt", "") and path.is_file()
    ]
    known = {name for path in sources for name in re.findall(r"NOPROP_[A-Z_]+", path.read_text())}
    for page in PAGES:
        for name in re.findall(r"NOPROP_[A-Z_]+", read(page)):
            assert name in known, (page, name)


@pytest.mark.parametrize("page", PAGES)
def test_named_attributes_exist(page: str) -> None:
    for text in re.findall(r"`([^`\n]+)`", prose(page)):
        for name in re.findall(r"(?<![\w./])(?:nk|noprop|noprop_kernels)(?:\.[A-Za-z_]\w*)+", text):
            package, *attributes = name.split(".")
            if attributes[-1] in ("h", "md", "py"):
                continue
            found = importlib.import_module("noprop_kernels" if package == "nk" else package)
            for attribute in attributes:
                if not hasattr(found, attribute):  # a module that nothing has imported yet
                    importlib.import_module(f"{found.__name__}.{attribute}")
                found = getattr(found, attribute)


def test_readme_is_short_and_has_the_commands_of_ci() -> None:
    readme = read("README.md")
    assert len(readme.splitlines()) <= 250
    for name in ("main", "test"):
        assert re.search(rf"^<!-- command:{name} -->\n```bash\n.+?\n```", readme, re.MULTILINE), (
            name
        )


def test_the_headline_table_is_that_of_the_measured_page() -> None:
    """Rows of `ours` with AdamW in float32, 2 threads and K = 50, a column for each machine and
    instruction set."""
    cells = r"^\| `(\w+)` \|" + 5 * r" ([^|]+%) \|" + "$"
    rows = re.findall(cells, read("README.md"), re.MULTILINE)
    page = read("bench/results/README.md")
    tables = re.findall(r"^AdamW, float32:$(.*?)^[A-Z]", page, re.MULTILINE | re.DOTALL)
    row = r"^\| `(\w+)` \| 2 \| 50 \| `ours` \| ([\d.]+) .*\| (\*\*[\d.]+\*\*) \| (\d+%) \|$"
    for column, table in enumerate(tables, start=1):
        measured = re.findall(row, table, re.MULTILINE)
        assert [(each[0], each[column]) for each in rows] == [
            (shape, ", ".join(figures)) for shape, *figures in measured
        ]
    assert len(tables) == 5 and len(rows) == 4
