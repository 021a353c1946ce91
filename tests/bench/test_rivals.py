"""Every rival of the benchmarks takes the steps of a plain float64 twin."""

import importlib.util
from dataclasses import replace
from functools import partial

import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)

from bench.contenders.rivals import RIVALS
from bench.contenders.rivals.stacked import Stacked
from bench.problem import twin
from bench.problem.problem import make_problem
from bench.problem.sizes import SHAPES, Shape
from bench.suites import check

SHAPE = Shape("made-up", B=12, F=13, H=7, D=5, M=5, T=3, rows=40)


# aot_eager traces the same functions without minutes of g++; `bench run` checks inductor's
def traced(entry):
    return entry.compiles and entry.name != "jax_step"


QUICK = {
    entry.name: partial(entry.make, **({"backend": "aot_eager"} if traced(entry) else {}))
    for entry in RIVALS
    if "tuned" not in entry.name
}


@pytest.fixture(scope="module")
def problem():
    # far from the benchmark's 1e-3, so that a wrong rate or a forgotten decay shows in three steps
    return make_problem(SHAPE, seed=1, lr=1e-2, weight_decay=0.5)


@pytest.mark.parametrize("name", QUICK)
def test_rival_takes_the_twins_steps(problem, name):
    before = {key: value.clone() for key, value in problem.weights.items()}
    contender = QUICK[name](problem, 2)
    try:
        indices, eps = problem.indices(3, seed=2), problem.eps(3, seed=3)
        losses = torch.cat(
            [contender.steps(indices[:1], eps[:1]), contender.steps(indices[1:], eps[1:])]
        )
        weights = contender.weights()
    finally:
        contender.close()
    want_losses, want_weights = twin.run(problem, contender.maths, indices, eps)
    torch.testing.assert_close(losses.double(), want_losses, rtol=1e-5, atol=1e-7)
    assert weights.keys() == want_weights.keys()
    for key, want in want_weights.items():
        torch.testing.assert_close(weights[key].double(), want, rtol=1e-4, atol=1e-5, msg=key)
    for key, value in problem.weights.items():
        assert torch.equal(value, before[key]), f"{name} wrote the problem's {key}"
    twin.check(problem, contender.maths, indices, eps, losses, weights)


@pytest.mark.parametrize("name", QUICK)
def test_rival_draws_standard_normal_noise(name):
    if name == "processes":
        pytest.skip("a process runs block_major, which is tested here")
    still = make_problem(SHAPE, seed=1, lr=0.0)  # only the noise moves its losses
    contender = QUICK[name](still, 1)
    rows = still.indices(1, seed=2).expand(100, -1)
    torch.manual_seed(4)
    drawn, given = contender.steps(rows), contender.steps(rows, still.eps(100, seed=3))
    torch.testing.assert_close(drawn.mean(dim=0), given.mean(dim=0), rtol=0.03, atol=0)
    torch.testing.assert_close(drawn.std(dim=0), given.std(dim=0), rtol=0.5, atol=0)


LOW = [entry.name for entry in RIVALS if "bfloat16" in entry.precisions and entry.name in QUICK]


@pytest.mark.parametrize("name", LOW)
def test_rival_rounds_the_operands_of_its_products(problem, name):
    shape = replace(SHAPE, F=300, H=64)  # wide enough for roundings to add up
    low = make_problem(shape, seed=1, lr=1e-2, precision="bfloat16")
    contender = QUICK[name](low, 1)
    assert len(check.check_steps(contender)) == check.CHECK_STEPS
    indices, eps = low.indices(1, seed=2), low.eps(1, seed=3)
    exact = QUICK[name](replace(low, precision="float32"), 1).steps(indices, eps)
    rounded = QUICK[name](low, 1).steps(indices, eps)
    error = ((rounded - exact) / exact).abs().max()
    assert 1e-5 < error < 1e-3  # float32 alone is within 1e-6


def test_check_refuses_more_than_twice_the_error_of_plain_bfloat16(problem):
    low = replace(problem, precision="bfloat16")
    indices, eps = problem.indices(3, seed=2), problem.eps(3, seed=3)
    plain = Stacked(low, 1, shared=True)
    plain = plain.steps(indices, eps), plain.weights()
    losses, weights = twin.run(problem, "adamw", indices, eps)
    for factor, passes in ((2, True), (4, False)):
        bent = {
            name: value + factor * (plain[1][name] - value) if name == "hx.weight" else value
            for name, value in weights.items()
        }
        checked = partial(twin.check, low, "adamw", indices, eps, losses, bent, [plain])
        if passes:
            checked()
        else:
            with pytest.raises(twin.Mismatch, match="hx.weight"):
                checked()


def test_check_refuses_what_differs(problem):
    indices, eps = problem.indices(1, seed=2), problem.eps(1, seed=3)
    losses, weights = twin.run(problem, "adamw", indices, eps)
    twin.check(problem, "adamw", indices, eps, losses, weights)
    with pytest.raises(twin.Mismatch, match="losses"):
        twin.check(problem, "adamw", indices, eps, losses * 1.001, weights)
    bent = weights | {"hz.bias": weights["hz.bias"] + 0.02 * problem.lr}
    with pytest.raises(twin.Mismatch, match="hz.bias"):
        twin.check(problem, "adamw", indices, eps, losses, bent)


def test_flop_and_parameters_of_small():
    small = SHAPES["small"]
    stems, rest = 4 * (784 + 10) * 256, 6 * (512 * 256 + 256 * 10)
    assert small.flop == 10 * 128 * (stems + rest)
    made = sum(value.numel() for value in make_problem(SHAPE).weights.values())
    assert SHAPE.parameters == made
