"""Cycles by stage: counted where they are asked for, with no bit changed.

The emulator's clock counts switches between threads and its own readings, so that what a stage
costs is not tested here, but which entries are written, and that no other is.
"""

from types import ModuleType

import pytest
import torch

import noprop_kernels as nk
from noprop_kernels.backends.cuda import clocks, extension

from .test_programs import Recorder, recorder  # noqa: F401

pytestmark = pytest.mark.cuda_host


def trained(K: int, count: bool = True) -> tuple[nk.DenoisingBlocks, list[clocks.Counted]]:
    torch.manual_seed(0)
    plan = nk.plans.paper_dt(9, 5, 5)
    blocks = nk.DenoisingBlocks(plan, nk.DT(nk.NoiseSchedule.cosine(2)), backend="cuda")
    X, Y = torch.randn(30, 9), torch.randint(5, (30,))
    rows = torch.arange(17).expand(K, 17).contiguous()
    if not count:
        blocks.train_steps(X, Y, rows)
        return blocks, []
    with clocks.count() as found:
        blocks.train_steps(X, Y, rows)
    return blocks, found


def test_every_stage_has_an_entry_and_no_bit_changes(kernels: ModuleType) -> None:
    plain, _ = trained(2, count=False)
    counted, (launch,) = trained(2)
    assert all(map(torch.equal, plain.state_dict().values(), counted.state_dict().values()))
    assert launch.cycles.shape == (len(launch.kinds), 2) == (len(launch.tiles), 2)
    assert {"gather", "noise", "dense", "norm", "head", "loss"} < set(launch.kinds)
    work, wait = launch.cycles.unbind(1)
    for i, kind in enumerate(launch.kinds):
        assert work[i] > 0 and wait[i] >= 0, f"stage {i} ({kind})"


def test_entries_stand_where_the_barriers_are(recorder: Recorder, cuda_module) -> None:  # noqa: F811
    """A stage without a barrier has no wait; memory after the last entry is not written."""
    trained(1)
    (program,) = recorder.programs
    stages = program["stages"]
    cycles = torch.full((len(stages) + 1, 2), -7, dtype=torch.int64)
    cycles[:-1] = 0
    launch_again(cuda_module, cycles)
    assert (cycles[-1] == -7).all()
    for stage, (_, wait) in zip(stages, cycles.tolist(), strict=False):
        assert (wait > 0) == bool(stage["barrier"])


def launch_again(module: ModuleType, cycles: torch.Tensor) -> None:
    """The step of `trained(1)`, with counters of the test's own."""

    class Given(Recorder):
        def launch(self, program: dict, device: int, stream: int) -> None:
            self.module.launch(program | {"clocks": cycles.data_ptr()}, device, stream)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extension, "module", Given(module))
        trained(1, count=False)


def test_counts_add_up_over_steps(kernels: ModuleType) -> None:
    (_, (one,)), (_, (three,)) = trained(1), trained(3)
    assert one.kinds == three.kinds
    assert (three.cycles.sum(1) > one.cycles.sum(1)).all()


def test_without_counters_nothing_is_counted(recorder: Recorder, monkeypatch) -> None:  # noqa: F811
    trained(1, count=False)
    assert recorder.programs[0]["clocks"] is None
    monkeypatch.setattr(recorder, "counts_cycles", False, raising=False)
    with pytest.raises(RuntimeError, match=r"clocks.count: .* NOPROP_CUDA_CLOCKS=ON builds one"):
        trained(1)
    assert len(recorder.programs) == 1
    monkeypatch.setattr(extension, "module", None)
    assert clocks.gap() == extension.unavailable()
