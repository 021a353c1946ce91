"""Checks arguments with numbers: seeds, learning rates, and the place of rows in a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..check import (
    LARGEST,
    MOST_COUNT,
    check_count,
    check_integer,
    check_memory,
    check_positive,
    is_flag,
    shape_text,
)

INT64_ENDS = (-(2**63), 2**63 - 1)


def seed_list(op: str, seed: int | Sequence[int]) -> list[int]:
    check_memory(op, "seed", seed)
    given = list(seed) if isinstance(seed, Sequence) else [seed]
    try:
        seeds = [check_integer(op, "seed", value, *INT64_ENDS) for value in given]
    except ValueError:
        seeds = []
    if not seeds:
        raise ValueError(f"{op}: seed must be an int64 or a list of at least one, got {seed!r}")
    return seeds


def seed_tensor(seeds: Sequence[int]) -> Tensor:
    return torch.tensor(seeds, dtype=torch.int64, device="cpu")


def number_tensor(op: str, name: str, value: object) -> Tensor:
    """Numbers as float64: a tensor stays on its device, all else is made on the CPU."""
    if isinstance(value, Tensor):
        if value.dtype == torch.bool or value.is_complex() or value.device.type == "meta":
            raise ValueError(
                f"{op}: {name} must be real numbers, got {value.dtype} on {value.device}"
            )
        check_memory(op, name, value)
        return value.detach().to(torch.float64)
    try:
        if is_flag(value):
            raise TypeError(f"{value!r} is no number")
        return torch.tensor(value, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{op}: {name} must be numbers, got {value!r}") from error


def check_rates(op: str, lr: object, K: int, n: int) -> Tensor:
    """`lr`, a number, (K,) or (K, n), as (K, n) float64; anything else is refused."""
    value = number_tensor(op, "lr", lr)
    if value.ndim == 1 and len(value) == K:
        value = value[:, None]
    if value.shape not in ((), (K, 1), (K, n)):
        raise ValueError(
            f"{op}: lr must be a number or have shape ({K},) or ({K}, {n}), "
            f"got {shape_text(value.shape)}"
        )
    # no synchronisation to check values on a GPU
    if value.device.type == "cpu" and not bool(((value >= 0) & (value <= LARGEST)).all()):
        wrong = value[~((value >= 0) & (value <= LARGEST))]
        raise ValueError(f"{op}: lr must be finite and at least 0, got {wrong[0].item()}")
    return value.expand(K, n)


def check_row(op: str, first_row: object, B: int) -> int:
    """The position of row 0 in a batch whose rows noise addresses."""
    return check_count(op, "first_row", first_row, MOST_COUNT + 1 - B)


def check_whole(op: str, rows: object) -> int | None:
    """The rows of a whole batch, where they are given."""
    return None if rows is None else check_positive(op, "rows", rows, MOST_COUNT)
