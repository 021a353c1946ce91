"""The CPU kernels under test, with the instruction set that NOPROP_ISA names."""

from types import ModuleType

import pytest

from noprop_kernels.backends import dispatch
from noprop_kernels.backends.cpu import backend as cpu


@pytest.fixture(scope="session")
def kernels() -> ModuleType:
    reason = dispatch.native_gap()
    assert reason is None, reason
    return cpu
