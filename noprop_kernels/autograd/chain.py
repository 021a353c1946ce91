"""The chain of blocks, called at once, and as an operation for torch.compile.

z_t = a u_hat_t + b z_{t-1} + sqrt(c) eps
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments.batches import Inputs, check_inputs, packed
from ..arguments.scalars import seed_list, seed_tensor
from ..backends import dispatch
from ..backends.calls import Embedding, PredictCall, Slices
from ..check import MOST_COUNT, check_positive
from ..compiler.plan_texts import PLANS
from ..results import Prediction
from ..stack import engine
from ..stack.module import Stack
from ..stack.state import slices_of
from ..stack.training import check_draws_z, check_row, index_of
from .block_ops import slices_of as slices_of_lists
from .block_ops import state_of
from .custom_op import register


def predict(
    stack: Stack,
    x: Inputs,
    noise: bool,
    samples: int,
    seed: int | Sequence[int] | None,
    first_row: int,
    keep: str,
) -> Prediction:
    """DenoisingBlocks.predict."""
    op, T = "predict", stack.goal.T
    if len(stack.layout.held) != T:
        raise ValueError(
            f"{op}: all of the {T} blocks must be held, got held={list(stack.layout.held)}"
        )
    index = index_of(stack, op, None)
    if keep not in ("last", "all"):
        raise ValueError(f'{op}: keep must be "last" or "all", got {keep!r}')
    check_draws_z(stack, op)
    R = stack.layout.replicas
    samples = check_positive(op, "samples", samples, MOST_COUNT)
    inputs = check_inputs(op, x, stack.plan, R, stack.device)
    B = next(iter(inputs.values())).shape[1]
    first_row = check_row(op, first_row, B)
    seeds = stack.seeds.view(R, T)[:, 0].contiguous()
    if seed is not None:
        given = seed_list(op, seed)
        if len(given) not in (1, R):
            raise ValueError(f"{op}: seed must be one or {R}, one per replica, got {seed!r}")
        seeds = seed_tensor(given).to(stack.device).expand(R).contiguous()
    kept = T if keep == "all" else 1
    arguments = (
        list(inputs.values()),
        seeds,
        [value.to(stack.device) for value in stack.goal.chain()],
        *(stack.W_embed, stack.goal.head, stack.D, first_row, noise, kept, samples),
    )
    if torch.compiler.is_compiling():
        results = compiled_predict(stack, index, *arguments)
    else:
        call = predict_call(slices_of(stack, index), *arguments)
        call.owner = stack.updates
        if B:
            engine.run(stack, "predict", call)
        results = (call.logits, call.u_hat, call.z)
    return Prediction(*(results if keep == "all" else (result[0] for result in results)))


def predict_call(
    slices: Slices,
    inputs: list[Tensor],
    seeds: Tensor,
    coefficients: list[Tensor],
    W_embed: Tensor | None,
    head: str,
    D: int,
    first_row: int,
    noise: bool,
    kept: int,
    samples: int,
) -> PredictCall:
    """The call for inputs (R, B, F) in the plan's order, without "z"; it keeps results of the last
    block, or of `kept` blocks.
    """
    plan = slices.plan
    R, B, _ = inputs[0].shape
    a, b, sqrt_c = coefficients
    M, shape = plan.widths[plan.output], (kept, samples, R, B)
    names = [name for name in plan.inputs if name != "z"]
    return PredictCall(
        slices=slices,
        seeds=seeds,
        inputs={name: packed(x.detach()) for name, x in zip(names, inputs, strict=True)},
        a=a,
        b=b,
        sqrt_c=sqrt_c,
        head=head,
        embedding=Embedding(W_embed, D),
        first_row=first_row,
        add_noise=noise,
        logits=a.new_empty(*shape, M),
        u_hat=a.new_empty(*shape, D),
        z=a.new_empty(*shape, D),
    )


def compiled_predict(stack: Stack, index: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """logits, u_hat and z, for predict_call's arguments after the slices."""
    from ..compiler.hooks import text_of

    options = (text_of(stack.plan), stack.precision, stack.backend)
    with torch.no_grad():
        return predict_op(*state_of(stack), index, *arguments, *options)


def blocks_predict(
    params: list[Tensor],
    stats: list[Tensor],
    index: Tensor,
    inputs: list[Tensor],
    seeds: Tensor,
    coefficients: list[Tensor],
    W_embed: Tensor | None,
    head: str,
    D: int,
    first_row: int,
    noise: bool,
    kept: int,
    samples: int,
    plan: str,
    precision: str,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    slices = slices_of_lists(PLANS[plan], params, stats, index, precision)
    numbers = (head, D, first_row, noise, kept, samples)
    call = predict_call(slices, inputs, seeds, coefficients, W_embed, *numbers)
    chosen = dispatch.choose(PLANS[plan], params[0].device, precision, backend)
    with torch.no_grad():
        chosen.predict(call)
    return call.logits, call.u_hat, call.z


def fake_predict(
    params, stats, index, inputs, seeds, coefficients, W_embed, head, D, first_row, noise, kept,
    samples, plan, *_,
):  # fmt: skip
    R, B, _ = inputs[0].shape
    M = PLANS[plan].widths[PLANS[plan].output]
    return tuple(params[0].new_empty(kept, samples, R, B, width) for width in (M, D, D))


predict_op = register(blocks_predict, fake_predict)
