"""Validates the contents of a call before anything is written."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..plan import Plan
from .calls import Gather, TrainCall, UpdateCall


def check_rows(op: str, plan: Plan, B: int) -> None:
    if plan.has_norm() and B < 2:
        raise ValueError(f"{op}: batch norm needs at least 2 rows in training, got {B}")


def bad_label(op: str, M: int, value: int, row: int) -> ValueError:
    return ValueError(f"{op}: labels must be in 0..{M - 1}, got {value} at row {row}")


def bad_index(op: str, value: int, at: int) -> ValueError:
    return ValueError(f"{op}: indices must name rows of the data, got {value} at {at}")


def bad_input(op: str, name: str) -> ValueError:
    return ValueError(f"{op}: {name} must be finite, got NaN or infinity")


def first_outside(value: Tensor, limit: int) -> tuple[int, int] | None:
    """The first entry that is not in 0..limit - 1, and its place in the last dimension."""
    if not value.numel() or (0 <= value.min() and value.max() < limit):
        return None
    at = int(((value < 0) | (value >= limit)).flatten().nonzero()[0])
    return int(value.flatten()[at]), at % value.shape[-1]


def check_labels(op: str, y: Tensor, M: int) -> None:
    """Labels, in dimensions that end with the rows."""
    if found := first_outside(y, M):
        raise bad_label(op, M, *found)


def check_finite(op: str, inputs: Mapping[str, Tensor]) -> None:
    """Checks inputs for NaN and infinity, which would synchronise on a GPU; "z" may be anything."""
    for name, value in inputs.items():
        value = value[:1] if value.stride(0) == 0 else value  # slices share it
        if name != "z" and value.numel() and not all(map(math.isfinite, value.aminmax())):
            raise bad_input(op, name)


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


def check_call(call: TrainCall) -> None:
    """What needs no contents."""
    if call.B == 0:
        raise ValueError(f"{call.op}: a batch must have at least 1 row, got 0")
    check_rows(call.op, call.slices.plan, call.B)
    if call.rule is None and call.out.grads is None:
        raise ValueError(f"{call.op}: a call without grads must have a rule, got None")


def check_train(call: TrainCall) -> None:
    plan = call.slices.plan
    check_call(call)
    for name, value in [*call.inputs.items(), ("y", call.y)]:
        if isinstance(value, Gather) and call.K:
            if found := first_outside(value.indices, len(value.data)):
                raise bad_index(call.op, *found)
        for step in range(call.K):
            rows = fetch(value, step)
            if value is call.y:
                check_labels(call.op, rows, plan.widths[plan.output])
            elif not bool(rows.isfinite().all()):
                raise bad_input(call.op, name)


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


def where_finite(call: UpdateCall) -> Tensor:
    """(n,) bool: where an update applies; `call.applied`, if there is one."""
    if call.applied is None:
        return call.apply
    call.applied.copy_(call.apply)
    for value in call.grads.values():
        call.applied.logical_and_(finite_rows(value.flatten(1)))
    return call.applied
