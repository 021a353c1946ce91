"""The schedule: the table of the T + 1 cosine reading, its identities, the oracle's chain."""

import math

import pytest
import torch
from torch.testing import assert_close

from noprop_kernels.goal import DT
from noprop_kernels.schedule import NoiseSchedule

# by t = 1..10, from the definition with s = 0.008, computed with 40 digits
TABLE = {
    "alpha_bar": ".019939 .078164 .170034 .288222 .423304 .564508 .700574 .820652 .915167 .976582",
    "snr": ".020344 .084792 .204869 .404933 .734016 1.29625 2.33972 4.57576 10.7879 41.7028",
    "a": ".141204 .212499 .241686 .265247 .291693 .325885 .373287 .442685 .550877 .732583",
    "b": ".000000 .475054 .610440 .658701 .668559 .653920 .617188 .553419 .447916 .267225",
    "c": ".980061 .700659 .486456 .351666 .258551 .188890 .133538 .087642 .048850 .017360",
}
# T / 2 * eta * (SNR(t) - SNR(t - 1)) with eta = 0.1
WEIGHTS = ".010172 .032224 .060038 .100032 .164542 .281119 .521736 1.11802 3.10607 15.4574"


def assert_digits(values, text):
    for value, digits in zip(values.tolist(), text.split(), strict=True):
        decimals = len(digits.partition(".")[2])
        assert abs(value - float(digits)) <= 0.51 * 10**-decimals, (value, digits)


@pytest.mark.parametrize("name", TABLE)
def test_cosine_table(name):
    values = getattr(NoiseSchedule.cosine(10), name)
    assert values.dtype == torch.float64 and values.shape == (11,)
    assert_digits(values[1:], TABLE[name])


def test_ends_of_the_cosine_schedule():
    schedule = NoiseSchedule.cosine(10)
    assert schedule.alpha_bar[0] == 0 and schedule.b[1] == 0
    assert all(math.isnan(getattr(schedule, name)[0]) for name in "abc")


def random_schedules():
    generator = torch.Generator().manual_seed(0)
    for T in (1, 2, 7, 100):
        steps = 0.01 + torch.rand(T + 2, generator=generator, dtype=torch.float64)
        yield NoiseSchedule((steps.cumsum(0) / steps.sum())[:-1])
    yield NoiseSchedule.cosine(1)
    yield NoiseSchedule.cosine(1000)


@pytest.mark.parametrize(
    "schedule", list(random_schedules()), ids=lambda schedule: f"T={schedule.T}"
)
def test_identities(schedule):
    alpha_bar, snr = schedule.alpha_bar, schedule.snr
    a, b, c = schedule.a[1:], schedule.b[1:], schedule.c[1:]
    assert_close(a**2 / c, snr.diff(), rtol=1e-8, atol=1e-10)
    assert_close(a + b * alpha_bar[:-1].sqrt(), alpha_bar[1:].sqrt(), rtol=0, atol=1e-10)
    assert_close(b**2 * (1 - alpha_bar[:-1]) + c, 1 - alpha_bar[1:], rtol=0, atol=1e-10)


def test_the_oracle_s_chain_has_the_marginals():
    schedule = NoiseSchedule.cosine(10)
    mean, var = 0.0, 1.0  # of z_0, in units of u_y
    for t in range(1, 11):
        mean = schedule.a[t] + schedule.b[t] * mean
        var = schedule.b[t] ** 2 * var + schedule.c[t]
        assert_close(mean, schedule.alpha_bar[t].sqrt(), rtol=0, atol=1e-12)
        assert_close(var, 1 - schedule.alpha_bar[t], rtol=0, atol=1e-12)


def test_dt_levels():
    goal = DT(NoiseSchedule.cosine(10), eta=0.1)
    assert goal.T == 10
    levels = goal.levels(torch.arange(1, 11))
    assert_digits(levels.weight, WEIGHTS)
    assert levels.signal[0] == 0 and levels.noise[0] == 1
    assert_digits(levels.signal[1:] ** 2, TABLE["alpha_bar"].rpartition(" ")[0])
    assert_close(levels.signal**2 + levels.noise**2, torch.ones(10))
    assert (goal.head, goal.flow, goal.sigma) == ("softmax", 0, 0)
    with pytest.raises(ValueError, match="eta must be above 0, got 0"):
        DT(NoiseSchedule.cosine(10), eta=0)


@pytest.mark.parametrize(
    "alpha_bar, text",
    [
        ([0.5, 0.4], "must grow with t"),
        ([0.1, 0.1], "must grow with t"),
        ([0.1, math.nan], "must grow with t"),
        ([0.1, 1.0], "must lie in"),
        ([-0.1, 0.5], "must lie in"),
        ([0.1], r"shape \(T \+ 1,\)"),
        ([[0.1, 0.2]], r"shape \(T \+ 1,\)"),
    ],
)
def test_what_is_no_schedule_is_refused(alpha_bar, text):
    with pytest.raises(ValueError, match=text):
        NoiseSchedule(torch.tensor(alpha_bar))


@pytest.mark.parametrize("T", [0, -1, 2.0, True])
def test_cosine_needs_an_integer(T):
    with pytest.raises(ValueError, match="T must be an integer"):
        NoiseSchedule.cosine(T)


def test_equality():
    assert NoiseSchedule.cosine(5) == NoiseSchedule(NoiseSchedule.cosine(5).alpha_bar)
    assert hash(NoiseSchedule.cosine(5)) == hash(NoiseSchedule.cosine(5))
    assert NoiseSchedule.cosine(5) != NoiseSchedule.cosine(6)
