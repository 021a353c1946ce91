"""What training does where nobody says otherwise, by the number of rows."""

LEAST_EPOCHS = 20
STEPS = 300  # that few rows need, whose epochs are short
LR = 3e-3
LEAST_WEIGHT_DECAY = 1e-3
WEIGHT_DECAY_OF_ROWS = 500.0  # a prior of fixed strength: its pull on the mean loss falls as 1/rows


def default_epochs(rows: int, batch_size: int) -> int:
    """At least LEAST_EPOCHS, and as many as make STEPS steps."""
    steps_per_epoch = -(-rows // batch_size)
    return max(LEAST_EPOCHS, -(-STEPS // steps_per_epoch))


def default_weight_decay(rows: int) -> float:
    return max(LEAST_WEIGHT_DECAY, WEIGHT_DECAY_OF_ROWS / rows)
