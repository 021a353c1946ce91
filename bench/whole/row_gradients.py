"""What single rows give to a step of CT or FM with one-hot embeddings: their weights, gradients and
errors, by tenth of t."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import one_hot

import noprop_kernels as nk
from noprop_kernels.goal import Levels

TENTHS = 10
Goal = nk.CT | nk.FM


def effective_rows(goal: Goal, rows: int) -> float | None:
    """rows (E w)^2 / E w^2 for t uniform in [0, 1], weights w and a linear gamma; None of another.

    With v = -gamma(t), uniform in [-gamma_1, -gamma_0], the weight is min(e^v, k) but for a factor,
    and k is infinite under "snr", where the ratio is 2 / L tanh(L / 2), L = gamma_1 - gamma_0.
    """
    if isinstance(goal, nk.FM) or goal.weight == "uniform":
        return float(rows)
    if not isinstance(goal.schedule, nk.Gamma) or len(goal.schedule.values) > 2:
        return None
    low, high = (-goal.schedule.values).tolist()
    k = math.inf if goal.weight == "snr" else float(goal.weight[1])
    bend = min(max(math.log(k), low), high)
    flat = high - bend  # the part of [low, high] where the weight is k
    first = math.exp(bend) - math.exp(low) + (flat * k if flat else 0)
    second = (math.exp(2 * bend) - math.exp(2 * low)) / 2 + (flat * k**2 if flat else 0)
    return rows * first**2 / (second * (high - low))


def drawn_rows(weights: Tensor, rows: int) -> float:
    """rows (mean w)^2 / mean w^2 of weights of any shape."""
    return float(rows * weights.mean() ** 2 / weights.square().mean())


def shares(t: Tensor, weights: Tensor) -> list[float]:
    """The share of the weights in each tenth of t."""
    tenth = (t * TENTHS).long().clamp_max(TENTHS - 1).flatten()
    sums = torch.zeros(TENTHS, dtype=torch.float64).index_add_(0, tenth, weights.flatten())
    return (sums / sums.sum()).tolist()


def draws(tenth: int, rows: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """t (rows,) float64 in one tenth, and eps (rows, D)."""
    t = (tenth + torch.rand(rows, generator=generator, dtype=torch.float64)) / TENTHS
    return t, torch.randn(rows, classes, generator=generator)


def noisy(levels: Levels, u: Tensor, eps: Tensor) -> Tensor:
    """z_t (R, B, D) at levels (1, R, B)."""
    return levels.signal[0][..., None] * u + levels.noise[0][..., None] * eps


def errors(goal: Goal, u: Tensor, eps: Tensor, logits: Tensor) -> Tensor:
    """|u_hat - u_y|^2 or |v_hat - (u_y - z_0)|^2 (...) of logits (..., M)."""
    if isinstance(goal, nk.FM):
        return (logits - (u - eps)).square().sum(-1)
    return (logits.softmax(-1) - u).square().sum(-1)


@torch.no_grad()
def errors_by_tenth(blocks: nk.DenoisingBlocks, goal: Goal, x: Tensor, y: Tensor) -> list[float]:
    """Mean squared errors on rows x, over replicas."""
    generator, found = torch.Generator().manual_seed(0), []
    u = one_hot(y, blocks.M).float()
    for tenth in range(TENTHS):
        t, eps = draws(tenth, len(y), blocks.M, generator)
        t = t.expand(blocks.replicas, -1)
        logits = blocks.forward(x, noisy(goal.levels(t[None]), u, eps), t=t)
        found.append(float(errors(goal, u, eps, logits).mean()))
    return found


def row_gradients(
    blocks: nk.DenoisingBlocks, goal: Goal, x: Tensor, y: Tensor, replica: int, probes: int
) -> dict[str, Any]:
    """`summary` of the gradients of single rows of x, `probes` of them in each tenth of t."""
    generator = torch.Generator().manual_seed(replica)
    module = blocks.block(1, replica=replica)
    params = {name: value.detach() for name, value in module.named_parameters()}

    def loss(
        params: dict[str, Tensor], x: Tensor, u: Tensor, z: Tensor, t: Tensor, eps: Tensor
    ) -> Tensor:
        inputs = {"x": x, "z": z, "t": t}
        row = tuple(inputs[name][None] for name in blocks.plan.inputs)
        return errors(goal, u, eps, functional_call(module, params, row)[0])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0, 0))
    means, lengths = [], []
    for tenth in range(TENTHS):
        rows = torch.randint(len(y), (probes,), generator=generator)
        t, eps = draws(tenth, probes, blocks.M, generator)
        levels = goal.levels(t[None, None])
        u = one_hot(y[rows], blocks.M).float()
        z, features = noisy(levels, u, eps)[0], nk.embed_time(t, blocks.plan.widths["t"])
        found = gradients(params, x[rows], u, z, features, eps)
        flat = torch.cat([value.flatten(1) for value in found.values()], 1)  # (probes, P)
        flat = flat.double() * levels.weight[0, 0, :, None]
        means.append(flat.mean(0))
        lengths.append(flat.norm(dim=1))
    return summary(torch.stack(means), torch.stack(lengths))


def summary(means: Tensor, lengths: Tensor) -> dict[str, Any]:
    """Of the gradients g of single rows, their means (TENTHS, P) and lengths (TENTHS, probes).

    The squared length of the mean of n rows is by (E |g|^2 - |E g|^2) / n above |E g|^2, which is
    taken off.
    """
    n, squares = lengths.shape[1], lengths.square().mean(1)  # E |g|^2 in each tenth
    own = (n * means.square().sum(1) - squares) / (n - 1)  # |E g|^2 in each tenth
    products = means @ means.T
    whole = (products.sum() - products.diagonal().sum() + own.sum()) / TENTHS**2
    return {
        "share": (squares / squares.sum()).tolist(),
        "variance": float(squares.mean() - whole),
        "between_tenths": float(own.mean() - whole),
        "squared_mean": float(whole),
        "rows": drawn_rows(lengths, 1),
    }


def mean_of(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over replicas; ratios are of means."""
    by_name = {
        name: torch.tensor([one[name] for one in found], dtype=torch.float64).mean(0)
        for name in found[0]
    }
    variance = by_name["variance"]
    return {
        "share": by_name["share"].tolist(),
        "rows": float(by_name["rows"]),
        "noise_scale": float(variance / by_name["squared_mean"]),
        "stratified_off": float(by_name["between_tenths"] / variance),
    }
