"""A dense layer and its update: nodes of torch's graph, and operations for torch.compile.

Backward needs the tensors that the backend saved in its forward. An operation, a function of
tensors only, does not have them and runs the forward once more.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..backends import dispatch
from ..check import MOST_COUNT, PLAIN
from ..optimizers import OPTIMIZERS, Optimizer
from .custom_op import needs_node, register
from .layer import PARTS, Layer, check_layer, plan_of
from .layer_optimizer import rule_of

PLAIN_TYPES = frozenset(PLAIN)
LAYOUT, STRIDED = attrgetter("layout"), {torch.strided}


def layer_of(
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    precision: str,
    backend: str | None,
    moments: Mapping[str, Tensor] | None = None,
    updates: Tensor | None = None,
) -> Layer:
    plan = plan_of(weight.shape[1], weight.shape[0], activation)
    chosen = dispatch.choose(plan, weight.device, precision, backend)
    bias = None if bias is None else bias.contiguous()
    weight = weight.contiguous()
    return Layer(weight, bias, activation, precision, chosen, moments or {}, updates)


# y = activation(x @ weight.T + bias)


def run(
    op: str,
    name: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    precision: str,
    backend: str | None,
) -> Tensor:
    """y, differentiable in all three; errors call x `name`."""
    if torch.compiler.is_compiling():
        check_layer(op, x, weight, bias, name=name)
        return dense_op(x, weight, bias, activation, precision, backend)
    graph = needs_node(x, weight, bias)
    if not graph:
        y = at_once(op, x, weight, bias, activation, precision, backend)
        if y is not None:
            return y
    check_layer(op, x, weight, bias, name=name)
    layer = layer_of(weight, bias, activation, precision, backend)
    return DenseNode.apply(layer, x, weight, bias) if graph else layer.forward(x, save=False)


def at_once(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    precision: str,
    backend: str | None,
) -> Tensor | None:
    """y where the kernels take the tensors as they are, and check them alone; else None.

    So a small layer does not pay for checks by name, to which what does not fit is left.
    """
    if type(weight) not in PLAIN or weight.ndim != 2:
        return None
    out_features, in_features = weight.shape
    plan = plan_of(in_features, out_features, activation)
    chosen = dispatch.choose(plan, weight.device, precision, backend)
    if not hasattr(chosen, "forward_layer"):
        return None
    return chosen.dense(plan, precision, op, x, weight, bias)


class DenseNode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: Layer, x: Tensor, *params: Tensor | None) -> Tensor:
        y = layer.forward(x, save=True)
        ctx.layer = layer
        ctx.save_for_backward(x, *params)  # so that torch detects a change of what was read
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        ctx.saved_tensors  # noqa: B018  # raises if one has changed since the forward
        _, input_grad, *wanted = ctx.needs_input_grad
        d_x, grads = dense_gradients_of(ctx.layer, d_y, input_grad, wanted)
        return None, d_x, *grads


def dense_gradients_of(
    layer: Layer, d_y: Tensor, input_grad: bool, wanted: Sequence[bool]
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The requested ones of d_x, d_weight and d_bias; a backend forms both of the last or
    neither."""
    grads = None
    if any(wanted):
        shapes = (layer.weight.shape, layer.weight.shape[:1])
        grads = {part: d_y.new_empty(shape) for part, shape in zip(PARTS, shapes, strict=True)}
    d_x = layer.backward(d_y, input_grad=input_grad, grads=grads)
    found = (grads or dict.fromkeys(PARTS)).values()
    return d_x, [grad if wants else None for grad, wants in zip(found, wanted, strict=True)]


def dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    precision: str,
    backend: str | None,
) -> Tensor:
    return layer_of(weight, bias, activation, precision, backend).forward(x, save=False)


def dense_gradients(
    d_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    wanted: list[bool],
    activation: str | None,
    precision: str,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    layer = layer_of(weight, bias, activation, precision, backend)
    if activation is None:
        layer.save(x)
    else:
        layer.forward(x, save=True)
    d_x, grads = dense_gradients_of(layer, d_y, wanted[0], wanted[1:])
    return tuple(d_y.new_empty(0) if g is None else g for g in (d_x, *grads))  # type: ignore


def fake_gradients(d_y, x, weight, bias, wanted, activation, precision, backend):
    shapes = (x.shape, weight.shape, weight.shape[:1])
    return tuple(d_y.new_empty(s if w else 0) for s, w in zip(shapes, wanted, strict=True))


def save_dense(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:]


def dense_backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    grads = dense_gradients_op(d_y, *ctx.saved_tensors, wanted, *ctx.options)
    grads = (grad if wants else None for grad, wants in zip(grads, wanted, strict=True))
    return *grads, None, None, None


dense_gradients_op = register(dense_gradients, fake_gradients)
dense_op = register(
    dense,
    lambda x, weight, *_: x.new_empty(*x.shape[:-1], weight.shape[0]),
    save_dense,
    dense_backward,
)


# updates weight and bias by one step of the optimizer on d_y.T @ x and the sum of d_y


def describe(optimizer: Optimizer) -> tuple[str, list[float]]:
    """An optimizer as an operation's arguments, without lr and weight_decay."""
    hyper = optimizer.hyper().values()
    return optimizer.kind, [float(n) for v in hyper for n in (v if isinstance(v, tuple) else [v])]


@lru_cache(maxsize=64)
def described(kind: str, *numbers: float) -> Optimizer:
    left = iter(numbers)
    hyper: dict[str, Any] = {
        name: tuple(next(left) for _ in like) if isinstance(like, tuple) else type(like)(next(left))
        for name, like in OPTIMIZERS[kind]().hyper().items()
    }
    return OPTIMIZERS[kind](**hyper)


def dense_update_(
    x: Tensor,
    d_y: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    moments: list[Tensor],
    updates: Tensor,
    kind: str,
    numbers: list[float],
    lr: float,
    weight_decay: float,
    input_grad: bool,
    precision: str,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """`applied` (1,) bool, and d_x or an empty tensor."""
    optimizer = described(kind, *numbers)
    named = dict(zip(moment_names(optimizer, bias is not None), moments, strict=True))
    layer = layer_of(weight, bias, None, precision, backend, named, updates)
    layer.save(x)
    rule = rule_of(optimizer, lr, weight_decay, weight.device)
    applied = d_y.new_empty(1, dtype=torch.bool)
    d_x = layer.backward(d_y, input_grad=input_grad, rule=rule, applied=applied)
    return applied, d_y.new_empty(0) if d_x is None else d_x


def moment_names(optimizer: Optimizer, has_bias: bool) -> list[str]:
    parts = PARTS if has_bias else PARTS[:1]
    return [f"{part}_{moment}" for moment in optimizer.moments for part in parts]


@lru_cache(maxsize=16)
def state_names(moments: tuple[str, ...], has_bias: bool) -> frozenset[str]:
    parts = PARTS if has_bias else PARTS[:1]
    return frozenset({"updates", *(f"{part}_{moment}" for moment in moments for part in parts)})


def fake_update(x, d_y, weight, bias, moments, updates, kind, numbers, lr, wd, input_grad, *_):
    return d_y.new_empty(1, dtype=torch.bool), torch.empty_like(x) if input_grad else d_y.new_empty(
        0
    )


def update_at_once(
    op: str,
    x: Tensor,
    d_y: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    optimizer: Optimizer,
    state: Mapping[str, Tensor],
    lr: float,
    input_grad: bool,
    precision: str,
    backend: str | None,
) -> tuple[Tensor, Tensor | None] | None:
    """`applied`, and d_x where requested, as `at_once`: what does not fit is left to the checks by
    name, and nothing has changed."""
    tensors = (x, d_y, weight, weight if bias is None else bias, *state.values())
    if not PLAIN_TYPES.issuperset(map(type, tensors)) or {*map(LAYOUT, tensors)} != STRIDED:
        return None
    decay, updates = optimizer.weight_decay, state.get("updates")
    if isinstance(decay, tuple) or x.numel() == 0 or d_y.numel() == 0 or weight.ndim != 2:
        return None
    if x.is_nested or d_y.is_nested or x.ndim == 0 or x.shape[:-1] != d_y.shape[:-1]:
        return None
    if state.keys() != state_names(optimizer.moments, bias is not None):
        return None
    chosen = dispatch.choose(plan_of(*weight.shape[::-1], None), weight.device, precision, backend)
    if not hasattr(chosen, "forward_layer") or updates is None or updates.shape != (1,):
        return None
    if updates.dtype != torch.int64 or not 0 <= updates.item() <= MOST_COUNT:
        return None
    layer = Layer(weight, bias, None, precision, chosen, state, updates, op=op)
    try:
        layer.save(x)
        rule = rule_of(optimizer, lr, decay, weight.device)
        applied = d_y.new_empty(1, dtype=torch.bool)
        d_x = layer.backward(d_y, input_grad=input_grad, rule=rule, applied=applied)
    except ValueError:
        return None
    return applied, d_x


dense_update_op = register(
    dense_update_, fake_update, mutates=("weight", "bias", "moments", "updates")
)
