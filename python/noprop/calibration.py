"""What probabilities are worth: confidence beside accuracy (Guo et al., arXiv:1706.04599)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15  # of confidence


@dataclass(frozen=True)
class Bin:
    """The rows whose confidence is in (low, high].

    Attributes:
        rows: how many.
        confidence, accuracy: their means; 0 where there are none.
    """

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


def bins_of(confidence: Tensor, right: Tensor) -> list[Bin]:
    """The reliability diagram, in BINS bins of equal width.

    Args:
        confidence: (B,) float64, finite, the probability of the answered class.
        right: (B,) bool, whether the answer is.
    """
    place = (confidence * BINS).ceil().clamp(1, BINS).long() - 1
    rows = torch.bincount(place, minlength=BINS)
    means = torch.bincount(place, confidence, minlength=BINS) / rows.clamp(min=1)
    accuracy = torch.bincount(place, right.double(), minlength=BINS) / rows.clamp(min=1)
    return [
        Bin(i / BINS, (i + 1) / BINS, *values)
        for i, values in enumerate(
            zip(rows.tolist(), means.tolist(), accuracy.tolist(), strict=True)
        )
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: the mean over the rows of |accuracy - confidence| of their
    bins."""
    apart = sum(each.rows * abs(each.accuracy - each.confidence) for each in bins)
    return apart / sum(each.rows for each in bins)
