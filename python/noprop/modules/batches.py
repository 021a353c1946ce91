"""The batches of `ModuleBlocks.train_steps`: rows are gathered and normalised as the kernels do."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from noprop_kernels.arguments.batches import (
    DATA,
    INT64,
    Normalize,
    check_indices,
    flat,
    mean_and_scale,
)
from noprop_kernels.arguments.row_weights import check_row_weight, in_steps
from noprop_kernels.backends.calls import Gather
from noprop_kernels.backends.contents import bad_index, check_labels, fetch, first_outside
from noprop_kernels.check import check_tensor

from .signature import Shape


@dataclass(frozen=True)
class Batches:
    """K batches of B rows.

    Args:
        x, y: of each step; of R replicas, or of one for all.
        row_weight: (K, R or 1, B), or None.
        shape: of a row, as networks take it.
    """

    x: Gather
    y: Gather
    row_weight: Tensor | None
    K: int
    B: int
    shape: Shape

    def take(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """x (R or 1, B, ...) float32, y (R or 1, B) and weights like y of a step."""
        x = fetch(self.x, step).float().unflatten(-1, self.shape)
        weight = None if self.row_weight is None else self.row_weight[step]
        return x, fetch(self.y, step), weight


def shape_of(value: object, shape: Shape | None) -> Shape:
    """The shape of a row: the networks' own, else that of a row of numbers."""
    if shape is not None or not isinstance(value, Tensor) or not value.ndim:
        return shape or (1,)
    return (value.shape[-1],)


def batches_of(
    op: str,
    X: object,
    Y: object,
    indices: object,
    normalize: Normalize | None,
    row_weight: Tensor | None,
    *,
    shape: Shape | None,
    M: int,
    R: int,
    device: torch.device,
) -> Batches:
    """The batches of `train_steps`' arguments.

    Raises:
        ValueError: one does not fit.
    """
    lead = (None,) if indices is not None else (None, None)
    shape = shape_of(X, shape)
    rows = flat(op, "X", X, shape)
    sizes = (*lead, math.prod(shape))
    rows = check_tensor(op, "X", rows, shape=sizes, dtype=DATA, device=device).detach()
    labels = given = check_tensor(op, "Y", Y, shape=lead, dtype=INT64, device=device)
    if rows.shape[:-1] != labels.shape:
        raise ValueError(
            f"{op}: X and Y must have the same rows, got {tuple(rows.shape[:-1])} and "
            f"{tuple(labels.shape)}"
        )
    if indices is None:
        K, B = labels.shape
        at = torch.arange(K * B, dtype=torch.int64, device=device).view(K, 1, B)
        rows, labels = rows.flatten(0, 1), labels.flatten()
    else:
        at = check_indices(op, indices, R, device)
        if found := first_outside(at, len(rows)):
            raise bad_index(op, *found)
    check_labels(op, labels, M)
    weight = check_row_weight(op, row_weight, given.shape, device)
    numbers = mean_and_scale(op, normalize, rows)
    replica = torch.arange(at.shape[1], dtype=torch.int64, device=device)
    x, y = Gather(rows, at, replica, *numbers), Gather(labels, at, replica)
    weights = in_steps(weight, y, len(replica))
    return Batches(x, y, weights, len(at), at.shape[2], shape)
