"""The twin of CT's coupled step: block, output head and a learned gamma by one loss, in float64.

    loss = the block's, of levels by gamma(t), + cross entropy of the head at z_1 + prior
    gamma(t) = gamma_0 + softplus(delta) (1 - (net(t) - net(0)) / (net(1) - net(0)))
    net(t)   = softplus(w2) . tanh(softplus(w1) (t - 1/2) + b1)

(arXiv:2503.24322v2, eqs. 9 and 65 to 67), then Adam with an L2 penalty on all of them. In the maths
"apart" gamma is fixed, 6 - 9 t, so that block and head have nothing in common. Labels are one-hot.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, logsigmoid, softplus

from . import continuous, twin
from .continuous import Levels
from .problem import GAMMA_0, GAMMA_1, Factors, Problem, Weights

MATHS = ("coupled", "apart")


class Scale(NamedTuple):
    """gamma's levels at the rows' t, and gamma at t = 1 and 0."""

    rows: Levels
    gamma_0: Tensor
    gamma_1: Tensor


def scale(p: Weights, t: Tensor) -> Scale:
    """By gamma's parameters, or the fixed gamma where there are none; t (B,)."""
    if "gamma.w1" not in p:
        return Scale(continuous.levels("ct", t), t.new_tensor(GAMMA_0), t.new_tensor(GAMMA_1))
    w1, w2 = softplus(p["gamma.w1"][0]), softplus(p["gamma.w2"][0])
    gamma_0, spread = p["gamma.gamma_0"][0], softplus(p["gamma.delta"][0])
    at = torch.cat([t, t.new_tensor([0.0, 1.0])]) - 0.5
    h = torch.tanh(at[:, None] * w1 + p["gamma.b1"][0])
    net = h @ w2
    rise = net[-1] - net[-2]
    gamma = gamma_0 + spread * (1 - (net[:-2] - net[-2]) / rise)
    slope = spread * ((1 - h[:-2].square()) @ (w1 * w2)) / rise  # of -gamma
    signal, noise = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
    return Scale(Levels(signal, noise, 0.5 * slope * torch.exp(-gamma)), gamma_0, gamma_0 + spread)


def rest_of_loss(p: Weights, s: Scale, y: Tensor, u_y: Tensor, eps: Tensor) -> Tensor:
    """The head's cross entropy at z_1 of the noise eps (B, D), and the prior."""
    signal, noise = torch.sigmoid(-s.gamma_0).sqrt(), torch.sigmoid(s.gamma_0).sqrt()
    logits = linear(signal * u_y + noise * eps, p["head.weight"][0], p["head.bias"][0])
    first, D = torch.sigmoid(-s.gamma_1), u_y.shape[1]
    prior = 0.5 * (first - D * first - D * logsigmoid(s.gamma_1))
    return cross_entropy(logits, y) + prior


def run(
    problem: Problem, maths: str, indices: Tensor, eps: Tensor, factors: Sequence[Factors] = ()
) -> tuple[Tensor, Weights]:
    """The block's losses (K, 1) and all weights after K steps, float64; arguments as of twin.run.

    Args:
        maths: one of MATHS.
        eps: (K, 1, B, 2 D + 1), the noise, t, and the head's noise.
    """
    start = twin.first_weights(problem, maths)
    w = {name: value.double().requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.Adam(w.values(), lr=problem.lr, weight_decay=problem.weight_decay)
    D, width = problem.shape.D, problem.shape.plan.widths["t"]
    W, history = torch.eye(problem.shape.M, dtype=torch.float64), []
    for k, (rows, drawn) in enumerate(zip(indices, eps.double(), strict=True)):
        kept = {name: value.double() for name, value in (factors[k] if factors else {}).items()}
        y = problem.Y[rows]
        e, t, end = drawn[0].split([D, 1, D], dim=1)
        x, u_y, t = continuous.rows_of(problem, problem.X[rows]), W[y], t[:, 0]
        levels = scale(w, t)
        z = levels.rows.signal[:, None] * u_y + levels.rows.noise[:, None] * e
        hx, time = continuous.encode(w, kept, 0, x), continuous.embed(t, width)
        u_hat = continuous.logits(w, 0, hx, z, time).softmax(dim=1)
        loss = (levels.rows.weight * (u_hat - u_y).square().sum(dim=1)).mean()
        (loss + rest_of_loss(w, levels, y, u_y, end)).backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(loss.detach()[None])
    return torch.stack(history), {name: value.detach() for name, value in w.items()}
