"""Inference contenders answer as a float64 twin does, and what is wrong is not timed."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)

from bench.machine import host
from bench.problem import twin
from bench.problem.problem import make_problem
from bench.problem.sizes import INFERENCE_SHAPES, SHAPES, Shape
from bench.report import page
from bench.suites import infer, run

SHAPE = Shape("made-up", B=12, F=13, H=7, D=5, M=5, T=3, rows=40)


@pytest.mark.parametrize("entry", infer.INFERENCE.entries, ids=lambda entry: entry.name)
def test_answers_are_the_twins(entry):
    # aot_eager traces the same functions without minutes of g++; `bench infer` checks inductor's
    more = {"backend": "aot_eager"} if entry.compiles else {}
    contender = entry.make(make_problem(SHAPE, seed=1), 1, **more)
    assert len(infer.check_answers(contender)) == infer.CHECK_CALLS
    z_T = contender.steps(torch.zeros(1, 1))
    assert z_T.shape == (12, 5)
    assert contender.flop() == SHAPE.forward_flop and contender.traffic() == 4 * SHAPE.parameters
    with pytest.raises(twin.Mismatch, match="z_T differs"):
        twin.check_chain(contender.problem, contender.x, contender.z_0, z_T + 2e-4)
    with pytest.raises(twin.Mismatch):
        twin.check_chain(contender.problem, contender.x, contender.z_0 + 1, z_T)


class Short(infer.Modules):
    """Wrong: leaves the last block out."""

    def forward(self, x, z):
        self.blocks = self.blocks[:-1]
        self.a, self.b = self.a[: len(self.blocks)], self.b[: len(self.blocks)]
        return super().forward(x, z)


def test_command_writes_lines_that_the_report_reads(tmp_path, monkeypatch, capsys):
    shapes = {"made-up": SHAPE}
    rates = {"peak_gflops": 9.0, "copy_gb_s": 1.0, "state_gb_s": 1.0}
    monkeypatch.setattr(host, "rates", lambda threads, state_bytes: rates)
    monkeypatch.setattr(host, "peak_gflops", lambda threads: 9.0)
    eager = tuple(entry for entry in infer.INFERENCE.entries if not entry.compiles)
    suite = replace(infer.INFERENCE, shapes=shapes, entries=eager)
    out, before = tmp_path / "lines.jsonl", torch.get_num_threads()
    arguments = ["--threads", "1", "--rounds", "3", "--out", str(out)]
    try:
        assert run.run(suite, arguments) == 0
        lines = [json.loads(text) for text in out.read_text().splitlines()]
        assert [line["contender"] for line in lines] == ["ours", "modules", "stacked"]
        assert {(line["maths"], line["K"]) for line in lines} == {("inference", 1)}
        section = page.readme_section(lines)
        assert "Inference" in section and "`made-up`" in section and "AdamW" not in section
        wrong = replace(suite, entries=(infer.rival("modules", Short),))
        assert run.run(wrong, arguments) == 1
        assert "not timed: bench.problem.twin.Mismatch" in capsys.readouterr().out
    finally:
        torch.set_num_threads(before)


def test_flop_of_one_row():
    shape = INFERENCE_SHAPES["small_x1"]
    assert shape.forward_flop == 2 * 10 * (784 * 256 + 10 * 256 + 512 * 256 + 256 * 10)
    assert shape.B == 1 and replace(shape, name="small", B=128) == SHAPES["small"]
