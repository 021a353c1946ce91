"""Results of a backend beside the reference's: within its error, or bit for bit."""

import dataclasses
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from noprop_kernels.backends.calls import TrainCall
from noprop_kernels.backends.reference import backend as reference
from noprop_kernels.plan import Plan
from support.calls import clone_call
from support.parts import make_backward, make_forward


def run_three(kernels: ModuleType, op: str, call: Any) -> tuple[Any, Any, Any]:
    """The call as a backend did it, the reference in float64, and the reference in float32."""
    exact, plain = clone_call(call, torch.float64), clone_call(call)
    for backend, made in ((kernels, call), (reference, exact), (reference, plain)):
        getattr(backend, op)(made)
    return call, exact, plain


def assert_matches(
    out: Tensor,
    exact: Tensor,
    plain: Tensor,
    terms: int = 1,
    name: str = "out",
    summand: float = 0.0,
) -> None:
    """`out` may err at most twice as much as `plain`, plus the rounding of `terms` summands.

    Args:
        out: what a backend gave.
        exact: the float64 answer.
        plain: what plain PyTorch gives at the precision of `out`.
        terms: summands whose roundings add up in one entry, as a random walk.
        summand: size of those of a sum that cancels to nothing and so has no size of its own.
    """
    assert out.shape == exact.shape == plain.shape, f"{name}: {tuple(out.shape)}"
    if out.numel() == 0:
        return
    largest = exact.double().abs().max()
    if largest < 1e-12 * summand:
        largest = summand
    rounding = torch.finfo(out.dtype).eps * terms**0.5 * largest
    allowed = 2 * (plain.double() - exact).abs().max() + rounding
    error = (out.double() - exact).abs().max()
    assert error <= allowed, f"{name}: max error {error:.3e}, allowed {allowed:.3e}"


def results(call: TrainCall) -> Iterator[tuple[str, Tensor]]:
    """Every floating result of a training call, by name: outputs, then the state it moved."""
    out = call.out
    for name in ("loss", "error", "d_signal", "d_noise", "d_W_embed"):
        value = getattr(out, name)
        if value is not None:
            yield name, value
    groups = {
        "d_inputs": out.d_inputs,
        "grads": out.grads or {},
        "batch": out.stats or {},
        "params": call.slices.params,
        "m": call.slices.m,
        "v": call.slices.v,
        "stats": call.slices.stats,
    }
    for group, tensors in groups.items():
        for name, value in tensors.items():
            yield f"{group}[{name}]", value


def assert_calls_match(done: TrainCall, exact: TrainCall, plain: TrainCall, terms: int = 1) -> None:
    """Every result of `done` against `exact` (float64) and `plain`; flags and counters equal."""
    assert torch.equal(done.out.applied, exact.out.applied), "applied"
    assert torch.equal(done.slices.draws, exact.slices.draws), "draws"
    assert torch.equal(done.slices.updates, exact.slices.updates), "updates"
    # of a shift that a norm behind it takes away: its summands are as large as other gradients
    summand = max((float(grad.abs().max()) for grad in (exact.out.grads or {}).values()), default=0)
    triples = zip(results(done), results(exact), results(plain), strict=True)
    for (name, got), (_, truth), (_, torch_s) in triples:
        is_grad = name.startswith("grads")
        assert_matches(got, truth, torch_s, terms, name, summand if is_grad else 0.0)


def assert_same(one: Any, other: Any) -> None:
    """Two records, a Slices or a TrainOut, are equal bit for bit, NaN included."""
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        pairs = zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else [(a, b)]
        for x, y in pairs:
            if isinstance(x, Tensor):
                torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True, msg=field.name)


def check_layers(
    kernels: ModuleType, plan: Plan, n: int, B: int, training: bool, precision: str = "float32"
) -> None:
    """forward and backward of a plan: logits, statistics, every gradient."""
    call = make_forward(plan, n, B, training=training, save=True, precision=precision)
    terms = B + max(plan.in_widths.values())
    made = [clone_call(call, dtype) for dtype in (None, torch.float64, None)]
    backends = (kernels, reference, reference)
    for backend, forward in zip(backends, made, strict=True):
        backend.forward(forward)
    assert_matches(*(forward.logits for forward in made), terms, "logits")
    for name in call.slices.stats:
        assert_matches(*(forward.slices.stats[name] for forward in made), terms, name)
    backwards = [make_backward(forward) for forward in made]
    for backend, backward in zip(backends, backwards, strict=True):
        backend.backward(backward)
    summand = max(float(grad.abs().max()) for grad in backwards[1].grads.values())
    for group in ("grads", "d_inputs"):
        for name in getattr(backwards[0], group):
            trio = (getattr(backward, group)[name] for backward in backwards)
            assert_matches(*trio, terms, f"{group}[{name}]", summand if group == "grads" else 0.0)
