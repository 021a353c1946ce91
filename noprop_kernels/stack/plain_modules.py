"""Slices as graphs of torch.nn modules: Linear, BatchNorm1d, cat, an activation, add."""

from collections.abc import Callable, Sequence
from operator import add

import torch
from torch import Tensor, fx, nn

from ..check import check_tensor
from ..plan import Plan
from .module import Stack
from .state import checked_tensors

ACTIVATIONS = {"relu": torch.relu, "gelu": nn.functional.gelu}


def graph_module(
    plan: Plan, parameter: Callable[[str], Tensor], statistic: Callable[[str], Tensor]
) -> fx.GraphModule:
    """The plan as modules whose tensors are those given by state_dict name.

    A batch norm is a child of its layer's Linear, so that the state_dict has the plan's names.
    """
    graph = fx.Graph()
    results = {name: graph.placeholder(name) for name in plan.inputs}
    root: dict[str, nn.Module] = {}
    for name, layer in plan.layers.items():
        linear = nn.Linear(plan.in_widths[name], layer.features, device="meta")
        linear.weight = nn.Parameter(parameter(f"{name}.weight"))
        linear.bias = nn.Parameter(parameter(f"{name}.bias"))
        root[name] = linear
        y = results[layer.sources[0]]
        if len(layer.sources) > 1:
            y = graph.call_function(torch.cat, ([results[source] for source in layer.sources], -1))
        y = graph.call_module(name, (y,))
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
            root[key] = norm
            y = graph.call_module(key, (y,))
        if layer.activation is not None:
            y = graph.call_function(ACTIVATIONS[layer.activation], (y,))
        if layer.add:
            y = graph.call_function(add, (results[layer.add], y))
        results[name] = y
    graph.output(results[plan.output])
    return fx.GraphModule(root, graph, class_name="Block")


def shared_module(stack: Stack, i: int) -> fx.GraphModule:
    """Slice i on the stack's storage, in its mode; detach() shares the version counter as well."""

    def view(name: str) -> Tensor:
        return checked_tensors(stack, (name,))[0].detach()[i]

    return graph_module(stack.plan, view, view).train(stack.training)


def copied_module(stack: Stack, i: int) -> fx.GraphModule:
    """Slice i with tensors of its own, in the stack's mode."""

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
