"""Flags from outside change neither what a number is nor which processor is needed."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT
from support.cmake import HOSTILE, Build

KEPT = "-g1 -DWORD=1 -fno-plt"
ROUTES = ("CXXFLAGS", "CMAKE_CXX_FLAGS", "CMAKE_CXX_FLAGS_RELEASE", "CXX", "LDFLAGS")


def route(build: Build, name: str, flags: str) -> list[str]:
    """Options of CMake, the environment changed, so that `flags` come this way."""
    if name.startswith("CMAKE"):
        return [f"-D{name}={flags}"]
    build.env[name] = f"c++ {flags}" if name == "CXX" else flags
    return []


def commands(build: Build) -> list[list[str]]:
    """Compilations of the project's own sources, and the links."""
    found = json.loads((build.folder / "compile_commands.json").read_text())
    links = [path.read_text() for path in build.folder.rglob("link.txt")]
    assert links
    return [shlex.split(text) for text in [entry["command"] for entry in found] + links]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The words of the commands where no flag comes from outside."""
    plain = Build(tmp_path_factory.mktemp("plain") / "a folder")
    assert plain.configure("-G", "Unix Makefiles").returncode == 0
    return {word for command in commands(plain) for word in command}


@pytest.mark.parametrize("name", ROUTES)
def test_no_word_of_theirs_reaches_a_command(build: Build, ours: set[str], name: str) -> None:
    options = route(build, name, f"{KEPT} {HOSTILE}")
    done = build.configure("-G", "Unix Makefiles", *options)
    assert done.returncode == 0, done.stderr
    for command in commands(build):
        assert not set(HOSTILE.split()) - ours & set(command), command
    assert any(set(KEPT.split()) <= set(command) for command in commands(build))
    outcome = re.search("Flags from outside that are left out: (.*)", done.stdout)
    assert outcome is not None and set(outcome[1].split()) == set(HOSTILE.split())


def test_words_of_two_variables_are_told_apart(build: Build) -> None:
    flags = ("-DCMAKE_CXX_FLAGS=-ffast-math", "-DCMAKE_SHARED_LINKER_FLAGS=-flto")
    done = build.configure("-G", "Unix Makefiles", *flags)
    assert "are left out: -ffast-math -flto\n" in done.stdout


@pytest.mark.parametrize("flag", ["-ffast-math", "-mavx2"])
def test_a_compiler_that_is_set_so_is_refused(build: Build, tmp_path: Path, flag: str) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\nexec c++ "$@" {flag}\n')
    compiler.chmod(0o755)
    build.env["CXX"] = str(compiler)
    assert build.configure().returncode == 0
    done = build.build("noprop_baseline")
    assert done.returncode != 0 and "#error" in done.stdout + done.stderr
    assert "this compiler is set to in" in done.stdout + done.stderr


CODE = """
import sys
import numpy
import torch
import noprop_kernels as nk
from noprop_kernels.backends.cpu import backend as cpu
print(cpu.describe()["compiler"])
assert numpy.float32(1e-40) * numpy.float32(1) != 0
assert (torch.tensor([1e-40]) * torch.tensor([1.0])).item() != 0
blocks = nk.DenoisingBlocks(nk.plans.mlp(3, 2, 2, hidden=8), nk.DT(nk.NoiseSchedule.cosine(2)))
x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
for isa, runs in cpu.describe()["isas"].items():
    if not runs:
        continue
    cpu.set_isa(isa)
    assert blocks.train_step(x, y).applied.all()
    for number in (float("nan"), float("inf"), -float("inf")):
        bad = x.clone()
        bad[2, 1] = number
        try:
            blocks.train_step(bad, y)
        except ValueError as error:
            assert "finite" in str(error), error
        else:
            raise AssertionError((isa, number))
"""


def test_numbers_are_as_ever(hostile_build: Build, tmp_path: Path) -> None:
    (module,) = hostile_build.folder.glob("_C*.so")
    shutil.copytree(
        ROOT / "noprop_kernels", tmp_path / "noprop_kernels", ignore=shutil.ignore_patterns("*.so")
    )
    shutil.copy(module, tmp_path / "noprop_kernels")
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "without -Ofast -ffast-math" in done.stdout

    if shutil.which("objdump") is None:
        pytest.skip("objdump is missing")
    (baseline,) = (hostile_build.folder / "CMakeFiles/noprop_baseline.dir").rglob("*.o")
    text = subprocess.run(["objdump", "-d", baseline], capture_output=True, text=True).stdout
    assert "%xmm" in text and not re.search(r"%[yz]mm|\bv(mul|add|fmadd)\w* ", text)
