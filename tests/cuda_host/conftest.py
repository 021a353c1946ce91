"""CUDA kernels built for the host."""

import ctypes

import pytest

import stages_for_tests


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Single stages of the persistent kernel, for stages_for_tests.run_stage."""
    return stages_for_tests.build(tmp_path_factory.mktemp("stages"))
