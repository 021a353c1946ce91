"""Defaults of training: functions of the training rows.

`fit`, the command line and the settings of a run share them. `python -m bench grid` compares them
with logistic regression.
"""

import math

STEPS = 300
LEAST_EPOCHS = 20
LR = 2e-3  # AdamW's, falling to 0 by the cosine
WEIGHT_DECAY_ROWS = 1000
LEAST_WEIGHT_DECAY, MOST_WEIGHT_DECAY = 1e-3, 3.0  # the minimum is the paper's value
WEIGHT_DECAY_PER_DIRECTION, MOST_EARLY_WEIGHT_DECAY = 12.0, 2.0


def default_epochs(rows: int, batch_size: int) -> int:
    """The number of epochs: 20, or more where that is needed for STEPS steps.

    A network learns by steps, and few rows make few steps an epoch. More steps do not help: the
    network learns few rows by heart, and log-loss grows.

    Args:
        rows: training rows, at least 1.
        batch_size: B, at least 1.

    Raises:
        ValueError: an argument is below 1.
    """
    if rows < 1 or batch_size < 1:
        raise ValueError(
            f"default_epochs: rows and batch_size must be at least 1, got {rows} and {batch_size}"
        )
    return max(LEAST_EPOCHS, math.ceil(STEPS / math.ceil(rows / batch_size)))


def default_weight_decay(rows: int) -> float:
    """AdamW's weight decay: WEIGHT_DECAY_ROWS / rows, at least 1e-3 and at most 3.

    A prior on the weights has a fixed strength relative to the sum of the rows' losses, so relative
    to their mean it falls as 1 / rows. Without it a few rows are learnt by heart, and the random
    initial weights along directions that no row determines stay in every answer. A stronger one
    would suppress classes of a handful of rows.

    Args:
        rows: training rows, at least 1.

    Raises:
        ValueError: rows is below 1.
    """
    if rows < 1:
        raise ValueError(f"default_weight_decay: rows must be at least 1, got {rows}")
    return min(MOST_WEIGHT_DECAY, max(LEAST_WEIGHT_DECAY, WEIGHT_DECAY_ROWS / rows))


def default_weight_decays(rows: int, directions: float) -> tuple[float, float]:
    """AdamW's weight decay in the first and in the second half of the epochs.

    Both are `default_weight_decay`, but where WEIGHT_DECAY_PER_DIRECTION * directions / rows is
    more. Then the first is that, at most 2, and the second so much weaker that their mean is the
    default, but at least 1e-3.

    Each direction of x adds its own noise to a network's answer, so that the best penalty of a
    ridge regression grows with their number. Kept to the end it would leave the probabilities too
    soft: at first it decides what the weights read, then the weak one lets the answers grow sure.

    Args:
        rows: training rows, at least 1.
        directions: in how many directions they vary (`noprop.directions`).

    Raises:
        ValueError: rows is below 1.
    """
    decay = default_weight_decay(rows)
    early = min(MOST_EARLY_WEIGHT_DECAY, WEIGHT_DECAY_PER_DIRECTION * directions / rows)
    if early <= decay:
        return decay, decay
    return early, max(LEAST_WEIGHT_DECAY, 2 * decay - early)
