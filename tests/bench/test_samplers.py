"""Samplers' contenders answer as a float64 twin does, and what is wrong is not timed."""

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
from bench.problem.sizes import SAMPLER_SHAPES, Shape
from bench.report import page, suite_rows
from bench.suites import run, samplers

MLP = Shape("made-up", B=17, F=13, H=7, D=5, M=5, T=1, rows=40, timed=True)
SHAPES = {"mlp": MLP, "paper": replace(MLP, B=3, F=225, H=256, image=(1, 15, 15))}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(samplers, "STEPS", 40)
    monkeypatch.setattr(samplers, "PAIR_SECONDS", 0.0)


@pytest.mark.parametrize("net", SHAPES)
@pytest.mark.parametrize(
    "entry",
    samplers.SUITE.entries,
    ids=lambda entry: f"{entry.name}-{entry.make.keywords['maths']}",
)
def test_answers_are_the_twin_s(entry, net):
    # aot_eager traces the same functions without minutes of g++; `bench samplers` checks
    # inductor's
    torch.compiler.reset()
    more = {"backend": "aot_eager"} if entry.compiles else {}
    contender = entry.make(make_problem(SHAPES[net], seed=1), 1, **more)
    assert len(samplers.check_answers(contender)) == samplers.CHECK_CALLS
    first, second = (contender.steps(torch.zeros(1, 1)) for _ in range(2))
    assert first.shape == (SHAPES[net].B, 5)
    random = contender.maths == "ancestral" and entry.name != "ours"
    assert torch.equal(first, second) != random


class Noiseless(samplers.Rival):
    """Wrong: has no noise in its steps."""

    def answer(self, eps=None):
        return super().answer(torch.zeros(samplers.STEPS, self.shape.B, self.shape.D))


class Early(samplers.Rival):
    """Wrong: every step has the t of the one before."""

    def __init__(self, *arguments, **how):
        super().__init__(*arguments, **how)
        self.rows = [self.rows[0], *self.rows[:-1]]


@pytest.mark.parametrize(
    ("wrong", "maths"),
    [(Noiseless, "ancestral"), (Early, "ddim"), (Early, "ancestral"), (Early, "euler")],
)
def test_what_is_wrong_is_refused(wrong, maths):
    contender = wrong(make_problem(MLP, seed=1), 1, maths=maths)
    with pytest.raises(twin.Mismatch, match="the last z"):
        samplers.check_answers(contender)


def test_command_writes_lines_that_the_report_reads(tmp_path, monkeypatch, capsys):
    rates = {"peak_gflops": 9.0, "copy_gb_s": 1.0, "state_gb_s": 1.0}
    monkeypatch.setattr(host, "rates", lambda threads, state_bytes: rates)
    eager = [entry for entry in samplers.SUITE.entries if not entry.compiles]
    suite = replace(samplers.SUITE, shapes={"made-up": MLP}, entries=eager)
    out, before = tmp_path / "lines.jsonl", torch.get_num_threads()
    arguments = ["--threads", "1", "--rounds", "3", "--out", str(out)]
    try:
        assert run.run(suite, arguments) == 0
        lines = [json.loads(text) for text in out.read_text().splitlines()]
        found = [(line["contender"], line["maths"]) for line in lines]
        assert found == [(n, maths) for n in ("ours", "eager") for maths in samplers.SAMPLERS]
        for line in lines:
            assert (line["kind"], line["K"], line["evaluations"]) == ("samplers", 1, 40)
            assert line["flop_per_step"] == MLP.sampler_flop(40)
            assert ("first_ms" in line) == (line["contender"] == "ours")
        ours = lines[0]
        linear = ours["first_ms"] + 39 * ours["next_ms"]
        assert 0 < ours["over_linear"] * linear <= ours["ms_per_step"]  # of the shortest answer
        header, *rows = suite_rows.sampler_rows(lines)
        assert [row[1] for row in rows] == [*samplers.SAMPLERS]
        assert rows[0][header.index("over linear")] == f"{ours['over_linear']:.2f}"
        section = page.readme_section(lines)
        assert "`bench samplers`" in section and "Inference" not in section
        wrong = replace(suite, entries=samplers.each("eager", Early))
        assert run.run(wrong, arguments) == 1
        assert "not timed: bench.problem.twin.Mismatch" in capsys.readouterr().out
    finally:
        torch.set_num_threads(before)


def test_an_evaluation_more_is_the_difference(monkeypatch):
    times = {1: [7.0, 5.0, 6.0], 101: [55.0, 65.0, 56.0]}
    monkeypatch.setattr(samplers, "milliseconds", lambda contender, count: times[count].pop())
    contender = samplers.OursSampler(make_problem(MLP), 1, maths="ddim")
    assert samplers.linear_of(contender, 49.0) == {
        "first_ms": 5.0,
        "next_ms": 0.5,
        "over_linear": 49 / (5 + 39 * 0.5),
    }
    assert contender.evaluations == samplers.STEPS


def test_operations_of_an_answer():
    """Multiply-adds by hand: the encoder and its share of f once, no share of t."""
    small = SAMPLER_SHAPES["small_x128"]
    once, each = 784 * 256 + 256 * 256, 10 * 256 + 256 * 256 + 256 * 10
    assert small.sampler_flop(1000) == 2 * 128 * (once + 1000 * each)
    paper = SAMPLER_SHAPES["paper-mnist_x1"]
    live = 24 * 24 * 9 * 32 + 10 * 10 * 288 * 64 + 8 * 8 * 576 * 128
    once, each = live + 2048 * 256 + 256 * 256, 10 * 256 + 256 * 256 + 256 * 128 + 128 * 10
    assert paper.sampler_flop(2) == 2 * (once + 2 * each)
