"""The fused training of a stack's slices: a step, many in one call, or its halves."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ..arguments.batches import (
    INT64,
    Inputs,
    Normalize,
    check_inputs,
    check_labels,
    flat,
    gather_inputs,
    packed,
)
from ..arguments.row_weights import check_row_weight, in_steps
from ..backends.calls import AddNoiseCall, TrainOut, UpdateCall
from ..check import MOST_COUNT, check_count, check_integer, check_positive, check_tensor
from ..plan import Plan
from ..results import Gradients, Step
from . import engine
from .module import Stack
from .state import check_state, slices_of, updated

Blocks = int | Sequence[int] | None
BOOL = (torch.bool,)
CPU = torch.device("cpu")


def train_step(
    stack: Stack,
    x: Inputs,
    y: Tensor,
    blocks: Blocks,
    lr: float | Tensor | None,
    z: Tensor | None,
    input_grad: bool,
    levels_grad: bool,
    row_weight: Tensor | None = None,
    given: engine.TimedLevels | None = None,
) -> Step:
    """DenoisingBlocks.train_step; `given` as engine.levels_of."""
    op = "train_step"
    index, empty = index_of(stack, op, blocks), partial(engine.empty, stack)
    n = len(index)
    rule = engine.step_rule(stack, op, lr, index)
    inputs, B = check_batch(stack, op, x, y, n)
    row_weight = check_row_weight(op, row_weight, (B,), stack.device)
    if not input_grad:
        refuse_graph(op, x, z)
    out = engine.new_out(stack, 1, n)
    out.error = empty(n, B)
    if z is None:
        check_draws_z(stack, op)
    else:
        rows, shape = flat(op, "z", z, stack.plan.shapes["z"]), (n, B, stack.plan.widths["z"])
        z = check_tensor(op, "z", rows, shape=shape, device=stack.device).detach().contiguous()
    if input_grad:
        names = [*inputs] if z is None else [*inputs, "z"]
        out.d_inputs = {name: empty(n, B, stack.plan.widths[name]) for name in names}
    if levels_grad:
        out.d_W_embed = empty(n, stack.M, stack.D)
        if z is None:
            out.d_signal, out.d_noise = empty(n, B), empty(n, B)
    options: dict[str, Any] = {"z": z, "rule": rule, "given": given}
    one_step(stack, op, index, inputs, y, B, out, row_weight, **options)
    return Step(
        out.loss[0],
        out.error,
        out.applied[0],
        *input_gradients(stack, out.d_inputs),
        out.d_signal,
        out.d_noise,
        out.d_W_embed,
    )


def one_step(
    stack: Stack,
    op: str,
    index: Tensor,
    inputs: Mapping[str, Tensor],
    y: Tensor,
    B: int,
    out: TrainOut,
    row_weight: Tensor | None,
    **options: Any,
) -> None:
    """A step of `index`'s slices on checked rows of weights (B,), or None; `options` are those of
    engine.train.
    """
    inputs = {name: packed(value)[None] for name, value in inputs.items()}
    y, block = y.contiguous().expand(1, len(index), B), engine.blocks_of(stack, index, 1)
    options["row_weight"] = None if row_weight is None else row_weight.expand(1, len(index), B)
    engine.train(stack, op, index=index, block=block, inputs=inputs, y=y, B=B, out=out, **options)


def train_steps(
    stack: Stack,
    X: Inputs,
    Y: Tensor,
    indices: Tensor | None,
    blocks: Blocks,
    lr: float | Tensor | None,
    normalize: Normalize | Mapping[str, Normalize] | None,
    row_weight: Tensor | None,
) -> Tensor:
    """DenoisingBlocks.train_steps."""
    op = "train_steps"
    index = index_of(stack, op, blocks)
    check_draws_z(stack, op)
    replica = torch.div(index, len(stack.layout.held), rounding_mode="floor")
    inputs, labels, K, B = gather_inputs(
        *(op, X, Y, indices, normalize, stack.plan, stack.layout.given),
        *(replica, stack.layout.replicas, stack.device),
    )
    refuse_graph(op, X)
    weight = check_row_weight(op, row_weight, Y.shape, stack.device)
    weight = in_steps(weight, labels, len(index))
    return engine.train_steps(
        stack, op, index, engine.blocks_of(stack, index, K), inputs, labels, B, lr, weight
    )


def gradients(
    stack: Stack,
    x: Inputs,
    y: Tensor,
    blocks: Blocks,
    step: int | None,
    first_row: int,
    rows: int | None,
    row_weight: Tensor | None,
) -> Gradients:
    """DenoisingBlocks.gradients."""
    op = "gradients"
    index = index_of(stack, op, blocks)
    check_draws_z(stack, op)
    inputs, B = check_batch(stack, op, x, y, len(index))
    row_weight = check_row_weight(op, row_weight, (B,), stack.device)
    refuse_graph(op, x)
    first_row = check_row(op, first_row, B)
    rows = check_whole(op, rows) or B
    draw = None
    if step is not None:
        draw = stack.draws.new_full((1, len(index)), check_count(op, "step", step))
    n = len(index)
    out = engine.new_out(stack, 1, n)
    out.error = engine.empty(stack, n, B)
    out.grads = {name: engine.empty(stack, n, *s) for name, s in stack.plan.parameters().items()}
    out.stats = {name: engine.empty(stack, n, *s) for name, s in stack.plan.statistics().items()}
    address: dict[str, Any] = {"draw": draw, "first_row": first_row, "rows": rows}
    one_step(stack, op, index, inputs, y, B, out, row_weight, rule=None, **address)
    return Gradients(
        out.grads, out.loss[0], out.error, out.applied[0], index.clone(), rows, out.stats
    )


def update(stack: Stack, grads: Gradients, lr: float | Tensor | None) -> Tensor:
    """DenoisingBlocks.update."""
    op = "update"
    if not isinstance(grads, Gradients):
        raise ValueError(f"{op}: grads must be Gradients, got {type(grads).__name__}")
    check_state(stack)
    index = check_tensor(op, "index", grads.index, shape=(None,), dtype=INT64, device=CPU)
    index = index.clone(memory_format=torch.contiguous_format)  # it may be a view
    n, positions = len(index), index.tolist()
    if len(set(positions)) != n or not all(0 <= i < len(stack) for i in positions):
        raise ValueError(
            f"{op}: grads must be of this object's {len(stack)} slices, each once, got {positions}"
        )
    shapes = stack.plan.parameters()
    if not isinstance(grads.by_name, Mapping) or grads.by_name.keys() != shapes.keys():
        raise ValueError(f"{op}: grads must have {list(shapes)}, got {list(grads.by_name)}")
    for name, shape in shapes.items():
        check_tensor(op, name, grads.by_name[name], shape=(n, *shape), device=stack.device)
    check_tensor(op, "applied", grads.applied, shape=(n,), dtype=BOOL, device=stack.device)
    statistics = stack.plan.statistics()
    if not isinstance(grads.stats, Mapping) or not grads.stats.keys() <= statistics.keys():
        raise ValueError(f"{op}: stats must be among {list(statistics)}, got {grads.stats}")
    for name in grads.stats:
        shape = statistics[name]
        check_tensor(op, name, grads.stats[name], shape=(n, *shape), device=stack.device)
    rule = engine.step_rule(stack, op, lr, index)
    slices = slices_of(stack, index)
    state = updated(slices)
    by_name = {name: apart(grads.by_name[name], state) for name in shapes}
    apply = grads.applied.clone()
    for value in (*by_name.values(), *grads.stats.values()):
        apply &= finite_rows(value.flatten(1))
    engine.run(stack, "update", UpdateCall(slices, by_name, apply, rule), state)
    at = index.to(stack.device)
    stack.draws[at] += 1
    for name, batch in grads.stats.items():
        momentum = stack.plan.momentum(name)
        running = slices.stats[name]
        moved = (1 - momentum) * running[at] + momentum * batch
        running[at] = torch.where(apply[:, None], moved, running[at])
    return apply


def finite_rows(rows: Tensor) -> Tensor:
    """(n,) bool: whether each row's numbers are all finite; isfinite of all is an array as large.

    A sum is finite only where all its terms are, and reads them once. One that is not may have
    overflowed: then the extremes decide, and on a GPU always, which need not wait for the sums.
    """
    if rows.is_cpu:
        finite = rows.sum(1).isfinite()
        if bool(finite.all()):
            return finite
    return rows.amax(1).isfinite() & rows.amin(1).isfinite()


def add_noise(
    stack: Stack,
    op: str,
    y: Tensor,
    blocks: Blocks,
    first_row: int = 0,
    rows: int | None = None,
    *,
    with_eps: bool = False,
    given: engine.TimedLevels | None = None,
) -> tuple[Tensor, Tensor | None]:
    """z of DenoisingBlocks.add_noise, and eps where the target, or the caller, needs it; `given`
    as engine.levels_of.
    """
    index = index_of(stack, op, blocks)
    y = check_labels(op, y, None, stack.device)
    n, B = len(index), len(y)
    first_row, rows = check_row(op, first_row, B), check_whole(op, rows)
    z = engine.empty(stack, n, B, stack.D)
    eps = torch.empty_like(z) if with_eps or stack.layout.goal.flow != 0 else None
    if B:
        noise = engine.noise_of(
            stack, index, engine.blocks_of(stack, index, 1), first_row=first_row
        )
        call = AddNoiseCall(
            noise=noise,
            noising=engine.levels_of(stack, index, noise, B, rows, given)[0],
            embedding=engine.embedding_of(stack),
            y=y.contiguous().expand(1, n, B),
            z=z,
            eps=eps,
            owner=stack.updates,
            op=op,
        )
        engine.run(stack, "add_noise", call)
    return z, eps


def times(
    stack: Stack, op: str, B: int, blocks: Blocks, first_row: int, rows: int | None
) -> Tensor:
    """DenoisingBlocks.times."""
    index = index_of(stack, op, blocks)
    if not stack.layout.goal.timed:
        raise ValueError(f"{op}: goal must be a CT or FM, which draw t, got {stack.goal}")
    B = check_positive(op, "B", B, MOST_COUNT)
    return engine.next_times(stack, index, B, check_row(op, first_row, B), check_whole(op, rows))


# arguments


def index_of(stack: Stack, op: str, blocks: Blocks) -> Tensor:
    """(n,) positions of the slices of `blocks`, replica-major; the state is checked too."""
    check_state(stack)
    held, replicas = stack.layout.held, stack.layout.replicas
    if blocks is None:
        return positions(held, held, replicas)
    ts = check_blocks(op, "blocks", blocks, stack.goal.T)
    if missing := [t for t in ts if t not in held]:
        raise ValueError(f"{op}: blocks must be among {list(held)}, held, got {missing}")
    return positions(tuple(ts), held, replicas)


def check_batch(
    stack: Stack, op: str, x: Inputs, y: Tensor, n: int, *, training: bool = True
) -> tuple[dict[str, Tensor], int]:
    """A training batch, checked: inputs (n, B, F) by name, and B."""
    inputs = check_inputs(op, x, stack.plan, stack.layout.given, n, stack.device)
    B = next(iter(inputs.values())).shape[1]
    check_labels(op, y, B, stack.device)
    if training or B < 1:
        engine.check_rows(stack, op, "y", B)
    return {name: value.detach() for name, value in inputs.items()}, B


def check_draws_z(stack: Stack, op: str) -> None:
    if (width := stack.plan.widths["z"]) != stack.D:
        raise ValueError(
            f'{op}: plan must have a "z" of the width D = {stack.D} of an embedding where z is '
            f"drawn, got {width}; train_step takes features of it as z="
        )


def input_gradients(
    stack: Stack, d_inputs: Mapping[str, Tensor]
) -> tuple[Tensor | dict[str, Tensor] | None, Tensor | None]:
    """d_x, a tensor where a caller gives one input, and d_z, each in its input's shape."""
    shapes = stack.plan.shapes
    d_x = {name: value.unflatten(-1, shapes[name]) for name, value in d_inputs.items()}
    d_z = d_x.pop("z", None)
    if len(stack.layout.given) == 1 and d_x:
        return next(iter(d_x.values())), d_z
    return d_x or None, d_z


def apart(value: Tensor, state: Sequence[Tensor]) -> Tensor:
    """Contiguous, and copied where it shares memory that the update writes."""
    written = {tensor.untyped_storage().data_ptr() for tensor in state}
    value = value.detach().contiguous()
    return value.clone() if value.untyped_storage().data_ptr() in written else value


def refuse_graph(op: str, *given: Any) -> None:
    """Refuses inputs that require grad: no gradient would reach the module that made them."""
    for value in given:
        for tensor in value.values() if isinstance(value, Mapping) else (value,):
            if getattr(tensor, "requires_grad", False) and torch.is_grad_enabled():
                raise ValueError(
                    f"{op}: inputs must not require a gradient, since none goes back to them; give "
                    "x.detach(), or train_step x.detach() with input_grad=True and call "
                    "x.backward(step.d_x), or use loss()"
                )


def check_row(op: str, first_row: object, B: int) -> int:
    """The position of row 0 in a batch whose rows noise addresses."""
    return check_count(op, "first_row", first_row, MOST_COUNT + 1 - B)


def check_time_input(op: str, plan: Plan) -> None:
    """Raises where a plan has no place for the embedding of a drawn t."""
    shape = plan.shapes["t"] if "t" in plan.inputs else None
    if shape is None or len(shape) != 1 or shape[0] % 2:
        got = "no such input" if shape is None else shape
        raise ValueError(
            f'{op}: plan must have an input "t" of an even width under a CT or FM, got {got}; '
            "plans.paper_ct and plans.mlp(..., time=True) have it"
        )


def check_times(op: str, t: object, n: int, B: int, device: torch.device) -> Tensor:
    """t (B,) or (n, B) as (n or 1, B) float64."""
    if not isinstance(t, Tensor):
        raise ValueError(f"{op}: t must be a tensor ({B},) or ({n}, {B}), got {type(t).__name__}")
    shape = (B,) if t.ndim == 1 else (n, B)
    dtypes = (torch.float32, torch.float64)
    value = check_tensor(op, "t", t, shape=shape, dtype=dtypes, device=device).detach().double()
    if torch.compiler.is_compiling():  # what follows depends on contents
        return value if value.ndim == 2 else value[None]
    if value.numel() and not bool(((value >= 0) & (value <= 1)).all()):
        raise ValueError(f"{op}: t must lie in [0, 1], got {value.min():.4g}..{value.max():.4g}")
    return value if value.ndim == 2 else value[None]


def check_whole(op: str, rows: object) -> int | None:
    """The rows of a whole batch, where they are given."""
    return None if rows is None else check_positive(op, "rows", rows, MOST_COUNT)


def positions(ts: tuple[int, ...], held: tuple[int, ...], replicas: int) -> Tensor:
    """(n,), the positions of the blocks `ts` in every replica; cached and shared: do not modify."""
    make = make_positions if torch.compiler.is_compiling() else kept_positions
    return make(ts, held, replicas)


def make_positions(ts: tuple[int, ...], held: tuple[int, ...], replicas: int) -> Tensor:
    at = [r * len(held) + held.index(t) for r in range(replicas) for t in ts]
    return torch.tensor(at, dtype=torch.int64, device="cpu")


kept_positions = lru_cache(maxsize=256)(make_positions)


def check_blocks(op: str, name: str, blocks: object, T: int) -> list[int]:
    """The paper's t, one or several, each once and in 1..T."""
    given = [*blocks] if isinstance(blocks, Iterable) and not is_scalar(blocks) else [blocks]
    try:
        ts = [check_integer(op, name, t, 1, T) for t in given]
    except ValueError:
        ts = []
    if not ts or len(set(ts)) != len(ts):
        raise ValueError(f"{op}: {name} must be distinct t in 1..{T}, at least one, got {given}")
    return ts


def is_scalar(value: object) -> bool:
    """Whether a value is a tensor or array without dimensions, which has __iter__ but cannot be
    iterated."""
    return getattr(value, "ndim", 1) == 0
