"""The rows that a classifier trains on: distinct ones, with the weights of rows and classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .distinct import distinct
from .errors import extra

with extra("sklearn"):
    from sklearn.utils import check_array
    from sklearn.utils.class_weight import compute_class_weight


@dataclass(frozen=True)
class Rows:
    """Distinct rows.

    Attributes:
        X, label, weight: (m, F), class numbers (m,) int64 and weights (m,) float64, above 0.
        count: the number of rows that they stand for: the sum of the weights that rows were given,
            at least m.
    """

    X: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    count: int

    def part(self, at: np.ndarray) -> "Rows":
        """Those at these places, of the same count."""
        return Rows(self.X[at], self.label[at], self.weight[at], self.count)


def rows_of(
    op: str,
    X: np.ndarray,
    y: np.ndarray,
    sample_weight: Any,
    class_weight: dict | str | None,
    classes: np.ndarray,
) -> Rows:
    """The distinct rows of X (n, F) and labels y (n,), weighted as `NoPropClassifier.fit` has it.

    Raises:
        ValueError: a label is none of the classes, or a weight does not fit.
    """
    label = np.searchsorted(classes, y).clip(0, len(classes) - 1)
    if (classes[label] != y).any():
        unknown = np.setdiff1d(y, classes)
        raise ValueError(f"{op}: y must be of the classes {classes}, got {unknown} too")
    at, weight = distinct(X, label, weights_of(op, sample_weight, len(X)))
    X, label = X[at], label[at]
    count = max(len(at), round(weight.sum()))
    if class_weight is not None:
        present = np.unique(label)
        factor = np.ones(len(classes))
        factor[present] = compute_class_weight(
            class_weight, classes=classes[present], y=classes[label], sample_weight=weight
        )
        weight = weight * factor[label]
    return Rows(X, label, weight, count)


def weights_of(op: str, sample_weight: Any, rows: int) -> np.ndarray:
    """(rows,) float64, at least 0 and not all 0."""
    if sample_weight is None:
        return np.ones(rows)
    checked = check_array(sample_weight, ensure_2d=False, input_name="sample_weight")
    weight = np.array(checked, np.float64)
    if weight.shape != (rows,):
        raise ValueError(
            f"{op}: sample_weight must be ({rows},), a number for each row of X, got {weight.shape}"
        )
    if (weight < 0).any() or not (weight > 0).any():
        raise ValueError(
            f"{op}: sample_weight must be at least 0, and one above (not all zero), got "
            f"{weight.min()} to {weight.max()}"
        )
    return weight
