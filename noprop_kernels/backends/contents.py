"""Validates the contents of a call before anything is written."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..plan import Plan
from .calls import Gather, TrainCall


def check_rows(op: str, plan: Plan, B: int) -> None:
    if plan.has_norm() and B < 2:
        raise ValueError(f"{op}: batch norm needs at least 2 rows in training, got {B}")


def check_range(op: str, name: str, value: Tensor, limit: int) -> None:
    if value.numel() and not (0 <= value.min() and value.max() < limit):
        low, high = value.min().item(), value.max().item()
        raise ValueError(f"{op}: {name} must lie in [0, {limit}), got {low} to {high}")


def check_finite(op: str, inputs: Mapping[str, Tensor]) -> None:
    """Checks inputs for NaN and infinity, which would synchronise on a GPU; "z" may be anything."""
    for name, value in inputs.items():
        value = value[:1] if value.stride(0) == 0 else value  # slices share it
        if name != "z" and value.numel() and not all(map(math.isfinite, value.aminmax())):
            raise ValueError(f"{op}: {name} must be finite, got NaN or infinity")


def fetch(value: Tensor | Gather, step: int) -> Tensor:
    """The rows that the slices read in a step: (n, B, F), or (n, B) for labels."""
    if isinstance(value, Tensor):
        return value[step]
    device = value.data.device
    rows = value.data[value.indices[step].to(device)[value.replica.to(device)]]
    if value.mean is None or value.scale is None:
        return rows
    dtype = torch.promote_types(value.scale.dtype, torch.float32)
    return (rows.to(dtype) - value.mean) * value.scale


def check_train(call: TrainCall) -> None:
    plan = call.slices.plan
    if call.B == 0:
        raise ValueError("train: a batch must have at least 1 row, got 0")
    check_rows("train", plan, call.B)
    if call.rule is None and call.out.grads is None:
        raise ValueError("train: a call without grads must have a rule, got None")
    for name, value in [*call.inputs.items(), ("y", call.y)]:
        if isinstance(value, Gather) and call.K:
            check_range("train", f"indices of {name}", value.indices, len(value.data))
        for step in range(call.K):
            rows = fetch(value, step)
            if value is call.y:
                check_range("train", "y", rows, plan.widths[plan.output])
            elif not bool(rows.isfinite().all()):
                raise ValueError(f"train: {name} must be finite, got NaN or infinity")
