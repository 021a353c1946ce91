"""stacked: all T blocks as batched products, eager autograd, one fused AdamW on stacked weights.

Two forms of the layer that reads the shared x: one GEMM with T * H columns, or baddbmm of x
expanded to (T, B, F). The weights of f are two tensors, so that (hx, hz) is never concatenated.
"""

import torch
from torch import Tensor

from ...problem.problem import Problem, Weights
from ..contender import Contender
from .sequential import adamw


def split(weights: Weights) -> Weights:
    """Copies, with "f.weight" as "f.x" and "f.z", the halves that read hx and hz."""
    params = {name: value.clone() for name, value in weights.items()}
    params["f.x"], params["f.z"] = (
        half.contiguous() for half in params.pop("f.weight").chunk(2, dim=2)
    )
    return params


def join(params: Weights) -> Weights:
    """The inverse of `split`, detached copies."""
    weights = {name: value.detach().clone() for name, value in params.items()}
    weights["f.weight"] = torch.cat([weights.pop("f.x"), weights.pop("f.z")], dim=2)
    return weights


def stem(weight: Tensor, bias: Tensor, x: Tensor, shared: bool) -> Tensor:
    """x @ weight.mT + bias: (T, B, H) of weight (T, H, F) and x (B, F)."""
    T, H, F = weight.shape
    if shared:
        wide = torch.addmm(bias.view(T * H), x, weight.view(T * H, F).T)
        return wide.view(-1, T, H).transpose(0, 1)
    return torch.baddbmm(bias[:, None], x.expand(T, -1, -1), weight.mT)


def forward(p: Weights, x: Tensor, z: Tensor, shared: bool) -> Tensor:
    """Logits (T, B, M) of x (B, F) and z (T, B, D)."""
    hx = stem(p["hx.weight"], p["hx.bias"], x, shared).relu()
    hz = torch.baddbmm(p["hz.bias"][:, None], z, p["hz.weight"].mT).relu()
    f = torch.baddbmm(torch.baddbmm(p["f.bias"][:, None], hx, p["f.x"].mT), hz, p["f.z"].mT).relu()
    return torch.baddbmm(p["logits.bias"][:, None], f, p["logits.weight"].mT)


def losses_of(logits: Tensor, u_y: Tensor, weight: Tensor, W_embed: Tensor | None = None) -> Tensor:
    """(T,) of logits (T, B, M), u_y (B, D) and W_embed (M, D), or None for one-hot."""
    u_hat = logits.softmax(dim=2, dtype=torch.float32)
    error = ((u_hat if W_embed is None else u_hat @ W_embed) - u_y).square()
    return weight * error.sum(dim=2).mean(dim=1)


class Stacked(Contender):
    def __init__(self, problem: Problem, threads: int, *, shared: bool = True) -> None:
        super().__init__(problem, threads)
        self.shared = shared
        self.params = {name: w.requires_grad_() for name, w in self.first_params().items()}
        self.optimizer = self.make_optimizer()
        self.signal, self.noise = problem.signal[:, None, None], problem.noise[:, None, None]

    def first_params(self) -> Weights:
        return split(self.problem.weights)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return adamw(self.params.values(), self.problem)

    def losses(self, x: Tensor, u_y: Tensor, eps: Tensor) -> Tensor:
        """(T,) of x (B, F), u_y (B, D) and eps (T, B, D)."""
        z = self.signal * u_y + self.noise * eps
        with self.autocast():
            logits = forward(self.params, x, z, self.shared)
        return losses_of(logits, u_y, self.problem.weight, self.problem.embedding)

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        eps = self.draw(*indices.shape) if eps is None else eps
        history = []
        for rows, e in zip(indices, eps, strict=True):
            losses = self.losses(*self.batch(rows), e)
            losses.sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            history.append(losses.detach())
        return torch.stack(history)

    def weights(self) -> Weights:
        return join(self.params)


class StackedSGD(Stacked):
    """No rival, since baddbmm_sgd is faster, but what PyTorch's rounding is judged by."""

    maths = "sgd"

    def make_optimizer(self) -> torch.optim.Optimizer:
        lr, weight_decay = self.problem.lr, self.problem.weight_decay
        return torch.optim.SGD(self.params.values(), lr=lr, weight_decay=weight_decay)
