"""Splits that depend on the number of rows alone: every run holds out the same ones."""

import math

from torch import Tensor

from noprop_kernels import noise

SPLIT_SEED = 0
SPLIT_DRAW = 0xFFFFFFFF  # an epoch that no training reaches


def hold_out(rows: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Positions that stay and positions held out, each ascending.

    Args:
        rows: number of rows, at least 2.
        fraction: share held out, between 0 and 1; at least one row is on either side.

    Returns:
        kept, held: int64.
    """
    count = min(max(1, math.floor(rows * fraction + 0.5)), rows - 1)
    order = noise.permutation(SPLIT_SEED, SPLIT_DRAW, rows)
    return order[count:].sort().values, order[:count].sort().values
