"""Distinct rows of a weighted data set, in an order that only their contents decide."""

from hashlib import blake2b

import numpy as np

from .normalisation import rows_at_once

DIGEST = 16  # bytes: 2^64 rows before two digests may be expected to be equal


def distinct(X: np.ndarray, label: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct labelled rows of a weight above 0, and the sum of each one's weights.

    A row that occurs twice is one of twice the weight, one of weight 0 is absent, and the order of
    the rows is lost: what is trained on the result cannot depend on these. The order is that of a
    digest of the numbers as float64.

    Args:
        X: (n, F) float32 or float64, finite.
        label: (n,) int64.
        weight: (n,) float64, finite and at least 0.

    Returns:
        rows: (m,) int64, the place of one of each in X.
        weight: (m,) float64.
    """
    present = np.flatnonzero(weight > 0)
    digests = bytearray()
    size = rows_at_once(X.shape[1])
    for first in range(0, len(present), size):
        at = present[first : first + size]
        part = np.empty((len(at), X.shape[1] + 1))
        np.add(X[at], 0.0, out=part[:, :-1])  # -0 becomes 0
        part[:, -1] = label[at]
        for row in part:
            digests += blake2b(row.data, digest_size=DIGEST).digest()
    keys = np.frombuffer(digests, np.dtype((np.void, DIGEST)))
    _, one, of = np.unique(keys, return_index=True, return_inverse=True)
    by_weight = np.lexsort((weight[present], of))  # so that the sums do not depend on the order
    sums = np.bincount(of[by_weight], weight[present][by_weight], len(one))
    return present[one], sums
