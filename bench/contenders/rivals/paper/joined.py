"""joined: the first convolution of all blocks as one, with 32 T channels, since they share x.

The rest runs a block at a time; the gradients of their first maps meet in one backward.
"""

from operator import itemgetter

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ....problem.problem import Problem, Weights
from ..sequential import adamw
from .eager import Eager
from .network import beside, dropped, each


class Joined(Eager):
    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        weight, bias = problem.weights["c1.weight"], problem.weights["c1.bias"]
        wide = weight.flatten(0, 1).clone(memory_format=self.memory_format)
        self.first = wide.requires_grad_(), bias.flatten().clone().requires_grad_()
        for block in self.blocks:
            del block.c1
        self.optimizers = [adamw(block.parameters(), problem) for block in self.blocks]
        self.optimizer = adamw(self.first, problem)

    def u_hat(self, t: int, x: Tensor, z: Tensor) -> Tensor:
        return self.blocks[t].rest(x, z, each(self.dropout, itemgetter(t)))

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        eps = self.draw(*indices.shape) if eps is None else eps
        history = []
        for rows, e in zip(indices, eps, strict=True):
            x, u_y = self.batch(rows)
            maps = max_pool2d(torch.conv2d(x, *self.first).relu(), 2)
            maps = dropped(maps, each(self.dropout, beside)["c1"])
            parts = [
                part.contiguous(memory_format=self.memory_format).requires_grad_()
                for part in maps.detach().chunk(self.shape.T, dim=1)
            ]
            losses = [self.step(t, part, u_y, e[t]) for t, part in enumerate(parts)]
            maps.backward(torch.cat([part.grad for part in parts], dim=1))
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            history.append(torch.stack(losses))
        return torch.stack(history)

    def weights(self) -> Weights:
        weight, bias = (w.detach().unflatten(0, (self.shape.T, -1)) for w in self.first)
        return super().weights() | {"c1.weight": weight.clone(), "c1.bias": bias.clone()}
