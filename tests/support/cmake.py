"""CMake on the sources, configured and no more unless a test builds: what the build decides."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

# what changes numbers, or the processor that is needed
HOSTILE = (
    "-Ofast -ffast-math -funsafe-math-optimizations -ffinite-math-only -fno-signed-zeros "
    "-fassociative-math -freciprocal-math -fsingle-precision-constant -march=native -mavx2 "
    "-mfma -flto"
)


class Build:
    """One build folder; options stay for the next call. Skips where nothing builds."""

    def __init__(self, folder: Path) -> None:
        if not (ROOT / "CMakeLists.txt").exists():
            pytest.skip("the sources are not here")
        for name in ("cmake", "c++"):
            if shutil.which(name) is None:
                pytest.skip(f"{name} is not on PATH")
        import pybind11

        self.folder = folder
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("CMAKE", "CUDA"))}
        self.options = [
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
            "-DNOPROP_OPTIMIZE=-O0",
        ]

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.env, capture_output=True, text=True, errors="replace", timeout=600
        )

    def configure(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run("cmake", "-S", ROOT, "-B", self.folder, *self.options, *options)

    def build(self, target: str) -> subprocess.CompletedProcess[str]:
        return self.run("cmake", "--build", self.folder, "--target", target, "-j2")

    def left_out(self) -> str:
        """The reason that the build gives for leaving the CUDA kernels out."""
        text = (self.folder / "cuda_left_out.cpp").read_text("ascii")
        found = re.search(r'R"noprop\((.*)\)noprop"', text, re.DOTALL)
        assert found is not None, text
        return found[1]
