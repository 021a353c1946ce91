"""The CUDA backend's extension built for the host: the same kernels, with the emulator of CUDA.

It is compiled once for a version of its sources and kept in pytest's cache.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import pytest

from support import HOST, ROOT

KERNELS = [HOST / "runtime_host.cpp", *sorted(HOST.glob("host_*.cpp"))]
HEADERS = [*(ROOT / "csrc/cuda").glob("*.*"), ROOT / "csrc/noprop_cuda.h", *HOST.glob("host_*.h")]
# no contraction, for not every host has a fused multiply-add
OPTIONS = ["-std=c++20", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
OPTIONS += ["-Wno-unknown-pragmas", "-fvisibility=hidden", "-DNOPROP_CUDA_ON_HOST"]
OPTIONS += ["-DNOPROP_CUDA_CLOCKS"]  # which does nothing where no counters are given


def compiler() -> str | None:
    return shutil.which("g++")


def compilations() -> dict[Path, list[str]]:
    """Sources, and the options of each: the kernels fast, the bindings quickly."""
    import pybind11

    python = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
    found = dict.fromkeys(KERNELS, ["-O2"])
    found[ROOT / "csrc/cuda/launch.cpp"] = ["-O1"]
    found[ROOT / "csrc/cuda/bindings.cpp"] = ["-O0", *python]
    return found


def build(folder: Path) -> Path:
    """The module in `folder`, compiled if it is not there from the same sources."""
    gcc, sources = compiler(), compilations()
    assert gcc is not None
    text = [path.read_bytes() for path in (*sources, *sorted(HEADERS))]
    version = subprocess.run([gcc, "--version"], capture_output=True, check=True).stdout
    facts = [*text, version, sys.version.encode(), repr([OPTIONS, *sources.values()]).encode()]
    module = folder / f"_cuda_host_{hashlib.sha256(b'|'.join(facts)).hexdigest()[:16]}.so"
    if module.exists():
        return module
    shared = [gcc, *OPTIONS, f"-I{ROOT / 'csrc'}", f"-I{HOST}"]
    with TemporaryDirectory(dir=folder) as work, ThreadPoolExecutor(2) as pool:

        def compile_one(item: tuple[Path, list[str]]) -> str:
            source, options = item
            target = f"{work}/{source.stem}.o"
            run([*shared, *options, "-c", str(source), "-o", target])
            return target

        objects = list(pool.map(compile_one, sources.items()))
        unfinished = Path(work) / module.name
        run([gcc, "-shared", *objects, "-o", str(unfinished)])
        for old in folder.glob("_cuda_host_*.so"):
            old.unlink()
        unfinished.rename(module)
    return module


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-5000:]}"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_cuda_host", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def built(config: pytest.Config, temporary: pytest.TempPathFactory) -> ModuleType:
    """The module; the test is skipped where there is no compiler."""
    if not (ROOT / "csrc").exists():
        pytest.skip("the CUDA kernels' sources are not here")
    if compiler() is None:
        pytest.skip("g++ is missing, which builds the CUDA kernels for the host")
    cache = getattr(config, "cache", None)
    folder = temporary.mktemp("cuda_host") if cache is None else cache.mkdir("cuda_host")
    return load(build(folder))
