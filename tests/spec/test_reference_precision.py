"""Products of rounded operands: the rounding itself, and which operands are rounded."""

import math

import pytest
import torch
from torch.testing import assert_close

from noprop_kernels.backends.calls import BackwardCall, ForwardCall
from noprop_kernels.backends.reference import backend as reference
from noprop_kernels.backends.reference import equations as ref
from support.calls import clone_call
from support.twin import F64, TIGHT, Twin, gradient, make

BITS = {"bfloat16": 7, "tf32": 10}  # of the mantissa, without its leading 1


@pytest.mark.parametrize("precision", BITS)
def test_rounding(precision):
    unit = 2.0 ** -BITS[precision]
    below = 1 + unit / 2 - 2.0**-23  # the float32 next to the middle
    tie, second_tie = 1 + unit / 2, 1 + 1.5 * unit
    away = precision == "tf32"
    cases = {
        1.0: 1.0,
        below: 1.0,
        tie: 1 + unit if away else 1.0,
        second_tie: 1 + 2 * unit,
        tie + 2.0**-23: 1 + unit,
        2 - 2.0**-23: 2.0,
        0.0: 0.0,
        math.inf: math.inf,
    }
    value = torch.tensor([*cases, *(-x for x in cases)])
    want = torch.tensor([*cases.values(), *(-x for x in cases.values())])
    for dtype in (torch.float32, F64):
        assert torch.equal(ref.round_operand(value.to(dtype), precision), want.to(dtype))
    quiet, full = torch.tensor([0x7FC00000, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    assert ref.round_operand(torch.stack([quiet, full]), precision).isnan().all()
    assert torch.equal(ref.round_operand(value, "float32"), value)


class RoundedProduct(torch.autograd.Function):
    """a @ b.T whose three products round their operands."""

    @staticmethod
    def forward(ctx, a, b, precision):
        ctx.precision = precision
        ctx.save_for_backward(a, b)
        return ref.round_operand(a, precision) @ ref.round_operand(b, precision).T

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        a, b, d = (ref.round_operand(v, ctx.precision) for v in (*ctx.saved_tensors, grad))
        return d @ b, d.T @ a, None


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("name", ["mlp", "branches", "paper_dt"])
def test_all_products_of_the_layers_round_their_operands(name, precision, monkeypatch):
    call = make(name, dtype=F64)
    call.slices.precision = precision
    monkeypatch.setattr(
        torch.nn.functional,
        "linear",
        lambda x, w, b: RoundedProduct.apply(x, w, precision) + b,
    )
    n, B = 3, 6
    inputs = {key: value[0] for key, value in call.inputs.items()}
    inputs["z"] = torch.randn(n, B, call.embedding.D, dtype=F64)
    logits = torch.full((n, B, call.slices.plan.widths[call.slices.plan.output]), math.nan).to(F64)
    before = clone_call(call)
    forward = ForwardCall(call.slices, inputs, logits, training=True, save=True)
    reference.forward(forward)
    d_logits = torch.randn_like(logits)
    grads = {key: value[:n].clone() for key, value in call.slices.params.items()}
    d_inputs = {key: torch.full_like(value, math.nan) for key, value in inputs.items()}
    reference.backward(BackwardCall(call.slices, forward.saved, d_logits, grads, d_inputs))
    for i in range(n):
        twin = Twin(before, i)
        leaves = {key: value[i].clone().requires_grad_() for key, value in inputs.items()}
        want = twin.logits(leaves)
        assert_close(logits[i], want.detach(), **TIGHT)
        want.backward(d_logits[i])
        for key, leaf in leaves.items():
            assert_close(d_inputs[key][i], gradient(leaf), **TIGHT)
        for key, leaf in twin.params.items():
            if ".norm." not in key and key.removesuffix("bias") + "norm.weight" in twin.params:
                continue  # a bias before a norm has gradient zero here, rounding noise there
            assert_close(grads[key][i], gradient(leaf), **TIGHT)
