"""Weights of rows: each multiplies the weight of its row's error in the loss."""

from dataclasses import replace

import torch
from torch import Tensor

from ..backends.calls import Gather, Objective
from ..check import check_tensor


def check_row_weight(
    op: str, value: object, shape: tuple[int, ...], device: torch.device
) -> Tensor | None:
    """`value`, float32 of this shape, or None.

    On a GPU, where looking at contents would wait for it, a weight below 0 becomes NaN, so that its
    step's loss is not finite and nothing is updated.

    Raises:
        ValueError: it is no such tensor, or on the CPU a weight is negative or not finite.
    """
    if value is None:
        return None
    weight = check_tensor(op, "row_weight", value, shape=shape, device=device).detach()
    right = (weight >= 0) & weight.isfinite()
    if device.type != "cpu":
        return torch.where(right, weight, torch.nan)
    if not bool(right.all()):
        wrong = weight[~right].flatten()[0].item()
        raise ValueError(f"{op}: row_weight must be finite and at least 0, got {wrong}")
    return weight


def in_steps(weight: Tensor | None, labels: Tensor | Gather, n: int) -> Tensor | None:
    """The weights (K, n, B) of the rows that K steps of n slices read.

    Args:
        weight: (rows,) of a data set, or (K, B) of its batches.
        labels: of the same rows, as a training call has them.
    """
    if weight is None or not weight.numel():
        return None
    if isinstance(labels, Tensor):
        return weight[:, None].expand(len(weight), n, -1)
    # an index out of range is the backend's to report
    rows = weight.flatten()[labels.indices.clamp(0, weight.numel() - 1)]
    return rows[:, labels.replica]


def weighted(objective: Objective, row_weight: Tensor | None) -> Objective:
    """The objective with its weights times `row_weight` (K, n, B), or as it is."""
    if row_weight is None:
        return objective
    return replace(objective, weight=objective.weight * row_weight)
