"""A function with its gradient as a node of torch's graph and as an operation for torch.compile.

Eager code does not use the operations: the dispatcher's Python costs more than a small kernel. An
operation is a function of tensors only.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable


def register(
    run: Callable[..., Any],
    fake: Callable[..., Any],
    setup: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    *,
    mutates: tuple[str, ...] = (),
) -> Any:
    """The operation noprop_kernels::<name of `run`>."""
    name = f"noprop_kernels::{run.__name__}"
    operation = torch.library.custom_op(name, run, mutates_args=mutates)
    operation.register_fake(fake)
    if backward is not None:
        operation.register_autograd(backward, setup_context=setup)
    return operation


def node(
    run: Callable[..., Any],
    setup: Callable[..., None],
    backward: Callable[..., Any],
    *,
    returned: int,
) -> Callable[..., Any]:
    """The same as a node of torch's graph, where one is needed; it gives the first `returned`
    outputs, each of which a node pays for."""
    chosen = 0 if returned == 1 else slice(returned)

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = run(*arguments)
        # no setup_context, for which torch inspects signatures: 45 us at each call
        setup(ctx, arguments, output)
        return output[chosen]

    def call(*arguments: Any) -> Any:
        if needs_node(*arguments):
            return made.apply(*arguments)
        return run(*arguments)[chosen]

    methods = {"forward": forward, "backward": once_differentiable(backward)}
    methods = {name: staticmethod(method) for name, method in methods.items()}
    made: Any = type(run.__name__, (torch.autograd.Function,), methods)
    return call


def needs_node(*arguments: Any) -> bool:
    """Whether a gradient in one of them is wanted, or, forwards, one has a tangent. A node is what
    then refuses that: the result of a kernel would have none, and nobody would know."""
    if torch.is_grad_enabled() and any(map(needs_grad, arguments)):
        return True
    return is_forward_mode() and any(map(has_tangent, arguments))


def needs_grad(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def has_tangent(value: object) -> bool:
    return isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None


def is_forward_mode() -> bool:
    """Whether the call is inside torch.autograd.forward_ad.dual_level()."""
    return forward_ad._current_level >= 0
