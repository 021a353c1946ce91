"""Trainers are checked before they are timed, and what is wrong is refused."""

import importlib.util
import json

import pytest
import torch
from torch import nn

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)

from bench.in_backward import suite
from bench.in_backward.check import Mismatch, check_first_step, check_losses
from bench.in_backward.models import Task
from bench.in_backward.trainers import TRAINERS, Ours, Trainer, gap


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 12, generator=generator)
    build = lambda: nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 5))  # noqa: E731
    return Task("made-up", build, x, torch.randint(5, (64,), generator=generator), 8)


@pytest.mark.parametrize("name", [name for name in TRAINERS if not TRAINERS[name].compiles])
def test_trainers_do_what_torch_does(given, name):
    if reason := gap(name):
        pytest.skip(reason)
    check_first_step(given, TRAINERS[name])
    assert "after 8 steps" in check_losses(given, TRAINERS[name], steps=8)


def test_a_wrong_trainer_is_refused(given):
    class Wrong(Ours):
        def prepare(self):
            super().prepare()
            self.optimizer.param_groups[0]["lr"] *= 1.01

    for check in (check_first_step, lambda *given: check_losses(*given, steps=8)):
        with pytest.raises(Mismatch, match="made-up"):
            check(given, Wrong)


def test_command_writes_lines_and_a_table(given, tmp_path, monkeypatch, capsys):
    class Wrong(Trainer):
        def step(self, rows):
            return super().step(rows[:4])

    monkeypatch.setattr(suite, "TASKS", ("made-up",))
    monkeypatch.setattr(suite, "task", lambda name: given)
    monkeypatch.setattr(suite, "measure_apart", lambda *request: 2**21)
    monkeypatch.setattr(suite, "gap", lambda name: "not here" if name == "optimi" else None)
    monkeypatch.setitem(TRAINERS, "hooks", Wrong)
    names = ("ours", "eager_fused", "hooks", "optimi")
    options = ["--rounds", "3", "--steps", "8", "--threads", "1", "--contender", *names]
    assert suite.main([*options, "--out", str(tmp_path / "out.jsonl")]) == 1
    lines = [json.loads(text) for text in (tmp_path / "out.jsonl").read_text().splitlines()]
    by_name = {line["contender"]: line for line in lines}
    assert "Mismatch" in by_name["hooks"]["error"] and "not here" in by_name["optimi"]["error"]
    for name in names[:2]:
        assert by_name[name]["kind"] == "in_backward" and by_name[name]["rounds"] == 3
        assert by_name[name]["memory_bytes"] == {"rss_growth": 2**21}
    said = capsys.readouterr().out
    assert "2.0" in said and "optimi: not timed" in said
