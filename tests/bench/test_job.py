"""The whole job: the trainer's own calls, and a rival from the same weights, learn alike."""

import importlib.util

import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)
if not all(map(importlib.util.find_spec, ("sklearn", "typer", "rich"))):
    pytest.skip("the trainer needs its extra", allow_module_level=True)

from bench.report import whole_rows
from bench.whole import job
from noprop import data
from noprop.settings import Settings

SETTINGS = Settings(
    data="digits", head="paper", epochs=3, hidden=64, T=3, lr=1e-2, weight_decay=1e-3
)


@pytest.fixture(scope="module")
def measured():
    before = torch.get_num_threads()
    try:
        # aot_eager traces the same functions without minutes of g++
        yield job.measure(data.load("digits"), SETTINGS, 1, target=0.3, backend="aot_eager")
    finally:
        torch.set_num_threads(before)


def test_both_networks_learn(measured):
    ours, alone, rival = measured
    assert [line["contender"] for line in measured] == ["ours", "train_steps", "step_compiled"]
    for line in (ours, rival):
        assert len(line["epoch_seconds"]) == len(line["accuracy"]) == 3
        assert line["accuracy"][-1] > 0.6
        reached = line["target_epochs"]
        assert line["accuracy"][reached - 1] >= 0.3
        assert all(value < 0.3 for value in line["accuracy"][: reached - 1])
        assert line["target_seconds"] == pytest.approx(sum(line["epoch_seconds"][:reached]))
    assert abs(ours["accuracy"][-1] - rival["accuracy"][-1]) < 0.15
    ratios = sorted(
        a / b for a, b in zip(ours["epoch_seconds"], alone["epoch_seconds"], strict=True)
    )
    assert ours["added"] == pytest.approx(ratios[1] - 1)
    assert 0 < ours["head_seconds"] and 0 <= ours["display_seconds"] < ours["seconds_per_epoch"]
    header, *rows = whole_rows.job_rows(measured)
    assert [row[1] for row in rows] == ["ours", "train_steps", "step_compiled"]
    assert all(len(row) == len(header) for row in rows)


def test_trainer_that_trains_otherwise_than_its_calls_is_refused(monkeypatch):
    class Late(job.TrainSteps):
        def epoch(self, number, calls):
            return super().epoch(number + 1, calls)

    monkeypatch.setattr(job, "TrainSteps", Late)
    before = torch.get_num_threads()
    try:
        with pytest.raises(job.Mismatch, match="other weights"):
            job.measure(data.load("digits"), SETTINGS, 1, target=0.3, backend="aot_eager")
    finally:
        torch.set_num_threads(before)


def test_accuracy_is_that_of_the_last_z():
    content = data.load("digits")
    model = job.build(SETTINGS, content, job.Split.of(content, 0.0), None)
    problem = job.problem_of(model, content, SETTINGS)
    x, y = model.features(content.x_test), content.y_test
    got = job.accuracy(problem, job.parameters(model), x, y)
    z = model.blocks.predict(x, noise=False).z[0, 0]
    want = (z.argmax(1) == y).double().mean().item()
    assert abs(got - want) < 0.01  # a row between two classes may fall on either side
    shares = [
        job.accuracy(problem, job.parameters(model), x, torch.full_like(y, label))
        for label in range(10)
    ]
    assert sum(shares) == pytest.approx(1.0)  # every row has one answer
