"""CUDA kernels built for the host."""

import ctypes
from pathlib import Path
from types import ModuleType

import pytest

from noprop_kernels.backends import dispatch
from noprop_kernels.backends.cuda import extension, placement
from noprop_kernels.backends.cuda.placement import Layout
from support import PROGRAMS
from support.host_programs import Builder, compiler_gap
from support.recordings import Recorder, described, record_all
from support.stages import load


@pytest.fixture
def kernels(cuda_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The CUDA backend with it, on CPU tensors."""
    monkeypatch.setattr(extension, "module", cuda_module)
    monkeypatch.setenv("NOPROP_HOST_SEED", "0")
    return dispatch.load("cuda")


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Programs with the emulator, for each sanitizer."""
    if reason := compiler_gap():
        pytest.skip(reason)
    return Builder(tmp_path_factory.mktemp("cuda_host"))


@pytest.fixture(scope="session")
def stages(builder: Builder) -> ctypes.CDLL:
    """Single stages of the persistent kernel, for support.stages.run_stage."""
    return load(builder.build("stages", [PROGRAMS / "stage_library.cpp"], "plain", shared=True))


@pytest.fixture(scope="session")
def recordings(cuda_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of launches of two groups of two thread blocks."""
    recorder = Recorder(cuda_module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extension, "module", recorder)
        patch.setattr(placement, "layout", lambda *sizes: Layout(2, 2))
        record_all(dispatch.load("cuda"))
    kinds = frozenset().union(*(made.kinds for made in recorder.recordings))
    assert kinds == described(cuda_module)["fields"]["stages"]["kinds"].keys()
    folder = tmp_path_factory.mktemp("recordings")
    return [made.write(folder / f"launch{i}") for i, made in enumerate(recorder.recordings)]
