"""Arguments of a stack's calls: which of its slices, and the rows of a batch."""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from ..arguments.batches import Inputs, check_inputs, check_labels
from ..arguments.times import Blocks, check_blocks
from . import engine
from .module import Stack
from .state import check_state


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


def positions(ts: tuple[int, ...], held: tuple[int, ...], replicas: int) -> Tensor:
    """(n,), the positions of the blocks `ts` in every replica; cached and shared: do not modify."""
    make = make_positions if torch.compiler.is_compiling() else kept_positions
    return make(ts, held, replicas)


def make_positions(ts: tuple[int, ...], held: tuple[int, ...], replicas: int) -> Tensor:
    at = [r * len(held) + held.index(t) for r in range(replicas) for t in ts]
    return torch.tensor(at, dtype=torch.int64, device="cpu")


kept_positions = lru_cache(maxsize=256)(make_positions)


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
