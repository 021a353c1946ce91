"""The blocks' forward and predict as custom operations, for torch.compile.

An operation gets the state as lists of tensors in the plan's order, and the plan as text. Batch
norm's running statistics are returned and not updated in place, since an operation with a gradient
may not write. As in dense_ops.py, backward runs the forward once more; dropout's address is an
argument, so that it draws the same numbers.
"""

from typing import Any

import torch
from torch import Tensor

from ..arguments.batches import packed
from ..backends import dispatch
from ..backends.calls import BackwardCall, ForwardCall, NoiseAddress, Slices
from ..compiler.plan_texts import PLANS
from ..philox import STREAM_DROPOUT
from ..plan import Plan
from ..stack.module import Stack
from .custom_op import register


def slices_of(
    plan: Plan,
    params: list[Tensor],
    stats: list[Tensor],
    index: Tensor,
    precision: str,
) -> Slices:
    """Slices of a call that draws no noise and counts no update."""
    counter = torch.zeros(len(params[0]), dtype=torch.int64, device=params[0].device)
    values = (value.detach().contiguous() for value in params)
    return Slices(
        plan=plan,
        params=dict(zip(plan.parameters(), values, strict=True)),
        m={},
        v={},
        stats=dict(zip(plan.statistics(), stats, strict=True)),
        seeds=counter,
        draws=counter,
        updates=counter,
        index=index,
        precision=precision,
    )


def state_of(stack: Stack) -> tuple[list[Tensor], list[Tensor]]:
    return (
        [stack.get_parameter(name) for name in stack.layout.params],
        [stack.get_buffer(name) for name in stack.layout.stats],
    )


def dropout_address(stack: Stack, index: Tensor) -> list[Tensor]:
    """seeds (n,), draw and block (1, n) of the next step's dropout; empty where there is none."""
    if not (stack.training and stack.plan.has_dropout()):
        return []
    at = index.to(stack.device)
    block = (stack.layout.t(index) - 1).to(stack.device)
    return [stack.seeds[at], stack.draws[at][None], block[None]]


# logits = plan(inputs, parameters)


def forward(stack: Stack, inputs: dict[str, Tensor], index: Tensor) -> Tensor:
    """As block_nodes.forward."""
    from ..compiler.hooks import text_of

    params, stats = state_of(stack)
    values = [inputs[name] for name in stack.plan.inputs]
    options = (text_of(stack.plan), stack.training, stack.precision, stack.backend)
    address = dropout_address(stack, index)
    logits, *moved = forward_op(values, params, stats, index, address, *options)
    with torch.no_grad():
        for value, new in zip(stats, moved, strict=False):
            value.copy_(new)
    return logits


def run_forward(
    inputs: list[Tensor],
    params: list[Tensor],
    stats: list[Tensor],
    index: Tensor,
    address: list[Tensor],
    plan: str,
    training: bool,
    precision: str,
    backend: str | None,
    save: bool,
) -> tuple[ForwardCall, Any]:
    """Runs the call; returns it and its backend."""
    chosen = dispatch.choose(PLANS[plan], params[0].device, precision, backend)
    slices = slices_of(PLANS[plan], params, [value.clone() for value in stats], index, precision)
    n, B, _ = inputs[0].shape
    call = ForwardCall(
        slices=slices,
        inputs={
            name: packed(value.detach())
            for name, value in zip(PLANS[plan].inputs, inputs, strict=True)
        },
        logits=params[0].new_empty(n, B, PLANS[plan].widths[PLANS[plan].output]),
        training=training,
        save=save,
        check=not save,  # contents were checked in the forward
        noise=NoiseAddress(*address, stream=STREAM_DROPOUT) if address else None,
    )
    with torch.no_grad():
        chosen.forward(call)
    return call, chosen


def blocks_forward(
    inputs: list[Tensor],
    params: list[Tensor],
    stats: list[Tensor],
    index: Tensor,
    address: list[Tensor],
    plan: str,
    training: bool,
    precision: str,
    backend: str | None,
) -> list[Tensor]:
    """Logits (n, B, M), and in training the new running statistics."""
    options = (plan, training, precision, backend)
    call, _ = run_forward(inputs, params, stats, index, address, *options, save=False)
    assert call.logits is not None
    return [call.logits, *(call.slices.stats.values() if training else ())]


def fake_forward(inputs, params, stats, index, address, plan, training, precision, backend):
    n, B, _ = inputs[0].shape
    M = PLANS[plan].widths[PLANS[plan].output]
    logits = params[0].new_empty(n, B, M)
    return [logits, *(map(torch.empty_like, stats) if training else ())]


def save_forward(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    tensors, params, stats, index, address, *ctx.options = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.sizes = (len(tensors), len(params), len(stats), len(address))
    # in training backward does not use the running statistics, which have changed before it
    stats = output[1:] or stats
    ctx.save_for_backward(*tensors, *params, *stats, *address, index)


def forward_backward(ctx: Any, d_outputs: list[Tensor]) -> tuple[Any, ...]:
    saved = iter(ctx.saved_tensors)
    groups = [[next(saved) for _ in range(size)] for size in ctx.sizes]
    inputs, params, stats, address = groups
    wanted_inputs, wanted_params, *_ = ctx.needs_input_grad
    wanted = [any(wanted_params), *wanted_inputs]
    index = next(saved)
    grads = gradients_op(d_outputs[0], inputs, params, stats, index, address, wanted, *ctx.options)
    d_params, d_inputs = grads[: len(params)], grads[len(params) :]
    return (
        [g if w else None for g, w in zip(d_inputs, wanted_inputs, strict=True)],
        [g if w else None for g, w in zip(d_params, wanted_params, strict=True)],
        [None] * len(stats),
        None,
        [None] * len(address),
        *(None for _ in ctx.options),
    )


def blocks_gradients(
    d_logits: Tensor,
    inputs: list[Tensor],
    params: list[Tensor],
    stats: list[Tensor],
    index: Tensor,
    address: list[Tensor],
    wanted: list[bool],
    plan: str,
    training: bool,
    precision: str,
    backend: str | None,
) -> list[Tensor]:
    """Gradients of the parameters (N, ...) and of the inputs (n, B, F); empty if not requested."""
    options = (plan, training, precision, backend)
    forwarded, chosen = run_forward(inputs, params, stats, index, address, *options, save=True)
    n = len(d_logits)
    of_params, *of_inputs = wanted
    grads = None
    if of_params:
        grads = {
            name: value.new_empty(n, *value.shape[1:])
            for name, value in forwarded.slices.params.items()
        }
    d_inputs = {
        name: torch.empty_like(value, memory_format=torch.contiguous_format)
        for name, value, want in zip(PLANS[plan].inputs, inputs, of_inputs, strict=True)
        if want
    }
    call = BackwardCall(
        slices=forwarded.slices,
        saved=forwarded.saved,
        d_logits=d_logits.detach().contiguous(),
        grads=grads,
        d_inputs=d_inputs,
    )
    with torch.no_grad():
        chosen.backward(call)
    nothing = [d_logits.new_empty(0) for _ in params]
    whole = nothing if grads is None else [*map(torch.zeros_like, params)]
    for value, grad in zip(whole, (grads or {}).values(), strict=False):
        value[index.to(value.device)] = grad
    given = [d_inputs.get(name, d_logits.new_empty(0)) for name in PLANS[plan].inputs]
    return [*whole, *given]


def fake_gradients(d_logits, inputs, params, stats, index, address, wanted, *_):
    nothing = d_logits.new_empty
    of_params, *of_inputs = wanted
    return [
        *(torch.empty_like(value) if of_params else nothing(0) for value in params),
        *(nothing(x.shape if want else 0) for x, want in zip(inputs, of_inputs, strict=True)),
    ]


gradients_op = register(blocks_gradients, fake_gradients)
forward_op = register(blocks_forward, fake_forward, save_forward, forward_backward)
