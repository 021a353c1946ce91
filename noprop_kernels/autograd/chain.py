"""The chain of blocks, or a sampler's of one block, called at once, and for torch.compile.

z_t = a u_hat_t + b z_{t-1} + sqrt(c) eps
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments.batches import Inputs, check_inputs, packed
from ..arguments.scalars import check_row, seed_list, seed_tensor
from ..backends import dispatch
from ..backends.calls import Embedding, Slices
from ..backends.chain_calls import Chain, PredictCall
from ..check import MOST_COUNT, check_integer, check_positive
from ..compiler.plan_texts import PLANS
from ..goal import Goal
from ..results import Prediction
from ..samplers import Table, choose_sampler
from ..stack import engine
from ..stack.call_arguments import check_draws_z, index_of
from ..stack.module import Stack
from ..stack.state import slices_of
from .block_ops import slices_of as slices_of_lists
from .block_ops import state_of
from .custom_op import register


def predict(
    stack: Stack,
    x: Inputs,
    noise: bool,
    sampler: str | None,
    steps: int | None,
    samples: int,
    seed: int | Sequence[int] | None,
    first_row: int,
    keep: str | int,
    replica: int | None,
) -> Prediction:
    """DenoisingBlocks.predict."""
    op, T = "predict", stack.goal.T
    if len(stack.layout.held) != T:
        raise ValueError(
            f"{op}: all of the {T} blocks must be held, got held={list(stack.layout.held)}"
        )
    index = index_of(stack, op, None)
    goal = stack.goal
    kind, steps = choose_sampler(
        op, goal.samplers, sampler, steps, noise=noise, default_steps=goal.steps
    )
    kept = check_keep(op, keep, steps)
    if goal.timed and not torch.compiler.is_compiling():
        engine.backend_of(stack, sampled=True)  # raises before anything is made
    check_draws_z(stack, op)
    which = range(stack.layout.replicas)
    if replica is not None:
        which = which[check_replica(op, replica, len(which)) :][:1]
    R = len(which)
    samples = check_positive(op, "samples", samples, MOST_COUNT)
    inputs = check_inputs(op, x, stack.plan, stack.layout.given, R, stack.device)
    B = next(iter(inputs.values())).shape[1]
    first_row = check_row(op, first_row, B)
    index = index.view(-1, T)[which.start : which.stop]
    seeds = stack.seeds.view(-1, T)[which.start : which.stop, 0].contiguous()
    if seed is not None:
        given = seed_list(op, seed)
        if len(given) not in (1, R):
            raise ValueError(f"{op}: seed must be one or {R}, one per replica, got {seed!r}")
        seeds = seed_tensor(given).to(stack.device).expand(R).contiguous()
    W_embed = stack.W_embed if stack.shared is None else stack.shared.table(stack.device)
    options = (W_embed, goal.head, stack.D, first_row, noise, kept, samples)

    def results_of(part: slice, present: Goal) -> tuple[Tensor, ...]:
        """logits, u_hat and z of some replicas, for which one table holds."""
        arguments = (
            [value[part] for value in inputs.values()],
            seeds[part],
            numbers_of(present.table(kind, steps), stack),
            *options,
        )
        slices = index[part].flatten()
        if torch.compiler.is_compiling():
            return compiled_predict(stack, slices, *arguments)
        call = predict_call(slices_of(stack, slices), *arguments)
        call.owner = stack.updates
        if B:
            engine.run(stack, "predict", call, sampled=call.chain.t is not None)
        return call.logits, call.u_hat, call.z

    if stack.shared is not None and stack.shared.learns_schedule:
        each = [
            results_of(slice(i, i + 1), stack.shared.present_goal(replica=r))
            for i, r in enumerate(which)
        ]
        results = tuple(torch.cat(parts, 2) for parts in zip(*each, strict=True))
    else:
        results = results_of(slice(None), goal)
    return Prediction(*((result[0] for result in results) if keep == "last" else results))


def check_replica(op: str, replica: object, R: int) -> int:
    if type(replica) is not int or not 0 <= replica < R:
        raise ValueError(f"{op}: replica must be in [0, {R}), got {replica!r}")
    return replica


def check_keep(op: str, keep: object, steps: int) -> int:
    """How many results are kept: of the last step, of all, or of so many."""
    if isinstance(keep, str) and keep in ("last", "all"):
        return 1 if keep == "last" else steps
    try:
        kept = check_integer(op, "keep", keep, 1, steps)
    except ValueError:
        kept = 0
    if not kept or steps % kept:
        raise ValueError(
            f'{op}: keep must be "last", "all" or a divisor of the {steps} steps, got {keep!r}'
        )
    return kept


def numbers_of(table: Table, stack: Stack) -> list[Tensor]:
    """A chain's tensors, in the order of its fields; without t where the goal draws none."""
    numbers = (table.a, table.b, table.sqrt_c, table.weight, table.next, table.keep)
    made = [value.float() for value in numbers] + [table.ends]
    if stack.goal.timed:
        made.append(engine.time_input(stack, table.t))
    return [value.to(stack.device) for value in made]


def predict_call(
    slices: Slices,
    inputs: list[Tensor],
    seeds: Tensor,
    numbers: list[Tensor],
    W_embed: Tensor | None,
    head: str,
    D: int,
    first_row: int,
    noise: bool,
    kept: int,
    samples: int,
) -> PredictCall:
    """The call for inputs (R, B, F) in the plan's order, without "z" and what the chain has; it
    keeps `kept` results.
    """
    plan = slices.plan
    R, B, _ = inputs[0].shape
    chain = Chain(*numbers)
    M, shape = plan.widths[plan.output], (kept, samples, R, B)
    names = [name for name in plan.inputs if name != "z" and (chain.t is None or name != "t")]
    new = inputs[0].new_empty
    return PredictCall(
        slices=slices,
        seeds=seeds,
        inputs={name: packed(x.detach()) for name, x in zip(names, inputs, strict=True)},
        chain=chain,
        head=head,
        embedding=Embedding(W_embed, D),
        first_row=first_row,
        add_noise=noise,
        logits=new((*shape, M)),
        u_hat=new((*shape, D)),
        z=new((*shape, D)),
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
    numbers: list[Tensor],
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
    options = (head, D, first_row, noise, kept, samples)
    call = predict_call(slices, inputs, seeds, numbers, W_embed, *options)
    sampled = call.chain.t is not None
    chosen = dispatch.choose(PLANS[plan], params[0].device, precision, backend, sampled=sampled)
    with torch.no_grad():
        chosen.predict(call)
    return call.logits, call.u_hat, call.z


def fake_predict(
    params, stats, index, inputs, seeds, numbers, W_embed, head, D, first_row, noise, kept,
    samples, plan, *_,
):  # fmt: skip
    R, B, _ = inputs[0].shape
    M = PLANS[plan].widths[PLANS[plan].output]
    return tuple(params[0].new_empty(kept, samples, R, B, width) for width in (M, D, D))


predict_op = register(blocks_predict, fake_predict)
