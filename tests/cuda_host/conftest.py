"""CUDA kernels built for the host."""

import ctypes
from types import ModuleType

import pytest

import stages_for_tests
from cuda_host_for_tests import Builder, compiler_gap
from noprop_kernels import dispatch
from noprop_kernels.cuda_kernels import extension


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Single stages of the persistent kernel, for stages_for_tests.run_stage."""
    if reason := stages_for_tests.gap():
        pytest.skip(reason)
    return stages_for_tests.build(tmp_path_factory.mktemp("stages"))


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
