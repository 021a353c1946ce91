"""The CPU kernels under test, with the instruction set that NOPROP_ISA names."""

import os
from collections.abc import Iterator
from types import ModuleType

import pytest

from noprop_kernels.backends import dispatch
from noprop_kernels.backends.cpu import backend as cpu
from support.isas import ISAS


@pytest.fixture(scope="session")
def kernels() -> ModuleType:
    reason = dispatch.native_gap()
    assert reason is None, reason
    return cpu


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that runs here, in turns."""
    cpu.set_isa(request.param)
    yield request.param
    cpu.set_isa(os.environ.get("NOPROP_ISA"))
