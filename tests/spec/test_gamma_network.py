"""The learned gamma: what it is at first, that it falls, its slope, its gradient, its replicas."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.testing import assert_close

import noprop_kernels as nk
from noprop_kernels import philox
from noprop_kernels.gamma_network import NAMES, LearnedGamma
from noprop_kernels.samplers import points

F64 = torch.float64
T = torch.tensor([0.03, 0.3, 0.5, 0.97], dtype=F64)
SEEDS = torch.tensor([3, 4, 5])


def initial(hidden: int = 1024, seeds: Tensor = SEEDS[:1], **options: float) -> dict[str, Tensor]:
    return nk.GammaNetwork(hidden, **options).initial_parameters(seeds)


def updated(updates: int) -> dict[str, Tensor]:
    """Parameters behind so many random updates, larger ones than an optimizer's."""
    params, generator = initial(16), torch.Generator().manual_seed(updates)
    for _ in range(updates):
        for value in params.values():
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.5)
    return params


def by_the_formula(params: dict[str, Tensor], t: Tensor) -> Tensor:
    """Appendix B, entry by entry."""
    w1, b1, w2, gamma_0, delta = (params[name][0].double() for name in NAMES)

    def net(at: Tensor) -> Tensor:
        return sum(
            softplus(w2[j]) * torch.tanh(softplus(w1[j]) * (at - 0.5) + b1[j])
            for j in range(len(w1))
        )

    start, stop = net(torch.tensor(0.0, dtype=F64)), net(torch.tensor(1.0, dtype=F64))
    gamma_1 = gamma_0 + torch.log1p(delta.exp())
    return gamma_0 + (gamma_1 - gamma_0) * (1 - (net(t) - start) / (stop - start))


def test_gamma_is_the_paper_s() -> None:
    params = initial(7)
    assert_close(LearnedGamma(params)(T), by_the_formula(params, T), rtol=1e-12, atol=1e-12)


def test_it_starts_between_gamma_1_and_gamma_0() -> None:
    """SNR(1) = e^3 and alpha_bar(1) = .953, whatever the network's numbers."""
    gamma = LearnedGamma(initial())
    ends = gamma(torch.tensor([0.0, 1.0], dtype=F64))
    assert_close(ends, torch.tensor([6.0, -3.0], dtype=F64), rtol=0, atol=1e-6)
    assert math.exp(-ends[1]) == pytest.approx(math.exp(3), rel=1e-6)
    goal = nk.CT(gamma)
    alpha_bar = goal.alpha_bar(torch.tensor([0.0, 1.0], dtype=F64))
    assert_close(alpha_bar, torch.tensor([0.0024726, 0.9525741], dtype=F64), rtol=0, atol=1e-6)
    assert goal.last().signal.item() == pytest.approx(0.9525741**0.5, rel=1e-6)
    wide = LearnedGamma(initial(gamma_0=-13.3, gamma_1=5.0))
    assert_close(wide.ends()[0], torch.tensor([5.0], dtype=F64), rtol=0, atol=1e-6)
    assert_close(wide.ends()[1], torch.tensor([-13.3], dtype=F64), rtol=1e-6, atol=0)


def test_the_first_values_are_normal_numbers_at_their_addresses() -> None:
    params = initial(300, SEEDS)
    for site, name in enumerate(("w1", "b1", "w2")):
        value = params[name]
        assert value.shape == (3, 300) and value.dtype == torch.float32
        address = (SEEDS, philox.STREAM_INITIALISATION, site, 0, 0xFFFE, 1, 300)
        assert torch.equal(value, philox.normal(*address)[:, 0])
    assert params["gamma_0"].shape == params["delta"].shape == (3,)


@pytest.mark.parametrize("updates", [0, 1, 100])
def test_it_falls_and_its_weights_are_positive(updates: int) -> None:
    params = updated(updates)
    gamma = LearnedGamma(params)
    t = points(200)
    values, slope = gamma.with_slope(t)
    first, last = gamma.ends()
    assert bool((values.diff() < 0).all()) and bool((slope < 0).all())
    assert_close(values[[0, -1]], torch.cat([first, last]), rtol=1e-12, atol=1e-12)
    assert torch.equal(last, params["gamma_0"].double()) and bool(first > last)
    levels = nk.CT(gamma).levels(t)
    assert bool((levels.weight > 0).all())
    for name in ("w1", "w2"):
        assert bool((softplus(params[name].double()) > 0).all())


@pytest.mark.parametrize("updates", [0, 100])
def test_the_weight_is_the_slope_of_the_signal_to_noise_ratio(updates: int) -> None:
    gamma = LearnedGamma(updated(updates))

    def snr(t: Tensor) -> Tensor:
        return torch.exp(-gamma(t))

    slope = (snr(T + 1e-6) - snr(T - 1e-6)) / 2e-6
    weight = nk.CT(gamma, eta=0.5).levels(T).weight.double()
    assert_close(weight, 0.25 * slope, rtol=1e-5, atol=0)
    difference = (gamma(T + 1e-6) - gamma(T - 1e-6)) / 2e-6
    assert_close(gamma.with_slope(T)[1], difference, rtol=1e-7, atol=0)


def test_levels_are_differentiable_in_every_parameter() -> None:
    start = {name: value.double() for name, value in initial(5).items()}

    def numbers(*params: Tensor) -> tuple[Tensor, ...]:
        gamma = LearnedGamma(dict(zip(NAMES, params, strict=True)))
        return (*gamma.with_slope(T), *gamma.ends())

    leaves = [value.requires_grad_() for value in start.values()]
    assert torch.autograd.gradcheck(numbers, leaves)


def test_a_replica_is_evaluated_as_alone() -> None:
    """Values and gradients, bit for bit."""
    t = torch.rand(2, 3, 9, dtype=F64, generator=torch.Generator().manual_seed(0))

    def evaluated(params: dict[str, Tensor], t: Tensor) -> tuple[Tensor, ...]:
        leaves = [value.clone().requires_grad_() for value in params.values()]
        levels = nk.CT(LearnedGamma(dict(zip(NAMES, leaves, strict=True)))).levels(t)
        outputs = (levels.signal, levels.noise, levels.weight)
        grads = torch.autograd.grad(outputs, leaves, [torch.ones_like(each) for each in outputs])
        return (*(each.detach() for each in outputs), *grads)

    together = evaluated(initial(50, SEEDS), t)
    for r in range(3):
        alone = evaluated(initial(50, SEEDS[r : r + 1]), t[:, r : r + 1])
        for i, (all_three, one) in enumerate(zip(together, alone, strict=True)):
            part = all_three[:, r : r + 1] if i < 3 else all_three[r : r + 1]
            assert torch.equal(part, one), i


@pytest.mark.parametrize(
    ("goal", "alpha_bar"),
    [
        (nk.DT(nk.NoiseSchedule(torch.tensor([0.2, 0.5, 0.9]))), 0.2),
        (nk.CT(), 1 / (1 + math.exp(6))),
    ],
    ids=["dt", "ct"],
)
def test_the_prior_is_the_divergence_from_a_normal(goal: nk.DT | nk.CT, alpha_bar: float) -> None:
    """Its gradient in u is alpha_bar_0 u, not u."""
    u = torch.tensor([0.3, -1.2, 2.0], dtype=F64, requires_grad=True)
    prior = goal.prior(u.square().sum(), 3)
    q = torch.distributions.Normal(alpha_bar**0.5 * u, (1 - alpha_bar) ** 0.5)
    p = torch.distributions.Normal(torch.zeros(3, dtype=F64), 1.0)
    want = torch.distributions.kl_divergence(q, p).sum()
    assert_close(prior, want, rtol=1e-6, atol=1e-12)
    prior.backward()
    assert u.grad is not None
    assert_close(u.grad, alpha_bar * u.detach(), rtol=1e-6, atol=0)


def test_there_is_no_prior_where_z_0_is_noise() -> None:
    u_squared = torch.tensor(4.0, dtype=F64)
    assert nk.FM().prior(u_squared, 3) == 0
    assert nk.DT(nk.NoiseSchedule.cosine(3)).prior(u_squared, 3) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "hidden must be"),
        ({"gamma_0": math.nan}, "gamma_0 must be a finite number"),
        ({"gamma_1": math.inf}, "gamma_1 must be a finite number"),
        ({"gamma_0": 6.0}, "gamma_1 must be above gamma_0"),
    ],
)
def test_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nk.GammaNetwork(**options)


def test_a_network_alone_has_no_levels() -> None:
    with pytest.raises(ValueError, match="schedule must have values here"):
        nk.CT(nk.GammaNetwork()).levels(T)
    with pytest.raises(ValueError, match="schedule must be a Gamma or a GammaNetwork"):
        nk.CT(0.5)
