"""The backends' forward, head and backward as nodes of torch's graph."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..arguments.batches import packed
from ..arguments.row_weights import weighted
from ..backends.calls import BackwardCall, ForwardCall, HeadCall, Rule, Slices
from ..check import check_tensor
from ..results import Update
from ..stack import engine
from ..stack.call_arguments import input_gradients
from ..stack.module import Stack
from ..stack.state import check_state, slices_of, updated


def forward(stack: Stack, inputs: dict[str, Tensor], index: Tensor) -> Tensor:
    """Logits (n, B, M) for inputs (n, B, F) by name; differentiable in them and the parameters."""
    tensors = (*inputs.values(), *(stack.get_parameter(name) for name in stack.layout.params))
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return Forward.apply(stack, index, tuple(inputs), save, *tensors)


class Forward(torch.autograd.Function):
    """logits = plan(inputs, parameters)."""

    @staticmethod
    def forward(
        ctx: Any,
        stack: Stack,
        index: Tensor,
        names: tuple[str, ...],
        save: bool,
        *tensors: Tensor,
    ) -> Tensor:
        inputs = dict(zip(names, tensors, strict=False))
        n, B = next(iter(inputs.values())).shape[:2]
        logits = engine.empty(stack, n, B, stack.M)
        call = ForwardCall(
            slices=slices_of(stack, index),
            inputs={name: packed(value) for name, value in inputs.items()},
            logits=logits,
            training=stack.training,
            save=save,
            check=True,
            owner=stack.updates,
            noise=engine.noise_of(stack, index, engine.blocks_of(stack, index, 1))
            if stack.training and stack.plan.has_dropout()
            else None,
        )
        written = [*call.slices.stats.values()] if stack.training else ()
        engine.run(stack, "forward", call, written)
        if save:
            ctx.stack, ctx.slices, ctx.saved, ctx.names = stack, call.slices, call.saved, names
            ctx.used = False
            ctx.places = places(call.slices)
            ctx.save_for_backward(*tensors)  # so that torch detects a change of what was read
        return logits

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, d_logits: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.saved_tensors  # noqa: B018  # raises if one has changed since the forward
        check_places("backward", ctx)
        ctx.used = True
        params = ctx.stack.layout.params
        wanted = dict(zip(params, ctx.needs_input_grad[-len(params) :], strict=True))
        n = len(ctx.slices.index)
        grads = None
        if any(wanted.values()):
            grads = {
                name: value.new_empty(n, *value.shape[1:])
                for name, value in ctx.slices.params.items()
            }
        call = backward_call(ctx, d_logits, grads)
        engine.run(ctx.stack, "backward", call)

        def whole(name: str) -> Tensor | None:
            if grads is None or not wanted[name]:
                return None
            if n == len(ctx.stack):
                order = ctx.slices.index
                if order.tolist() == [*range(n)]:
                    return grads[name]
            full = torch.zeros_like(ctx.slices.params[name])
            full[ctx.slices.index.to(full.device)] = grads[name]
            return full

        d_inputs = (call.d_inputs.get(name) for name in ctx.names)
        return (None, None, None, None, *d_inputs, *map(whole, params))


def places(slices: Slices) -> dict[str, int]:
    """The addresses of the parameters."""
    return {name: value.data_ptr() for name, value in slices.params.items()}


def check_places(op: str, node: Any) -> None:
    """Raises where a parameter was given other memory (`.data =`), which torch does not detect."""
    now = places(node.slices)
    if moved := [name for name, place in node.places.items() if now[name] != place]:
        raise ValueError(f"{op}: {moved[0]} must lie where the forward read it, got other memory")


def backward_call(
    node: Any,
    d_logits: Tensor,
    grads: dict[str, Tensor] | None,
    rule: Rule | None = None,
    applied: Tensor | None = None,
) -> BackwardCall:
    """The backward of a node, with the requested gradients of inputs."""
    n, B, _ = d_logits.shape
    needed = node.needs_input_grad[4 : 4 + len(node.names)]
    d_inputs = {
        name: d_logits.new_empty(n, B, node.stack.plan.widths[name])
        for name, need in zip(node.names, needed, strict=True)
        if need
    }
    return BackwardCall(
        slices=node.slices,
        saved=node.saved,
        d_logits=d_logits.contiguous(),
        grads=grads,
        d_inputs=d_inputs,
        rule=rule,
        applied=applied,
    )


class Loss(torch.autograd.Function):
    """loss (n,) of logits (n, B, M) for labels y (B,), with its gradient formed beside it."""

    @staticmethod
    def forward(
        ctx: Any,
        stack: Stack,
        index: Tensor,
        y: Tensor,
        eps: Tensor | None,
        logits: Tensor,
        row_weight: Tensor | None,
    ) -> Tensor:
        n, B, _ = logits.shape
        loss = engine.empty(stack, n)
        d_logits = torch.empty_like(logits) if ctx.needs_input_grad[4] else None
        noise = engine.noise_of(stack, index, engine.blocks_of(stack, index, 1))
        objective = engine.levels_of(stack, index, noise, B)[1]
        if row_weight is not None:
            row_weight = row_weight.expand(1, n, B)
        call = HeadCall(
            objective=weighted(objective, row_weight),
            embedding=engine.embedding_of(stack),
            y=y.contiguous().expand(1, n, B),
            logits=logits.contiguous(),
            eps=eps,
            loss=loss,
            error=None,
            d_logits=d_logits,
            owner=stack.updates,
            op="loss",
        )
        engine.run(stack, "head", call)
        ctx.save_for_backward(d_logits)
        return loss

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, d_loss: Tensor
    ) -> tuple[None, None, None, None, Tensor, None]:
        (d_logits,) = ctx.saved_tensors
        return None, None, None, None, d_logits * d_loss[:, None, None], None


def backward_update(stack: Stack, logits: Tensor, d_logits: Tensor, lr: object) -> Update:
    """Runs the backward of the node that made `logits`, with the update; the node cannot be used
    again."""
    op = "backward_update"
    check_state(stack)
    node: Any = logits.grad_fn if isinstance(logits, Tensor) else None
    if getattr(node, "stack", None) is not stack:
        raise ValueError(
            f"{op}: logits must be the tensor that this object's forward returned in grad mode, "
            f"got {'another' if isinstance(logits, Tensor) else type(logits).__name__}"
        )
    if node.used:
        raise ValueError(f"{op}: logits must go through one backward, got them a second time")
    try:
        node.saved_tensors  # noqa: B018  # raises if a tensor has changed since forward
    except RuntimeError as error:
        raise ValueError(
            f"{op}: logits must be of the present weights and inputs, got: {error}"
        ) from error
    check_places(op, node)
    check_tensor(op, "d_logits", d_logits, shape=logits.shape, device=stack.device)
    rule = engine.step_rule(stack, op, lr, node.slices.index)
    applied = torch.empty(len(logits), dtype=torch.bool, device=stack.device)
    call = backward_call(node, d_logits.detach(), None, rule, applied)
    node.used = True
    engine.run(stack, "backward", call, updated(call.slices))
    stack.draws[call.slices.index.to(stack.device)] += 1
    node.saved = None
    return Update(applied, *input_gradients(stack, call.d_inputs))
