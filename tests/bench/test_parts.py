"""The parts of a step are right before they are timed, and what is wrong is refused."""

import importlib.util
import json
from dataclasses import replace
from functools import partial

import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)

from bench.contenders.contender import Entry
from bench.contenders.rivals.stacked import join
from bench.machine import host
from bench.parts import suite as parts
from bench.parts.check import CHECK_CALLS, check_part
from bench.problem import twin
from bench.problem.problem import make_problem
from bench.problem.sizes import Shape
from bench.report import tables
from bench.suites.run import run

SHAPE = Shape("made-up", B=12, F=13, H=7, D=5, M=5, T=3, rows=40)
IDS = [f"{entry.make.keywords['part']}-{entry.name}" for entry in parts.SUITE.entries]


@pytest.mark.parametrize("entry", parts.SUITE.entries, ids=IDS)
def test_part_is_what_float64_says(entry):
    # aot_eager traces the same functions without minutes of g++; `bench parts` checks inductor's
    more = {"backend": "aot_eager"} if entry.compiles else {}
    problem = make_problem(SHAPE, seed=1, lr=1e-2, weight_decay=0.5)
    contender = entry.make(problem, 1, **more)
    assert len(check_part(contender)) == CHECK_CALLS
    bent = contender.once

    def once():
        return {name: value * 1.2 for name, value in bent().items()}

    contender.once = once
    if contender.maths in ("draw", "noise"):
        once = lambda: {name: value * 3 for name, value in bent().items()}  # noqa: E731
        contender.once = once
    with pytest.raises(twin.Mismatch):
        check_part(contender)


@pytest.mark.parametrize("part", ["update", "backward_update"])
def test_weights_end_alike_after_many_updates(part):
    problem = make_problem(SHAPE, seed=1, lr=1e-2, weight_decay=0.5)
    ends = {}
    for name, make in parts.PARTS[part].items():
        more = {"backend": "aot_eager"} if name == "compiled" else {}
        contender = parts.Part(problem, 1, part=part, make=make, **more)
        contender.steps(torch.zeros(5, 1))
        end = {key: value.detach().clone() for key, value in contender.once().items()}
        ends[name] = join(end) if "f.x" in end else end
    first, *others = ends.values()
    for other in others:
        for name, value in first.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_flop_and_bytes_of_the_parts():
    problem = make_problem(SHAPE)
    made = {
        part: parts.Part(problem, 1, part=part, make=next(iter(makers.values())))
        for part, makers in parts.PARTS.items()
    }
    assert made["forward"].flop() + made["backward_update"].flop() == SHAPE.flop
    assert made["update"].traffic() == 28 * SHAPE.parameters
    assert made["backward_update"].traffic() == 2 * SHAPE.state_bytes
    assert made["draw"].flop() == made["draw"].traffic() == 0


def test_command_writes_a_table_of_each_part(tmp_path, monkeypatch, capsys):
    rates = {"peak_gflops": 9.0, "copy_gb_s": 1.0, "state_gb_s": 1.0}
    monkeypatch.setattr(host, "rates", lambda threads, state_bytes: rates)
    monkeypatch.setattr(host, "peak_gflops", lambda threads: 9.0)
    eager = [entry for entry in parts.SUITE.entries if not entry.compiles]
    suite = replace(parts.SUITE, shapes={"made-up": SHAPE}, entries=eager)
    out, before = tmp_path / "lines.jsonl", torch.get_num_threads()
    try:
        arguments = ["--threads", "1", "--rounds", "3", "--out", str(out)]
        assert run(suite, arguments) == 0
        lines = [json.loads(text) for text in out.read_text().splitlines()]
        header, *rows = tables.parts_rows(lines)
        assert [row[2] for row in rows] == [
            part for part in parts.PARTS for _ in range(2 if part == "update" else 1)
        ]
        assert all(len(row) == len(header) for row in rows)

        def zeros(given):
            return lambda: {"logits": torch.zeros_like(given.logits)}

        wrong = [Entry("ours", partial(parts.Part, part="forward", make=zeros))]
        assert run(replace(suite, entries=wrong), arguments) == 1
        assert "not timed: bench.problem.twin.Mismatch: logits" in capsys.readouterr().out
    finally:
        torch.set_num_threads(before)
