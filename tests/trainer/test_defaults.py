"""The defaults that depend on the training rows."""

import pytest
import torch

from noprop.defaults import (
    LEAST_EPOCHS,
    STEPS,
    default_epochs,
    default_weight_decay,
    default_weight_decays,
)
from noprop.directions import decay_settings


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


def test_many_directions_move_the_decay_into_the_first_half():
    assert default_weight_decays(5000, 100) == pytest.approx((0.24, 0.16))
    assert default_weight_decays(800, 784) == pytest.approx((2, 0.5))  # 2 is the most
    assert default_weight_decays(5000, 500) == pytest.approx((1.2, 1e-3))  # 1e-3 the least


@pytest.mark.parametrize("rows", [1, 200, 1437, 5000, 60_000, 10_000_000])
def test_few_directions_change_nothing(rows):
    assert default_weight_decays(rows, 80) == (default_weight_decay(rows),) * 2


def test_settings_have_an_early_decay_where_the_rows_vary_in_many_directions():
    noise = torch.randn(2000, 300)
    found = decay_settings(noise, 300)
    early, late = found["early_weight_decay"], found["weight_decay"]
    assert early == pytest.approx(12 * 300 / 2000, rel=0.1) and late == 1e-3
    found = decay_settings(noise[:, :1].repeat(1, 300), 300)
    assert found == {"early_weight_decay": None, "weight_decay": 0.5}
