"""Products of bfloat16 operands on the CPU kernels against the reference's.

If a float32 sum ends on the other side of a tie, an operand is rounded to the other neighbour,
and deep plans with batch norm amplify that. So results are compared as a whole, at a bound that an
operand left unrounded breaks.
"""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from noprop_kernels.backends.calls import BackwardCall, ForwardCall, TrainCall
from noprop_kernels.backends.reference import backend as reference
from noprop_kernels.optimizers import SGD
from support.calls import PLANS, clone_call, make_train_call, one_slice
from support.chains import make_predict_call
from support.compare import results
from support.convolutions import PLANS as CONVOLUTIONS
from support.convolutions import blocks_of

CLOSE = 2.0**-12  # an unrounded operand is off by 2^-9 at most, 2^-10.3 on average


def error(got: Tensor, exact: Tensor) -> float:
    """Root mean square over all elements, of the size of `exact`."""
    size = exact.double().square().mean().sqrt()
    if size < 1e-4:  # of a shift that a later batch norm takes away: noise
        return 0.0 if got.abs().max() < 1e-3 else torch.inf
    return float((got.double() - exact).square().mean().sqrt() / size)


def make(plan: str, mode: str, B: int) -> TrainCall:
    call = make_train_call(
        PLANS[plan](33, 5, 6), 4, 3, B, 1, optimizer=SGD(lr=1.0), seed=B,
        extras=mode == "extras", grads=mode == "grads", gather=mode == "gather",
    )  # fmt: skip
    call.slices.precision = "bfloat16"
    return call


# every plan in every mode, and every batch with each of both
STEPS = [
    (plan, mode, (8, 71, 130)[(p + m) % 3])
    for p, plan in enumerate(PLANS)
    for m, mode in enumerate(("update", "grads", "extras", "gather"))
]


@pytest.mark.parametrize("plan, mode, B", STEPS)
def test_step(kernels: ModuleType, plan: str, mode: str, B: int) -> None:
    call = make(plan, mode, B)
    exact, unrounded = clone_call(call, torch.float64), clone_call(call)
    unrounded.slices.precision = "float32"
    kernels.train(call)
    kernels.train(unrounded)
    reference.train(exact)
    differing = 0
    for (name, got), (_, truth), (_, other) in zip(
        results(call), results(exact), results(unrounded), strict=True
    ):
        assert error(got, truth) <= max(CLOSE, error(other, truth) / 2), name
        differing += error(other, truth) > CLOSE
    assert differing >= 2  # of the results, those right behind a product


@pytest.mark.parametrize("plan", ["mlp", "branches"])
def test_forward_and_backward(kernels: ModuleType, plan: str) -> None:
    made = make(plan, "grads", 40)
    n, B, M = 3, 40, 6
    generator = torch.Generator().manual_seed(1)
    inputs = {name: value[0] for name, value in made.inputs.items()}
    inputs["z"] = torch.randn(n, B, 5, generator=generator)
    d_logits = torch.randn(n, B, M, generator=generator)
    found = []
    for backend, dtype in ((kernels, None), (reference, torch.float64)):
        slices = clone_call(made.slices, dtype)
        x = {name: value.to(dtype or value.dtype) for name, value in inputs.items()}
        forward = ForwardCall(slices, x, d_logits.to(dtype or d_logits.dtype).clone(), True, True)
        backend.forward(forward)
        names = made.slices.plan.parameters()
        grads = {name: torch.full_like(slices.params[name][:n], torch.nan) for name in names}
        d_inputs = {name: torch.full_like(value, torch.nan) for name, value in x.items()}
        d_inputs = {name: value.contiguous() for name, value in d_inputs.items()}
        backend.backward(
            BackwardCall(slices, forward.saved, d_logits.to(forward.logits.dtype), grads, d_inputs)
        )
        found.append({"logits": forward.logits, **grads, **d_inputs})
    for name, exact in found[1].items():
        assert error(found[0][name], exact) <= CLOSE, name


def test_predict(kernels: ModuleType, isa: str) -> None:
    """On each instruction set, since a rounded weight's room is one of floats, or of pairs."""
    call = make_predict_call(PLANS["paper_dt"](17, 5, 6), 1, 3, 150, 1, keep_all=True)
    call.slices.precision = "bfloat16"
    exact, unrounded = clone_call(call, torch.float64), clone_call(call)
    unrounded.slices.precision = "float32"
    kernels.predict(call)
    kernels.predict(unrounded)
    reference.predict(exact)
    assert error(call.logits, exact.logits) <= CLOSE < error(unrounded.logits, exact.logits)


def test_slices_and_tasks_do_not_change_a_bit(kernels: ModuleType) -> None:
    """Rows packed for all slices are rounded as those that one slice gathers."""
    call = make_train_call(PLANS["branches"](33, 5, 6), 3, 3, 40, 2, optimizer=SGD(), gather=True)
    call.slices.precision = "bfloat16"
    together, alone = call, clone_call(call)
    kernels.train(together)
    for i in range(3):
        for k in range(2):
            kernels.train(one_slice(alone, i, k))
    for name, value in together.slices.params.items():
        assert torch.equal(value, alone.slices.params[name]), name


@pytest.mark.parametrize("B", [5, 40])
@pytest.mark.parametrize("plan", ["pools", "adds x", "two readers", "dense reads x"])
def test_convolutions(plan: str, B: int) -> None:
    x, y = torch.rand(B, CONVOLUTIONS[plan].widths["x"]), torch.arange(B) % 5
    made = {}
    for backend, precision in (("cpu", "bfloat16"), ("reference", "bfloat16"), ("cpu", "float32")):
        blocks = blocks_of(CONVOLUTIONS[plan], backend=backend, precision=precision)
        logits, leaf = blocks.predict(x).logits, x.clone().requires_grad_()
        blocks.loss(leaf, y).sum().backward()
        grads = {name: value.grad for name, value in blocks.named_parameters()}
        made[backend, precision] = grads | {"d_x": leaf.grad, "logits": logits}
    got, exact, unrounded = made.values()
    for name, truth in exact.items():
        assert error(got[name], truth) <= max(CLOSE, error(unrounded[name], truth) / 2), name
    for name in ("a.weight", "logits.weight", "d_x"):
        assert error(unrounded[name], exact[name]) > CLOSE, name
