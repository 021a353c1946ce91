"""The defaults that depend on the number of rows."""

import pytest

from noprop.defaults import LEAST_EPOCHS, STEPS, default_epochs, default_weight_decay


@pytest.mark.parametrize("rows", [1, 2, 127, 128, 129, 1437, 5000, 60_000])
@pytest.mark.parametrize("batch_size", [1, 32, 128, 4096])
def test_epochs_make_enough_steps_and_no_more(rows, batch_size):
    epochs = default_epochs(rows, batch_size)
    steps = -(-rows // batch_size)
    assert epochs >= LEAST_EPOCHS and epochs * steps >= STEPS
    assert epochs == LEAST_EPOCHS or (epochs - 1) * steps < STEPS


def test_weight_decay_falls_with_the_rows_to_the_papers():
    decays = [default_weight_decay(rows) for rows in (1, 200, 500, 5000, 50_000, 10_000_000)]
    assert decays == pytest.approx([3.0, 3.0, 2.0, 0.2, 0.02, 1e-3])


@pytest.mark.parametrize("rows, batch_size", [(0, 128), (-1, 128), (10, 0)])
def test_what_makes_no_step_is_refused(rows, batch_size):
    with pytest.raises(ValueError, match="default_epochs: rows and batch_size must be at least 1"):
        default_epochs(rows, batch_size)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="default_weight_decay: rows must be at least 1, got 0"):
        default_weight_decay(0)
