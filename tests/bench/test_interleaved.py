"""Steps between torch operations are the float64 twin's, through an encoder too."""

import importlib.util
from dataclasses import replace

import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)

from bench.machine import host
from bench.problem import twin
from bench.problem.problem import make_problem
from bench.problem.sizes import Shape
from bench.suites import check, interleaved, run

SHAPE = Shape("made-up", B=12, F=13, H=7, D=5, M=5, T=3, rows=40)


@pytest.mark.parametrize("entry", interleaved.SUITE.entries, ids=lambda entry: entry.name)
def test_steps_are_the_twins(entry):
    contender = entry.make(make_problem(SHAPE, seed=1, lr=1e-2, weight_decay=0.5), 1)
    assert len(check.check_steps(contender)) == check.CHECK_STEPS
    encoded = contender.maths == "encoded"
    assert ("encoder.weight" in contender.weights()) == encoded == (contender.flop() > SHAPE.flop)


def test_an_encoder_that_is_not_trained_is_wrong(monkeypatch):
    problem = make_problem(SHAPE, seed=1)
    contender = interleaved.OursEncoded(problem, 1)
    monkeypatch.setattr(contender.encoder_optimizer, "step", lambda: None)
    with pytest.raises(twin.Mismatch):
        check.check_steps(contender)


def test_command_prints_a_line_for_each_contender(monkeypatch, capsys):
    rates = {"peak_gflops": 9.0, "copy_gb_s": 1.0, "state_gb_s": 1.0}
    monkeypatch.setattr(host, "rates", lambda threads, state_bytes: rates)
    before = torch.get_num_threads()
    try:
        suite = replace(interleaved.SUITE, shapes={"made-up": SHAPE})
        assert run.run(suite, ["--threads", "1", "--rounds", "3"]) == 0
    finally:
        torch.set_num_threads(before)
    said = capsys.readouterr().out
    assert all(f"{entry.name} " in said for entry in suite.entries)
