"""The learned schedule of continuous time: gamma(t) by a network of positive weights.

    net(t)   = softplus(w2) . tanh(softplus(w1) (t - 1/2) + b1)
    gbar(t)  = (net(t) - net(0)) / (net(1) - net(0))
    gamma(t) = gamma_0 + (gamma_1 - gamma_0) (1 - gbar(t)),  gamma_1 = gamma_0 + softplus(delta)

arXiv:2503.24322v2, eqs. 65 to 67. Positive weights make gbar grow, so that gamma falls from gamma_1
at t = 0 to gamma_0 at t = 1 whatever the parameters. The width, tanh and the first values are those
of Plaid (arXiv:2305.18619), the paper's source; its factor 0.01 of w2 cancels in gbar.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .check import LARGEST, check_number, check_positive
from .philox import BLOCK_SHARED, STREAM_INITIALISATION, normal

NORMAL = ("w1", "b1", "w2")  # drawn from N(0, 1) at first, each at the site of its place here
NAMES = (*NORMAL, "gamma_0", "delta")


@dataclass(frozen=True)
class GammaNetwork:
    """The paper's learned gamma(t) for nk.CT; nk.Shared holds its parameters and trains them.

    Args:
        hidden: width of the network.
        gamma_0: gamma(1) at first, at the label's end; -3 is SNR(1) = 20.1, alpha_bar_1 = .953.
        gamma_1: gamma(0) at first, at the noise's end; 6 is alpha_bar_0 = .0025.

    Raises:
        ValueError: a number does not fit.
    """

    hidden: int = 1024
    gamma_0: float = -3.0
    gamma_1: float = 6.0

    def __post_init__(self) -> None:
        op = "GammaNetwork"
        object.__setattr__(self, "hidden", check_positive(op, "hidden", self.hidden))
        for name in ("gamma_0", "gamma_1"):
            rule = "be a finite number", lambda value: abs(value) <= LARGEST
            object.__setattr__(self, name, check_number(op, name, getattr(self, name), *rule))
        if self.gamma_1 <= self.gamma_0:
            raise ValueError(
                f"{op}: gamma_1 must be above gamma_0, got {self.gamma_1} and {self.gamma_0}"
            )

    def initial_parameters(self, seeds: Tensor) -> dict[str, Tensor]:
        """The first values of NAMES, (R, hidden) or (R,) float32, for seeds (R,) int64."""
        params = {}
        for site, name in enumerate(NORMAL):
            address = (STREAM_INITIALISATION, site, 0, BLOCK_SHARED, 1, self.hidden)
            params[name] = normal(seeds, *address)[:, 0].contiguous()
        spread = self.gamma_1 - self.gamma_0
        delta = spread + math.log(-math.expm1(-spread))  # softplus(delta) = spread
        for name, value in (("gamma_0", self.gamma_0), ("delta", delta)):
            params[name] = torch.full_like(seeds, value, dtype=torch.float32)
        return params


class LearnedGamma:
    """gamma(t) of R replicas at parameters NAMES, (R, ...), differentiable in them, in float64.

    Each replica is evaluated apart, so that its sums do not depend on R.
    """

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        self.replicas = [
            [value.double() for value in one]
            for one in zip(*(params[name].unbind(0) for name in NAMES), strict=True)
        ]

    def __call__(self, t: Tensor) -> Tensor:
        """gamma at t in [0, 1], float64: (K, R, B), or of any shape where R = 1."""
        return self.with_slope(t)[0]

    def with_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """gamma(t) and gamma'(t), below 0."""
        ts = t.double().unbind(1) if len(self.replicas) > 1 else (t.double(),)
        pairs = [evaluate(one, part) for one, part in zip(self.replicas, ts, strict=True)]
        if len(pairs) == 1:
            return pairs[0]
        gamma, slope = (torch.stack(values, 1) for values in zip(*pairs, strict=True))
        return gamma, slope

    def ends(self) -> tuple[Tensor, Tensor]:
        """gamma(0) and gamma(1), (R,) each."""
        last = torch.stack([gamma_0 for *_, gamma_0, _ in self.replicas])
        spread = softplus(torch.stack([delta for *_, delta in self.replicas]))
        return last + spread, last


def evaluate(params: list[Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    """gamma(t) and gamma'(t) of one replica.

    gbar'(t) = sum of w1 w2 (1 - tanh^2) / (net(1) - net(0)), for w1 and w2 behind their softplus.
    """
    w1, b1, w2, gamma_0, delta = (value.to(t.device) for value in params)
    w1, w2, spread = softplus(w1), softplus(w2), softplus(delta)
    ends = torch.arange(2, dtype=t.dtype, device=t.device)
    at = torch.cat([t.flatten(), ends]) - 0.5
    h = torch.tanh(at[:, None] * w1 + b1)  # (P + 2, H)
    net = h @ w2
    rise = net[-1] - net[-2]
    gbar = (net[:-2] - net[-2]) / rise
    gbar_slope = (1 - h[:-2].square()) @ (w1 * w2) / rise
    return (
        (gamma_0 + spread * (1 - gbar)).view(t.shape),
        (-spread * gbar_slope).view(t.shape),
    )
