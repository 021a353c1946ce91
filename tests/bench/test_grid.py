"""The grid: its classes lie as described, both contenders learn, and misses are reported."""

import importlib.util
import json

import numpy as np
import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)
if not all(map(importlib.util.find_spec, ("sklearn", "typer", "rich"))):
    pytest.skip("the trainer needs its extra", allow_module_level=True)

from bench.report import whole_rows
from bench.whole import grid

GOOD = {"accuracy": 0.95, "balanced_accuracy": 0.95, "log_loss": 0.1}


@pytest.mark.parametrize("classes, features", [(2, 1), (10, 1), (3, 2), (10, 2), (10, 9), (10, 10)])
def test_neighbours_are_six_deviations_apart(classes, features):
    centre = grid.means(classes, features, np.random.default_rng(1))
    assert centre.shape == (classes, features)
    apart = np.linalg.norm(centre[:, None] - centre, axis=2) + 1e9 * np.eye(classes)
    assert apart.min(1) == pytest.approx(np.full(classes, 6.0))


def test_rows_have_their_shares_and_unit_variance():
    data = grid.gaussians(2, 3, 200, balanced=False, seed=3)
    assert torch.bincount(data.y).tolist() == [16, 184]
    assert torch.bincount(data.y_test).tolist() == [800, 9200]
    assert data.x_test[data.y_test == 1].std(0) == pytest.approx(np.ones(3), abs=0.05)
    even = grid.gaussians(3, 1, 200, balanced=True, seed=3)
    assert sorted(torch.bincount(even.y).tolist()) == [66, 67, 67]
    assert torch.equal(grid.gaussians(3, 1, 200, balanced=True, seed=3).x, even.x)
    assert not torch.equal(grid.gaussians(3, 1, 200, balanced=True, seed=4).x, even.x)


def test_bundled_sets_are_split_anew_by_each_seed():
    thirds = grid.bundled("diabetes", 0)
    assert thirds.classes == 3 and thirds.features == 10
    counts = torch.bincount(torch.cat([thirds.y, thirds.y_test])).tolist()
    assert sum(counts) == 442 and max(counts) - min(counts) <= 4
    assert not torch.equal(grid.bundled("iris", 0).x_test, grid.bundled("iris", 1).x_test)


@pytest.mark.parametrize(
    "change, least, missed",
    [
        ({}, 0.0, []),
        ({"accuracy": 0.941, "log_loss": 0.129}, 0.0, []),
        ({"accuracy": 0.939}, 0.0, ["accuracy"]),
        ({"balanced_accuracy": 0.939}, 0.0, ["balanced_accuracy"]),
        ({"log_loss": 0.131}, 0.0, ["log_loss"]),
        ({"log_loss": float("nan")}, 0.0, ["log_loss"]),
        ({}, 0.99, ["accuracy"]),
    ],
)
def test_what_is_missed(change, least, missed):
    assert grid.missed(GOOD | change, GOOD, least) == missed


def test_a_small_log_loss_is_not_compared():
    sure = GOOD | {"log_loss": 0.009}
    assert grid.missed(sure | {"log_loss": 0.09}, sure) == []


def test_command_measures_and_tells(tmp_path, capsys):
    out, before = tmp_path / "grid.jsonl", torch.get_num_threads()
    name = grid.CELLS[0].name
    arguments = ["--cell", name, "--seeds", "1", "--threads", "1", "--out", str(out)]
    try:
        assert grid.main(arguments) == 0
    finally:
        torch.set_num_threads(before)
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    assert [line["contender"] for line in lines] == list(grid.CONTENDERS)
    for line in lines:
        assert line["accuracy"] > 0.99 and line["log_loss"] < 0.1 and line["missed"] == []
        assert line["machine"]["cpu"] and line["versions"]["torch"]
    assert name in capsys.readouterr().out
    header, row = whole_rows.grid_rows(lines)
    assert len(header) == len(row) and row[-1] == ""


def test_a_missed_criterion_is_the_exit_status(monkeypatch, capsys):
    worse = {name: 0.5 for name in GOOD}
    monkeypatch.setitem(grid.CONTENDERS, "ours", lambda data, seed: worse)
    assert grid.main(["--cell", "iris", "--seeds", "1", "--threads", "1"]) == 1
    assert "accuracy, balanced accuracy, log loss" in capsys.readouterr().out
