"""A layer's calls that take tensors as they are, beside the records' calls of the same kernels."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import noprop_kernels as nk
from noprop_kernels.autograd.layer import Layer, plan_of
from noprop_kernels.autograd.layer_optimizer import rule_of
from noprop_kernels.backends.cpu import backend as cpu

RECORDS = SimpleNamespace(forward=cpu.forward, backward=cpu.backward, update=cpu.update)
OPTIMIZERS = {
    "SGD": nk.SGD(lr=0.1, momentum=0.9, weight_decay=0.01),
    "plain SGD": nk.SGD(lr=0.1),
    "AdamW": nk.AdamW(lr=0.01),
}


def made(backend: Any, optimizer: Any, *, bias: bool, activation: str | None) -> Layer:
    draw = torch.Generator().manual_seed(3)
    shapes = {"weight": (33, 18)} | ({"bias": (33,)} if bias else {})
    named = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    moments = {
        f"{name}_{moment}": torch.rand(shape, generator=draw)
        for moment in optimizer.moments
        for name, shape in shapes.items()
    }
    updates = torch.tensor([4])
    weight, given = named["weight"], named.get("bias")
    return Layer(weight, given, activation, "float32", backend, moments, updates)


@pytest.mark.parametrize("B", [1, 7, 128])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [(), ("weight",), ("bias",)])
def test_a_step_has_the_bits_of_the_records_calls(
    B: int, name: str, bias: bool, frozen: tuple[str, ...]
) -> None:
    optimizer, draw = OPTIMIZERS[name], torch.Generator().manual_seed(B)
    x, d_y = torch.randn(B, 18, generator=draw), torch.randn(B, 33, generator=draw)
    found = []
    for backend in (cpu, RECORDS):
        layer = made(backend, optimizer, bias=bias, activation="gelu")
        y = layer.forward(x, save=True)
        rule = rule_of(optimizer, 0.02, 0.03, x.device)
        applied = torch.zeros(1, dtype=torch.bool)
        wanted: Any = {"rule": rule, "frozen": frozen, "applied": applied}
        d_x = layer.backward(d_y, input_grad=True, **wanted)
        assert layer.updates is not None and applied.item() and layer.updates.item() == 5
        found.append([y, d_x, *(value for value in layer.tensors if value is not None)])
    ours, records = found
    assert len(ours) == len(records)
    assert all(torch.equal(a, b) for a, b in zip(ours, records, strict=True))  # type: ignore


def test_gradients_have_the_bits_of_the_records_calls() -> None:
    draw = torch.Generator().manual_seed(0)
    x, d_y = torch.randn(2, 5, 18, generator=draw), torch.randn(2, 5, 33, generator=draw)
    found = []
    for backend in (cpu, RECORDS):
        layer = made(backend, OPTIMIZERS["plain SGD"], bias=True, activation="relu")
        before = layer.weight.clone()
        layer.forward(x, save=True)
        grads = {"weight": torch.empty(33, 18), "bias": torch.empty(33)}
        d_x = layer.backward(d_y, input_grad=True, grads=grads)
        assert torch.equal(layer.weight, before)
        found.append((d_x, *grads.values()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("width", [96, 18])
@pytest.mark.parametrize("B", [1, 2, 5, 6, 7, 8, 12, 13])
def test_an_input_gradient_has_the_same_bits_in_any_batch(B: int, width: int) -> None:
    """Of few rows the products read a weight of whole vectors where it is, else a copy."""
    draw = torch.Generator().manual_seed(B)
    x, d_y = torch.randn(40, width, generator=draw), torch.randn(40, 33, generator=draw)
    layer = Layer(torch.randn(33, width, generator=draw), None, None, "float32", cpu)
    found = []
    for rows in (B, 40):
        layer.save(x[:rows])
        found.append(layer.backward(d_y[:rows], input_grad=True))
    few, many = found
    assert few is not None and many is not None and torch.equal(few, many[:B])


def tensors() -> dict[str, Any]:
    x = torch.ones(4, 18)
    return {"x": x, "weight": torch.ones(33, 18), "bias": torch.ones(33), "y": torch.zeros(4, 33)}


WRONG = {
    "x of another width": ("x", torch.ones(4, 17), r"x must have shape \(any, 18\), got \(4, 17\)"),
    "x without dimensions": ("x", torch.ones(()), r"x must have shape \(18,\), got \(\)"),
    "x of float64": ("x", torch.ones(4, 18).double(), "x must be torch.float32"),
    "a transposed weight": ("weight", torch.ones(18, 33).T, "weight must be contiguous"),
    "a weight on meta": ("weight", torch.ones(33, 18, device="meta"), "weight must"),
    "a short bias": ("bias", torch.ones(32), r"bias must have shape \(33,\), got \(32,\)"),
    "rows of y": ("y", torch.zeros(5, 33), "y must have 4 rows, got 5"),
    "no tensor": ("bias", [0.0] * 33, "bias must be a tensor, got list"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_by_name(case: str) -> None:
    name, value, text = WRONG[case]
    given = tensors() | {name: value}
    y = given["y"]
    with pytest.raises(ValueError, match=f"op: {text}"):
        cpu.forward_layer(plan_of(18, 33, None), "float32", "op", "x", *given.values(), False)
    assert not y.any()


def test_results_share_no_memory_with_what_is_read() -> None:
    given = tensors()
    x = given["x"] = torch.ones(4, 33)
    given |= {"y": x, "weight": torch.ones(33, 33)}
    with pytest.raises(ValueError, match="must share no memory"):
        cpu.forward_layer(plan_of(33, 33, None), "float32", "op", "x", *given.values(), False)
    assert bool((x == 1).all())


@pytest.mark.parametrize("name", ["weight_m", "bias_v", "updates"])
def test_a_backward_that_does_not_fit_writes_nothing(name: str) -> None:
    optimizer = OPTIMIZERS["AdamW"]
    layer = made(cpu, optimizer, bias=True, activation=None)
    layer.forward(torch.ones(4, 18), save=True)
    wrong: Tensor = torch.zeros(2, dtype=torch.int64 if name == "updates" else torch.float32)
    moments = [
        wrong if key == name else value
        for key, value in zip(
            ("weight_m", "weight_v", "bias_m", "bias_v"), layer.tensors[2:], strict=True
        )
    ]
    before = [value.clone() for value in layer.tensors if value is not None]
    with pytest.raises(ValueError, match=f"backward: {name} must have shape"):
        cpu.backward_layer(
            *(layer.plan, "float32", layer.saved, layer.weight, layer.bias, torch.ones(4, 33)),
            d_x=None,
            grads=None,
            rule=rule_of(optimizer, 0.1, 0.0, wrong.device),
            moments=tuple(moments),
            updates=wrong if name == "updates" else layer.updates,
            applied=torch.zeros(1, dtype=torch.bool),
        )
    after = [value for value in layer.tensors if value is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_only_one_dense_layer_is_taken() -> None:
    plan = nk.plans.mlp(18, 33, 33, hidden=16)
    given = tensors()
    with pytest.raises(ValueError, match="plan must be one dense layer"):
        cpu.forward_layer(plan, "float32", "op", "x", *given.values(), False)
