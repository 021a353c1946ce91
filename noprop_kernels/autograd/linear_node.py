"""The node of nk.Linear in torch's graph, whose backward updates the weights."""

from dataclasses import dataclass
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead
from torch.utils.weak import WeakTensorKeyDictionary

from ..backends import dispatch
from ..check import PLAIN
from ..compiler.eager import eager_only
from .layer import PARTS, Layer
from .wrapped import INSTEAD, claim, claims, refuse_data_parallel

OP = "Linear"
IS_LEAF = attrgetter("is_leaf")

_nodes = WeakTensorKeyDictionary()  # see nodes_of
_known: WeakKeyDictionary[Any, "Known"] = WeakKeyDictionary()  # by layer


@dataclass
class Known:
    """What the last forward of a layer that updates itself has found. A forward that sees the same
    makes no check again but those that depend on memory, which are the kernels' own.

    Args:
        seen: as of `what_is_seen`.
        layer: of these tensors, which passed the checks, on the CPU kernels.
        nodes: of the weight.
        claims: as of `claims`, when the parameters were found to be this layer's own.
    """

    seen: list
    layer: Layer
    nodes: list[ref]
    claims: int

    def holds(self, module: Any, precision: str, weight: Tensor, bias: Tensor | None) -> bool:
        return (
            self.claims == claims()
            and self.seen == what_is_seen(module, precision, weight, bias)
            and all(map(IS_LEAF, self.layer.present.values()))
        )


def what_is_seen(module: Any, precision: str, weight: Tensor, bias: Tensor | None) -> list[object]:
    buffers = module._buffers
    tensors = weight, bias, *buffers.values()
    options = precision, module.activation, module.in_features, module.out_features
    return [weight.shape, *map(id, tensors), *map(type, tensors), *buffers, *options]


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
        of_the_engine: Any = super(torch.autograd.Function, cls)
        return of_the_engine.apply(*given, *tensors)

    @staticmethod
    def forward(
        ctx: Any,
        module: Any,
        known: Known | None,
        precision: str,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        done = None if known is None else forward_at_once(module, known, precision, x)
        if done is None:
            layer = module.checked_layer(precision, x, weight, bias)
            y, nodes = layer.forward(x, save=True), nodes_of(weight)
            if layer.takes_tensors:
                seen = what_is_seen(module, precision, weight, bias)
                _known[module] = Known(seen, layer.anew(), nodes, claims())
        else:
            layer, y, nodes = done
        ctx.layer, ctx.optimizer, ctx.nodes, ctx.used = layer, module.optimizer, nodes, False
        ctx.save_for_backward(x, weight, bias)  # so that torch detects a change of what was read
        nodes.append(ref(ctx, nodes.remove))  # a WeakSet is slower
        return y

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        layer, wanted = ctx.layer, trained(ctx)
        refuse(ctx)
        input_grad = ctx.needs_input_grad[3]
        if not wanted:
            d_x = layer.backward(d_y, input_grad=input_grad)
            return None, None, None, d_x, None, None
        ctx.used = True
        rule = ctx.optimizer.rule(d_y.device)
        frozen = () if len(wanted) == 2 else tuple(part for part in PARTS if part not in wanted)
        d_x = layer.backward(d_y, input_grad=input_grad, rule=rule, frozen=frozen)
        layer.saved = None
        return None, None, None, d_x, None, None


def forward_at_once(
    module: Any, known: Known, precision: str, x: Tensor
) -> tuple[Layer, Tensor, list[ref]] | None:
    """A layer whose tensors are known, y, and the weight's nodes, where the kernels take x and
    check all that they address; else None, and what does not fit is left to the checks by name."""
    layer = known.layer
    backend = dispatch.choose(layer.plan, layer.weight.device, precision, module.backend)
    if backend is not layer.backend or type(x) not in PLAIN:
        return None
    if x.layout is not torch.strided or x.is_nested or x.numel() == 0 or x.ndim == 0:
        return None
    layer = layer.anew()
    try:
        return layer, layer.forward(x, save=True), known.nodes
    except ValueError:
        return None


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
    known = _known.get(module)
    if known is None or not known.holds(module, precision, weight, bias):
        known = None
        claim(OP, module)
    return Updating.apply(module, known, precision, x, weight, bias)
