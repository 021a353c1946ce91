"""forward and backward: products, norms, activations, skips, precisions."""

from types import ModuleType

import pytest
import torch

from noprop_kernels.backends.calls import Rule
from noprop_kernels.backends.reference import backend as reference
from noprop_kernels.optimizers import AdamW
from noprop_kernels.plan import BatchNorm, Dense, Plan
from support.calls import PLANS, clone_call, nan
from support.compare import check_layers
from support.kernels import COMPILED, CPU, CUDA, EVERY, TRITON, on, with_precision
from support.parts import make_backward, make_forward


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("plan", [name for name in PLANS if name != "paper_dt"])
def test_plans(kernels: ModuleType, plan: str, training: bool) -> None:
    check_layers(kernels, PLANS[plan](17, 5, 6), 2, 20, training)


@on(*COMPILED)
@pytest.mark.parametrize("training", [True, False])
def test_the_paper_s_plan(kernels: ModuleType, training: bool) -> None:
    check_layers(kernels, PLANS["paper_dt"](17, 5, 6), 2, 20, training)


@on(CPU)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("B", [7, 40, 130])
@pytest.mark.parametrize("plan", PLANS)
def test_plans_on_the_cpu(kernels: ModuleType, plan: str, B: int, training: bool) -> None:
    check_layers(kernels, PLANS[plan](17, 5, 6), 3, B, training)


@pytest.mark.parametrize(
    "B, inside, out", [(1, 1, 1), (33, 113, 7), (7, 16, 70), (65, 40, 17), (130, 3, 65)]
)
def test_sizes(kernels: ModuleType, B: int, inside: int, out: int) -> None:
    inputs = {"x": (inside,), "z": (2,), "t": (3,)}
    plan = Plan(inputs, {"logits": Dense(("z", "x", "t"), out)})
    check_layers(kernels, plan, 1, B, True)


def test_norms_over_chunks(kernels: ModuleType) -> None:
    plan = Plan(
        {"x": (3,), "z": (2,)},
        {
            "h": Dense(("x", "z"), 33, activation="relu", norm=BatchNorm(), add=None),
            "logits": Dense("h", 3, norm=BatchNorm(momentum=0.5), activation="relu"),
        },
    )
    check_layers(kernels, plan, 1, 257, True)


GPU_PRECISIONS = [(gpu, p) for gpu in (TRITON, CUDA) for p in ("tf32", "bfloat16")]


@with_precision((CPU, "bfloat16"), *GPU_PRECISIONS)
def test_precisions(kernels: ModuleType, precision: str) -> None:
    """Operands whose products are exact in float32, so that only the rounding is left to differ."""
    plan = Plan({"x": (70,), "z": (3,)}, {"logits": Dense(("x", "z"), 5)})
    check_layers(kernels, plan, 1, 40, True, precision)


@with_precision((CPU, "bfloat16"), *GPU_PRECISIONS)
def test_operands_are_rounded_as_the_reference_rounds(kernels: ModuleType, precision: str) -> None:
    plan = Plan({"x": (1,), "z": (1,)}, {"logits": Dense(("x", "z"), 1)})
    call = make_forward(plan, 1, 300, training=False, save=False, precision=precision)
    bits = torch.randint(-(2**31), 2**31 - 1, (1, 300, 1), dtype=torch.int32)
    bits[bits & 0x7FFFFFFF < 0x00800000] = 0  # subnormals, which AVX512-BF16 takes as 0
    bits[0, :4, 0] = torch.tensor([0x3F801000, 0x3F803000, 0x3F808000, 0x3F818000])  # ties
    call.inputs = {"x": bits.view(torch.float32).nan_to_num(), "z": torch.zeros(1, 300, 1)}
    call.slices.params["logits.weight"][:] = 1
    call.slices.params["logits.bias"][:] = 0
    expected = clone_call(call)
    kernels.forward(call)
    reference.forward(expected)
    assert torch.equal(call.logits, expected.logits)


@on(*EVERY)
@pytest.mark.parametrize("plan", ["mlp", "activations"])
def test_activations_let_nan_through(kernels: ModuleType, plan: str) -> None:
    training = plan == "mlp"  # else a norm would hand it to all rows
    call = make_forward(PLANS[plan](4, 3, 3), 1, 5, training=training, save=False)
    call.inputs["z"] = call.inputs["z"].clone()
    call.inputs["z"][0, 2, 1] = torch.nan
    kernels.forward(call)
    assert call.logits.isnan().any(-1).tolist() == [[False, False, True, False, False]]


def check_parts(kernels: ModuleType, plan: str, B: int, parts: tuple) -> None:
    whole = make_forward(PLANS[plan](17, 5, 6), 2, B, training=False, save=False)
    kernels.forward(whole)
    for first, rows in parts:
        part = clone_call(whole)
        part.inputs = {
            name: value[:, first : first + rows].contiguous()
            for name, value in whole.inputs.items()
        }
        part.logits = nan(2, rows, 6)
        kernels.forward(part)
        assert torch.equal(part.logits, whole.logits[:, first : first + rows])


def test_rows_do_not_know_each_other(kernels: ModuleType) -> None:
    """In eval mode a row's logits have the same bits in any batch."""
    check_parts(kernels, "branches", 70, ((0, 1), (33, 37)))


@on(CPU)
def test_many_rows_do_not_know_each_other(kernels: ModuleType) -> None:
    check_parts(kernels, "paper_dt", 600, ((0, 1), (3, 50), (299, 301)))


def test_backward_runs_as_often_as_asked(kernels: ModuleType) -> None:
    call = make_forward(PLANS["branches"](7, 5, 6), 2, 9, training=True, save=True)
    kernels.forward(call)
    first, second = make_backward(call), make_backward(call)
    kernels.backward(first)
    kernels.backward(second)
    assert all(torch.equal(first.grads[name], second.grads[name]) for name in first.grads)


def test_backward_with_a_rule_updates_where_d_logits_is_finite(kernels: ModuleType) -> None:
    calls = []
    for backend in (kernels, reference):
        plan = PLANS["mlp"](7, 5, 6)
        call = make_forward(plan, 2, 9, training=True, save=True, optimizer=AdamW())
        backend.forward(call)
        backward = make_backward(call)
        backward.d_logits[1, 8, 5] = torch.inf
        backward.grads, backward.applied = None, torch.tensor([False, True])
        lr = torch.full((1, 2), 0.01, dtype=torch.float64)
        backward.rule = Rule(AdamW(), lr, torch.full((2,), 0.1, dtype=torch.float64))
        backend.backward(backward)
        assert backward.applied.tolist() == [True, False]
        calls.append(backward)
    done, plain = calls
    assert torch.equal(done.slices.updates, plain.slices.updates)
    for name, value in done.slices.params.items():
        torch.testing.assert_close(value, plain.slices.params[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(done.d_inputs["z"][0], plain.d_inputs["z"][0])


@on(*EVERY)
def test_one_row_has_no_batch_statistics(kernels: ModuleType) -> None:
    call = make_forward(PLANS["branches"](4, 3, 3), 1, 1, training=True, save=False)
    with pytest.raises(ValueError, match="batch norm needs at least 2 rows in training, got 1"):
        kernels.forward(call)
