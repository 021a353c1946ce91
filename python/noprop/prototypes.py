"""Prototypes: of each class the training row that is nearest to all its others, as its embedding.

The paper takes the image of the smallest median distance to the other images of its class
(arXiv:2503.24322v2, section 2.2.1), and names no metric; this is Euclid's, of normalised features.
"""

import torch
from torch import Tensor

from .normalisation import Normalisation

ROWS_AT_ONCE = 1000  # of a class, whose distances are in memory


def prototype_rows(x: Tensor, y: Tensor, classes: int, normalize: Normalisation) -> Tensor:
    """Of each class the row of the smallest median distance to the others; the first of equals.

    Of an even number of others the median is the lower one of the two in the middle.

    Args:
        x: (rows, F) uint8 or other numbers.
        y: (rows,) int64.
        classes: M; each must have a row.
        normalize: of x.

    Returns:
        (M,) int64, rows of x.

    Raises:
        ValueError: a class has no row.
    """
    chosen = []
    for label in range(classes):
        rows = (y == label).nonzero()[:, 0]
        if len(rows) == 0:
            raise ValueError(
                f"embedding prototype needs a training row of each class, got none of class {label}"
            )
        features = normalize.apply(x[rows])
        medians = [
            # a row's distance to itself is the least of all and counts for none of the others
            torch.cdist(part, features).kthvalue(len(rows) // 2 + 1).values
            for part in features.split(ROWS_AT_ONCE)
        ]
        chosen.append(rows[torch.cat(medians).argmin()])
    return torch.stack(chosen)


def prototypes(x: Tensor, rows: Tensor, normalize: Normalisation) -> Tensor:
    """The embeddings (M, F) float32 of these rows."""
    return normalize.apply(x[rows])
