"""The CUDA backend's extension built for the host: the same kernels, with the emulator of CUDA.

It is compiled once for a version of its sources and kept in pytest's cache.
"""

import hashlib
import importlib.util
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import pytest

from support import HOST, ROOT
from support.host_programs import FLAGS, compiler_gap, run

KERNELS = [HOST / "runtime_host.cpp", *sorted(HOST.glob("host_*.cpp"))]
HEADERS = [*(ROOT / "csrc/cuda").glob("*.*"), ROOT / "csrc/noprop_cuda.h", *HOST.glob("host_*.h")]
OPTIONS = [*FLAGS, "-g0", "-fvisibility=hidden", "-DNOPROP_CUDA_ON_HOST"]
OPTIONS += ["-DNOPROP_CUDA_CLOCKS"]  # which does nothing where no counters are given


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
    sources = compilations()
    facts = [path.read_bytes() for path in (*sources, *sorted(HEADERS))]
    options = repr([OPTIONS, *sources.values()])
    facts += [text.encode() for text in (run("g++", "--version"), sys.version, options)]
    module = folder / f"_cuda_host_{hashlib.sha256(b'|'.join(facts)).hexdigest()[:16]}.so"
    if module.exists():
        return module
    shared = ["g++", *OPTIONS, f"-I{ROOT / 'csrc'}", f"-I{HOST}"]
    with TemporaryDirectory(dir=folder) as work, ThreadPoolExecutor(2) as pool:

        def compile_one(item: tuple[Path, list[str]]) -> str:
            source, options = item
            target = f"{work}/{source.stem}.o"
            run(*shared, *options, "-c", source, "-o", target, timeout=1800)
            return target

        objects = list(pool.map(compile_one, sources.items()))
        unfinished = Path(work) / module.name
        run("g++", "-shared", *objects, "-o", unfinished)
        for old in folder.glob("_cuda_host_*.so"):
            old.unlink()
        unfinished.rename(module)
    return module


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_cuda_host", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def built(config: pytest.Config, temporary: pytest.TempPathFactory) -> ModuleType:
    """The module; the test is skipped where there is no compiler."""
    if reason := compiler_gap():
        pytest.skip(reason)
    cache = getattr(config, "cache", None)
    folder = temporary.mktemp("cuda_host") if cache is None else cache.mkdir("cuda_host")
    return load(build(folder))
