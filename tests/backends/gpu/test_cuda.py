"""The CUDA backend on a GPU: launches of any length, their cycles and their placement."""

from functools import partial

import pytest
import torch

import noprop_kernels as nk
from noprop_kernels.backends import dispatch
from noprop_kernels.backends.cuda import clocks, describe, placement
from noprop_kernels.backends.cuda.placement import Layout
from support import on_gpu
from support.on_gpu import DEVICE, PLANS, B, data, indices, same

pytestmark = pytest.mark.gpu
if reason := dispatch.cuda_gap(None, DEVICE):
    pytest.skip(reason, allow_module_level=True)

make = partial(on_gpu.make, "cuda")


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("plan", PLANS)
def test_no_bit_depends_on_groups_blocks_or_launches(
    plan: str, precision: str, monkeypatch
) -> None:
    X, Y = data()
    rows = indices(5)
    single = make(plan, precision=precision)
    losses = torch.stack([single.train_step(X[i], Y[i]).loss for i in rows])
    for layout in ((1, 1), (1, 7), (2, 40), (3, 44)):
        monkeypatch.setattr(placement, "layout", lambda *sizes, layout=layout: Layout(*layout))
        blocks = make(plan, precision=precision)
        assert torch.equal(blocks.train_steps(X, Y, rows), losses), layout
        assert same(blocks, single), layout


def test_a_long_call_meets_its_barriers() -> None:
    X, Y = data()
    whole, parts = make(), make(blocks_per_launch=2)
    rows = indices(3000)
    losses = whole.train_steps(X, Y, rows)
    assert torch.equal(torch.cat([parts.train_steps(X, Y, r) for r in rows.split(999)]), losses)
    assert same(whole, parts) and losses[-100:].mean() < losses[:100].mean()


def test_cycles_of_every_stage() -> None:
    if reason := clocks.gap():
        pytest.skip(reason)
    blocks = make("paper_dt")
    with clocks.count() as found:
        blocks.train_steps(*data(), indices(3))
    (launch,) = found
    work, wait = launch.cycles.unbind(1)
    assert (work > 0).all() and (wait >= 0).all() and wait[-1] > 0


def test_explain_has_the_device_s_facts() -> None:
    blocks = make()
    place = describe.placement_of(blocks, B)
    assert 1 <= place.layout.groups * place.layout.blocks
    assert place.l2 == torch.cuda.get_device_properties(DEVICE).L2_cache_size
    assert describe.describe(blocks, B) in nk.explain(blocks, batch=B)
