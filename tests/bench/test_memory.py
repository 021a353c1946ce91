"""Memory is measured in a process of its own, where what a contender keeps shows."""

import importlib.util
import json
import sys

import pytest

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)
if sys.platform != "linux":
    pytest.skip("the peak is read from /proc", allow_module_level=True)

from bench.memory import cpu as memory
from bench.problem.problem import make_problem
from bench.problem.sizes import SHAPES, Shape
from bench.report.lines import timed
from bench.report.suite_rows import memory_rows

SHAPE = Shape("made-up", B=16, F=512, H=512, D=10, M=10, T=4, rows=64)  # 12.3 MB of weights
WEIGHTS = 4 * SHAPE.parameters


@pytest.fixture(scope="module")
def measured():
    """The smaller peak of two: what else the process holds for a moment only adds to it."""

    def smaller(name: str) -> dict:
        lines = [memory.measure_apart(name, SHAPE, 1) for _ in range(2)]
        return min(lines, key=lambda line: line["memory_bytes"]["rss_growth"])

    return {name: smaller(name) for name in ("sequential", "end_to_end")}


def test_peak_holds_the_parts_and_gradients_show(measured):
    for line in measured.values():
        parts = line["memory_bytes"]
        assert parts["weights"] == WEIGHTS and parts["optimizer"] == 2 * WEIGHTS
        named = sum(value for name, value in parts.items() if name != "rss_growth")
        assert 0.9 * named < parts["rss_growth"] < 1.3 * named + 8e6
        assert line["ms_per_step"] > 0
    one, all_ = (measured[name]["memory_bytes"] for name in ("sequential", "end_to_end"))
    assert all_["gradients"] == WEIGHTS == 4 * one["gradients"]
    # three blocks' gradients more, at the very peak
    assert all_["rss_growth"] - one["rss_growth"] > 0.5 * (all_["gradients"] - one["gradients"])


def test_ours_tells_its_own_tensors():
    contender = memory.ENTRIES["ours"].make(make_problem(SHAPE), 1)
    resident = contender.resident()
    assert (resident["weights"], resident["optimizer"]) == (WEIGHTS, 2 * WEIGHTS)
    assert contender.traffic() == 2 * SHAPE.state_bytes
    # seeds, draws, updates and t in int64
    assert resident["counters"] == SHAPE.T * 4 * 8


def test_command_writes_lines_and_a_table(measured, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SHAPES, "made-up", SHAPE)
    asked = []

    def answer(name, shape, threads):
        asked.append((name, shape.name, threads))
        if name == "ours":
            raise RuntimeError("no room")
        return measured[name]

    monkeypatch.setattr(memory, "measure_apart", answer)
    out = tmp_path / "lines.jsonl"
    arguments = ["--shape", "made-up", "--threads", "1", "--out", str(out), "--contender"]
    assert memory.main([*arguments, "sequential", "end_to_end"]) == 0
    assert memory.main([*arguments, "ours"]) == 1
    assert asked == [(n, "made-up", 1) for n in ("sequential", "end_to_end", "ours")]
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    assert [line.get("error") for line in lines] == [None, None, "RuntimeError: no room"]
    assert not timed(lines)  # alone in its process: no rival to the lines of `bench run`
    printed = capsys.readouterr().out
    assert f"{WEIGHTS / 2**20:.1f}" in printed and "ours: not measured" in printed
    assert len(memory_rows(lines)) == 3


def test_what_fails_says_why():
    with pytest.raises(RuntimeError, match="KeyError: 'nobody'"):
        memory.measure_apart("nobody", SHAPE, 1)
