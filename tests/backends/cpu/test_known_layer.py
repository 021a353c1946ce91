"""A layer's calls without checks by name answer where nothing has changed, and else do nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import noprop_kernels as nk
from noprop_kernels.autograd.layer import plan_of
from noprop_kernels.autograd.linear_node import OPTIONS
from noprop_kernels.backends.cpu import backend as cpu
from noprop_kernels.backends.cpu import extension
from support.blocks import assert_same
from support.linear import everything, linear, rows

NAMES = ("weight", "bias", "weight_m", "weight_v", "bias_m", "bias_v", "updates")


class Other(Tensor):
    pass


def in_one_storage() -> nk.Linear:
    """Its weight has a neighbour in its storage."""
    layer = linear(18, 33)
    layer.weight.data = torch.stack([layer.weight.detach(), rows(33, 18)])[0]
    return layer


def known_of(layer: nk.Linear) -> Any:
    tensors = tuple(getattr(layer, name) for name in NAMES)
    plan = plan_of(layer.in_features, layer.out_features, None)
    return cpu.known_layer(plan, "float32", layer.__dict__, OPTIONS, tensors)


def forward(layer: nk.Linear, known: Any, x: Any) -> Any:
    return cpu.forward_known("Linear", known, layer.__dict__, x)


def backward(layer: nk.Linear, known: Any, saved: Any, d_y: Tensor) -> Any:
    assert layer.optimizer is not None
    return cpu.backward_known(known, saved, d_y, True, layer.optimizer.settings)


def test_a_step_has_the_bits_of_the_checked_calls() -> None:
    layer, twin = linear(18, 33), linear(18, 33)
    twin.load_state_dict(layer.state_dict())
    known, x, d_y = known_of(layer), rows(2, 5, 18), rows(2, 5, 33, seed=1)
    versions = [getattr(layer, name)._version for name in NAMES]
    y, saved = forward(layer, known, x)
    d_x, _ = backward(layer, known, saved, d_y)
    x_twin = x.clone().requires_grad_()
    want = twin(x_twin)
    want.backward(d_y)
    assert torch.equal(y, want) and torch.equal(d_x, x_twin.grad)  # type: ignore[arg-type]
    assert_same(everything(layer), everything(twin))
    assert [getattr(layer, name)._version for name in NAMES] == [v + 1 for v in versions]


def set_data(name: str, made: Callable[[Tensor], Tensor]) -> Callable[[nk.Linear], None]:
    def change(layer: nk.Linear) -> None:
        value = getattr(layer, name)
        value.data = made(value.detach())

    return change


def result_of_others(layer: nk.Linear) -> None:
    layer.weight.requires_grad_(False).mul_(torch.ones(1, requires_grad=True))


MOVED = {
    "new memory": set_data("weight", Tensor.clone),
    "the next memory": set_data(
        "weight", lambda value: value.as_strided((33, 18), (18, 1), value.numel())
    ),
    "another shape": set_data("bias", lambda value: value.view(11, 3)),
    "a part": set_data("bias", lambda value: value[:32]),
    "the same bytes": set_data("bias_v", lambda value: value.view(torch.int32)),
    "other strides": set_data("weight", lambda value: value.view(18, 33).T),
    "float64": set_data("bias_v", Tensor.double),
    "negated": set_data("weight", torch._neg_view),
    "a negated moment": set_data("bias_m", torch._neg_view),
    "released": lambda layer: layer.weight.untyped_storage().resize_(0),
    "shortened": lambda layer: layer.bias.untyped_storage().resize_(8),
    "another class": lambda layer: setattr(layer.bias, "__class__", type("P", (nn.Parameter,), {})),
}
CHANGES = MOVED | {
    "replaced": lambda layer: setattr(layer, "weight", nn.Parameter(rows(33, 18))),
    "no bias": lambda layer: setattr(layer, "bias", None),
    "a moment is gone": lambda layer: layer._buffers.pop("weight_v"),
    "a moment is None": lambda layer: layer._buffers.update(weight_v=None),
    "a buffer more": lambda layer: layer.register_buffer("more", torch.ones(1)),
    "a parameter more": lambda layer: layer.register_parameter("more", nn.Parameter(rows(1))),
    "frozen": lambda layer: layer.bias.requires_grad_(False),
    "a result": result_of_others,
    "activation": lambda layer: setattr(layer, "activation", "relu"),
    "backend": lambda layer: setattr(layer, "backend", "reference"),
    "optimizer": lambda layer: setattr(layer, "optimizer", linear(1, 1).optimizer),
    "meta": lambda layer: layer.to("meta"),
    "eval": lambda layer: layer.eval(),
    "width": lambda layer: setattr(layer, "in_features", 17),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_forward_of_a_changed_layer_is_left_to_the_checks(case: str) -> None:
    layer, x = in_one_storage(), rows(4, 18)
    known = known_of(layer)
    assert forward(layer, known, x) is not None
    CHANGES[case](layer)
    assert forward(layer, known, x) is None


@pytest.mark.parametrize("case", MOVED)
def test_a_backward_of_moved_tensors_is_left_to_the_checks(case: str) -> None:
    layer, d_y = in_one_storage(), rows(4, 33)
    known = known_of(layer)
    _, saved = forward(layer, known, rows(4, 18))
    MOVED[case](layer)
    updates, version = layer.updates.clone(), layer.weight._version
    assert backward(layer, known, saved, d_y) is None
    assert torch.equal(layer.updates, updates) and layer.weight._version == version


INPUTS: dict[str, Callable[[], Any]] = {
    "no tensor": lambda: [1.0] * 18,
    "None": lambda: None,
    "another width": lambda: rows(4, 17),
    "no rows": lambda: rows(0, 18),
    "no dimension": lambda: torch.ones(()),
    "nine dimensions": lambda: rows(*(1,) * 8, 18),
    "strides": lambda: rows(4, 36)[:, ::2],
    "float64": lambda: rows(4, 18).double(),
    "meta": lambda: rows(4, 18).to("meta"),
    "a subclass": lambda: rows(4, 18).as_subclass(Other),
    "sparse": lambda: rows(4, 18).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([rows(4, 18)], layout=torch.jagged),
    "negated": lambda: torch._neg_view(rows(4, 18)),
    "released": lambda: resized(rows(4, 18), 0),
    "shortened": lambda: resized(rows(4, 18), 8),
    "an odd address": lambda: torch.frombuffer(
        bytearray(4 * 4 * 18 + 2), dtype=torch.float32, offset=2
    ).view(4, 18),
}


def resized(x: Tensor, size: int) -> Tensor:
    x.untyped_storage().resize_(size)
    return x


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("case", INPUTS)
def test_an_input_that_does_not_fit_is_left_to_the_checks(case: str) -> None:
    layer, x = linear(18, 33), INPUTS[case]()
    known, plan = known_of(layer), plan_of(18, 33, None)
    assert forward(layer, known, x) is None
    assert cpu.dense(plan, "float32", "dense", x, layer.weight, layer.bias) is None


@pytest.mark.parametrize("case", [case for case in INPUTS if case not in ("no tensor", "None")])
def test_a_gradient_that_does_not_fit_is_left_to_the_checks(case: str) -> None:
    layer = linear(18, 18)
    known = known_of(layer)
    _, saved = forward(layer, known, rows(4, 18))
    before = everything(layer)
    assert backward(layer, known, saved, INPUTS[case]()) is None
    assert backward(layer, known, saved, rows(5, 18)) is None
    assert_same(everything(layer), before)


def test_a_gradient_in_the_memory_of_a_parameter_is_left_to_the_checks() -> None:
    layer = linear(18, 18)
    known = known_of(layer)
    _, saved = forward(layer, known, rows(18, 18))
    for name in ("weight", "weight_m", "weight_v"):
        assert backward(layer, known, saved, getattr(layer, name).detach()) is None
    assert layer.updates.item() == 0


def test_moments_of_another_optimizer_are_left_to_the_checks() -> None:
    layer = linear(18, 33)
    known = known_of(layer)
    _, saved = forward(layer, known, rows(4, 18))
    assert cpu.backward_known(known, saved, rows(4, 33), True, nk.SGD(lr=0.1)) is None
    assert layer.updates.item() == 0


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Functions, Dispatches])
def test_calls_that_a_mode_sees_are_left_to_the_checks(mode: Any) -> None:
    layer, x = linear(18, 33), rows(4, 18)
    known, plan = known_of(layer), plan_of(18, 33, None)
    _, saved = forward(layer, known, x)
    with mode():
        assert forward(layer, known, x) is None
        assert backward(layer, known, saved, rows(4, 33)) is None
        assert cpu.dense(plan, "float32", "dense", x, layer.weight, layer.bias) is None
    assert forward(layer, known, x) is not None


def test_tensors_that_share_memory_or_do_not_fit_are_not_known() -> None:
    layer = linear(18, 33)
    layer.weight_v.data = layer.weight_m
    assert known_of(layer) is None
    layer = linear(18, 33)
    layer.bias_v.data = torch.zeros(32)
    assert known_of(layer) is None


WRONG: dict[str, Callable[[nk.Linear], tuple[Any, Any]]] = {
    "transposed": lambda layer: (layer.weight.detach().view(18, 33).T, layer.bias),
    "another shape": lambda layer: (layer.weight.detach().view(18, 33), layer.bias),
    "another dimension": lambda layer: (layer.weight.detach().view(33, 1, 18), layer.bias),
    "more rows": lambda layer: (rows(34, 18), layer.bias),
    "a short bias": lambda layer: (layer.weight, torch.ones(32)),
    "a row as bias": lambda layer: (layer.weight, torch.ones(1, 33)),
    "no tensor": lambda layer: (layer.weight, [0.0] * 33),
    "a subclass": lambda layer: (layer.weight.detach().as_subclass(Other), layer.bias),
}


@pytest.mark.parametrize("case", WRONG)
def test_parameters_of_dense_that_do_not_fit_are_left_to_the_checks(case: str) -> None:
    layer, x = linear(18, 33), rows(4, 18)
    assert cpu.dense(plan_of(18, 33, None), "float32", "dense", x, *WRONG[case](layer)) is None


def test_no_plan_but_one_dense_layer_is_taken() -> None:
    dense = {"a": nk.Dense("z", 33), "y": nk.Dense("a", 33)}
    plan, layer = nk.Plan({"z": (18,)}, dense), linear(18, 33)
    assert cpu.dense(plan, "float32", "dense", rows(4, 18), layer.weight, layer.bias) is None
    tensors = tuple(getattr(layer, name) for name in NAMES)
    assert cpu.known_layer(plan, "float32", layer.__dict__, OPTIONS, tensors) is None


def test_another_instruction_set_between_the_calls_is_left_to_the_checks() -> None:
    sets = [name for name, runs in cpu.describe()["isas"].items() if runs]
    layer, used = linear(18, 33), cpu.describe()["isa_used"]
    known = known_of(layer)
    _, saved = forward(layer, known, rows(4, 18))
    others = [name for name in sets if name != used]
    if not others:
        pytest.skip("one instruction set runs here")
    try:
        cpu.set_isa(others[0])
        assert backward(layer, known, saved, rows(4, 33)) is None
    finally:
        cpu.set_isa(used)
    assert backward(layer, known, saved, rows(4, 33)) is not None


def test_without_the_exchange_interface_all_is_left_to_the_checks() -> None:
    layer, x = linear(18, 33), rows(4, 18)
    extension.C.use_torch(**(extension.TORCH | {"exchange": None}))
    try:
        assert known_of(layer) is None
        plan = plan_of(18, 33, None)
        assert cpu.dense(plan, "float32", "dense", x, layer.weight, layer.bias) is None
        layer(x).sum().backward()
    finally:
        extension.C.use_torch(**extension.TORCH)
    assert layer.updates.item() == 1
