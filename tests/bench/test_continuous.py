"""CT and FM in the benchmarks: every form takes the twin's steps, and the twin is the paper's."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)

import noprop_kernels as nk
from bench.contenders.rivals.continuous import both
from bench.contenders.rivals.continuous.coupled import CoupledEager
from bench.contenders.rivals.continuous.eager import Eager
from bench.machine import host
from bench.problem import continuous, coupled, twin
from bench.problem.problem import make_problem
from bench.problem.sizes import CONTINUOUS_SHAPES, Shape
from bench.report import lines as result_lines
from bench.report import page, suite_rows
from bench.suites import check, run
from bench.suites.continuous import SUITE

MLP = Shape("made-up", B=12, F=13, H=7, D=5, M=5, T=3, rows=40, timed=True)
PAPER = replace(MLP, B=24, F=225, H=256, image=(1, 15, 15))
SHAPES = {"mlp": MLP, "paper": PAPER}
SHAPES |= {f"one {net}": replace(shape, T=1) for net, shape in SHAPES.items()}
CASES = [
    pytest.param(entry, net, id=f"{entry.name}-{entry.make.keywords['maths']}-{net}")
    for entry in SUITE.entries
    for net, shape in SHAPES.items()
    if entry.fits(shape)
    and (entry.name, entry.make.keywords["maths"]) != ("processes", "fm")
    and (shape.T > 1 or entry.make.keywords["maths"] in coupled.MATHS)
]


@pytest.fixture(scope="module")
def problems():
    # a decay far from the benchmark's 1e-3, so that a forgotten one shows in three steps
    return {net: make_problem(shape, seed=1, weight_decay=0.1) for net, shape in SHAPES.items()}


def made(entry, problem):
    # aot_eager traces the same functions without minutes of g++; `bench continuous` checks
    # inductor's
    torch.compiler.reset()
    return entry.make(problem, 2, **({"backend": "aot_eager"} if entry.compiles else {}))


@pytest.mark.parametrize(("entry", "net"), CASES)
def test_steps_are_the_twin_s(problems, entry, net):
    problem, shape = problems[net], SHAPES[net]
    contender = made(entry, problem)
    try:
        assert len(check.check_steps(contender)) == check.CHECK_STEPS
        assert contender.maths == entry.make.keywords["maths"]
        losses = contender.steps(problem.indices(2, seed=3))  # with t and noise of its own
    finally:
        contender.close()
    assert losses.shape == (2, shape.T) and losses.isfinite().all()
    assert contender.flop() == shape.flop


RIVALS = [
    case
    for case in CASES
    if case.values[1] == "mlp" and not case.values[0].name.startswith(("ours", "processes"))
]


@pytest.mark.parametrize(("entry", "net"), RIVALS)
def test_rival_draws_uniform_t_and_normal_noise(entry, net):
    """Its losses on one batch, which only t and noise move, are those of drawn ones in the mean."""
    still = make_problem(SHAPES[net], seed=1, lr=0.0)
    contender = made(entry, still)
    rows = still.indices(1, seed=2).expand(300, -1)
    torch.manual_seed(4)
    drawn, given = contender.steps(rows), contender.steps(rows, still.eps(300, seed=3))
    spread = given.std(dim=0)
    assert ((drawn.mean(0) - given.mean(0)).abs() < 5 * spread * (2 / 300) ** 0.5).all()
    torch.testing.assert_close(drawn.std(dim=0), spread, rtol=0.3, atol=0)


def test_rivals_draw_t_from_0_to_1_and_normal_noise(problems):
    torch.manual_seed(4)
    t, eps = Eager(problems["mlp"], 1, maths="fm").drawn(problems["mlp"].indices(500, seed=1), None)
    assert t.shape == (500, 3, 12) and eps.shape == (500, 3, 12, 5)
    assert t.min() >= 0 and t.max() < 1
    assert abs(t.mean() - 0.5) < 5 * (1 / 12 / t.numel()) ** 0.5
    assert abs(t.var() - 1 / 12) < 0.003
    assert abs(eps.mean()) < 5 / eps.numel() ** 0.5 and abs(eps.std() - 1) < 0.02
    assert not torch.equal(t[:, 0], t[:, 1])  # each replica its own


class Level(Eager):
    """Wrong: every t has the weight 1."""

    def step(self, r, x, u_y, levels, *rest):
        return super().step(r, x, u_y, levels._replace(weight=levels.weight * 0 + 1), *rest)


class Timeless(Eager):
    """Wrong: embeds another t than the noise's."""

    def embed(self, t):
        return super().embed(t.flip(0))


class Decayed(Eager):
    """Wrong: AdamW's decay in place of the L2 penalty."""

    def __init__(self, problem, threads, **how):
        super().__init__(problem, threads, **how)
        self.optimizers = [
            torch.optim.AdamW([*p.values()], lr=problem.lr, weight_decay=problem.weight_decay)
            for p in self.params
        ]


@pytest.mark.parametrize("net", SHAPES)
@pytest.mark.parametrize(
    ("wrong", "maths"), [(Level, "ct"), (Timeless, "ct"), (Timeless, "fm"), (Decayed, "ct")]
)
def test_what_is_wrong_is_refused(problems, wrong, maths, net):
    with pytest.raises(twin.Mismatch):
        check.check_steps(wrong(problems[net], 1, maths=maths))


class Fixed(CoupledEager):
    """Wrong: gamma has no gradient by the rows' levels."""

    def losses(self, p, *rest):
        still = {n: v.detach() if n.startswith("gamma.w") else v for n, v in p.items()}
        return super().losses(still, *rest)

    def steps(self, *given):
        for param in self.params.values():
            param.grad = torch.zeros_like(param)
        return super().steps(*given)


class Alike(CoupledEager):
    """Wrong: the head has the block's noise."""

    def noise(self, *given):
        t, e, _ = super().noise(*given)
        return t, e, e


@pytest.mark.parametrize("net", ["one mlp", "one paper"])
@pytest.mark.parametrize("wrong", [Fixed, Alike])
def test_a_coupled_step_that_is_wrong_is_refused(problems, wrong, net):
    with pytest.raises(twin.Mismatch):
        check.check_steps(wrong(problems[net], 1, maths="coupled"))


def test_the_table_tells_what_the_coupling_adds(tmp_path, monkeypatch, capsys):
    entries = [entry for entry in SUITE.entries if entry.name == "ours_step"]
    lines = timed(tmp_path, monkeypatch, entries, rc=0, T=1)
    both, apart = sorted(lines, key=lambda line: line["maths"], reverse=True)
    assert (both["maths"], apart["maths"]) == ("coupled", "apart")
    added = both["ms_per_step"] / apart["ms_per_step"] - 1
    (_, row) = suite_rows.coupling_rows(lines)
    assert row[0] == "made-up" and row[-1] == f"{added:.0%}"
    assert row[-1] in capsys.readouterr().out


def test_levels_and_samplers_are_the_library_s():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    for maths, goal in (("ct", nk.CT()), ("fm", nk.FM())):
        for mine, its in zip(
            continuous.levels(maths, t), vars(goal.levels(t)).values(), strict=True
        ):
            torch.testing.assert_close(mine.float(), its)
        for sampler in goal.samplers:
            if sampler not in ("ddim", "ancestral", "euler") or (maths, sampler) == ("ct", "euler"):
                continue
            mine, its = continuous.table(sampler, 40), goal.table(sampler, 40)
            for name, column in (("t", its.t), ("a", its.a), ("b", its.b), ("c", its.sqrt_c)):
                torch.testing.assert_close(getattr(mine, name), column)
    embedded = continuous.embed(t, 64)
    torch.testing.assert_close(embedded.float(), nk.embed_time(t, 64))


def test_sizes():
    """Multiply-adds of a row and step, by hand."""
    small = CONTINUOUS_SHAPES["small_R10"]
    stems, rest = 2 * (784 + 10 + 64) * 256, 3 * (3 * 256 * 256 + 256 * 10)
    assert small.flop == 2 * 10 * 128 * (stems + rest)
    assert CONTINUOUS_SHAPES["small_R1"].flop * 10 == small.flop
    made = sum(value.numel() for value in make_problem(PAPER).weights.values())
    assert PAPER.parameters == made


def timed(tmp_path, monkeypatch, entries, rc, **sizes):
    """The lines of `bench continuous` at a small shape."""
    rates = {"peak_gflops": 100.0, "copy_gb_s": 10.0, "state_gb_s": 10.0}
    monkeypatch.setattr(host, "rates", lambda threads, state_bytes: rates)
    small = replace(SUITE, shapes={"made-up": replace(MLP, **sizes)}, entries=entries, Ks=(1, 2))
    out, before = tmp_path / "lines.jsonl", torch.get_num_threads()
    out.unlink(missing_ok=True)
    try:
        assert run.run(small, ["--rounds", "3", "--threads", "1", "--out", str(out)]) == rc
    finally:
        torch.set_num_threads(before)
    return [json.loads(text) for text in out.read_text().splitlines()]


QUICK = [entry for entry in SUITE.entries if entry.name in ("ours", "ours_train_step", "stacked")]


def test_command_writes_lines_that_the_report_reads(tmp_path, monkeypatch, capsys):
    lines = timed(tmp_path, monkeypatch, QUICK, rc=0)
    found = {(line["contender"], line["maths"], line["K"]) for line in lines}
    assert found == {
        *(("ours", maths, K) for maths in ("ct", "fm") for K in (1, 2)),
        *(("ours_train_step", maths, 1) for maths in ("ct", "fm")),
        *(("stacked", maths, K) for maths in ("ct", "fm") for K in (1, 2)),
    }
    for line in lines:
        assert line["kind"] == "continuous" and line["ms_q20"] <= line["ms_per_step"]
        rate = MLP.flop / (line["ms_per_step"] * 1e6)
        assert line["share_of_peak"] == pytest.approx(rate / 100)
    assert "best rival, ms" in capsys.readouterr().out
    header, *rows = suite_rows.continuous_rows(lines)
    assert len(rows) == 6 and {row[1] for row in rows} == {"ct", "fm"}
    row = next(row for row in rows if row[:5] == ("made-up", "fm", "1", "2", "ours"))
    times = {
        line["contender"]: line["ms_per_step"]
        for line in lines
        if (line["maths"], line["K"]) == ("fm", 2)
    }
    ratio = row[header.index("ratio")]
    assert ratio == f"{times['stacked'] / times['ours']:.2f}"
    section = page.readme_section(lines)
    assert "`bench continuous`" in section and "AdamW, float32:" not in section
    assert not result_lines.timed(lines)  # no rival to the lines of `bench run`


def test_command_leaves_out_what_does_not_fit_and_refuses_what_is_wrong(
    tmp_path, monkeypatch, capsys
):
    lines = timed(tmp_path, monkeypatch, QUICK, rc=0, T=1)
    assert {line["contender"] for line in lines} == {"ours", "ours_train_step"}
    (line, _) = timed(tmp_path, monkeypatch, both("eager", Timeless), rc=1)
    assert "Mismatch" in line["error"]
    assert "not timed: bench.problem.twin.Mismatch" in capsys.readouterr().out


def test_convolutions_are_timed_at_one_step_a_call(tmp_path, monkeypatch):
    sizes = {"B": 24, "F": 225, "H": 256, "image": (1, 15, 15)}
    (line,) = timed(tmp_path, monkeypatch, both("eager", Eager)[:1], rc=0, **sizes)
    assert line["K"] == 1
