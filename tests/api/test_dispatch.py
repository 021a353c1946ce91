"""Choosing a backend: forced or automatic, and a reason for every gap."""

import re
import subprocess
import sys
from types import ModuleType

import pytest
import torch

import noprop_kernels as nk
from noprop_kernels import __main__
from noprop_kernels import plan as plan_module
from noprop_kernels.backends import dispatch
from noprop_kernels.backends.cpu import backend as cpu
from noprop_kernels.backends.cuda import extension
from noprop_kernels.backends.gpu import layers as gpu_layers
from noprop_kernels.backends.reference import backend as reference
from noprop_kernels.backends.reference import layers
from noprop_kernels.stack import plain_modules
from support.blocks import PLANS, batch, make

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NO_KERNELS = "no module named _C"
NO_CUDA = "the extension _cuda is not built"
NO_TRITON = "Triton is not installed; the extra noprop-kernels[triton] brings it"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch):
    """No backend forced from outside, and nothing remembered before or after."""
    for name in ("NOPROP_BACKEND", "NOPROP_ISA", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    dispatch.native_gap.cache_clear()
    dispatch.warn_once.cache_clear()
    monkeypatch.setattr(dispatch, "triton_version", lambda: None)
    monkeypatch.setattr(extension, "module", None)
    monkeypatch.setattr(extension, "_missing", NO_CUDA)
    yield
    dispatch.native_gap.cache_clear()
    dispatch.warn_once.cache_clear()


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "unavailable", lambda: NO_KERNELS)


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "unavailable", lambda: None)


@pytest.fixture
def with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, as far as questions go."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")


@pytest.fixture
def without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def choose(**options) -> ModuleType:
    return dispatch.choose(PLANS["mlp"], options.pop("device", CPU), **options)


def test_the_kernels_come_first(with_kernels, capsys):
    assert choose() is cpu
    assert capsys.readouterr() == ("", "")


def test_the_reference_is_chosen_with_one_line_that_says_why(without_kernels, with_gpus, capsys):
    assert choose() is reference and choose() is reference
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "reference" in err and NO_KERNELS in err
    assert choose(device=CUDA) is reference
    assert NO_TRITON in capsys.readouterr().err


def test_forced_by_a_with_an_argument_or_the_environment(with_kernels, monkeypatch, capsys):
    assert choose(backend="reference") is reference
    with nk.use_backend("reference"):
        assert choose() is reference
        with nk.use_backend("cpu"):
            assert choose(backend="reference") is cpu  # the innermost `with` comes first
        assert choose() is reference
    assert choose() is cpu
    monkeypatch.setenv("NOPROP_BACKEND", "reference")
    assert choose() is reference
    assert choose(backend="cpu") is cpu
    assert capsys.readouterr().err == ""


def test_forced_it_never_falls_back(without_kernels, monkeypatch):
    with pytest.raises(nk.BackendError, match=f'cpu: {NO_KERNELS}\n  forced by backend="cpu"'):
        choose(backend="cpu")
    with nk.use_backend("cpu"), pytest.raises(nk.BackendError, match=r'use_backend\("cpu"\)'):
        choose()
    monkeypatch.setenv("NOPROP_BACKEND", "triton")
    with pytest.raises(nk.BackendError, match=f"triton: {re.escape(NO_TRITON)}\n.*NOPROP_BACKEND"):
        choose()


def test_a_name_that_does_not_exist(monkeypatch):
    with pytest.raises(ValueError, match="use_backend: backend must be one of .* got 'mkl'"):
        with nk.use_backend("mkl"):
            pass
    monkeypatch.setenv("NOPROP_BACKEND", "mkl")
    with pytest.raises(ValueError, match="NOPROP_BACKEND: backend must be one of"):
        choose()


def test_the_error_has_a_reason_for_each_candidate(with_kernels):
    with pytest.raises(nk.BackendError) as error:
        choose(precision="float16")
    text = str(error.value)
    for name in ("cpu", "reference"):
        wanted = dispatch.PRECISIONS[name]
        assert f"  {name}: precision must be one of {wanted}, got 'float16'" in text
    with pytest.raises(nk.BackendError, match="runs on the CPU only, the parameters are on cuda"):
        choose(device=CUDA, backend="cpu")


def test_a_layer_that_no_backend_walks(with_kernels):
    class Other(nk.Dense):
        pass

    dense = nk.Plan({"z": (2,)}, {"logits": nk.Dense("z", 2)})
    other = nk.Plan({"z": (2,)}, {"logits": Other("z", 2)})
    for name in ("cpu", "reference"):
        assert dispatch.gap(name, dense, CPU, "float32") is None
        assert dispatch.gap(name, other, CPU, "float32") == "has no kernels for Other layers"


def test_isa_is_set_once_and_its_error_is_the_reason(with_kernels, monkeypatch):
    seen = []

    def set_isa(name: str) -> None:
        seen.append(name)
        if name == "neon":
            raise ValueError("NOPROP_ISA: must be one of avx2, got 'neon'")

    monkeypatch.setattr(cpu, "set_isa", set_isa)
    monkeypatch.setenv("NOPROP_ISA", "avx2")
    assert choose() is cpu and choose() is cpu
    assert seen == ["avx2"]
    dispatch.native_gap.cache_clear()
    monkeypatch.setenv("NOPROP_ISA", "neon")
    with pytest.raises(nk.BackendError, match="cpu: NOPROP_ISA: must be one of avx2, got 'neon'"):
        choose()


def test_an_object_runs_on_the_backend_it_was_given(with_kernels, monkeypatch):
    called = []
    monkeypatch.setattr(cpu, "train", lambda call: called.append("cpu"))
    monkeypatch.setattr(reference, "train", lambda call: called.append("reference"))
    make(backend="reference").train_step(*batch())
    make().train_step(*batch())
    assert called == ["reference", "cpu"]


def test_explain(with_kernels, monkeypatch):
    text = nk.explain(make())
    assert text.splitlines()[0] == "DenoisingBlocks on cpu, float32: cpu"
    assert "  cpu: chosen" in text and "  reference: could run" in text
    assert f"  triton: {NO_TRITON}" in text
    assert f"  cuda: {NO_CUDA}" in text
    forced = nk.explain(make(backend="reference"))
    assert 'reference (forced by backend="reference")' in forced and "cpu: could run" in forced
    plan = nk.explain(PLANS["mlp"], precision="tf32")
    assert plan.startswith("Plan on cpu, tf32: reference")
    monkeypatch.setattr(cpu, "unavailable", lambda: NO_KERNELS)
    dispatch.native_gap.cache_clear()
    assert f"cpu: {NO_KERNELS}" in nk.explain(PLANS["mlp"])
    with pytest.raises(ValueError, match="explain: what must be a Plan or an object with one"):
        nk.explain(3)


def parts(out: str) -> dict[str, list[str]]:
    """Lines of `python -m noprop_kernels` by device."""
    _, *found = out.split("backends on ")
    return {part.partition(":\n")[0]: part.splitlines()[1:] for part in found}


def test_the_command_prints_every_backend(without_kernels, without_gpus, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    __main__.main()
    out = capsys.readouterr().out
    assert out.startswith(f"noprop_kernels {nk.__version__}, torch {torch.__version__}, Python 3.")
    assert f"not built: {NO_KERNELS}" in out
    on = parts(out)
    assert [*on] == ["cpu", "cuda"]
    assert on["cpu"] == [
        f"  cpu: {NO_KERNELS}",
        f"  triton: {NO_TRITON}",
        f"  cuda: {NO_CUDA}",
        "  reference: runs here",
    ]
    assert "  reference: no GPU that PyTorch can use" in on["cuda"]
    monkeypatch.setattr(dispatch, "triton_version", lambda: "3.7.1")
    __main__.main()
    assert "  triton: no GPU that PyTorch can use" in parts(capsys.readouterr().out)["cuda"]


def test_check_device_of_a_gpu_that_is_not_there(without_gpus):
    for device in ("cuda", "cuda:1", CUDA):
        with pytest.raises(ValueError, match="check_device: device must be a GPU that is there"):
            nk.check_device(device)
    nk.check_device("cpu")
    nk.check_device()


def test_the_command_names_each_gpu(with_kernels, with_gpus, monkeypatch, capsys):
    monkeypatch.setattr(dispatch, "triton_version", lambda: "3.7.1")
    by_index = {0: (9, 0), 1: (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: by_index[device.index])
    __main__.main()
    on = parts(capsys.readouterr().out)
    names = [
        "cuda:0 (Card 0, compute capability 9.0)",
        "cuda:1 (Card 1, compute capability 7.5)",
    ]
    assert [*on] == ["cpu", *names]
    assert "  triton: runs here" in on[names[0]]
    assert "  triton: needs a GPU of compute capability 8.0 or later, found 7.5" in on[names[1]]
    for name in names:
        assert "  cpu: runs on the CPU only, the parameters are on cuda" in on[name][0]
        assert "  reference: runs here" in on[name]


def test_the_command_tells_the_build(with_kernels, monkeypatch, capsys):
    build = {"compiler": "GNU 12", "isas": {"avx512": False, "avx2": True}, "threads": 2}
    monkeypatch.setattr(cpu, "describe", lambda: build)
    __main__.main()
    out = capsys.readouterr().out
    assert "  isas: avx512 (not here), avx2 (runs)\n  compiler: GNU 12\n  threads: 2\n" in out


def test_triton_says_what_it_lacks(monkeypatch):
    def gap(device: torch.device = CPU) -> str | None:
        return dispatch.gap("triton", PLANS["mlp"], device, "tf32")

    assert gap() == NO_TRITON
    monkeypatch.setattr(dispatch, "triton_version", lambda: "3.5.1")
    assert gap() == "needs Triton 3.6 or later, found 3.5.1"
    monkeypatch.setattr(dispatch, "triton_version", lambda: "3.10.0+git1")
    assert gap() == "runs on a CPU only where TRITON_INTERPRET=1 is set"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert gap(CUDA).endswith(f"torch {torch.__version__} is built for CPUs alone")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert gap(CUDA) == "no GPU that PyTorch can use"
    assert "the parameters are on meta" in gap(torch.device("meta"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert gap(torch.device("cuda", 1)) == "no GPU cuda:1, there are 1"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert gap(CUDA) == "needs a GPU of compute capability 8.0 or later, found 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert gap(CUDA) is None
    assert nk.explain(PLANS["mlp"], device=CUDA).startswith("Plan on cuda, float32: triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert gap() is None
    assert "TRITON_INTERPRET=1 is set" in gap(CUDA)


def test_a_device_without_kernels_is_refused_with_what_to_use_instead(with_kernels, capsys):
    for name in ("meta", "mps", "xpu"):
        with pytest.raises(nk.BackendError) as error:
            choose(device=torch.device(name))
        text = str(error.value)
        assert f"  no kernels for {name}\n" in text and 'use .to("cpu") instead' in text
        assert ("reference" in text) == (name == "xpu")
    assert choose(device=torch.device("xpu"), backend="reference") is reference
    for name, reason in (("meta", "no contents"), ("mps", "float64")):
        with pytest.raises(nk.BackendError, match=f"reference: .*{reason}"):
            choose(device=torch.device(name), backend="reference")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("call", ["train_step", "predict", "forward", "add_noise", "gradients"])
def test_an_object_on_a_device_without_kernels(with_kernels, call):
    blocks = make().to("meta")
    x, y = (value.to("meta") for value in batch())
    z = torch.empty(len(x), blocks.D, device="meta")
    arguments = {"predict": (x,), "forward": (x, z), "add_noise": (y,)}
    with pytest.raises(nk.BackendError, match="no kernels for meta"):
        getattr(blocks, call)(*arguments.get(call, (x, y)))


def test_triton_is_not_chosen_on_the_cpu_unless_forced(with_kernels, monkeypatch):
    monkeypatch.setattr(dispatch, "triton_version", lambda: "3.7.1")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose() is cpu
    dispatch.runs_natively.cache_clear()
    with pytest.raises(nk.BackendError, match="no backend can run"):
        monkeypatch.setattr(
            dispatch, "gap", lambda name, *_, **__: None if name == "triton" else "no"
        )
        choose()
    dispatch.runs_natively.cache_clear()


def test_nothing_of_triton_is_imported_until_it_runs():
    code = """
import sys, torch
before = "triton" in sys.modules
import noprop_kernels as nk
from noprop_kernels import __main__
from noprop_kernels import plan as plan_module
from noprop_kernels.backends import dispatch
blocks = nk.DenoisingBlocks(nk.plans.mlp(3, 2, 2, hidden=4), nk.DT(nk.NoiseSchedule.cosine(2)))
nk.explain(blocks)
dispatch.gap("triton", None, torch.device("cpu"), "float32")
blocks.train_step(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
assert before or "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


class NoHost:
    """As much of the extension as a question takes."""

    on_host = False
    names = ("GPU a", "GPU b")

    @classmethod
    def device_count(cls) -> int:
        if not cls.names:
            raise RuntimeError("there is no NVIDIA driver")
        return len(cls.names)

    @classmethod
    def device(cls, index: int) -> dict[str, str]:
        return {"name": cls.names[index]}


def test_cuda_says_what_it_lacks(monkeypatch):
    def gap(device: torch.device = CUDA) -> str | None:
        return dispatch.gap("cuda", None, device, "bfloat16")

    assert gap() == NO_CUDA
    monkeypatch.setattr(extension, "module", NoHost)
    assert gap(CPU) == "runs on NVIDIA GPUs, the parameters are on cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gap().startswith("no GPU that PyTorch can use")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert gap() == "needs a GPU of compute capability 8.0 or later, found 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert gap() is None
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert gap() == "runs on NVIDIA GPUs, this PyTorch is for AMD's"


def test_the_command_tells_what_cuda_sees(with_kernels, monkeypatch, capsys):
    def line() -> str:
        __main__.main()
        text = capsys.readouterr().out
        return next(line for line in text.splitlines() if line.startswith("CUDA kernels: "))

    assert line() == f"CUDA kernels: {NO_CUDA}"
    monkeypatch.setattr(extension, "module", NoHost)
    assert line() == "CUDA kernels: built, devices: GPU a, GPU b"
    monkeypatch.setattr(NoHost, "names", ())
    assert line() == "CUDA kernels: built, no device: there is no NVIDIA driver"


def test_on_a_gpu_triton_comes_before_cuda_and_explain_says_why(monkeypatch):
    able = ("triton", "cuda", "reference")
    monkeypatch.setattr(dispatch, "gap", lambda name, *_, **__: None if name in able else "no")
    text = nk.explain(PLANS["mlp"], device=CUDA)
    assert text.startswith("Plan on cuda, float32: triton")
    assert "  cuda: could run; Triton comes first until both have been timed on a GPU" in text
    with nk.use_backend("cuda"):
        assert 'cuda (forced by use_backend("cuda"))' in nk.explain(PLANS["mlp"], device=CUDA)


def test_every_backend_has_its_kinds_in_its_own_table():
    kinds = {name: set(dispatch.KINDS[name]) for name in dispatch.BACKENDS}
    assert kinds["reference"] == set(layers.KINDS) == set(plan_module.KINDS)
    assert kinds["triton"] == kinds["cuda"] == set(gpu_layers.KINDS)
    assert set(plain_modules.KINDS) == set(plan_module.KINDS)
