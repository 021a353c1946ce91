"""A stack's calls of a backend."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..arguments.batches import packed
from ..arguments.row_weights import weighted
from ..arguments.scalars import check_rates, number_tensor
from ..backends import dispatch
from ..backends.calls import (
    Embedding,
    Gather,
    NoiseAddress,
    Noising,
    Objective,
    Rule,
    TimesCall,
    TrainCall,
    TrainOut,
)
from ..check import MOST_COUNT
from ..goal import Levels, StepGoal
from ..philox import STREAM_TIME, uniform
from ..time_embedding import embed_time, frequencies
from .module import Stack
from .state import check_state, find_tensors, slices_of, updated

TimedLevels = tuple[Tensor | None, Levels]  # t (K, n, B), where it is drawn, and the levels there


def run(
    stack: Stack,
    name: str,
    call: Any,
    written: Sequence[Tensor] = (),
    *,
    sampled: bool = False,
    head: str | None = None,
    backend: ModuleType | None = None,
) -> None:
    """Runs one of BACKEND_FUNCTIONS, and bumps the version counters of `written`, also on
    interrupt. Not every backend has samplers and each head: sampled: the call is of a sampler;
    head: of a call that computes a loss; backend: that runs it, where it is chosen.
    """
    if backend is None:
        backend = backend_of(stack, sampled=sampled, head=head)
    with torch.no_grad():
        try:
            getattr(backend, name)(call)
        except (ValueError, MemoryError):  # raised before anything is written
            written = ()
            raise
        finally:
            increment_version(written)


def backend_of(stack: Stack, *, sampled: bool = False, head: str | None = None) -> ModuleType:
    """The backend that runs a call; sampled, head: as of `run`."""
    return dispatch.choose(
        stack.plan, stack.device, stack.precision, stack.backend, sampled=sampled, head=head
    )


def empty(stack: Stack, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=stack.device)


def part_of(stack: Stack, index: Tensor) -> slice | Tensor:
    """`index` on the tensors' device; neighbours become a Python slice, which copies nothing."""
    positions = index.tolist()
    if positions == list(range(positions[0], positions[-1] + 1)):
        return slice(positions[0], positions[-1] + 1)
    return index.to(stack.device, non_blocking=True)


# the records of a call


def embedding_of(stack: Stack) -> Embedding:
    """The present embeddings, those of what is shared where it has them."""
    own = stack.shared is None
    W_embed = stack._buffers["W_embed"] if own else stack.shared.table(stack.device)
    return Embedding(W_embed, stack.D)


def goal_of(stack: Stack) -> StepGoal:
    """The goal of a step, with the present values of a learned schedule."""
    goal = stack.layout.goal
    return goal if stack.shared is None else stack.shared.present(goal)


def levels_of(
    stack: Stack,
    index: Tensor,
    noise: NoiseAddress,
    B: int,
    rows: int | None = None,
    given: TimedLevels | None = None,
) -> tuple[Noising, Objective, Tensor | None]:
    """The levels of the steps at these addresses by the stack's goal, and t (K, n, B) float64 where
    it draws t; `rows` of the whole batch default to B. `given` are these t and their levels, where
    the caller has them.
    """
    layout, device, K = stack.layout, stack.device, len(noise.draw)
    goal, divisor = layout.goal, B if rows is None else rows
    key = ("levels", *index.tolist(), K, B, rows, device)
    lasting = not goal.timed and (stack.shared is None or not stack.shared.learns_schedule)
    before = layout.cache.get(key) if lasting else None
    if before is not None:
        return before
    if given is not None:
        t, levels = given
    else:
        t = draw_times(stack, noise, B, divisor) if goal.timed else None
        levels = goal_of(stack).levels(layout.t(index) if t is None else t)

    def expanded(value: Tensor) -> Tensor:
        value = value.to(device, non_blocking=True)
        return (value[:, None] if value.ndim == 1 else value).expand(K, len(index), B)

    noising = Noising(expanded(levels.signal), expanded(levels.noise), goal.sigma)
    objective = Objective(expanded(levels.weight), goal.flow, goal.head, divisor, goal.radius)
    if lasting:
        layout.cache.keep(key, (noising, objective, t))
    return noising, objective, t


def draw_times(stack: Stack, noise: NoiseAddress, B: int, rows: int) -> Tensor:
    """t (K, n, B) float64 in [0, 1) at the addresses' draws and rows, by stream 6."""
    K, n = noise.draw.shape
    strata = rows if stack.layout.goal.stratified else 0
    if hasattr(backend_of(stack), "draw_times"):
        call = TimesCall(noise, strata, empty(stack, K, n, B, dtype=torch.float64))
        run(stack, "draw_times", call)
        return call.t
    address = (noise.seeds.repeat(K), STREAM_TIME, 0, noise.draw.flatten(), 0, B, 1)
    u = uniform(*address, first_row=noise.first_row, dtype=torch.float64).view(K, n, B)
    if not strata:
        return u
    row = torch.arange(B, dtype=torch.float64, device=u.device) + noise.first_row
    return (row + u) / strata


def next_times(stack: Stack, index: Tensor, B: int, first_row: int, rows: int | None) -> Tensor:
    """t (n, B) float64 of the next step."""
    noise = noise_of(stack, index, blocks_of(stack, index, 1), first_row=first_row)
    return draw_times(stack, noise, B, B if rows is None else rows)[0]


def time_input(stack: Stack, t: Tensor) -> Tensor:
    """t float64 as the plan's input "t" has it, (..., F) float32."""
    width = stack.plan.widths["t"]
    if torch.compiler.is_compiling() or not hasattr(backend_of(stack), "embed_times"):
        return embed_time(t, width)
    rows = t.to(stack.device).reshape(-1).contiguous()
    out = empty(stack, len(rows), width)
    backend_of(stack).embed_times(out, rows, frequencies(width, rows.device))
    return out.view(*t.shape, width)


def noise_of(
    stack: Stack, index: Tensor, block: Tensor, draw: Tensor | None = None, first_row: int = 0
) -> NoiseAddress:
    """The address of K steps' noise; draw (K, n) defaults to the slices' own."""
    K, part, buffers = len(block), part_of(stack, index), stack._buffers
    if draw is None:
        own: Tensor = buffers["draws"][None, part].clone()  # the call changes the original
        steps = torch.arange(K, dtype=torch.int64, device=own.device) if K > 1 else None
        draw = own if steps is None else own + steps[:, None]
    return NoiseAddress(buffers["seeds"][part], draw, block, stack.layout.stream, first_row)


def blocks_of(stack: Stack, index: Tensor, K: int) -> Tensor:
    """Philox's block t - 1 of the slices, (K, n)."""
    layout, device = stack.layout, stack.device
    key = ("block", *index.tolist(), K, device)
    block = layout.cache.get(key)
    if block is None:
        block = (layout.t(index) - 1).to(device, non_blocking=True).expand(K, len(index))
        layout.cache.keep(key, block)
    return block


def rule_of(stack: Stack, op: str, lr: object, K: int, index: Tensor) -> Rule:
    """The rule of K steps, whose lr is None, a number, (K,) or (K, n)."""
    optimizer, layout, device = stack.optimizer, stack.layout, stack.device
    if optimizer is None:
        raise ValueError(
            f"{op}: optimizer must not be None here; give one to {type(stack).__name__}, or use "
            "loss(), a torch.optim optimizer and advance()"
        )
    if not stack.training:
        raise ValueError(f"{op}: mode must be that of train(), got that of eval()")
    params = find_tensors(stack, layout.params)
    if not all(value.requires_grad and value.is_leaf for value in params):
        named = zip(layout.params, params, strict=True)
        frozen = [name for name, value in named if not (value.requires_grad and value.is_leaf)]
        raise ValueError(
            f"{op}: parameters must all be leaves that require a gradient, got {frozen}; part "
            "of them is trained by loss(), torch.optim and advance()"
        )
    lr = optimizer.lr if lr is None else lr
    number = isinstance(lr, float | int)
    key = ("rule", *index.tolist(), K, device, lr)
    before = layout.cache.get(key) if number else None
    if before is not None and before.optimizer is optimizer:
        return before
    decay = number_tensor(op, "weight_decay", optimizer.weight_decay)
    rule = Rule(
        optimizer,
        check_rates(op, lr, K, len(index)).to(device, non_blocking=True),
        decay.expand(len(stack))[index].to(device, non_blocking=True),
    )
    if number:
        layout.cache.keep(key, rule)
    return rule


def step_rule(stack: Stack, op: str, lr: object, index: Tensor) -> Rule:
    """The rule of one step, whose lr is a number or (n,)."""
    if lr is not None and not isinstance(lr, float | int):
        lr = number_tensor(op, "lr", lr)
        lr = lr if lr.ndim == 0 else lr[None]
    return rule_of(stack, op, lr, 1, index)


# training


def check_rows(stack: Stack, op: str, argument: str, B: int) -> None:
    """Raises where a training batch has too few rows, or more rows than noise addresses."""
    if B > MOST_COUNT + 1:
        raise ValueError(f"{op}: {argument} must have at most 2^32 rows, got {B}")
    least = 2 if stack.plan.has_norm() else 1
    if B < least:
        norm = " with batch norm" if least == 2 else ""
        raise ValueError(
            f"{op}: {argument} must have at least {least} rows in training{norm}, got {B}"
        )


def new_out(stack: Stack, K: int, n: int) -> TrainOut:
    return TrainOut(loss=empty(stack, K, n), applied=empty(stack, K, n, dtype=torch.bool))


def train(
    stack: Stack,
    op: str,
    *,
    index: Tensor,
    block: Tensor,
    inputs: Mapping[str, Tensor | Gather],
    y: Tensor | Gather,
    B: int,
    rule: Rule | None,
    out: TrainOut,
    z: Tensor | None = None,
    draw: Tensor | None = None,
    first_row: int = 0,
    rows: int | None = None,
    given: TimedLevels | None = None,
    row_weight: Tensor | None = None,
) -> TrainCall:
    """K steps of the selected slices, K = len(block): an update each, or `out.grads` once;
    `row_weight` (K, n, B) as of `weighted`. Returns the call's record.
    """
    K = len(block)
    if K > 1:
        check_state(stack, K)
    slices = slices_of(stack, index)
    noise = noise_of(stack, index, block, draw, first_row)
    noising, objective, t = levels_of(stack, index, noise, B, rows, given)
    call = TrainCall(
        slices=slices,
        noise=noise,
        noising=noising,
        objective=weighted(objective, row_weight),
        embedding=embedding_of(stack),
        inputs=dict(inputs) if t is None else {**inputs, "t": time_input(stack, t)},
        z=z,
        y=y,
        rule=rule,
        B=B,
        K=K,
        out=out,
        blocks_per_launch=stack.blocks_per_launch,
        op=op,
    )
    run_train(stack, call)
    return call


def run_train(stack: Stack, call: TrainCall, backend: ModuleType | None = None) -> None:
    written = () if call.rule is None else [*updated(call.slices), call.slices.draws]
    run(stack, "train", call, written, head=call.objective.head, backend=backend)


def step(
    stack: Stack,
    op: str,
    index: Tensor,
    block: Tensor,
    inputs: Mapping[str, Tensor],
    y: Tensor,
    B: int,
    out: TrainOut,
    row_weight: Tensor | None,
    **options: Any,
) -> TrainCall:
    """A step of `index`'s slices on checked rows of weights (B,), or None; `options` are those of
    `train`, and so is the result.
    """
    inputs = {name: packed(value)[None] for name, value in inputs.items()}
    y = y.contiguous().expand(1, len(index), B)
    options["row_weight"] = None if row_weight is None else row_weight.expand(1, len(index), B)
    return train(stack, op, index=index, block=block, inputs=inputs, y=y, B=B, out=out, **options)


def train_steps(
    stack: Stack,
    op: str,
    index: Tensor,
    block: Tensor,
    inputs: Mapping[str, Tensor | Gather],
    y: Tensor | Gather,
    B: int,
    lr: object,
    row_weight: Tensor | None,
) -> Tensor:
    """Losses (K, n) of K steps in one call; `row_weight` (K, n, B) as of `train`."""
    if stack.shared is not None and stack.shared.learns:
        raise ValueError(
            f"{op}: shared must learn nothing, since W_embed and gamma stay what they are during a "
            f"call of K steps, got {[*stack.shared.layout.params]}; take Coupled.step"
        )
    K = len(block)
    rule = rule_of(stack, op, lr, K, index)
    out = new_out(stack, K, len(index))
    if K > 0:
        check_rows(stack, op, "indices", B)
        batch: dict[str, Any] = {"inputs": inputs, "y": y, "B": B, "row_weight": row_weight}
        train(stack, op, index=index, block=block, rule=rule, out=out, **batch)
    return out.loss
