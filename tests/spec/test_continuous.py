"""CT and FM: gamma, levels and weights of a step, and where their samplers end."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import noprop_kernels as nk
from noprop_kernels.samplers import Table, choose_sampler, points

GAMMA = nk.Gamma.linear()
TABLED = nk.Gamma(torch.tensor([5.0, 4.5, 1.0, -2.0]))
T = torch.tensor([0.05, 0.3, 0.6, 0.95], dtype=torch.float64)  # between the corners


@pytest.mark.parametrize("gamma", [GAMMA, TABLED], ids=["linear", "tabled"])
def test_gamma_falls_between_its_ends(gamma: nk.Gamma) -> None:
    t = points(100)
    values = gamma(t)
    assert values.dtype == torch.float64 and bool((values.diff() < 0).all())
    assert values[0] == gamma.values[0] and values[-1] == gamma.values[-1]
    difference = (gamma(T + 1e-6) - gamma(T - 1e-6)) / 2e-6
    assert_close(gamma.slope(T), difference, rtol=1e-6, atol=0)
    assert gamma(torch.zeros(2, 3)).shape == gamma.slope(torch.zeros(2, 3)).shape == (2, 3)


def test_the_ends_of_the_linear_gamma() -> None:
    """gamma(0) = gamma_1 and gamma(1) = gamma_0, the paper's names."""
    assert GAMMA.values.tolist() == [6.0, -3.0]
    goal = nk.CT()
    ends = goal.alpha_bar(torch.tensor([0.0, 1.0]))
    assert_close(ends, torch.tensor([0.0024726, 0.9525741], dtype=torch.float64), rtol=0, atol=1e-7)
    assert math.exp(-GAMMA.values[-1]) == pytest.approx(20.0855, rel=1e-5)  # SNR(1)
    assert goal.last().signal == pytest.approx(0.9525741**0.5, rel=1e-6)
    assert goal.last().noise == pytest.approx((1 - 0.9525741) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("gamma", [GAMMA, TABLED], ids=["linear", "tabled"])
def test_the_weight_is_the_slope_of_the_signal_to_noise_ratio(gamma: nk.Gamma) -> None:
    def snr(t: Tensor) -> Tensor:
        return torch.exp(-gamma(t))

    slope = (snr(T + 1e-6) - snr(T - 1e-6)) / 2e-6
    levels = nk.CT(gamma, eta=0.5).levels(T)
    assert bool((levels.weight > 0).all())
    assert_close(levels.weight.double(), 0.25 * slope, rtol=1e-5, atol=0)
    assert_close(levels.signal**2 + levels.noise**2, torch.ones(4), rtol=0, atol=1e-6)
    assert_close((levels.signal / levels.noise).double() ** 2, snr(T), rtol=1e-5, atol=0)


def test_the_other_weights() -> None:
    uniform = nk.CT(weight="uniform", eta=2.0).levels(T)
    assert torch.equal(uniform.weight, torch.ones(4))
    capped = nk.CT(weight=("min-snr", 0.5)).levels(T)
    assert_close(
        capped.weight.double(), 0.5 * torch.exp(-GAMMA(T)).clamp_max(0.5), rtol=1e-6, atol=0
    )
    assert capped.weight[-1] == 0.25 > capped.weight[0]
    assert torch.equal(uniform.signal, capped.signal)


def test_fm_goes_from_noise_to_the_label() -> None:
    levels = nk.FM().levels(T)
    assert torch.equal(levels.signal, T.float()) and torch.equal(levels.noise, (1 - T).float())
    assert torch.equal(levels.weight, torch.ones(4))
    assert (nk.FM().head, nk.FM().flow, nk.FM(sigma=0.1).sigma) == ("linear", 1.0, 0.1)
    assert (nk.FM().last().signal, nk.FM().last().noise) == (1, 0)


def end_of(table: Table, velocity: bool = False) -> tuple[float, float]:
    """The mean's factor of u_y and the variance of the last z from z_0 ~ N(0, I), by a network that
    knows: u_hat = u_y, or with `velocity` v_hat = u_y - z_0.

    z is m u_y + s z_0 and independent noise of variance v, and a table is linear.
    """
    z = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)  # m, s, v
    known = torch.tensor([1.0, -1.0 if velocity else 0.0, 0.0], dtype=torch.float64)
    base, total = z.clone(), torch.zeros(3, dtype=torch.float64)
    for a, b, sqrt_c, weight, following, keep, ends in zip(
        *(table.a, table.b, table.sqrt_c, table.weight, table.next, table.keep, table.ends),
        strict=True,
    ):
        k = a * known + b * z
        k[2] = b**2 * z[2]
        if not ends:
            total, z = total + weight * k, base + following * k
            continue
        assert z[2] == 0 or (weight, keep) == (1, 0)  # noise alone goes by one stage a step
        z = keep * base + total + weight * k
        z[2] += sqrt_c**2
        base, total = z.clone(), torch.zeros(3, dtype=torch.float64)
    assert bool(table.ends[-1])
    return z[0].item(), (z[1] ** 2 + z[2]).item()


@pytest.mark.parametrize(
    "sampler, steps, mean, variance",
    [
        *(("ancestral", steps, 0.9759, 0.0474) for steps in (10, 100, 1000)),
        *(("ddim", steps, 0.9652, 0.0475) for steps in (10, 100, 1000)),
        *(("euler", 10, 0.9907, 0.0442), ("euler", 100, 0.9672, 0.0473)),
        ("euler", 1000, 0.9654, 0.0475),
        *(("heun", 10, 0.9571, 0.0504), ("heun", 100, 0.9651, 0.0476)),
        ("heun", 1000, 0.9652, 0.0475),
        *(("rk4", 10, 0.9651, 0.0476), ("rk4", 100, 0.9652, 0.0475)),
    ],
)
def test_ct_s_samplers_end_at_the_label(
    sampler: str, steps: int, mean: float, variance: float
) -> None:
    """z_1 by a network that knows u_y, gamma falling from 6 to -3; the schedule's own marginal is
    .9760, .0474."""
    got = end_of(nk.CT().table(sampler, steps))
    assert got == pytest.approx((mean, variance), abs=6e-5)


@pytest.mark.parametrize("steps", [1, 3, 50])
@pytest.mark.parametrize("sampler", nk.FM().samplers)
def test_fm_s_samplers_end_at_the_label(sampler: str, steps: int) -> None:
    """v_hat = u_y - z_0 leads to u_y itself, by any number of steps."""
    assert end_of(nk.FM().table(sampler, steps), velocity=True) == pytest.approx((1, 0), abs=1e-12)


def test_the_points_of_a_table() -> None:
    assert nk.FM().table("euler", 4).t.tolist() == [0, 0.25, 0.5, 0.75]
    assert nk.CT().table("ancestral", 2).t.tolist() == [0, 0.5]
    assert nk.FM().table("heun", 2).t.tolist() == [0, 0.5, 0.5, 1]
    assert nk.FM().table("rk4", 1).t.tolist() == [0, 0.5, 0.5, 1]
    assert nk.FM().table("rk4", 1).ends.tolist() == [False, False, False, True]


def test_dt_s_table_is_its_chain() -> None:
    schedule = nk.NoiseSchedule.cosine(4)
    table = nk.DT(schedule).table("ancestral", 4)
    assert torch.equal(table.a, schedule.a[1:]) and torch.equal(table.b, schedule.b[1:])
    assert torch.equal(table.sqrt_c, schedule.c[1:].sqrt()) and bool(table.ends.all())


def test_which_sampler_is_taken() -> None:
    def choose(known: tuple[str, ...], noise: bool, **given: Any) -> tuple[str, int]:
        given = {"kind": None, "steps": None} | given
        return choose_sampler("predict", known, **given, noise=noise, default_steps=7)

    ct, fm, dt = nk.CT().samplers, nk.FM().samplers, ("ancestral",)
    assert [choose(known, noise=True)[0] for known in (ct, fm, dt)] == [
        "ancestral",
        "euler",
        "ancestral",
    ]
    assert [choose(known, noise=False)[0] for known in (ct, fm, dt)] == [
        "ddim",
        "euler",
        "ancestral",
    ]
    assert choose(ct, noise=True, kind="heun", steps=3) == ("heun", 3)
    assert choose(ct, noise=True)[1] == 7 and choose(ct, noise=True, steps=65535)[1] == 65535
    for known, noise, given, text in (
        (ct, False, {"kind": "ancestral"}, "sampler must be one of .*ddim.* where noise is false"),
        (fm, True, {"kind": "ddim"}, r"sampler must be one of \('euler'"),
        (dt, False, {"kind": "ddim"}, r"sampler must be one of \('ancestral',\)"),
        (ct, True, {"steps": 0}, "steps must be an integer of at least 1"),
        (ct, True, {"steps": 65536}, "steps must be an integer of at most 65535"),
    ):
        with pytest.raises(ValueError, match=text):
            choose(known, noise, **given)


def test_the_embedding_of_t() -> None:
    """32 sines, then 32 cosines of 1000 t, whose periods grow to almost 10,000 times 2 pi."""
    t = torch.tensor([[0.0, 0.123], [0.5, 1.0]], dtype=torch.float64)
    made = nk.embed_time(t, 64)
    assert made.shape == (2, 2, 64) and made.dtype == torch.float32
    for i in (0, 1, 31):
        angle = 1000 * t / 10_000 ** (i / 32)
        assert_close(made[..., i].double(), angle.sin(), rtol=0, atol=6e-8)
        assert_close(made[..., 32 + i].double(), angle.cos(), rtol=0, atol=6e-8)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: nk.Gamma(torch.tensor([1.0])), "values must have shape"),
        (lambda: nk.Gamma(torch.tensor([1.0, 2.0])), "values must be finite and fall with t"),
        (lambda: nk.Gamma(torch.tensor([math.inf, 0.0])), "values must be finite"),
        (lambda: nk.Gamma("steep"), "values must be numbers"),
        (lambda: nk.Gamma.linear(1.0, 1.0), "gamma_1 must be above gamma_0"),
        (lambda: nk.Gamma.linear(gamma_0="low"), "gamma_0 must be a finite number"),
        (
            lambda: nk.CT(nk.NoiseSchedule.cosine(3)),
            "schedule must be a Gamma or a GammaNetwork, got NoiseS",
        ),
        (lambda: nk.CT(eta=0), "eta must be above 0"),
        (lambda: nk.CT(weight="snr'"), 'weight must be "snr", "uniform" or'),
        (lambda: nk.CT(weight=("min-snr", 0)), "weight's k must be above 0"),
        (lambda: nk.CT(stratified=1), "stratified must be true or false"),
        (lambda: nk.FM(sigma=-1), "sigma must be at least 0"),
        (
            lambda: nk.DT(nk.NoiseSchedule.cosine(3)).table("ancestral", 4),
            "steps must be the 3 blocks",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_goals_are_values() -> None:
    assert nk.CT() == nk.CT(nk.Gamma.linear(-3, 6)) and hash(nk.CT()) == hash(nk.CT())
    assert nk.CT() != nk.CT(weight="uniform") and nk.FM() != nk.FM(sigma=0.1)
    assert (
        repr(nk.CT()) == "CT(schedule=Gamma([6.0, -3.0]), eta=1.0, weight='snr', stratified=False)"
    )
