"""The kernels compiled by nvcc for every target: nothing spills, and no CUDA library is needed.

Their results are tested on the host. No test here can show that the instructions of dev.h do the
same on a device as their twins on the host.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

TARGETS = {"sm_80", "sm_90", "sm_100"}
KERNELS = 3  # of precisions

pytestmark = [pytest.mark.cuda_host, pytest.mark.ahead_of_time]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The extension as CMake builds it, and what the compiler said."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is missing")
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", version)
    if found is None or tuple(map(int, found.groups())) < (12, 8):
        pytest.skip(f"nvcc 12.8 is the first for sm_100, found {version!r}")
    import pybind11

    folder = tmp_path_factory.mktemp("nvcc")
    configure = ["cmake", "-S", ROOT, "-B", folder, "-DNOPROP_CUDA=ON"]
    configure += ["-DCMAKE_CUDA_FLAGS=-Xptxas=-v", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    text = ""
    for command in (configure, ["cmake", "--build", folder, "--target", "_cuda", "-j2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        text += done.stdout + done.stderr
        assert done.returncode == 0, text[-5000:]
    (module,) = folder.glob("_cuda*.so")
    return module, text


def test_no_register_is_spilled(build: tuple[Path, str]) -> None:
    pattern = (
        r"Compiling entry function '(\S+)' for '(sm_\w+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers"
    )
    found = re.findall(pattern, build[1], re.DOTALL)
    compiled = {(name, target) for name, target, *_ in found if "train" in name}
    assert {target for _, target in compiled} == TARGETS
    assert len(compiled) == KERNELS * len(TARGETS)
    for name, target, stack, stores, loads, registers in found:
        print(f"{target} {name}: {registers} registers, stack {stack}, spills {stores} {loads}")
        assert (int(stores), int(loads)) == (0, 0), f"{name} for {target}"


def test_the_extension_needs_no_cuda_library(build: tuple[Path, str]) -> None:
    needed = subprocess.run(["ldd", build[0]], capture_output=True, text=True, check=True).stdout
    assert not re.search("cuda|torch|nv", needed.replace(str(build[0]), "")), needed
    assert build[0].stat().st_size < 8 * 2**20


def test_without_a_driver_it_says_so(build: tuple[Path, str]) -> None:
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_cuda", {str(build[0])!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert not module.on_host and module.constants()["kRows"] == 16
try:
    print("devices:", module.device_count())
except RuntimeError as error:
    print("error:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.match(r"devices: \d|error: cudaGetDeviceCount: \w", done.stdout), done.stdout
