"""The optimizers alone: parameters and both moments after a step."""

from types import ModuleType

import pytest
import torch

from noprop_kernels.backends.calls import UpdateCall
from noprop_kernels.backends.reference import backend as reference
from noprop_kernels.optimizers import SGD, Adam, AdamW, Optimizer
from support.calls import PLANS, clone_call
from support.compare import assert_matches, run_three
from support.kernels import COMPILED, on
from support.parts import make_update

OPTIMIZERS = {
    "sgd": SGD(lr=0.1),
    "sgd_decay": SGD(lr=0.1, weight_decay=0.2),
    "momentum": SGD(lr=0.1, momentum=0.9, weight_decay=0.2),
    "nesterov": SGD(lr=0.1, momentum=0.9, nesterov=True),
    "adam": Adam(lr=0.01, weight_decay=0.2),
    "adamw": AdamW(lr=0.01, weight_decay=(0.1, 0.2, 0.3)),
    "adamw_beta_0": AdamW(lr=0.01, betas=(0.0, 0.5), eps=1e-3),
}


def make(optimizer: Optimizer, plan: str = "one_layer") -> UpdateCall:
    return make_update(PLANS[plan](17, 5, 6), optimizer, [True, False, True])


def at_zero(call: UpdateCall) -> UpdateCall:
    for value in (*call.slices.m.values(), *call.slices.v.values(), *call.slices.params.values()):
        value.zero_()
    call.slices.updates.zero_()
    return call


def check(kernels: ModuleType, call: UpdateCall, updates: int) -> None:
    call.slices.updates[:] = updates
    before = clone_call(call)
    call, exact, plain = run_three(kernels, "update", call)
    assert torch.equal(call.slices.updates, exact.slices.updates)
    left = [i for i in range(5) if i not in call.slices.index[call.apply].tolist()]
    for group in ("params", "m", "v"):
        for key, value in getattr(call.slices, group).items():
            truth, torch_s = (getattr(made.slices, group)[key] for made in (exact, plain))
            assert_matches(value, truth, torch_s, terms=2, name=f"{group}[{key}]")
            assert torch.equal(value[left], getattr(before.slices, group)[key][left])


@pytest.mark.parametrize("updates", [0, 100_000])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_update(kernels: ModuleType, name: str, updates: int) -> None:
    check(kernels, make(OPTIMIZERS[name]), updates)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_slice_whose_gradient_is_not_finite_is_left_alone(
    kernels: ModuleType, wrong: float
) -> None:
    call = make(OPTIMIZERS["adamw"])
    call.applied = torch.tensor([True, True, False])  # written
    for value in call.grads.values():
        value[2].fill_(1e38)  # whose sum overflows
    last = [*call.grads.values()][-1]
    last[0].view(-1)[-1] = wrong
    before = clone_call(call)
    kernels.update(call)
    assert call.applied.tolist() == [False, False, True]
    moved = call.slices.index[2]
    for group in ("params", "m", "v"):
        for key, value in getattr(call.slices, group).items():
            same = (value == getattr(before.slices, group)[key]).flatten(1)
            assert [i for i, row in enumerate(same) if not row.all()] == [moved]
    counted = call.slices.updates - before.slices.updates
    assert counted.tolist() == [int(i == moved) for i in range(len(counted))]


@on(*COMPILED)
@pytest.mark.parametrize("updates", [0, 5, 100_000])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_update_of_layers_and_norms(kernels: ModuleType, name: str, updates: int) -> None:
    check(kernels, make(OPTIMIZERS[name], "branches"), updates)


@pytest.mark.parametrize("gradient", [0.0, 1e-30, 1e-15, 1e-12, 1e12, 1e18])
def test_adam_at_the_ends_of_the_range(kernels: ModuleType, gradient: float) -> None:
    """A first step moves each weight by lr, however large or small its gradient is."""
    call = at_zero(make(AdamW(lr=0.01, weight_decay=0.0, eps=1e-30)))
    for value in call.grads.values():
        value.fill_(gradient)
    plain = clone_call(call)
    kernels.update(call)
    reference.update(plain)
    for name, value in call.slices.params.items():
        # v underflows for the smallest, in PyTorch's float32 as well
        assert torch.allclose(value, plain.slices.params[name], rtol=1e-6, atol=0), name


def test_early_bias_corrections_keep_their_digits(kernels: ModuleType) -> None:
    """1 - beta^t in float32 is wrong by 1e-5 at the first step."""
    call = at_zero(make(AdamW(lr=0.01, weight_decay=0.0, betas=(0.9, 0.9999), eps=1e-30)))
    kernels.update(call)
    rate = call.rule.lr[0, [0, 2], None, None].float()
    moved = call.slices.params["logits.weight"][call.slices.index[[0, 2]]]
    torch.testing.assert_close(moved.abs(), rate.expand_as(moved), rtol=3e-7, atol=0)
