"""W_embed's gradient: tiles of classes, strips of columns and chunks of rows, whole and in part."""

from types import ModuleType

import pytest
import torch

from noprop_kernels.backends.cpu import extension
from noprop_kernels.optimizers import SGD
from support.calls import PLANS, clone_call, make_train_call, one_slice
from support.compare import assert_matches, run_three

HEADS = {
    "softmax": {"head": "softmax"},
    "linear": {"head": "linear", "flow": 1.0, "per_row": True},
    "cross_entropy": {"head": "cross_entropy"},
    "radial": {"head": "radial", "radius": 0.8},
    "features": {"head": "softmax", "z_features": True},
}


def make(M: int, D: int, B: int, F: int = 3, **options):
    plan = PLANS["one_layer"](F, D, M)
    return make_train_call(plan, 2, 2, B, 1, optimizer=SGD(), extras=True, D=D, **options)


@pytest.mark.parametrize("M, D", [(1, 1), (2, 17), (13, 49), (27, 130), (100, 33)])
@pytest.mark.parametrize("B", [1, 7, 128, 129, 300])
@pytest.mark.parametrize("head", HEADS)
def test_sizes(kernels: ModuleType, head: str, B: int, M: int, D: int) -> None:
    made = run_three(kernels, "train", make(M, D, B, **HEADS[head]))
    assert_matches(*(call.out.d_W_embed for call in made), terms=B + M + D, name="d_W_embed")


@pytest.mark.parametrize("head", ["softmax", "radial"])
def test_one_hot(kernels: ModuleType, head: str) -> None:
    call = make(21, 21, 130, one_hot=True, **HEADS[head])
    made = run_three(kernels, "train", call)
    assert_matches(*(call.out.d_W_embed for call in made), terms=170, name="d_W_embed")


@pytest.mark.parametrize("head", HEADS)
def test_threads_and_other_slices_do_not_change_a_bit(
    kernels: ModuleType, head: str, monkeypatch
) -> None:
    call = make(13, 49, 200, F=3000, **HEADS[head])
    other, alone = clone_call(call), one_slice(clone_call(call), 0, 0)
    monkeypatch.setattr(extension, "threads", lambda: 5)
    assert kernels.team_size(call.slices.plan, 2, call.B) > 1
    kernels.train(call)
    monkeypatch.setattr(extension, "threads", lambda: 1)
    kernels.train(other)
    assert torch.equal(call.out.d_W_embed, other.out.d_W_embed)
    alone.out.d_W_embed = torch.full_like(call.out.d_W_embed[:1], torch.nan)
    alone.out.d_inputs, alone.out.error = {}, None
    alone.out.d_signal = alone.out.d_noise = None
    alone.z = None if alone.z is None else alone.z[:1]
    kernels.train(alone)
    assert torch.equal(call.out.d_W_embed[:1], alone.out.d_W_embed)
