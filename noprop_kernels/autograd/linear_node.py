"""The node of nk.Linear in torch's graph, whose backward updates the weights."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead
from torch.utils.weak import WeakTensorKeyDictionary

from ..backends import dispatch
from ..compiler.eager import eager_only
from .layer import PARTS, Layer
from .wrapped import INSTEAD, claim, claims, refuse_data_parallel

OP = "Linear"
OPTIONS = ("training", "optimizer", "activation", "backend", "in_features", "out_features")

_nodes = WeakTensorKeyDictionary()  # see nodes_of
_known: WeakKeyDictionary[Any, "Known"] = WeakKeyDictionary()  # by layer


@dataclass
class Known:
    """What the last checked forward of a layer that updates itself has found. One that finds the
    same makes no check by name; what differs is left to those.

    Args:
        seen: as of `what_is_seen`.
        tensors: of the layer, as the kernels' `known_layer`.
        layer: of these tensors, after a forward.
        nodes: of the weight.
        parts: how many parameters it has.
    """

    seen: tuple
    tensors: Any
    layer: Layer
    nodes: list[ref]
    parts: int

    @classmethod
    def of(cls, module: Any, precision: str, layer: Layer, nodes: list[ref]) -> "Known | None":
        state, backend = module.__dict__, layer.backend
        if not (layer.takes_tensors and all(name in state for name in OPTIONS)):
            return None
        if layer.saved is None:  # of no rows, for which no tensor was addressed
            return None
        tensors = *layer.tensors, layer.updates
        known = backend.known_layer(layer.plan, precision, state, OPTIONS, tensors)
        if known is None:
            return None
        parts = 1 if layer.bias is None else 2
        return cls(what_is_seen(module, precision), known, layer.again(None), nodes, parts)


def what_is_seen(module: Any, precision: str) -> tuple:
    """What a forward depends on beside its tensors and the module's attributes."""
    return precision, module.optimizer.moments, claims(), dispatch.forcing()


def forward_again(module: Any, precision: str, x: Any) -> Tensor | None:
    """y of an nk.Linear with an optimizer, with a node in torch's graph, where nothing has changed
    since its last forward that was to train; else None.

    Raises:
        RuntimeError: a wrapper also updates its parameters.
    """
    known = _known.get(module)
    if known is None or not torch.is_grad_enabled():
        return None
    if known.seen != what_is_seen(module, precision):
        return None
    refuse_data_parallel(OP, module, INSTEAD)
    layer = known.layer
    done = layer.backend.forward_known(OP, known.tensors, module.__dict__, x)
    if done is None:
        return None
    return apply(module, precision, (known, *done), x, layer.weight, layer.bias)


class Updating(torch.autograd.Function):
    """y = activation(x @ weight.T + bias), whose backward updates weight and bias."""

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        """As torch's, which for a function without setup_context refuses transforms of torch.func,
        and else unwraps tensors that a transform has left."""
        if torch._C._are_functorch_transforms_active():
            return super().apply(*arguments)
        given, tensors = arguments[:3], arguments[3:]
        tensors = [
            unwrap_if_dead(value) if isinstance(value, Tensor) else value for value in tensors
        ]
        return apply(*given, *tensors)

    @staticmethod
    def forward(
        ctx: Any,
        module: Any,
        precision: str,
        done: tuple[Known, Tensor, Any] | None,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """done: what is known, y and what is saved for backward, if y has been computed."""
        if done is None:
            layer = module.checked_layer(precision, x, weight, bias)
            y, nodes = layer.forward(x, save=True), nodes_of(weight)
            if (known := Known.of(module, precision, layer, nodes)) is not None:
                _known[module] = known
            ctx.known, ctx.layer, ctx.saved = None, layer, None
        else:
            ctx.known, y, ctx.saved = done
            nodes = ctx.known.nodes
        ctx.optimizer, ctx.nodes, ctx.used = module.optimizer, nodes, False
        ctx.save_for_backward(x, weight, bias)  # so that torch detects a change of what was read
        nodes.append(ref(ctx, nodes.remove))  # a WeakSet is slower
        return y

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        wanted, known, optimizer = trained(ctx), ctx.known, ctx.optimizer
        refuse(ctx)
        input_grad, ctx.used = ctx.needs_input_grad[3], bool(wanted)
        if known is not None and len(wanted) == known.parts:
            d_y = d_y if d_y.is_contiguous() else d_y.contiguous()
            given = ctx.saved, d_y, input_grad, optimizer.settings
            done = known.layer.backend.backward_known(known.tensors, *given)
            if done is not None:
                ctx.saved = None
                return None, None, None, done[0], None, None
        layer = ctx.layer if known is None else known.layer.again(ctx.saved)
        if not wanted:
            d_x = layer.backward(d_y, input_grad=input_grad)
            return None, None, None, d_x, None, None
        rule = optimizer.rule(d_y.device)
        frozen = () if len(wanted) == 2 else tuple(part for part in PARTS if part not in wanted)
        d_x = layer.backward(d_y, input_grad=input_grad, rule=rule, frozen=frozen)
        layer.saved = ctx.saved = None
        return None, None, None, d_x, None, None


# as an extension in C++ calls it, without a look at transforms and their tensors
apply: Any = super(torch.autograd.Function, Updating).apply  # type: ignore[misc]


def nodes_of(weight: Tensor) -> list[ref]:
    """The living nodes that may still update this weight, in all layers and graphs."""
    found = _nodes.get(weight)
    if found is None:
        found = _nodes[weight] = []
    return found


def trained(node: Any) -> list[str]:
    """The parameters whose gradients this pass of autograd's engine requests."""
    found = []
    try:  # as torch.autograd.graph.register_multi_grad_hook does
        for part, (edge, _) in zip(PARTS, node.next_functions[1:], strict=False):  # x is first
            if edge is not None and torch._C._will_engine_execute_node(edge):
                found.append(part)
    except RuntimeError:  # torch.autograd.grad of a parameter, which would return its gradient
        raise RuntimeError(
            f"{OP}: torch.autograd.grad must not ask for the gradient of a parameter, which is "
            "updated inside backward; optimizer=None makes a layer with gradients"
        ) from None
    return found


def refuse(node: Any) -> None:
    """Raises, before anything is written, for uses that an update inside backward cannot honour."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{OP}: backward must be without create_graph=True, since the weights move inside it"
        )
    if node.used:
        raise RuntimeError(f"{OP}: backward must run once for each forward, got a second one")
    try:
        node.saved_tensors  # noqa: B018  # raises where a tensor has changed since forward
    except RuntimeError as error:
        raise RuntimeError(
            f"{OP}: input and parameters must be those of the forward until backward: {error}"
        ) from error
    others = [known() for known in node.nodes] if len(node.nodes) > 1 else ()
    for other in others:
        if other not in (node, None) and torch._C._will_engine_execute_node(other):
            raise RuntimeError(
                f"{OP}: weight must be used once in one graph, since the first use's backward "
                "moves what the second's needs, got it twice; optimizer=None allows it"
            )


@eager_only
def updating(module: Any, precision: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y of an nk.Linear that is to train, whose backward is one update.

    Raises:
        ValueError: x or a tensor of the layer does not fit.
        RuntimeError: another layer or a wrapper also updates its parameters.
        BackendError: no backend can run it.
    """
    refuse_data_parallel(OP, module, INSTEAD)
    claim(OP, module)
    return Updating.apply(module, precision, None, x, weight, bias)
