"""Triton's interpreter for all tests here; it must be asked for before anything imports Triton."""

import os
from types import ModuleType

os.environ["TRITON_INTERPRET"] = "1"

import pytest

from noprop_kernels.backends import dispatch


@pytest.fixture(scope="session")
def kernels() -> ModuleType:
    """The Triton backend; skipped where Triton is not installed."""
    import torch

    if reason := dispatch.gap("triton", None, torch.device("cpu"), "float32"):
        pytest.skip(reason)
    return dispatch.load("triton")
