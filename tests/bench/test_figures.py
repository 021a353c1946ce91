"""Pictures show what the lines say, and the floor is the sum of its two parts."""

import importlib.util
import json

import pytest

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)

from bench.problem.sizes import SCALES, SCALING_SHAPES, SHAPES, scaled
from bench.report import figures, lines, suite_rows


def line(contender, ms, shape, kind=None, K=20):
    parameters = {**SHAPES, **SCALING_SHAPES}[shape].parameters
    sizes = {"weights": 4 * parameters, "optimizer": 8 * parameters, "step": None}
    return {
        **{"contender": contender, "maths": "adamw", "shape": shape, "threads": 2, "K": K},
        **{"ms_per_step": ms, "ms_q20": ms, "ms_q80": ms, "share_of_peak": 0.5},
        **{"memory_bytes": sizes, "flop_per_step": 10**9, "date": "2026-01-01"},
        **{"peak_gflops": 100.0, "copy_gb_s": 10.0, "state_gb_s": 50.0, "precision": "float32"},
        **{"machine": {"cpu": "a cpu", "cores": 2}, **({"kind": kind} if kind else {})},
    }


def test_floor_is_products_at_the_peak_and_24_bytes_a_parameter():
    small = line("ours", 9.0, "small")
    traffic = 24 * SHAPES["small"].parameters
    assert lines.traffic(small) == traffic == 2 * SHAPES["small"].state_bytes
    assert lines.floor_ms(small) == pytest.approx(10 + traffic / 50e9 * 1e3)
    rows = suite_rows.scaling_rows([line("ours", 30.0, "small", "scaling")])
    assert rows[1][-1] == f"{30 / lines.floor_ms(small):.2f}"


def test_scaling_shapes_differ_from_small_in_one_size():
    assert len(SCALING_SHAPES) == sum(map(len, SCALES.values())) - 2  # small is in all three
    for axis, values in SCALES.items():
        shapes = [scaled(axis, value) for value in values]
        assert [getattr(shape, axis) for shape in shapes] == list(values)
        assert SHAPES["small"] in shapes


def test_scaling_figure_has_a_curve_for_each_contender_and_the_floor():
    every = [
        line(name, 1.0 + i, shape, "scaling")
        for i, name in enumerate(("ours", "step_compiled"))
        for shape in SCALING_SHAPES
    ]
    figure = figures.draw_scaling(every)
    for axes, (axis, values) in zip(figure.axes, SCALES.items(), strict=True):
        curves = {curve.get_label(): curve for curve in axes.lines}
        assert curves.keys() == {"ours", "step_compiled", "floor"}
        assert list(curves["ours"].get_xdata()) == list(values)
        assert set(curves["step_compiled"].get_ydata()) == {2.0}
        assert axes.get_xlabel() == axis
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_roofline_point_is_rate_over_intensity():
    figure = figures.draw_roofline([line("ours", 20.0, "small"), line("fast", 40.0, "small")])
    roof = figure.axes[0]
    points = {curve.get_ydata()[0]: curve.get_xdata()[0] for curve in roof.lines[-2:]}
    intensity = 1e9 / (24 * SHAPES["small"].parameters)
    assert points == pytest.approx({50.0: intensity, 25.0: intensity})
    memory = max(zip(*roof.lines[0].get_data(), strict=True))
    assert memory[1] == 100.0  # the roof ends at the peak


def test_command_writes_what_it_has_lines_for(tmp_path):
    out = tmp_path / "pictures"
    file = tmp_path / "lines.jsonl"
    some = [line("ours", 9.0, "small"), line("fast", 12.0, "small")]
    file.write_text("".join(json.dumps(each) + "\n" for each in some))
    assert figures.main([str(file), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["cpu.png", "roofline.png"]
