"""Samplers: the way from z_0 to the last z as a table of numbers, a row an evaluation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .check import check_integer
from .schedule import posterior

MOST_STEPS = 0xFFFF  # noise has addresses for as many


@dataclass(frozen=True)
class Table:
    """A chain of E evaluations, (E,) float64 each and `ends` bool: the numbers of a call's Chain.

    Args:
        t: in [0, 1], where each evaluation is.
    """

    t: Tensor
    a: Tensor
    b: Tensor
    sqrt_c: Tensor
    weight: Tensor
    next: Tensor
    keep: Tensor
    ends: Tensor


def one_stage(t: Tensor, a: Tensor, b: Tensor, sqrt_c: Tensor | None = None) -> Table:
    """Steps of one evaluation each, z = a u_hat + b z + sqrt_c eps."""
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    noise = zero if sqrt_c is None else sqrt_c
    return Table(t, a, b, noise, one, zero, zero, torch.ones_like(a, dtype=torch.bool))


def points(steps: int) -> Tensor:
    """t = 0, 1 / steps, ..., 1: (steps + 1,) float64."""
    return torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps


def ancestral(alpha_bar: Tensor) -> Table:
    """The posterior's steps (arXiv:2503.24322v2, eq. 3) between levels (steps + 1,), which grow.

    Their marginals are exact for any number of steps.
    """
    a, b, c = posterior(alpha_bar)
    return one_stage(points(len(a))[:-1], a, b, c.sqrt())


def ddim(alpha_bar: Tensor) -> Table:
    """z' = sqrt(ab') u_hat + sqrt(1 - ab') (z - sqrt(ab) u_hat) / sqrt(1 - ab), without noise.

    Song et al., arXiv:2010.02502, eq. 12 with sigma = 0.
    """
    before, now = alpha_bar[:-1], alpha_bar[1:]
    b = ((1 - now) / (1 - before)).sqrt()
    return one_stage(points(len(b))[:-1], now.sqrt() - b * before.sqrt(), b)


# a stage of a step: its t, its weight, and where the next one's z is, in units of the step
STAGES = {
    "euler": ((0.0, 1.0, 0.0),),
    "heun": ((0.0, 1 / 2, 1.0), (1.0, 1 / 2, 0.0)),
    "rk4": ((0.0, 1 / 6, 1 / 2), (1 / 2, 1 / 3, 1 / 2), (1 / 2, 1 / 3, 1.0), (1.0, 1 / 6, 0.0)),
}


def integrate(kind: str, steps: int, drift: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Table:
    """Runge-Kutta steps of equal length over dz/dt = p(t) u_hat + q(t) z, from t = 0 to 1.

    Args:
        kind: of STAGES.
        steps: their number.
        drift: p and q at t, (E,) float64 each.
    """
    stages, h = STAGES[kind], 1 / steps
    offset, weight, following = (
        torch.tensor(column, dtype=torch.float64, device="cpu").repeat(steps)
        for column in zip(*stages, strict=True)
    )
    begin = torch.arange(steps, dtype=torch.float64, device="cpu").repeat_interleave(len(stages))
    t = (begin + offset) / steps
    p, q = drift(t)
    if len(stages) == 1:
        return one_stage(t, h * p, 1 + h * q)
    ends = torch.zeros(len(stages), dtype=torch.bool, device="cpu")
    ends[-1] = True
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    return Table(t, p, q, zero, h * weight, h * following, one, ends.repeat(steps))


def choose_sampler(
    op: str,
    known: tuple[str, ...],
    kind: str | None,
    steps: int | None,
    *,
    noise: bool,
    default_steps: int,
) -> tuple[str, int]:
    """The sampler's kind and steps: those given, else the first fitting one of a goal's.

    Raises:
        ValueError: the goal does not know it, or it has no form without noise.
    """
    if kind is None:
        kind = known[0] if noise or len(known) == 1 else deterministic(known)[0]
    if kind not in known:
        raise ValueError(f"{op}: sampler must be one of {known}, got {kind!r}")
    if not noise and len(known) > 1 and kind not in deterministic(known):
        raise ValueError(
            f"{op}: sampler must be one of {deterministic(known)} where noise is false, got "
            f"{kind!r}, which without its noise has not the schedule's variance"
        )
    if steps is None:
        return kind, default_steps
    return kind, check_integer(op, "steps", steps, 1, MOST_STEPS)


def deterministic(known: tuple[str, ...]) -> tuple[str, ...]:
    """The samplers that draw nothing behind z_0."""
    return tuple(kind for kind in known if kind != "ancestral")
