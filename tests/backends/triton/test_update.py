"""The optimizers in Triton, alone: parameters and both moments after a step."""

from types import ModuleType

import pytest
import torch

from noprop_kernels.backends.calls import Rule, UpdateCall
from noprop_kernels.backends.reference import backend as reference
from noprop_kernels.optimizers import SGD, Adam, AdamW, Optimizer
from support.calls import PLANS, assert_matches, clone_call, make_slices

pytestmark = pytest.mark.triton
OPTIMIZERS = {
    "sgd": SGD(lr=0.1, weight_decay=0.2),
    "momentum": SGD(lr=0.1, momentum=0.9, weight_decay=0.2),
    "nesterov": SGD(lr=0.1, momentum=0.9, nesterov=True),
    "adam": Adam(lr=0.01, weight_decay=0.2),
    "adamw": AdamW(lr=0.01, weight_decay=(0.1, 0.2, 0.3)),
    "adamw_beta_0": AdamW(lr=0.01, betas=(0.0, 0.5), eps=1e-3),
}


def make_call(optimizer: Optimizer) -> UpdateCall:
    generator = torch.Generator().manual_seed(3)
    n, plan = 3, PLANS["one_layer"](17, 5, 6)
    slices = make_slices(plan, 5, n, optimizer=optimizer, generator=generator)
    grads = {
        name: torch.randn(n, *shape, generator=generator)
        for name, shape in plan.parameters().items()
    }
    lr = optimizer.lr * torch.arange(1, n + 1, dtype=torch.float64)[None]
    decay = torch.as_tensor(optimizer.weight_decay, dtype=torch.float64).expand(n)
    return UpdateCall(slices, grads, torch.tensor([True, False, True]), Rule(optimizer, lr, decay))


@pytest.mark.parametrize("updates", [0, 100_000])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_update(kernels: ModuleType, name: str, updates: int) -> None:
    call = make_call(OPTIMIZERS[name])
    call.slices.updates[:] = updates
    before, exact, plain = clone_call(call), clone_call(call, torch.float64), clone_call(call)
    for backend, made in ((kernels, call), (reference, exact), (reference, plain)):
        backend.update(made)
    assert torch.equal(call.slices.updates, exact.slices.updates)
    for group in ("params", "m", "v"):
        for key, value in getattr(call.slices, group).items():
            truth, torch_s = (getattr(made.slices, group)[key] for made in (exact, plain))
            assert_matches(value, truth, torch_s, terms=2, name=f"{group}[{key}]")
            left = [i for i in range(5) if i not in call.slices.index[call.apply].tolist()]
            assert torch.equal(value[left], getattr(before.slices, group)[key][left])


def test_early_bias_corrections_keep_their_digits(kernels: ModuleType) -> None:
    """1 - beta^t in float32 is wrong by 1e-5 at the first step."""
    call = make_call(AdamW(lr=0.01, weight_decay=0.0, betas=(0.9, 0.9999), eps=1e-30))
    for value in (*call.slices.m.values(), *call.slices.v.values(), *call.slices.params.values()):
        value.zero_()
    call.slices.updates.zero_()
    kernels.update(call)
    rate = call.rule.lr[0, [0, 2], None, None].float()
    moved = call.slices.params["logits.weight"][call.slices.index[[0, 2]]]
    torch.testing.assert_close(moved.abs(), rate.expand_as(moved), rtol=3e-7, atol=0)
