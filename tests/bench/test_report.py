"""The runner times only what is right, and the report copies figures without bending them."""

import importlib.util
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)

from bench.contenders.contender import Contender
from bench.contenders.ours import OURS, OURS_ON_GPU
from bench.contenders.rivals import RIVALS
from bench.contenders.rivals.on_gpu import GPU_RIVALS
from bench.contenders.rivals.sequential import Sequential
from bench.machine import host
from bench.ops.cases import CONTENDERS
from bench.problem.sizes import SHAPES, Shape
from bench.report import lines as result_lines
from bench.report import page, tables
from bench.suites import rounds, run, scaling


def line(contender, ms, date="2026-01-01", maths="adamw", shape="small"):
    return {
        **{"contender": contender, "maths": maths, "shape": shape, "threads": 2, "K": 50},
        **{"ms_per_step": ms, "ms_q20": ms * 0.9, "ms_q80": ms * 1.1, "share_of_peak": 0.5},
        **{"compile_seconds": None, "memory_bytes": {"weights": 1, "optimizer": 2, "step": None}},
        **{"date": date, "machine": {"cpu": "a cpu", "cores": 2}, "peak_gflops": 100.0},
        **{"precision": "float32", "versions": {"torch": "2"}, "commit": "0123456789abcdef"},
    }


def write(path, lines):
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def test_latest_line_counts_and_the_ratio_is_to_the_best_rival(tmp_path):
    old = write(tmp_path / "old", [line("ours", 99.0), line("slow", 30.0)])
    new = write(tmp_path / "new", [line("ours", 10.0, "2026-02-01"), line("fast", 15.0)])
    lines = result_lines.read([new, old])
    table, lost = tables.headline(lines, "adamw")
    assert "| 10.00 (9.00 to 11.00) | 15.00 `fast` | **1.50** | 50% |" in table
    assert not lost and len(table.splitlines()) == 3
    low = write(tmp_path / "low", [line("ours", 5.0) | {"precision": "bfloat16"}])
    assert len(result_lines.read([old, low, new])) == 4  # another precision is another thing
    with_sgd = [*lines, line("baddbmm_sgd", 1.0, maths="sgd")]
    assert tables.headline(with_sgd, "adamw")[0] == table  # other maths is no rival


def test_ours_is_shown_in_both_ways_of_calling_it():
    lines = [line("ours", 10.0), line("ours_train_step", 12.0), line("fast", 15.0)]
    table, lost = tables.headline(lines, "adamw")
    assert "| `ours` | 10.00" in table and "| **1.50** |" in table
    assert "| `ours_train_step` | 12.00" in table and "| **1.25** |" in table
    assert not lost and len(table.splitlines()) == 4


def test_a_name_tells_whose_a_contender_is():
    names = {entry.name for entry in (*OURS, *OURS_ON_GPU)}
    assert all(map(result_lines.is_ours, names))
    assert not any(result_lines.is_ours(entry.name) for entry in (*RIVALS, *GPU_RIVALS))
    of_ops = {name for _, name in CONTENDERS}
    assert set(filter(result_lines.is_ours, of_ops)) == {"ours", "ours_module"}


def test_readme_says_where_we_lose_and_keeps_the_rest(tmp_path):
    results = write(tmp_path / "r", [line("ours", 20.0), line("fast", 15.0)])
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{page.BEGIN}\nstale\n{page.END}\nafter\n")
    assert page.main([str(results), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert "Slower than the best rival: `small` (`ours`, 2 threads, K = 50: 0.75)." in text
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale" not in text
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="bench:begin"):
        page.main([str(results), "--readme", str(readme)])
    assert readme.read_text() == "no markers"


def test_machines_of_one_name_are_apart_by_their_folders(tmp_path):
    for folder, ms in (("old", 20.0), ("new", 5.0)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "lines", [line("ours", ms), line("fast", 30.0)])
    lines = result_lines.read(sorted(tmp_path.glob("*/lines*")))
    section = page.readme_section(lines)
    assert len(lines) == 4 and section.count("Ratio: the best rival's time over ours.") == 2
    new, old = section.split("**old**: ")
    assert new.startswith("**new**: ") and "5.00" in new and "20.00" not in new
    assert "20.00" in old


def test_other_kinds_and_precisions_are_no_rivals():
    plain = [line("ours", 10.0), line("fast", 15.0)]
    table = tables.headline(plain, "adamw")[0]
    low = [each | {"precision": "bfloat16", "ms_per_step": 5.0} for each in plain]
    part = line("fast", 1.0, maths="forward") | {"kind": "parts", "share_of_copy": 0.25}
    part |= {"share_of_peak": 0.75}
    scaled = line("fast", 1.0) | {"kind": "scaling", "flop_per_step": 10**9, "state_gb_s": 50.0}
    beside = line("sequential", 7.0) | {"kind": "neighbour", "busy_ms_per_step": 9.0}
    beside |= {"slowdown": 1.25, "slowdown_q20": 1.125, "slowdown_q80": 1.5, "ideal_slowdown": 1.3}
    more = [*low, part, part | {"contender": "ours", "ms_per_step": 2.0}, scaled, beside]
    section = page.readme_section([*plain, *more])
    assert table in section and "AdamW, bfloat16:" in section
    assert "| small | 2 | forward | ours | 2.00 (0.9000 to 1.10) | 1.00 fast | 0.50 |" in section
    assert "| small | sequential | 50 | 7.00 | 9.00 | 1.25 (1.12 to 1.50) | 1.30 |" in section
    assert "| small | 50 | 1.00 | 10.00 |  |" in section


def test_what_failed_is_told_with_its_shapes():
    error = {"error": "ValueError: no such thing\n\nand more"}
    lines = [line("slow", 1.0, shape=shape) | error for shape in ("tiny", "small")]
    said = ["`slow` was not timed at `tiny`, `small`: ValueError: no such thing"]
    assert page.failures([*lines, line("ours", 1.0)]) == said


def test_what_is_aimed_at_stands_beside_what_was_measured():
    rates = {"flop_per_step": 10**9, "state_gb_s": 1e-3}  # 10 ms of products, 6 ms of traffic
    ours, best = (line(*each) | rates for each in (("ours", 20.0), ("fast", 24.0)))
    ours |= {"memory_bytes": {"weights": 1000, "optimizer": 2000, "step": None}}
    short = [each | {"K": 1, "ms_per_step": 1.0} for each in (ours, best)]
    low = [each | {"precision": "bfloat16", "ms_per_step": 1.0} for each in (ours, best)]
    _, *rows = tables.target_rows([*short, ours, best, *low])
    assert rows == [("`small`", "50", "1.20", "1.50", "50%", "85%", "62%")]


@pytest.mark.parametrize("K, least, steps", [(1, 0, 11), (5, 0, 6), (1, 0.2, 68), (5, 0.2, 71)])
def test_sample_is_milliseconds_a_step(monkeypatch, K, least, steps):
    clock = 0.0  # the first step warms up; the others take at least `least` seconds

    class Slow(Contender):
        def __init__(self):
            pass

        def steps(self, indices, eps=None):
            nonlocal clock
            clock += 0.003 * len(indices)
            return indices

    monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=lambda: clock))
    assert rounds.sample(Slow(), torch.zeros(K, 2), least) == pytest.approx(3.0)
    assert round(clock / 0.003) == steps


def test_scaling_tells_the_floor(tmp_path, monkeypatch, capsys):
    rates = {"peak_gflops": 100.0, "copy_gb_s": 10.0, "state_gb_s": 10.0}
    monkeypatch.setattr(host, "rates", lambda threads, state_bytes: rates)
    monkeypatch.setattr(host, "cores", lambda: 1)
    shape = Shape("made-up", B=12, F=13, H=7, D=5, M=5, T=3, rows=40)
    eager = [entry for entry in scaling.SUITE.entries if not entry.compiles]
    suite = replace(scaling.SUITE, shapes={"made-up": shape}, entries=eager)
    out, before = tmp_path / "lines.jsonl", torch.get_num_threads()
    try:
        assert run.run(suite, ["--rounds", "3", "--out", str(out)]) == 0
    finally:
        torch.set_num_threads(before)
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    assert [(each["contender"], each["kind"], each["K"]) for each in lines] == [
        ("ours", "scaling", 20),
        ("stacked_shared", "scaling", 20),
    ]
    floor = shape.flop / 100e6 + 24 * shape.parameters / 10e6
    assert result_lines.floor_ms(lines[0]) == pytest.approx(floor)
    assert f"{floor:.4f}" in capsys.readouterr().out


def test_shares_are_of_the_highest_peak():
    busy, idle = line("ours", 10.0), line("fast", 15.0) | {"peak_gflops": 200.0}
    section = page.readme_section([busy, idle])
    assert "200 GF/s on 2" in section and "| **1.50** | 25% |" in section


class Lazy(Sequential):
    """Wrong: leaves the last block alone."""

    def steps(self, indices, eps=None):
        losses = super().steps(indices, eps)
        with torch.no_grad():
            for param, start in zip(
                self.blocks[-1].parameters(), self.problem.weights.values(), strict=True
            ):
                param.copy_(start[-1])
        return losses


def test_runner_times_what_is_right_and_refuses_what_is_wrong(tmp_path, monkeypatch):
    shape = Shape("made-up", B=12, F=13, H=7, D=5, M=5, T=3, rows=40)
    monkeypatch.setitem(SHAPES, "made-up", shape)
    monkeypatch.setattr(host, "peak_gflops", lambda threads: 100.0)
    monkeypatch.setattr(host, "copy_gb_s", lambda threads, size: 10.0)
    out = tmp_path / "lines.jsonl"
    names = ["--contender", "ours", "ours_train_step", "sequential"]
    common = ["--shape", "made-up", "--threads", "1", "--K", "1", "4", "--rounds", "3"]
    before = torch.get_num_threads()
    try:
        assert run.main([*common, *names, "--out", str(out)]) == 0
        lines = [json.loads(text) for text in out.read_text().splitlines()]
        got = [(each["contender"], each["K"], each["rounds"]) for each in lines]
        assert got == [
            *(("ours", 1, 3), ("ours", 4, 3), ("ours_train_step", 1, 3)),
            *(("sequential", 1, 3), ("sequential", 4, 3)),
        ]
        for each in lines:
            assert each["ms_q20"] <= each["ms_per_step"] <= each["ms_q80"]
            rate = shape.flop / (each["ms_per_step"] * 1e6)
            assert each["share_of_peak"] == pytest.approx(rate / 100)
        # all of a block's gradients and one step's activations at least
        assert lines[3]["memory_bytes"]["step"] > 4 * shape.parameters / shape.T

        wrong = replace(run.TRAINING, entries=(*run.OURS, run.Entry("sequential", Lazy)))
        monkeypatch.setattr(run, "TRAINING", wrong)
        out.unlink()
        assert run.main([*common, *names, "--out", str(out)]) == 1
        lines = [json.loads(text) for text in out.read_text().splitlines()]
        assert [each["contender"] for each in result_lines.timed(lines)] == [
            "ours",
            "ours",
            "ours_train_step",
        ]
        assert "Mismatch" in next(each["error"] for each in lines if "error" in each)
    finally:
        torch.set_num_threads(before)
