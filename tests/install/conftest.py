"""Build folders, and a driver and an nvcc that are not what they seem."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.cmake import Build


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path / "a folder")


@pytest.fixture
def with_driver(build: Build, tmp_path: Path) -> Callable[[str], None]:
    """Puts a libcuda.so.1 of this C code where the loader finds it."""

    def put(code: str) -> None:
        folder = tmp_path / "driver"
        folder.mkdir()
        (folder / "driver.cpp").write_text(code)
        output = ("-o", folder / "libcuda.so.1")
        subprocess.run(["c++", "-shared", "-fPIC", folder / "driver.cpp", *output], check=True)
        build.env["LD_LIBRARY_PATH"] = str(folder)

    return put


@pytest.fixture
def with_nvcc(build: Build, tmp_path: Path) -> Callable[[str], Path]:
    """Puts a shell script first on PATH as nvcc."""

    def put(script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        nvcc = folder / "nvcc"
        nvcc.write_text(f"#!/bin/sh\n{script}\n")
        nvcc.chmod(0o755)
        build.env["PATH"] = f"{folder}:{os.environ['PATH']}"
        return nvcc

    return put
