"""The effect of the denoising: three losses on one network; each learns, and they differ."""

import importlib.util

import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)
if not all(map(importlib.util.find_spec, ("sklearn", "typer", "rich"))):
    pytest.skip("the trainer needs its extra", allow_module_level=True)

from bench.report import whole_rows
from bench.whole import local
from noprop import data
from noprop.settings import Settings
from noprop_kernels import NoiseSchedule

SETTINGS = Settings(data="digits", epochs=4, hidden=64, T=3, lr=1e-2, weight_decay=1e-3)


def test_all_three_learn_and_are_told():
    before = torch.get_num_threads()
    try:
        lines = local.measure(data.load("digits"), SETTINGS, 1)
    finally:
        torch.set_num_threads(before)
    assert [line["contender"] for line in lines] == list(local.GOALS)
    for line in lines:
        assert len(line["accuracy_per_block"]) == 3
        assert line["accuracy_per_block"][0] > 0.7
        assert (line["accuracy_of_mean"] is None) == (line["contender"] != "classifier")
    alone, mean = lines[2]["accuracy_per_block"], lines[2]["accuracy_of_mean"]
    assert mean[0] == alone[0] and min(alone) > 0.7  # no block depends on another
    assert lines[0]["accuracy_per_block"] != lines[1]["accuracy_per_block"]
    header, *rows = whole_rows.local_rows(lines)
    assert [row[1] for row in rows] == [*local.GOALS, "classifier, mean of 1 to t"]
    assert all(len(row) == len(header) for row in rows)


def test_the_classifier_reads_no_embedding():
    t = torch.arange(1, 4)
    schedule = NoiseSchedule.cosine(T=3)
    goals = [goal(schedule) for goal in (local.CrossEntropy, local.Classifier)]
    assert [goal.head for goal in goals] == ["cross_entropy"] * 2
    noisy, blind = (goal.levels(t) for goal in goals)
    assert noisy.signal.any() and noisy.noise.any()
    assert not blind.signal.any() and not blind.noise.any()
    assert torch.equal(blind.weight, torch.ones(3))
