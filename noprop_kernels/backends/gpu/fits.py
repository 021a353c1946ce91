"""Checks the state of a call against its plan just before kernels take its addresses: Python may
have changed any tensor of it since the call was made, or since a forward.
"""

from functools import lru_cache

import torch
from torch import Tensor

from ...check import shape_text
from ...plan import Plan
from ..calls import Slices


@lru_cache(maxsize=64)
def shapes_of(plan: Plan) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    return plan.parameters(), plan.statistics()


def check_slices(op: str, slices: Slices, device: torch.device, *, counts: bool) -> None:
    """Checks that every tensor has the plan's shape, its dtype, and is contiguous on `device`.

    Counters are checked where the call changes them (`counts`).

    Raises:
        ValueError: a tensor does not fit, or the index does not name slices, each at most once.
    """
    params, stats = shapes_of(slices.plan)
    N = len(slices.updates)
    groups = ((slices.params, params, ""), (slices.m, params, "_m"), (slices.v, params, "_v"))
    for group, shapes, suffix in (*groups, (slices.stats, stats, "")):
        for name, shape in shapes.items() if group else ():
            check(op, name + suffix, group.get(name), (N, *shape), torch.float32, device)
    for name in ("seeds", "draws", "updates") if counts else ():
        check(op, name, getattr(slices, name), (N,), torch.int64, device)
    index = slices.index
    check(op, "index", index, (len(index),), torch.int64, torch.device("cpu"))
    positions = index.tolist()
    if len(set(positions)) != len(positions) or not all(0 <= at < N for at in positions):
        raise ValueError(f"{op}: index must have distinct slices in 0..{N - 1}, got {positions}")


def check(
    op: str,
    name: str,
    value: Tensor | None,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    if (
        value is None
        or value.shape != shape
        or value.dtype != dtype
        or value.device != device
        or not value.is_contiguous()
        or value.is_neg()
    ):
        got = "None" if value is None else f"{shape_text(value.shape)} {value.dtype} on "
        got += "" if value is None else f"{value.device} with strides {value.stride()}"
        raise ValueError(
            f"{op}: {name} must be a contiguous {dtype} tensor of shape {shape_text(shape)} on "
            f"{device}, got {got}"
        )
