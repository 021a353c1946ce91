"""In how many directions the rows of a data set vary, and the weight decay that follows."""

import torch
from torch import Tensor

from .defaults import default_weight_decays
from .normalisation import statistics

ROWS = 1000  # of which all pairs are compared


def directions(x: Tensor, channels: int) -> float:
    """(tr C)^2 / tr C^2 of the covariance C of normalised features: F where all vary alike and
    independently, few where features go together, as neighbouring pixels do.

    tr C^2 is the mean of <x_i, x_j>^2 over pairs of different rows, which fewer rows than features
    do not bias; that of the sample's covariance would make the number at most that of the rows.

    Args:
        x: (rows, F) uint8 or other finite numbers; of more than 1,000 rows as many are taken,
            evenly spaced.
        channels: of x, as `statistics` has them.

    Returns:
        0 where no feature varies.
    """
    at = torch.linspace(0, len(x) - 1, min(len(x), ROWS), dtype=torch.float64, device="cpu")
    rows = x[at.round().long()].cpu()
    features = statistics(rows, channels).apply(rows)
    features -= features.mean(0)
    products = features @ features.T  # (rows, rows)
    lengths = products.diagonal().double()
    pairs = len(rows) * (len(rows) - 1)
    squares = products.double().square().sum() - lengths.square().sum()
    if pairs == 0 or squares <= 0:
        return 0.0
    return (lengths.mean() ** 2 * pairs / squares).item()


def decay_settings(x: Tensor, channels: int) -> dict[str, float | None]:
    """`weight_decay` and `early_weight_decay` of a run's settings, the latter None where both are
    one.

    Args:
        x: (rows, F), the training rows.
        channels: of x (`InputFormat.channels`).
    """
    early, late = default_weight_decays(len(x), directions(x, channels))
    return {"weight_decay": late, "early_weight_decay": early if early != late else None}
