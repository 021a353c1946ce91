"""Prototypes: of each class the training row of the smallest median distance to its others."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import noprop
from noprop import prototypes
from noprop.normalisation import Normalisation, statistics
from noprop.prototypes import prototype_rows
from support.cli import call

PLAIN = Normalisation.of(None)


def by_definition(x, y, classes, normalize):
    chosen = []
    for label in range(classes):
        rows = np.flatnonzero(y.numpy() == label)
        features = normalize.apply(x[torch.from_numpy(rows)]).double().numpy()
        medians = []
        for i in range(len(rows)):
            others = np.linalg.norm(np.delete(features, i, 0) - features[i], axis=1)
            medians.append(np.sort(others)[(len(others) - 1) // 2] if len(others) else 0.0)
        chosen.append(rows[int(np.argmin(medians))])
    return chosen


@pytest.mark.parametrize("pieces", [1000, 7])
def test_by_their_definition(toy, monkeypatch, pieces):
    monkeypatch.setattr(prototypes, "ROWS_AT_ONCE", pieces)
    x, y = toy
    for rows in (130, 129, 128):  # even and odd numbers of others
        some = x[:rows], y[:rows]
        normalize = statistics(some[0])
        assert prototype_rows(*some, 3, normalize).tolist() == by_definition(*some, 3, normalize)


def test_a_row_does_not_count_for_itself():
    """Else row 2, whose own distance of 0 would be the median, would be as good as row 0."""
    x = torch.tensor([[0.0], [1.0], [5.0], [-2.0]])
    assert prototype_rows(x, torch.zeros(4, dtype=torch.int64), 1, PLAIN).tolist() == [0]
    assert prototype_rows(x[2:3], torch.zeros(1, dtype=torch.int64), 1, PLAIN).tolist() == [0]


def test_distances_are_those_of_features():
    x = torch.tensor([[0.0, 0.0], [9.0, 0.02], [10.0, 0.09], [11.0, 0.021], [30.0, 0.05]])
    y = torch.zeros(5, dtype=torch.int64)
    assert prototype_rows(x, y, 1, PLAIN).tolist() == [2]
    second = Normalisation(torch.zeros(2), torch.tensor([1e3, 1e-3]))
    assert prototype_rows(x, y, 1, second).tolist() == [1]


def test_a_class_without_rows_is_named():
    with pytest.raises(ValueError, match="a training row of each class, got none of class 1"):
        prototype_rows(torch.zeros(2, 3), torch.tensor([0, 2]), 3, PLAIN)


def test_a_run_begins_with_them_and_keeps_their_rows(toy_file, toy, alone):
    command = ("train", "--data", toy_file, "--embedding", "prototype", "--embed-scale", 0.5)
    call(*command, "--T", 2, "--epochs", 1, "--lr", 0, "--out", "run")
    x, y = toy
    rows = by_definition(x, y, 3, statistics(x))
    record = json.loads(Path("run/model.json").read_text())["model"]["embedding"]
    assert record["kind"] == "prototype" and record["prototypes"] == rows
    model = noprop.load("run")
    assert list(model.prototypes) == rows
    torch.testing.assert_close(model.W_embed, 0.5 * statistics(x).apply(x[rows]))
    model.save("again")
    assert list(noprop.load("again").prototypes) == rows
