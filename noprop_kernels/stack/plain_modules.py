"""Slices as graphs of torch.nn modules: Linear, Conv2d, BatchNorm1d, MaxPool2d, Dropout."""

from collections.abc import Callable, Iterator, Sequence
from operator import add

import torch
from torch import Tensor, fx, nn

from ..check import check_tensor
from ..plan import Conv2d, Dense, Plan
from .module import Stack
from .state import checked_tensors

ACTIVATIONS = {"relu": torch.relu, "gelu": nn.functional.gelu}


Find = Callable[[str], Tensor]  # a tensor by its state_dict name
Steps = Iterator[tuple[str, nn.Module] | Callable[[Tensor], Tensor]]


def dense(layer: Dense, name: str, fan_in: int, parameter: Find, statistic: Find) -> Steps:
    """A norm is a child of its layer's Linear, so that the state_dict has the plan's names."""
    linear = nn.Linear(fan_in, layer.features, device="meta")
    linear.weight = nn.Parameter(parameter(f"{name}.weight"))
    linear.bias = nn.Parameter(parameter(f"{name}.bias"))
    yield name, linear
    if layer.norm is not None:
        key = f"{name}.norm"
        weight = nn.Parameter(parameter(f"{key}.weight"))
        norm = nn.BatchNorm1d(
            layer.features, layer.norm.eps, layer.norm.momentum, device=weight.device
        )
        norm.weight = weight
        norm.bias = nn.Parameter(parameter(f"{key}.bias"))
        norm.running_mean = statistic(f"{key}.running_mean")
        norm.running_var = statistic(f"{key}.running_var")
        yield key, norm
    if layer.activation is not None:
        yield ACTIVATIONS[layer.activation]


def conv2d(layer: Conv2d, name: str, fan_in: int, parameter: Find, statistic: Find) -> Steps:
    """The pool and the dropout are children of their layer's Conv2d; in train mode torch draws."""
    channels = fan_in // layer.kernel_size**2
    conv = nn.Conv2d(channels, layer.channels, layer.kernel_size, device="meta")
    conv.weight = nn.Parameter(parameter(f"{name}.weight"))
    conv.bias = nn.Parameter(parameter(f"{name}.bias"))
    yield name, conv
    if layer.activation is not None:
        yield ACTIVATIONS[layer.activation]
    if layer.pool is not None:
        yield f"{name}.pool", nn.MaxPool2d(layer.pool.kernel_size)
    if layer.dropout > 0:
        yield f"{name}.dropout", nn.Dropout(layer.dropout)


KINDS: dict[type, Callable[..., Steps]] = {Dense: dense, Conv2d: conv2d}  # of layers


def graph_module(plan: Plan, parameter: Find, statistic: Find) -> fx.GraphModule:
    """The plan as modules whose tensors are those given by state_dict name."""
    graph = fx.Graph()
    results = {name: graph.placeholder(name) for name in plan.inputs}
    for name, shape in plan.inputs.items():
        if len(shape) > 1:  # rows come flat, or as images
            results[name] = graph.call_method("reshape", (results[name], (-1, *shape)))
    root: dict[str, nn.Module] = {}

    def flat(name: str) -> fx.Node:
        y = results[name]
        return y if len(plan.shapes[name]) == 1 else graph.call_function(torch.flatten, (y, 1))

    for name, layer in plan.layers.items():
        y = results[layer.sources[0]] if isinstance(layer, Conv2d) else flat(layer.sources[0])
        if len(layer.sources) > 1:
            y = graph.call_function(torch.cat, ([flat(source) for source in layer.sources], -1))
        for step in KINDS[type(layer)](layer, name, plan.fan_in(name), parameter, statistic):
            if isinstance(step, tuple):
                key, root[step[0]] = step
                y = graph.call_module(key, (y,))
            else:
                y = graph.call_function(step, (y,))
        if layer.add:
            y = graph.call_function(add, (results[layer.add], y))
        results[name] = y
    graph.output(flat(plan.output))
    return fx.GraphModule(root, graph, class_name="Block")


def shared_module(stack: Stack, i: int) -> fx.GraphModule:
    """Slice i on the stack's storage, in its mode; detach() shares the version counter as well."""

    def view(name: str) -> Tensor:
        return checked_tensors(stack, (name,))[0].detach()[i]

    return graph_module(stack.plan, view, view).train(stack.training)


def copied_module(stack: Stack, i: int) -> fx.GraphModule:
    """Slice i with its own copies of the tensors, in the stack's mode."""

    def copy(name: str) -> Tensor:
        return checked_tensors(stack, (name,))[0].detach()[i].clone()

    return graph_module(stack.plan, copy, copy).train(stack.training)


def load(stack: Stack, blocks: Sequence[nn.Module]) -> None:
    """Copies the modules' parameters and running statistics into the slices, in their order."""
    op = "load_modules"
    if len(blocks) != len(stack):
        raise ValueError(
            f"{op}: blocks must be {len(stack)} modules, one per slice, got {len(blocks)}"
        )
    shapes = {**stack.plan.parameters(), **stack.plan.statistics()}
    states = [module.state_dict() for module in blocks]
    for state in states:
        for name, shape in shapes.items():
            check_tensor(op, name, state.get(name), shape=shape)
    with torch.no_grad():
        for name, tensor in zip(shapes, checked_tensors(stack, (*shapes,)), strict=True):
            for i, state in enumerate(states):
                tensor[i].copy_(state[name])
