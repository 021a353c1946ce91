"""Fixtures that every test may use."""

import os
import signal
from collections.abc import Iterator
from types import ModuleType

# torch.mm's sums may depend on its operands' addresses, so MKL's on AMD's processors; tests compare
# bits of the reference. MKL reads this when it first runs.
os.environ.setdefault("MKL_CBWR", "AUTO")

import pytest
import torch

import noprop_kernels as nk
from noprop_kernels.backends import dispatch
from noprop_kernels.backends.cuda import extension
from support import host_module
from support.cmake import HOSTILE, Build
from support.interpreter import mend_interpreter

# A shell ignores some signals in what it runs in the background, and so would the programs that
# tests send them to.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

BACKENDS = ["cpu", "reference"]
if os.environ.get("TRITON_INTERPRET") == "1":  # a hundred times slower, so only on request
    BACKENDS.append("triton")
if os.environ.get("NOPROP_CUDA_HOST") == "1":  # likewise
    BACKENDS.append("cuda")


@pytest.fixture(scope="session", autouse=True)
def products_in_order() -> Iterator[None]:
    """On any host the interpreter's sums have one order, so that its bits can be compared."""
    with pytest.MonkeyPatch.context() as patch:
        mend_interpreter(patch)
        yield


@pytest.fixture(scope="session")
def cuda_module(request, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The CUDA backend's extension, built for the host; skipped where there is no g++."""
    return host_module.built(request.config, tmp_path_factory)


@pytest.fixture(scope="session")
def hostile_build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The extension and the programs in C, built once for every test of either, under flags from
    outside that would change numbers: they must be dropped."""
    build = Build(tmp_path_factory.mktemp("hostile") / "a folder")
    build.env |= {"CXXFLAGS": HOSTILE, "LDFLAGS": "-ffast-math"}
    done = build.configure("-DNOPROP_CUDA=OFF", "-DNOPROP_TESTS=ON")
    assert done.returncode == 0, done.stderr
    done = build.build("all")
    assert done.returncode == 0, done.stderr
    return build


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every backend in turn, forced for the test; skipped with the reason where it cannot run."""
    name: str = request.param
    if name == "cpu" and (reason := dispatch.native_gap()):
        pytest.skip(f"backend cpu: {reason}")
    if name == "triton" and (reason := dispatch.triton_gap(torch.device("cpu"))):
        pytest.skip(f"backend triton: {reason}")
    if name == "cuda":
        monkeypatch.setattr(extension, "module", request.getfixturevalue("cuda_module"))
    with nk.use_backend(name):
        yield name
