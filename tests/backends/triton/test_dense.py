"""forward and backward in Triton: products, norms, activations, skips, precisions."""

from types import ModuleType

import pytest
import torch

from noprop_kernels.backends.calls import BackwardCall, ForwardCall, Rule
from noprop_kernels.backends.reference import backend as reference
from noprop_kernels.optimizers import AdamW
from noprop_kernels.plan import BatchNorm, Dense, Plan
from support.calls import PLANS, assert_matches, clone_call, make_slices

pytestmark = pytest.mark.triton


def make_forward(plan: Plan, n: int, B: int, *, training: bool, save: bool, optimizer=None):
    generator = torch.Generator().manual_seed(B)
    slices = make_slices(plan, n + 1, n, optimizer=optimizer, generator=generator)
    inputs = {}
    for name, (width,) in plan.inputs.items():
        made = torch.randn(1 if name == "x" else n, B, width, generator=generator)
        inputs[name] = made.expand(n, B, width)
    logits = torch.full((n, B, plan.widths[plan.output]), torch.nan)
    return ForwardCall(slices, inputs, logits, training, save)


def make_backward(call: ForwardCall) -> BackwardCall:
    generator = torch.Generator().manual_seed(1)
    d_logits = torch.randn(call.logits.shape, generator=generator).to(call.logits.dtype)
    n, B, _ = d_logits.shape
    plan = call.slices.plan

    def poison(*shape: int) -> torch.Tensor:
        return torch.full((n, *shape), torch.nan, dtype=d_logits.dtype)

    return BackwardCall(
        call.slices,
        call.saved,
        d_logits,
        {name: poison(*shape) for name, shape in plan.parameters().items()},
        {name: poison(B, *shape) for name, shape in plan.inputs.items()},
    )


def check(kernels: ModuleType, plan: Plan, n: int, B: int, training: bool, precision: str) -> None:
    call = make_forward(plan, n, B, training=training, save=True)
    call.slices.precision = precision
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
    for group in ("grads", "d_inputs"):
        for name in getattr(backwards[0], group):
            trio = (getattr(backward, group)[name] for backward in backwards)
            assert_matches(*trio, terms, f"{group}[{name}]")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("plan", ["mlp", "branches", "two_inputs", "activations"])
def test_plans(kernels: ModuleType, plan: str, training: bool) -> None:
    check(kernels, PLANS[plan](17, 5, 6), 2, 20, training, "float32")


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_precisions(kernels: ModuleType, precision: str) -> None:
    """Operands whose products are exact in float32, so that only the rounding is left to differ."""
    plan = Plan({"x": (70,), "z": (3,)}, {"logits": Dense(("x", "z"), 5)})
    check(kernels, plan, 1, 40, True, precision)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_operands_are_rounded_as_the_reference_rounds(kernels: ModuleType, precision: str) -> None:
    plan = Plan({"x": (1,), "z": (1,)}, {"logits": Dense(("x", "z"), 1)})
    call = make_forward(plan, 1, 300, training=False, save=False)
    bits = torch.randint(-(2**31), 2**31 - 1, (1, 300, 1), dtype=torch.int32)
    bits[0, :4, 0] = torch.tensor([0x3F801000, 0x3F803000, 0x3F808000, 0x3F818000])  # ties
    call.inputs = {"x": bits.view(torch.float32).nan_to_num(), "z": torch.zeros(1, 300, 1)}
    call.slices.params["logits.weight"][:] = 1
    call.slices.params["logits.bias"][:] = 0
    call.slices.precision = precision
    expected = clone_call(call)
    kernels.forward(call)
    reference.forward(expected)
    assert torch.equal(call.logits, expected.logits)


@pytest.mark.parametrize(
    "B, inside, out", [(1, 1, 1), (33, 113, 7), (7, 16, 70), (65, 40, 17), (130, 3, 65)]
)
def test_sizes(kernels: ModuleType, B: int, inside: int, out: int) -> None:
    inputs = {"x": (inside,), "z": (2,), "t": (3,)}
    plan = Plan(inputs, {"logits": Dense(("z", "x", "t"), out)})
    check(kernels, plan, 1, B, True, "float32")


def test_norms_over_chunks(kernels: ModuleType) -> None:
    plan = Plan(
        {"x": (3,), "z": (2,)},
        {
            "h": Dense(("x", "z"), 33, activation="relu", norm=BatchNorm(), add=None),
            "logits": Dense("h", 3, norm=BatchNorm(momentum=0.5), activation="relu"),
        },
    )
    check(kernels, plan, 1, 257, True, "float32")


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
    whole = make_forward(PLANS["branches"](17, 5, 6), 2, 70, training=False, save=False)
    kernels.forward(whole)
    for first, rows in ((0, 1), (33, 37)):
        part = clone_call(whole)
        part.inputs = {
            name: value[:, first : first + rows].contiguous()
            for name, value in whole.inputs.items()
        }
        part.logits = torch.full((2, rows, 6), torch.nan)
        kernels.forward(part)
        assert torch.equal(part.logits, whole.logits[:, first : first + rows])


def test_backward_runs_as_often_as_asked(kernels: ModuleType) -> None:
    call = make_forward(PLANS["branches"](7, 5, 6), 1, 9, training=True, save=True)
    kernels.forward(call)
    first, second = make_backward(call), make_backward(call)
    kernels.backward(first)
    kernels.backward(second)
    assert all(torch.equal(first.grads[name], second.grads[name]) for name in first.grads)


def test_backward_with_a_rule_updates_where_d_logits_is_finite(kernels: ModuleType) -> None:
    calls = []
    for backend in (kernels, reference):
        call = make_forward(
            PLANS["mlp"](7, 5, 6), 2, 9, training=True, save=True, optimizer=AdamW()
        )
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


def test_one_row_has_no_batch_statistics(kernels: ModuleType) -> None:
    call = make_forward(PLANS["branches"](4, 3, 3), 1, 1, training=True, save=False)
    with pytest.raises(ValueError, match="batch norm needs at least 2 rows in training, got 1"):
        kernels.forward(call)


@pytest.mark.parametrize("B", [100, 300])
def test_sums_over_rows_fold_chunks_of_128_from_the_left(kernels: ModuleType, B: int) -> None:
    plan = Plan({"x": (3,), "z": (2,)}, {"logits": Dense(("x", "z"), 4)})
    call = make_forward(plan, 1, B, training=True, save=True)
    kernels.forward(call)
    backward = make_backward(call)
    backward.d_logits *= torch.exp2(torch.randint(-30, 30, (1, B, 4)).float())
    kernels.backward(backward)
    total = torch.zeros(64)
    for chunk in backward.d_logits[0].split(128):
        padded = torch.nn.functional.pad(chunk, (0, 60, 0, 128 - len(chunk)))
        total = total + torch.from_numpy(padded.numpy().sum(0))
    assert torch.equal(backward.grads["logits.bias"][0], total[:4])
