"""In how many directions rows vary."""

import pytest
import torch

from noprop.directions import directions


@pytest.mark.parametrize("rows, features", [(2000, 50), (300, 50), (200, 800)])
def test_independent_features_are_a_direction_each(rows, features):
    x = torch.randn(rows, features) * torch.logspace(-3, 3, features)  # whatever their units
    assert directions(x, features) == pytest.approx(features, rel=0.1)


def test_features_that_go_together_are_one():
    x = torch.randn(300, 4).repeat(1, 20) + 7
    assert directions(x, 80) == pytest.approx(4, rel=0.1)
    assert directions(x[:, :1], 1) == pytest.approx(1, rel=0.05)


def test_unequal_variances_count_by_their_shares():
    x = torch.randn(1000, 20) * torch.tensor([10.0] + [1.0] * 19)
    expected = (100 + 19) ** 2 / (100**2 + 19)  # one channel: one unit for all
    assert directions(x, 1) == pytest.approx(expected, rel=0.1)


def test_rows_are_taken_from_the_whole_of_sorted_data():
    x = torch.randn(5000, 30)
    x[:4000] = 0
    assert directions(x, 30) > 20


def test_bytes_count_as_their_numbers():
    x = torch.randint(256, (400, 40), dtype=torch.uint8)
    assert directions(x, 1) == pytest.approx(directions(x.float(), 1), rel=1e-4)


@pytest.mark.parametrize("x", [torch.randn(1, 5), torch.ones(50, 5)], ids=["one row", "constant"])
def test_what_does_not_vary_has_none(x):
    assert directions(x, 5) == 0
