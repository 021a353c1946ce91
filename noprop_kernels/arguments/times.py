"""Checks the paper's t: which blocks, or where in [0, 1] each row is."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..check import check_integer, check_memory, check_tensor
from ..plan import Plan

Blocks = int | Sequence[int] | None


def check_blocks(op: str, name: str, blocks: object, T: int) -> list[int]:
    """The paper's t, one or several, each once and in 1..T."""
    check_memory(op, name, blocks)
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
    contents = not torch.compiler.is_compiling() and value.numel()  # which its graph cannot see
    if contents and not bool(((value >= 0) & (value <= 1)).all()):
        raise ValueError(f"{op}: t must lie in [0, 1], got {value.min():.4g}..{value.max():.4g}")
    return value if value.ndim == 2 else value[None]
