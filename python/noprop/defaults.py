"""What training takes where nothing is said: functions of the training rows alone.

`fit`, the command line and the settings of a run use the same ones. `python -m bench grid` lays
them beside logistic regression.
"""

import math

STEPS = 300
LEAST_EPOCHS = 20
LR = 2e-3  # of AdamW, falling to 0 by the cosine
WEIGHT_DECAY_ROWS = 1000
LEAST_WEIGHT_DECAY, MOST_WEIGHT_DECAY = 1e-3, 3.0  # the least is the paper's


def default_epochs(rows: int, batch_size: int) -> int:
    """Epochs of a training: 20, or as many as make STEPS steps where that is more.

    A network learns by steps, and few rows make few of them in an epoch. More steps help no more:
    few rows are learnt by heart, and log-loss grows.

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

    A prior on the weights has a fixed pull beside the sum of the rows' losses, which beside their
    mean falls as 1 / rows. Without one a few rows are learnt by heart, and what the first weights
    drew at random for the directions that no row tells of stays in every answer. With a stronger
    one classes of a handful of rows are not believed.

    Args:
        rows: training rows, at least 1.

    Raises:
        ValueError: rows is below 1.
    """
    if rows < 1:
        raise ValueError(f"default_weight_decay: rows must be at least 1, got {rows}")
    return min(MOST_WEIGHT_DECAY, max(LEAST_WEIGHT_DECAY, WEIGHT_DECAY_ROWS / rows))
