"""stacked: all replicas at once, eager autograd and one fused Adam on stacked weights.

`Stacked`: the MLP's layers as batched products, that on the shared x as one product with R H
columns; the weights of f are a tensor for each stem, so that nothing is concatenated. `Vmapped`:
one block's functions under torch.func.vmap, which makes grouped convolutions of its convolutions.
"""

import torch
from torch import Tensor
from torch.func import vmap

from ....problem.continuous import Levels, levels
from ....problem.problem import Problem, Weights
from ..paper.network import Drops
from ..stacked import stem
from .network import encode, logits, loss, noised
from .timed import Timed, adam

PARTS = ("f.x", "f.z", "f.t")


def split(weights: Weights) -> Weights:
    """Copies, with "f.weight" as the parts that read hx, hz and ht."""
    params = {name: value.clone() for name, value in weights.items()}
    parts = params.pop("f.weight").chunk(len(PARTS), dim=2)
    return params | {name: part.contiguous() for name, part in zip(PARTS, parts, strict=True)}


def join(params: Weights) -> Weights:
    """The inverse of `split`, detached copies."""
    weights = {name: value.detach().clone() for name, value in params.items()}
    weights["f.weight"] = torch.cat([weights.pop(name) for name in PARTS], dim=2)
    return weights


def forward(p: Weights, x: Tensor, z: Tensor, time: Tensor, shared: bool) -> Tensor:
    """Logits (R, B, M) of x (B, F), z (R, B, D) and the embeddings of t (R, B, width)."""

    def dense(name: str, x: Tensor) -> Tensor:
        return torch.baddbmm(p[f"{name}.bias"][:, None], x, p[f"{name}.weight"].mT)

    hx = stem(p["hx.weight"], p["hx.bias"], x, shared).relu()
    f = torch.baddbmm(p["f.bias"][:, None], hx, p["f.x"].mT)
    f = torch.baddbmm(f, dense("hz", z).relu(), p["f.z"].mT)
    return dense("logits", torch.baddbmm(f, dense("ht", time).relu(), p["f.t"].mT).relu())


class Vmapped(Timed):
    def __init__(self, problem: Problem, threads: int, *, maths: str) -> None:
        super().__init__(problem, threads, maths=maths)
        self.params = {name: w.requires_grad_() for name, w in self.first_stack().items()}
        self.optimizer = adam([*self.params.values()], problem)

    def first_stack(self) -> Weights:
        return {name: value.clone() for name, value in self.problem.weights.items()}

    def logits(self, x: Tensor, z: Tensor, time: Tensor) -> Tensor:
        """(R, B, M)."""

        def one(p: Weights, z: Tensor, time: Tensor, drops: Drops) -> Tensor:
            return logits(p, encode(p, x, drops), z, time)

        places = {name: 0 if isinstance(d, Tensor) else None for name, d in self.dropout.items()}
        return vmap(one, in_dims=(0, 0, 0, places), randomness="different")(
            self.params, z, time, self.dropout
        )

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        t, eps = self.drawn(indices, eps)
        numbers, history = levels(self.maths, t), []
        for k, rows in enumerate(indices):
            x, u_y = self.batch(rows)
            own = Levels(*(value[k] for value in numbers))
            found = self.logits(x, noised(own, u_y, eps[k]), self.embed(t[k]))
            losses = loss(self.maths, found, own.weight, u_y, eps[k])
            losses.sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            history.append(losses.detach())
        return torch.stack(history)

    def weights(self) -> Weights:
        return {name: value.detach().clone() for name, value in self.params.items()}


class Stacked(Vmapped):
    def first_stack(self) -> Weights:
        return split(self.problem.weights)

    def logits(self, x: Tensor, z: Tensor, time: Tensor) -> Tensor:
        return forward(self.params, x, z, time, shared=True)

    def weights(self) -> Weights:
        return join(self.params)
