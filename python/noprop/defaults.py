"""What training takes where nothing is said: functions of the number of rows alone.

One function for `fit`, the command line and the settings of a run. The figures are those of
`python -m bench.grid`.
"""

import math

STEPS = 300
LEAST_EPOCHS = 20


def default_epochs(rows: int, batch_size: int) -> int:
    """Epochs of a training: 20, or as many as make 300 steps where that is more.

    Few rows make few steps an epoch, and a network learns by steps.

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
