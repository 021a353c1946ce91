"""Fixtures that every test may use."""

import os
from collections.abc import Iterator

import pytest
import torch

import noprop_kernels as nk
from noprop_kernels import dispatch

BACKENDS = ["cpu", "reference"]
if os.environ.get("TRITON_INTERPRET") == "1":  # a hundred times slower, so only on request
    BACKENDS.append("triton")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every backend in turn, forced for the test; skipped with the reason where it cannot run."""
    name: str = request.param
    if name == "cpu" and (reason := dispatch.native_gap()):
        pytest.skip(f"backend cpu: {reason}")
    if name == "triton" and (reason := dispatch.triton_gap(torch.device("cpu"))):
        pytest.skip(f"backend triton: {reason}")
    with nk.use_backend(name):
        yield name
