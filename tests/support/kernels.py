"""The backends as parameters of tests: `kernels` is the module of one, or a test skips.

A test of the contract takes the fixture `kernels` and runs on each that is compared with the
reference; `on(...)` names others.
"""

from types import ModuleType
from typing import Any

import pytest
import torch

from noprop_kernels.backends import dispatch
from noprop_kernels.backends.cuda import extension

REFERENCE = pytest.param("reference", id="reference")
CPU = pytest.param("cpu", id="cpu")
TRITON = pytest.param("triton", id="triton", marks=pytest.mark.triton)  # its interpreter
CUDA = pytest.param("cuda", id="cuda", marks=pytest.mark.cuda_host)  # built for the host
COMPARED = (CPU, TRITON, CUDA)
EVERY = (REFERENCE, *COMPARED)
GPUS = (TRITON, CUDA)
COMPILED = (CPU, CUDA)  # for cases that are too slow on Triton's interpreter


def on(*backends: Any) -> pytest.MarkDecorator:
    """Runs a test on these."""
    return pytest.mark.parametrize("kernels", backends, indirect=True)


def with_precision(*cases: tuple[Any, str]) -> pytest.MarkDecorator:
    """Runs a test on a backend with a precision."""
    made = [
        pytest.param(
            backend.values[0], precision, id=f"{backend.id}-{precision}", marks=backend.marks
        )
        for backend, precision in cases
    ]
    return pytest.mark.parametrize("kernels, precision", made, indirect=["kernels"])


def name_of(kernels: ModuleType) -> str:
    return kernels.__name__.split(".")[-2]


def load(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The value of the fixture `kernels`."""
    name = request.param
    if name == "cpu":
        reason = dispatch.native_gap()
        assert reason is None, reason
    elif name == "cuda":
        monkeypatch.setattr(extension, "module", request.getfixturevalue("cuda_module"))
        monkeypatch.setenv("NOPROP_HOST_SEED", "0")
    elif reason := dispatch.gap(name, None, torch.device("cpu"), "float32"):
        pytest.skip(reason)
    return dispatch.load(name)
