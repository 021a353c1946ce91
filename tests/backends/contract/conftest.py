"""Every backend in turn; Triton's interpreter must be asked for before anything imports Triton."""

import os
from types import ModuleType

os.environ["TRITON_INTERPRET"] = "1"

import pytest

from support import kernels as backends


@pytest.fixture(params=backends.COMPARED)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return backends.load(request, monkeypatch)
