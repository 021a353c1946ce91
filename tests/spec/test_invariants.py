"""Only named files touch foreign things, and no module uses another's private names."""

import ast
import re
from collections.abc import Iterator

import pytest

from support import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="the sources are not here")
PACKAGES = ("noprop_kernels", "python/noprop", "bench")


def modules(*folders: str) -> Iterator[tuple[str, str]]:
    """Names and texts of the Python files under these folders."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text()


@pytest.mark.parametrize(
    "text, folders, allowed",
    [
        (r"\bos\.(environ|getenv)", ["noprop_kernels"], {"noprop_kernels/settings.py"}),
        (
            r"\bos\.(environ|getenv)",
            ["python/noprop"],
            {
                "python/noprop/data.py",
                "python/noprop/engines/ray_engine.py",
            },
        ),
        (
            r"\bdata_ptr\(",
            ["noprop_kernels/backends"],
            {
                "noprop_kernels/backends/triton/graph.py",  # addresses that a graph froze
                "noprop_kernels/backends/turns.py",  # by which calls are kept apart
                *(
                    f"noprop_kernels/backends/cuda/{name}.py"
                    for name in ("buffers", "program", "step_stages")
                ),
            },
        ),
    ],
)
def test_foreign_things_have_their_files(text: str, folders: list[str], allowed: set[str]) -> None:
    found = {name for name, code in modules(*folders) if re.search(text, code, re.MULTILINE)}
    assert found == allowed


def test_typer_is_known_to_the_command_line_alone() -> None:
    pattern = r"^\s*(?:import|from) (?:typer|click)\b"
    found = [name for name, code in modules(*PACKAGES) if re.search(pattern, code, re.MULTILINE)]
    assert found and all(name.startswith("python/noprop/cli/") for name in found), found


def test_pybind11_is_known_to_the_bindings_alone() -> None:
    found = {
        path.relative_to(ROOT / "csrc").as_posix()
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in (".h", ".cpp", ".cuh", ".cu") and "pybind11" in path.read_text()
    }
    assert found == {
        *(f"bindings/{name}" for name in ("bindings.cpp", "call_plan.h", "tensors.h")),
        *(f"cuda/{name}" for name in ("bindings.cpp", "fields.h")),
    }


def test_no_name_of_its_own_is_imported_from_a_module() -> None:
    """An underscore says that a name is its module's; `_C` and `_cuda` are extensions."""
    found = [
        f"{name}: {node.module} {alias.name}"
        for name, code in modules(*PACKAGES)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("torch")
        for alias in node.names
        if alias.name.startswith("_") and alias.name not in ("_C", "_cuda", "__version__")
    ]
    assert not found


def test_inner_headers_include_no_code_of_the_standard_library() -> None:
    """A unit compiled for AVX-512 could leave the linker its copy of such a function for all."""
    for path in [*(ROOT / "csrc/cpu/kernels").iterdir(), *(ROOT / "csrc/cpu/passes").iterdir()]:
        foreign = set(re.findall(r"#include <(.+)>", path.read_text()))
        assert foreign <= {"stdint.h", "stddef.h", "immintrin.h", "arm_neon.h"}, (path, foreign)
