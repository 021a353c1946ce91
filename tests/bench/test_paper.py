"""The paper's blocks in the benchmarks: every form takes the twin's steps, on live pixels alone."""

import importlib.util
import json
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)

from bench.contenders.ours import Ours, OursTrainStep
from bench.contenders.rivals import paper
from bench.contenders.rivals.paper import PAPER_RIVALS, network
from bench.contenders.rivals.paper.eager import Eager
from bench.contenders.rivals.paper.network import images
from bench.machine import host
from bench.memory import cpu as memory
from bench.problem import twin
from bench.problem.problem import make_problem
from bench.problem.sizes import PAPER_SHAPES, Shape
from bench.report import lines as result_lines
from bench.report import page, suite_rows, tables
from bench.suites import check, run
from bench.suites import paper as suite

# the first map is 13 x 13 before its pool, so that some pixels are dead
SHAPE = Shape("made-up", B=24, F=225, H=256, D=5, M=5, T=3, rows=40, image=(1, 15, 15))
# aot_eager traces the same functions without minutes of g++; `bench paper` checks inductor's
TRACED = {"compiled": {"backend": "aot_eager"}}
MAKES = {"ours": Ours, "ours_train_step": OursTrainStep} | {
    entry.name: partial(entry.make, **TRACED.get(entry.name, {})) for entry in PAPER_RIVALS
}


@pytest.fixture(scope="module")
def problem():
    return make_problem(SHAPE, seed=3, lr=1e-4)


def test_operations_on_live_pixels_and_on_all():
    """Millions of multiply-adds a row: forward, forward live, step, step live."""
    expected = {
        "paper-mnist": (9.22, 7.55, 27.46, 22.48),
        "paper-cifar10": (13.93, 11.82, 41.01, 34.79),
    }
    for name, shape in PAPER_SHAPES.items():
        counts = (
            *(shape.forward_multiply_adds(live) for live in (False, True)),
            *(shape.step_multiply_adds(live) for live in (False, True)),
        )
        assert tuple(round(count / 1e6, 2) for count in counts) == expected[name]
        assert shape.flop == 2 * 10 * 128 * counts[3] and shape.nominal_flop == 2560 * counts[2]
        assert shape.forward_flop == 2560 * counts[1]


def test_images_are_cropped_to_what_results_depend_on():
    for name, size in (("paper-mnist", 26), ("paper-cifar10", 30)):
        problem = make_problem(replace(PAPER_SHAPES[name], T=1, rows=2))
        assert images(problem, problem.X).shape[2:] == (size, size)
        whole = images(problem, problem.X, cropped=False)
        assert torch.equal(whole.flatten(1), problem.X)


@pytest.mark.parametrize("name", MAKES)
def test_steps_are_the_twin_s(problem, name):
    pytest.importorskip("jax" if name == "jax_step" else "torch")
    contender = MAKES[name](problem, 1)
    try:
        assert len(check.check_steps(contender)) == check.CHECK_STEPS
        assert contender.dropout == {"c1": 0.2, "c2": 0.2, "c3": 0.2}
        losses = contender.steps(problem.indices(2, seed=3))  # with noise and dropout of its own
    finally:
        contender.close()
    assert losses.shape == (2, SHAPE.T) and losses.isfinite().all()


OTHER = ("ours", "jax", "processes", "compiled")  # not ours, not here, or of the same modules
EAGER = [name for name in MAKES if not name.startswith(OTHER)]


@pytest.mark.parametrize("name", EAGER)
def test_timed_steps_of_rivals_have_dropout(name):
    still = make_problem(SHAPE, seed=1, lr=0.0)
    rows, eps = still.indices(1, seed=2).expand(2, -1), still.eps(1, seed=3).expand(2, -1, -1, -1)
    first, second = MAKES[name](still, 1).steps(rows, eps)
    assert ((first - second).abs() > 1e-6 * first).all()


def test_dropout_keeps_its_share():
    kept = network.dropped(torch.ones(10**6), 0.2)
    assert abs((kept > 0).double().mean().item() - 0.8) < 5 * (0.8 * 0.2 / 1e6) ** 0.5
    assert set(kept.unique().tolist()) == {0.0, 1.25}
    factors = make_problem(SHAPE).factors(seed=1)["c2"]
    assert set(factors.unique().tolist()) == {0.0, 1.25}


def test_a_network_without_dropout_or_with_one_wrong_norm_is_refused(problem, monkeypatch):
    monkeypatch.setattr(network, "dropped", lambda x, drop: x)
    with pytest.raises(twin.Mismatch, match="losses"):
        check.check_steps(Eager(problem, 2))
    monkeypatch.undo()
    wrong = Eager(problem, 2)
    wrong.blocks[1].f2.norm.momentum = 0.2
    with pytest.raises(twin.Mismatch, match="f2.norm.running"):
        check.check_steps(wrong)


def test_what_is_not_installed_is_told_and_no_mistake(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(paper.importlib.util, "find_spec", lambda name: None)
    lines = timed(tmp_path, monkeypatch, ("jax_step",), rc=0)
    assert [line["error"].rpartition(": ")[2] for line in lines] == ["jax is not installed"]
    said = "`jax_step` was not timed at `made-up`: bench.contenders.contender.Missing: jax is not"
    assert said in page.failures(lines)[0]


def timed(tmp_path, monkeypatch, names, rc):
    """The lines of `bench paper` at the small shape."""
    rates = {"peak_gflops": 100.0, "copy_gb_s": 10.0, "state_gb_s": 10.0}
    monkeypatch.setattr(host, "rates", lambda threads, state_bytes: rates)
    monkeypatch.setattr(host, "cores", lambda: 2)
    entries = [replace(e, min_threads=1) for e in suite.SUITE.entries if e.name in names]
    small = replace(suite.SUITE, shapes={"made-up": SHAPE}, entries=entries)
    out, before = tmp_path / "lines.jsonl", torch.get_num_threads()
    try:
        assert run.run(small, ["--rounds", "3", "--threads", "2", "--out", str(out)]) == rc
    finally:
        torch.set_num_threads(before)
    return [json.loads(text) for text in out.read_text().splitlines()]


def test_command_writes_a_table_with_both_shares(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(tables.TARGETS, "made-up", (1.4, 0.85))
    lines = timed(tmp_path, monkeypatch, ("ours", "eager"), rc=0)
    assert [(line["contender"], line["kind"], line["K"]) for line in lines] == [
        ("ours", "paper", 1),
        ("eager", "paper", 1),
    ]
    header, *rows = suite_rows.paper_rows(lines)
    for line in lines:
        assert line["flop_per_step"] == SHAPE.flop < line["nominal_flop_per_step"]
        row = next(row for row in rows if row[1] == line["contender"])
        cells = dict(zip(header[4:], row[4:], strict=True))
        rate = line["flop_per_step"] / (line["ms_per_step"] * 1e6)
        assert line["share_of_peak"] == pytest.approx(rate / 100)
        assert cells["nominal"] == f"{rate / 100 * SHAPE.nominal_flop / SHAPE.flop:.0%}"
        assert (row[5], row[7]) == (("1.40", "85%") if row[1] == "ours" else ("", ""))
    assert "nominal" in capsys.readouterr().out
    section = page.readme_section(lines)
    assert "`bench paper`" in section and "AdamW, float32:" not in section
    assert not result_lines.timed(lines)  # no rival to the lines of `bench run`


def test_memory_tells_what_each_thread_has():
    given = Shape(**json.loads(json.dumps(asdict(SHAPE))))
    assert given.plan == SHAPE.plan
    assert {"ours", "eager"} < memory.entries_of(given).keys()
    ours = Ours(make_problem(SHAPE), 3)
    step, each = ours.step_bytes(ours.problem.indices(1, seed=0)), ours.thread_bytes(1)
    assert 0 < step - 3 * each < each
    parts = dict.fromkeys(("weights", "gradients", "optimizer", "activations", "workspace"), 0)
    line = {"kind": "memory", "shape": "made-up", "contender": "ours", "ms_per_step": 1.0}
    line |= {"memory_bytes": parts | {"rss_growth": 0, "thread": 3 << 20}}
    older = line | {"memory_bytes": parts | {"rss_growth": 0}}
    header, *rows = suite_rows.memory_rows([line, older])
    assert [row[header.index("a thread")] for row in rows] == ["3.0", ""]
