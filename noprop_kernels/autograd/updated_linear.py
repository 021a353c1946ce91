"""nn.Linear whose weight and bias a torch.optim optimizer updates inside its backward.

The forward is torch's own; the backward forms the gradients and applies the optimizer in one call.
"""

import copyreg
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..backends import dispatch
from ..backends.calls import Slices
from ..compiler.eager import eager_only
from .layer import PARTS, Layer, plan_of, properties_of
from .torch_optimizer import TorchOptimizer
from .wrapped import is_plain, refuse_data_parallel

INSTEAD = "restore() gives the model back"

will_run = torch._C._will_engine_execute_node


class Updates:
    """The updates that the backwards of one model make, and when they are refused.

    Attributes:
        steps: the optimizer.
        layers: the layers that update in the kernel of their gradient.
        accumulating: whether backward adds to `.grad` instead.
    """

    def __init__(self, op: str, steps: TorchOptimizer) -> None:
        self.op = op
        self.steps = steps
        self.layers: list[LayerUpdate] = []
        self.accumulating = False
        self._begun = -1  # the pass of autograd's engine that was checked

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        before, self.accumulating = self.accumulating, True
        try:
            yield
        finally:
            self.accumulating = before

    def begin(self) -> None:
        """Before a backward's first update: reads the groups, and refuses what cannot be honoured.

        Raises:
            RuntimeError: create_graph, or a parameter twice in one graph.
            ValueError: a group has an option that the kernels do not have.
        """
        if (now := torch._C._current_graph_task_id()) == self._begun:
            return
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{self.op}: backward must be without create_graph=True, since weights move inside "
                "it; restore() gives the model back"
            )
        if not self.accumulating:
            for layer in self.layers:
                layer.refuse_second_use()
            self.steps.read()
        self._begun = now

    def step_alone(self, parameter: Tensor) -> None:
        """The hook of a parameter whose whole gradient autograd has formed."""
        try:
            self.begin()
        except BaseException:
            parameter.grad = None  # or the next step would apply it
            raise
        if not self.accumulating:
            self.steps.step(parameter)


class LayerUpdate:
    """The update of one layer.

    Args:
        name: of the layer, for messages.
        module: exactly nn.Linear, with plain, contiguous float32 parameters of its own.
    """

    def __init__(self, updates: Updates, name: str, module: nn.Linear) -> None:
        self.updates, self.name = updates, name
        self.weight: Tensor = module.weight
        self.bias: Tensor | None = module.bias
        self.nodes: WeakSet[Any] = WeakSet()  # that may still update
        self._counter: Tensor | None = None  # the steps so far, for the kernels
        self._counted: list[tuple[Tensor, int]] = []  # torch's, with their versions
        self._even = True  # weight and bias have made as many
        self._slices: tuple[list, Slices] | None = None

    def takes(self, module: nn.Linear, x: Any) -> bool:
        """Whether a forward of x ends in an update; if not it is torch's."""
        weight = self.weight
        if module.weight is not weight or module.bias is not self.bias:
            refuse_data_parallel(self.updates.op, module, INSTEAD)  # fully_shard swaps them
            return False
        return (
            torch.is_grad_enabled()
            and weight.requires_grad
            and isinstance(x, Tensor)
            and (x.dtype == torch.float32 or autocast_dtype(x) is not None)
            and fits(weight)
            and (self.bias is None or fits(self.bias))
        )

    def refuse_second_use(self) -> None:
        uses = [node for node in self.nodes if will_run(node) and will_run(token_of(node))]
        own = (self.weight, self.bias)
        others = [value for value in own if value is not None and uses and used_outside(value)]
        if len(uses) + len(others) > 1:
            raise RuntimeError(
                f"{self.updates.op}: {self.name} must be used once in one graph, since the first "
                f"use's backward moves what the others' need, got {len(uses) + len(others)} uses; "
                "accumulate() and step() allow it"
            )

    def backward(
        self, x: Tensor, d_y: Tensor, input_grad: bool, precision: str, backend: Any
    ) -> Tensor | None:
        """d_x at the weights before the update, if requested."""
        steps, accumulating = self.updates.steps, self.updates.accumulating
        named = {"weight": self.weight}
        if self.bias is not None and self.bias.requires_grad:
            named["bias"] = self.bias
        if accumulating or any(value.grad is not None for value in named.values()):
            d_x = self._add_gradients(named, x, d_y, input_grad, precision, backend)
            for value in named.values():
                if not accumulating:
                    steps.step(value)
            return d_x
        rule = steps.rule(self.weight)
        moments = {
            f"{part}_{ours}": moment
            for part, value in named.items()
            for ours, moment in steps.moments(value).items()
        }
        counts = [steps.step_count(value) for value in named.values()]
        counter = self._count([count for count in counts if count is not None])
        together = "bias" in named and self._even and steps.rule(named["bias"]) is rule
        if not together:
            moments = {name: moment for name, moment in moments.items() if name[0] == "w"}
            counts = counts[:1]
        layer = self._layer(together, moments, counter, precision, backend)
        layer.save(x)
        frozen = () if together else ("bias",)
        applied = d_y.new_empty(1, dtype=torch.bool)
        d_x = layer.backward(d_y, input_grad=input_grad, rule=rule, frozen=frozen, applied=applied)
        for count in counts:
            if count is not None:  # a count elsewhere goes on without waiting for `applied`
                count.view(1).add_(applied if count.device == applied.device else 1)
        self._counted = [(count, count._version) for count, _ in self._counted]
        if "bias" in named and not together:
            named["bias"].grad = d_y.reshape(-1, d_y.shape[-1]).sum(0)
            steps.step(named["bias"])
            self._counted = []
        return d_x

    def _count(self, counts: list[Tensor]) -> Tensor:
        """(1,) int64 for the kernels, read anew where torch's count is not what they left."""
        if self._counter is None or self._counter.device != self.weight.device:
            self._counter = torch.zeros(1, dtype=torch.int64, device=self.weight.device)
            self._counted = []
        known = len(counts) == len(self._counted) and all(
            count is then and count._version == version
            for count, (then, version) in zip(counts, self._counted, strict=True)
        )
        if counts and not known:
            self._counter.copy_(counts[0])
            self._even = len(counts) == 1 or bool(counts[0] == counts[1])
            self._counted = [(count, count._version) for count in counts]
        return self._counter

    def _layer(
        self,
        with_bias: bool,
        moments: dict[str, Tensor],
        counter: Tensor | None,
        precision: str,
        backend: Any,
    ) -> Layer:
        bias = self.bias if with_bias else None
        layer = Layer(self.weight, bias, None, precision, backend, moments, counter)
        if with_bias and counter is not None and not layer.takes_tensors:
            key = [precision, *map(properties_of, (self.weight, bias, *moments.values(), counter))]
            if self._slices is None or self._slices[0] != key:
                self._slices = key, layer.slices()
            layer.made = self._slices[1]
        return layer

    def _add_gradients(
        self,
        named: dict[str, Tensor],
        x: Tensor,
        d_y: Tensor,
        input_grad: bool,
        precision: str,
        backend: Any,
    ) -> Tensor | None:
        layer = self._layer(False, {}, None, precision, backend)
        shapes = (self.weight.shape, self.weight.shape[:1])
        grads = {part: d_y.new_empty(shape) for part, shape in zip(PARTS, shapes, strict=True)}
        layer.save(x)
        d_x = layer.backward(d_y, input_grad=input_grad, grads=grads)
        for part, value in named.items():
            value.grad = grads[part] if value.grad is None else value.grad.add_(grads[part])
        return d_x


def fits(parameter: Tensor) -> bool:
    """Whether a kernel can update it where it is."""
    plain = is_plain(parameter) and parameter.is_leaf and parameter.dtype == torch.float32
    return plain and parameter.is_contiguous()


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype of x's product inside torch.autocast, or None."""
    if not torch.is_autocast_enabled(x.device.type) or not x.is_floating_point():
        return None
    return None if x.dtype == torch.float64 else torch.get_autocast_dtype(x.device.type)


def token_of(node: Any) -> Any:
    """The node of autograd's engine that runs where a pass asks for the update."""
    return node.next_functions[0][0]


def used_outside(parameter: Tensor) -> bool:
    """Whether this pass forms a gradient of a parameter that its layer does not.

    The layer's node has no edge to its parameters, so that only other uses reach them.
    """
    if not parameter.requires_grad:
        return False
    with torch.enable_grad():
        alias: Any = parameter.view_as(parameter).grad_fn
    return will_run(alias.next_functions[0][0])


class UpdatedLinear(nn.Linear):
    """An nn.Linear that OptimizerInBackward has taken; a copy or a pickle of it is plain."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch.nn.Linear's name
        update: LayerUpdate = self.__dict__["_update"]
        if not update.takes(self, input):
            return super().forward(input)
        return updating(self, update, input)

    def _get_name(self) -> str:
        return "Linear"

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {name: value for name, value in self.__dict__.items() if name != "_update"}
        return copyreg._reconstructor, (nn.Linear, object, None), state  # type: ignore


@eager_only
def updating(module: nn.Linear, update: LayerUpdate, x: Tensor) -> Tensor:
    refuse_data_parallel(update.updates.op, module, INSTEAD)
    x = x.to(autocast_dtype(x) or x.dtype)
    precision = "bfloat16" if x.dtype == torch.bfloat16 else "float32"
    plan = plan_of(module.in_features, module.out_features, None)
    backend = dispatch.choose(plan, module.weight.device, precision)
    token = module.weight.new_empty(0).requires_grad_()
    with torch.autocast(x.device.type, enabled=False):
        return LinearNode.apply(token, x, update, precision, backend)


class LinearNode(torch.autograd.Function):
    """y = x @ weight.T + bias, whose backward updates weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, token: Tensor, x: Tensor, update: LayerUpdate, precision: str, backend: Any
    ) -> Tensor:
        weight, bias = update.weight, update.bias
        ctx.update, ctx.precision, ctx.backend = update, precision, backend
        ctx.seen = weight._version, weight.data_ptr()
        ctx.save_for_backward(x)
        update.nodes.add(ctx)
        return linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        update, weight = ctx.update, ctx.update.weight
        update.updates.begin()
        (x,) = ctx.saved_tensors
        if ctx.seen != (weight._version, weight.data_ptr()):
            raise RuntimeError(
                f"{update.updates.op}: {update.name}'s weight must be that of the forward until "
                "backward, got a changed one; each backward is an update, but inside accumulate()"
            )
        input_grad = ctx.needs_input_grad[1]
        if not will_run(token_of(ctx)):
            d_x = d_y @ weight.to(d_y.dtype) if input_grad else None
            return None, d_x, None, None, None
        d_x = update.backward(x.float(), d_y.float(), input_grad, ctx.precision, ctx.backend)
        return None, None if d_x is None else d_x.to(x.dtype), None, None, None
