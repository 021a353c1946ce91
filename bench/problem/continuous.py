"""The twin of CT and FM: their steps and samplers in float64, in the plainest PyTorch.

The step of a block at the t that each row has drawn, with embeddings u_y = W[y]
(arXiv:2503.24322v2, eqs. 9 and 12), gamma(t) = 6 - 9 t and alpha_bar = sigmoid(-gamma):

    CT   z = sqrt(alpha_bar) u_y + sqrt(1 - alpha_bar) eps;  u_hat = softmax(logits) @ W
         loss = mean over rows of 1/2 SNR'(t) |u_hat - u_y|^2,  SNR'(t) = 9 exp(-gamma)
    FM   z = t u_y + (1 - t) eps;  v_hat = logits @ W;  loss = mean of |v_hat - (u_y - eps)|^2

then Adam, whose weight decay is an L2 penalty. The block reads x, z and an embedding of t, sines
and cosines of 1000 t / 10000^(i / n).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, cat
from torch.nn.functional import conv2d, linear, max_pool2d

from .problem import GAMMA_0, GAMMA_1, Factors, Problem, Weights
from .twin import Mismatch, Result, embedding


class Levels(NamedTuple):
    """Of each t, in t's shape."""

    signal: Tensor
    noise: Tensor
    weight: Tensor


def levels(maths: str, t: Tensor) -> Levels:
    if maths == "fm":
        return Levels(t, 1 - t, torch.ones_like(t))
    gamma = GAMMA_1 + (GAMMA_0 - GAMMA_1) * t
    weight = 0.5 * (GAMMA_1 - GAMMA_0) * torch.exp(-gamma)
    return Levels(torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt(), weight)


def embed(t: Tensor, width: int) -> Tensor:
    """(*t.shape, width), in t's dtype."""
    n = width // 2
    scales = torch.tensor([1000 * 10_000 ** (-i / n) for i in range(n)], dtype=t.dtype)
    angle = t[..., None] * scales.to(t.device)
    return cat([angle.sin(), angle.cos()], dim=-1)


def encode(w: Weights, factors: Factors, r: int, x: Tensor) -> Tensor:
    """hx (B, H) of replica r: x (B, F) through a dense layer, images before it by convolutions."""
    for name in ("c1", "c2", "c3") if x.ndim == 4 else ():
        y = conv2d(x, w[f"{name}.weight"][r], w[f"{name}.bias"][r]).relu()
        y = y if name == "c2" else max_pool2d(y, 2)
        x = y * factors[name][r] if factors else y
    return linear(x.flatten(1), w["hx.weight"][r], w["hx.bias"][r]).relu()


def logits(w: Weights, r: int, hx: Tensor, z: Tensor, time: Tensor) -> Tensor:
    """(B, M) of replica r, of hx (B, H), z (B, D) and the embeddings of t."""

    def dense(name: str, x: Tensor) -> Tensor:
        return linear(x, w[f"{name}.weight"][r], w[f"{name}.bias"][r])

    f = cat([hx, dense("hz", z).relu(), dense("ht", time).relu()], dim=1)
    for name in ("f", "f1", "f2"):
        if f"{name}.weight" in w:
            f = dense(name, f).relu()
    return dense("logits", f)


def answer(maths: str, logits: Tensor, W: Tensor) -> Tensor:
    """u_hat of CT, or v_hat of FM, (B, D)."""
    return (logits if maths == "fm" else logits.softmax(dim=1)) @ W


def run(
    problem: Problem, maths: str, indices: Tensor, eps: Tensor, factors: Sequence[Factors] = ()
) -> Result:
    """Losses (K, R) and weights of R replicas after K steps, float64; arguments as of twin.run.

    Args:
        maths: "ct" or "fm".
        eps: (K, R, B, D + 1), the noise and t.
    """
    w = {name: value.double().requires_grad_() for name, value in problem.weights.items()}
    optimizer = torch.optim.Adam(w.values(), lr=problem.lr, weight_decay=problem.weight_decay)
    W, width = embedding(problem), problem.shape.plan.widths["t"]
    history = []
    for k, (rows, drawn) in enumerate(zip(indices, eps.double(), strict=True)):
        kept = {name: value.double() for name, value in (factors[k] if factors else {}).items()}
        x, u_y = rows_of(problem, problem.X[rows]), W[problem.Y[rows]]
        losses = []
        for r, of_replica in enumerate(drawn):
            e, t = of_replica[:, :-1], of_replica[:, -1]
            signal, noise, weight = levels(maths, t)
            z = signal[:, None] * u_y + noise[:, None] * e
            found = answer(maths, logits(w, r, encode(w, kept, r, x), z, embed(t, width)), W)
            target = u_y - e if maths == "fm" else u_y
            loss = (weight * (found - target).square().sum(dim=1)).mean()
            loss.backward()
            losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        history.append(torch.stack(losses))
    return torch.stack(history), {name: value.detach() for name, value in w.items()}


def rows_of(problem: Problem, x: Tensor) -> Tensor:
    """x (B, F) in float64, images as such."""
    image = problem.shape.image
    return x.double() if image is None else x.double().unflatten(1, image)


class Table(NamedTuple):
    """A sampler's steps z = a u_hat + b z + c eps at t, (steps,) float64 each."""

    t: Tensor
    a: Tensor
    b: Tensor
    c: Tensor


def table(sampler: str, steps: int) -> Table:
    """The equal steps of "ddim", "ancestral" (eq. 3) or of FM's "euler" from t = 0 to 1."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    if sampler == "euler":
        one = torch.ones(steps, dtype=torch.float64)
        return Table(t[:-1], one / steps, one, 0 * one)
    signal, noise, _ = levels("ct", t)
    before, now = signal[:-1].square(), signal[1:].square()
    if sampler == "ddim":
        b = noise[1:] / noise[:-1]
        return Table(t[:-1], signal[1:] - b * signal[:-1], b, torch.zeros_like(b))
    alpha = before / now
    a = now.sqrt() * (1 - alpha) / (1 - before)
    b = alpha.sqrt() * (1 - now) / (1 - before)
    return Table(t[:-1], a, b, ((1 - now) * (1 - alpha) / (1 - before)).sqrt())


def sample(problem: Problem, sampler: str, steps: int, x: Tensor, z: Tensor, eps: Tensor) -> Tensor:
    """The last z (B, D) from z (B, D) by replica 0, float64; eps (steps, B, D) or (steps, 1, 1)."""
    w = {name: value.double() for name, value in problem.weights.items()}
    W, width = embedding(problem), problem.shape.plan.widths["t"]
    maths = "fm" if sampler == "euler" else "ct"
    hx, z = encode(w, {}, 0, rows_of(problem, x)), z.double()
    numbers = table(sampler, steps)
    times = embed(numbers.t, width)
    for time, a, b, c, e in zip(times, *numbers[1:], eps.double(), strict=True):
        found = answer(maths, logits(w, 0, hx, z, time.expand(len(z), -1)), W)
        z = a * found + b * z + c * e
    return z


def check_sample(got: Tensor, want: Tensor) -> None:
    """Raise unless the float32 z (B, D) is the twin's within 1e-4; z is of the size of 1.

    Raises:
        Mismatch: it differs.
    """
    error = (got.double() - want).abs().max().item()
    if not error <= 1e-4:
        raise Mismatch(f"the last z differs from the float64 twin's by {error:.1e}")
