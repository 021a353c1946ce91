"""Fixtures that every test may use."""

from collections.abc import Iterator

import pytest

import noprop_kernels as nk
from noprop_kernels import dispatch


@pytest.fixture(params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every backend that is quick on a CPU, forced for the test; skipped where it cannot run."""
    name: str = request.param
    if name == "cpu" and (reason := dispatch.native_gap()):
        pytest.skip(f"backend cpu: {reason}")
    with nk.use_backend(name):
        yield name
