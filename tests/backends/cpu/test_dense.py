"""forward and backward on the CPU kernels: products, norms, activations, skips."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from noprop_kernels.backends.calls import BackwardCall, ForwardCall
from noprop_kernels.backends.reference import backend as reference
from noprop_kernels.plan import BatchNorm, Dense, Plan
from support.calls import PLANS, assert_matches, clone_call, make_slices


def make_forward(plan: Plan, n: int, B: int, *, training: bool, save: bool, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    slices = make_slices(plan, n + 1, n, optimizer=None, generator=generator)
    inputs = {}
    for name, (width,) in plan.inputs.items():
        shared = name == "x"
        made = torch.randn(1 if shared else n, B, width, generator=generator)
        inputs[name] = made.expand(n, B, width)
    logits = torch.full((n, B, plan.widths[plan.output]), torch.nan)
    return ForwardCall(slices, inputs, logits, training, save)


def make_backward(call: ForwardCall, d_logits: Tensor) -> BackwardCall:
    n, B, _ = d_logits.shape
    dtype = d_logits.dtype

    def poison(*shape: int) -> Tensor:
        return torch.full((n, *shape), torch.nan, dtype=dtype)

    plan = call.slices.plan
    grads = {name: poison(*shape) for name, shape in plan.parameters().items()}
    d_inputs = {name: poison(B, *shape) for name, shape in plan.inputs.items()}
    return BackwardCall(call.slices, call.saved, d_logits, grads, d_inputs)


def check(kernels: ModuleType, plan: Plan, n: int, B: int, *, training: bool, seed: int = 0):
    call = make_forward(plan, n, B, training=training, save=True, seed=seed)
    d_logits = torch.randn(call.logits.shape, generator=torch.Generator().manual_seed(B))
    terms = B + max(plan.in_widths.values())
    made = [clone_call(call, dtype) for dtype in (None, torch.float64, None)]
    for backend, forward in zip((kernels, reference, reference), made, strict=True):
        backend.forward(forward)
    done, exact, plain = made
    assert_matches(done.logits, exact.logits, plain.logits, terms, "logits")
    for name in done.slices.stats:
        trio = (call.slices.stats[name] for call in made)
        assert_matches(*trio, terms, name)
    backwards = [make_backward(call, d_logits.to(call.logits.dtype)) for call in made]
    for backend, backward in zip((kernels, reference, reference), backwards, strict=True):
        backend.backward(backward)
    summand = max(float(grad.abs().max()) for grad in backwards[1].grads.values())
    for group in ("grads", "d_inputs"):
        for name in getattr(backwards[0], group):
            trio = (getattr(backward, group)[name] for backward in backwards)
            assert_matches(*trio, terms, f"{group}[{name}]", summand if group == "grads" else 0.0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("B", [7, 40, 130])
@pytest.mark.parametrize("plan", PLANS)
def test_plans(kernels: ModuleType, plan: str, B: int, training: bool) -> None:
    check(kernels, PLANS[plan](17, 5, 6), 3, B, training=training)


@pytest.mark.parametrize("out", [1, 2, 4, 6, 7, 12, 13, 20])
@pytest.mark.parametrize("inside", [1, 15, 16, 17, 64, 113])
@pytest.mark.parametrize("B", [1, 15, 33, 64, 70])
def test_sizes(kernels: ModuleType, B: int, inside: int, out: int) -> None:
    """Every height and width of a register tile, and what is left over."""
    plan = Plan({"x": (inside,), "z": (2,)}, {"logits": Dense(("x", "z"), out)})
    check(kernels, plan, 1, B, training=True)


def test_long_sums(kernels: ModuleType) -> None:
    plan = Plan(
        {"x": (1023,), "z": (3,)},
        {
            "h": Dense(("x", "z"), 131, activation="relu", norm=BatchNorm()),
            "logits": Dense("h", 5),
        },
    )
    check(kernels, plan, 2, 257, training=True)


@pytest.mark.parametrize("plan", ["mlp", "activations"])
def test_activations_let_nan_through(kernels: ModuleType, plan: str) -> None:
    training = plan == "mlp"  # else a norm would hand it to all rows
    call = make_forward(PLANS[plan](4, 3, 3), 1, 5, training=training, save=False)
    call.inputs["z"] = call.inputs["z"].clone()
    call.inputs["z"][0, 2, 1] = torch.nan
    kernels.forward(call)
    assert call.logits.isnan().any(-1).tolist() == [[False, False, True, False, False]]


def test_rows_do_not_know_each_other(kernels: ModuleType) -> None:
    """In eval mode a row's logits have the same bits in any batch."""
    whole = make_forward(PLANS["paper_dt"](17, 5, 6), 2, 600, training=False, save=False)
    kernels.forward(whole)
    for first, rows in ((0, 1), (3, 50), (299, 301)):
        part = clone_call(whole)
        part.inputs = {
            name: value[:, first : first + rows].contiguous()
            for name, value in whole.inputs.items()
        }
        part.logits = torch.full((2, rows, 6), torch.nan)
        kernels.forward(part)
        assert torch.equal(part.logits, whole.logits[:, first : first + rows])


def test_backward_runs_as_often_as_asked(kernels: ModuleType) -> None:
    call = make_forward(PLANS["branches"](17, 5, 6), 2, 9, training=True, save=True)
    kernels.forward(call)
    first, second = (make_backward(call, torch.ones_like(call.logits)) for _ in range(2))
    kernels.backward(first)
    kernels.backward(second)
    assert first.grads is not None and second.grads is not None
    assert all(torch.equal(first.grads[name], second.grads[name]) for name in first.grads)


def test_one_row_has_no_batch_statistics(kernels: ModuleType) -> None:
    call = make_forward(PLANS["branches"](4, 3, 3), 1, 1, training=True, save=False)
    with pytest.raises(ValueError, match="batch norm needs at least 2 rows in training, got 1"):
        kernels.forward(call)


@pytest.mark.parametrize("B", [1, 100, 128, 300])
def test_sums_over_rows_fold_chunks_of_128_from_the_left(kernels: ModuleType, B: int) -> None:
    """Bit for bit: inside a chunk lane by lane, the lanes then in halves."""
    plan = Plan({"x": (3,), "z": (2,)}, {"logits": Dense(("x", "z"), 4)})
    call = make_forward(plan, 1, B, training=True, save=True)
    kernels.forward(call)
    backward = make_backward(call, torch.randn(1, B, 4, generator=torch.Generator().manual_seed(B)))
    kernels.backward(backward)
    lanes = {"avx512bf16": 16, "avx512": 16, "avx2": 8}.get(kernels.describe()["isa_used"], 4)
    total = torch.zeros(4)
    for chunk in backward.d_logits[0].split(128):
        rows = torch.cat([chunk, torch.zeros(-len(chunk) % lanes, 4)]).view(-1, lanes, 4)
        part = torch.zeros(lanes, 4)
        for row in rows:
            part = part + row
        while len(part) > 1:
            part = part[: len(part) // 2] + part[len(part) // 2 :]
        total = total + part[0]
    assert backward.grads is not None
    assert torch.equal(backward.grads["logits.bias"][0], total)
