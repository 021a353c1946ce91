"""Splits depend only on the number of rows and their classes: every run holds out the same rows."""

import math

import torch
from torch import Tensor

from noprop_kernels import philox

from ..errors import InputError

SPLIT_SEED = 0
SPLIT_DRAW = 0xFFFFFFFF  # training never reaches this epoch


def hold_out(rows: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Splits the positions 0..rows - 1 into those kept and those held out, each ascending.

    Args:
        rows: number of rows, at least 2.
        fraction: share held out, between 0 and 1; at least one row is on either side.

    Returns:
        kept, held: int64.
    """
    count = min(max(1, math.floor(rows * fraction + 0.5)), rows - 1)
    order = philox.permutation(SPLIT_SEED, SPLIT_DRAW, rows)
    return order[count:].sort().values, order[:count].sort().values


def hold_out_classes(y: Tensor, fraction: float, where: str) -> tuple[Tensor, Tensor]:
    """As `hold_out`, or a share of each class where `hold_out` would leave a class out.

    Args:
        y: (rows,) int64 classes.
        fraction: share held out; a class too small to give a row stays whole.
        where: the name of the data in errors.

    Returns:
        kept, held: int64 positions, each ascending; every class is among those kept.

    Raises:
        InputError: no row can be held out.
    """
    classes, counts = y.unique(return_counts=True)
    if len(y) >= 2:
        kept, held = hold_out(len(y), fraction)
        large = classes[(counts * fraction + 0.5).floor() >= 1]
        if len(y[kept].unique()) == len(classes) and bool(torch.isin(large, y[held]).all()):
            return kept, held
    order = philox.permutation(SPLIT_SEED, SPLIT_DRAW, len(y))
    held = []
    for c, count in zip(classes.tolist(), counts.tolist(), strict=True):
        of_class = order[y[order] == c]
        held.append(of_class[: min(math.floor(count * fraction + 0.5), count - 1)])
    held = torch.cat(held).sort().values
    if len(held) == 0:
        raise InputError(
            f"{where}: a test needs at least 3 rows of one class, got {len(y)} rows of "
            f"{len(classes)} classes"
        )
    stays = torch.ones(len(y), dtype=torch.bool, device="cpu")
    stays[held] = False
    return stays.nonzero()[:, 0], held
