"""Programs in C on the C interface alone: a block trained, and the kernels against plain loops."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from support import ROOT


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command[0]}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where cmake built the programs, from the sources and without Python."""
    if not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("the sources are not here")
    for name, ways in {"cmake": ["cmake"], "a C compiler": ["cc", "gcc", "clang"]}.items():
        if not any(shutil.which(way) for way in ways):
            pytest.skip(f"{name} is not on PATH")
    folder = tmp_path_factory.mktemp("c")
    options = ("-DNOPROP_PYTHON=OFF", "-DNOPROP_TESTS=ON", "-DNOPROP_OPTIMIZE=-O1")
    run("cmake", "-S", ROOT, "-B", folder, *options)
    run("cmake", "--build", folder, "--parallel", "2")
    return folder


def test_one_block_trains_in_the_memory_of_its_parts(build: Path) -> None:
    outcome = json.loads(run(build / "train_one_block"))
    assert outcome["same_bits"] and outcome["last_loss"] * 10 < outcome["first_loss"]
    assert outcome["moments"] == 2 * outcome["weights"]
    parts = sum(outcome[part] for part in ("program", "weights", "moments", "data", "workspace"))
    # beside the code that has run since, the gradients do not fit
    assert parts < outcome["peak"] < parts + outcome["code"] + outcome["weights"]


def test_kernels_match_plain_loops(build: Path) -> None:
    outcome = json.loads(run(build / "kernels_match"))
    assert outcome["failures"] == 0 and outcome["cases"] == 72 * len(outcome["worst"])
    assert all(0 < worst < 1e-5 for worst in outcome["worst"].values())
