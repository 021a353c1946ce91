"""Curves: effective rows as derived and as drawn, gradients of rows, and a line of each case."""

import importlib.util
import json

import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)
if not all(map(importlib.util.find_spec, ("typer", "rich"))):
    pytest.skip("the trainer needs its extra", allow_module_level=True)

import noprop_kernels as nk
from bench.report import curve_rows, figures, lines
from bench.whole import curves, row_gradients

B = 128
LINEAR = [
    nk.CT(nk.Gamma.linear(*ends), weight=weight)
    for ends in ((-3, 6), (-1, 4), (1, 2))
    for weight in ("snr", "uniform", ("min-snr", 1), ("min-snr", 5), ("min-snr", 0.01))
]


@pytest.mark.parametrize("goal", [*LINEAR, nk.FM()], ids=repr)
def test_closed_form_of_effective_rows_is_the_drawn_one(goal):
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    weights = goal.levels(t).weight.double()
    assert row_gradients.effective_rows(goal, B) == pytest.approx(
        row_gradients.drawn_rows(weights, B), rel=1e-5
    )


def test_effective_rows_of_the_papers_weight_follow_from_the_range_of_gamma():
    expected = B * 2 / 9 * torch.tanh(torch.tensor(4.5)).item()
    assert row_gradients.effective_rows(nk.CT(), B) == pytest.approx(expected)
    bent = nk.CT(nk.Gamma(torch.tensor([6.0, 0.0, -3.0])))
    assert row_gradients.effective_rows(bent, B) is None
    assert row_gradients.effective_rows(nk.CT(nk.GammaNetwork(hidden=4)), B) is None


def test_shares_of_the_weight_are_integrals_of_snr():
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    found = torch.tensor(row_gradients.shares(t, nk.CT().levels(t).weight.double()))
    snr = torch.linspace(-6, 3, 11, dtype=torch.float64).exp()
    expected = snr.diff() / (snr[-1] - snr[0])
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-7)


def test_row_gradients_are_those_of_a_step():
    """Of one row, whose mean is itself: the norm that blocks.gradients gives."""
    goal = nk.CT(weight="uniform")
    plan = nk.plans.mlp(5, 3, 3, 8, time=True)
    blocks = nk.DenoisingBlocks(plan, goal, seed=[3, 4])
    x, y, captured = torch.randn(1, 5), torch.tensor([2]), []

    def step(means, lengths):
        captured.append((means, lengths))
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_gradients, "summary", step)
        t, eps = blocks.times(1)[1], torch.randn(1, 3)
        z = blocks.add_noise(y)[1]
        levels = goal.levels(t)
        eps = (z - levels.signal[:, None] * torch.eye(3)[y]) / levels.noise[:, None]
        patch.setattr(row_gradients, "draws", lambda *_: (t, eps))
        row_gradients.row_gradients(blocks, goal, x, y, replica=1, probes=1)
    ((means, lengths),) = captured
    norm = blocks.gradients(x, y).norm()[1].double()
    torch.testing.assert_close(lengths[0, 0], norm, rtol=1e-4, atol=0)
    torch.testing.assert_close(means.norm(dim=1), norm.expand(10), rtol=1e-4, atol=0)


def test_summary_parts_the_variance_of_known_gradients():
    """Gradients of known mean by tenth, and noise of deviation 2 in each of 40 directions."""
    draw = torch.Generator().manual_seed(0)
    mean = torch.zeros(10, 40, dtype=torch.float64)
    mean[:, 0] = 3
    mean[:, 1] = torch.tensor([-5.0, 5.0] * 5)
    rows = mean[:, None] + 2 * torch.randn(10, 2000, 40, generator=draw, dtype=torch.float64)
    found = row_gradients.summary(rows.mean(1), rows.norm(dim=-1))
    assert found["squared_mean"] == pytest.approx(9, rel=0.02)
    assert found["between_tenths"] == pytest.approx(25, rel=0.02)
    assert found["variance"] == pytest.approx(25 + 4 * 40, rel=0.02)
    assert found["share"] == pytest.approx([0.1] * 10, rel=0.02)
    both = row_gradients.mean_of([found, found])
    assert both["noise_scale"] == pytest.approx(185 / 9, rel=0.04)
    assert both["stratified_off"] == pytest.approx(25 / 185, rel=0.04)


def test_ceiling_is_how_often_z_1_is_nearest_to_its_label():
    last, draw = nk.CT().last(), torch.Generator().manual_seed(0)
    z = last.noise * torch.randn(200_000, 10, generator=draw)
    z[:, 0] += last.signal
    share = (z.argmax(1) == 0).double().mean().item()
    said = float(curve_rows.ceiling({"gamma": [6.0, -3.0]}).rstrip("%")) / 100
    assert said == pytest.approx(share, abs=1e-3)
    assert curve_rows.ceiling({"gamma": []}) == ""


def test_fixed_ends_stay_and_free_ones_move():
    moved = {}
    for fixed in (False, True):
        case = curves.Case("one", curves.learned("snr"), fixed_ends=fixed)
        trained = curves.Trained(case, 5, 3, 2)
        first = trained.ends()
        trained.step(torch.randn(8, 5), torch.randint(3, (8,)), 1e-2)
        moved[fixed] = trained.ends() != first
    assert moved == {False: True, True: False}


def test_quick_command_writes_a_line_of_each_case(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out, before = tmp_path / "curves.jsonl", torch.get_num_threads()
    try:
        assert curves.main(["--quick", "--threads", "1", "--out", str(out)]) == 0
    finally:
        torch.set_num_threads(before)
    found = [json.loads(text) for text in out.read_text().splitlines()]
    assert [line["shape"] for line in found] == [case.name for case in curves.CASES]
    for line, case in zip(found, curves.CASES, strict=True):
        assert len(line["loss"]["mean"]) == len(line["norm"]["deviation"]) == line["steps"] == 40
        assert line["at"] == [20, 40] and len(line["accuracy"]["noise"][-1]) == 2
        assert sum(line["share_of_weight"]) == pytest.approx(1)
        assert len(line["gamma"]) == (2 if isinstance(case.goal, nk.CT) else 0)
        assert 0.1 < min(line["accuracy"]["without"][-1]) <= 1
        if line["effective_rows"] is not None:
            assert line["drawn_rows"] == pytest.approx(line["effective_rows"], rel=0.05)
    said = capsys.readouterr().out
    assert all(case.name in said for case in curves.CASES)
    header, *rows = curve_rows.curve_rows(lines.read([out]))
    assert len(rows) == len(curves.CASES) and {len(row) for row in rows} == {len(header)}
    assert figures.main([str(out), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "curves.png").exists()
