"""Kernels built for the host, each once a session."""

import pytest

from cuda_host_for_tests import Builder, compiler_gap


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    if reason := compiler_gap():
        pytest.skip(reason)
    return Builder(tmp_path_factory.mktemp("cuda_host"))
